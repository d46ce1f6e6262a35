//! What a log showed of itself last, and whether what it shows now is the same tree, grown.
//!
//! The newest checkpoint of each tree is kept in a file, whole or not at all. Two roots for one size, a tree that does
//! not extend the one before, or a smaller one that stays smaller, are an alarm: it is kept in the file, too, with the
//! checkpoint that raised it, and all fails until the file is gone.
//!
//! Many ask at once, and their answers overtake each other. A checkpoint smaller than the newest is suspicious only if
//! it is smaller than what was seen before the request began; it must be of the same tree in any case.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use stella_attest::checkpoint::Checkpoint;
use stella_attest::fork::ForkProof;
use stella_attest::json;
use stella_attest::merkle::Hash;
use stella_attest::note::Note;
use stella_attest::trust::TrustedLog;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::OpenError;
use crate::{Forks, LogError};

/// How many roots are remembered, so that a size seen before need not be proven again.
const REMEMBERED: usize = 4096;
/// Largest note that is kept: hundreds of times what logs and their witnesses write.
const MAX_KEPT_NOTE: usize = 64 << 10;
/// Most trees of one log: a Rekor v1 begins a new one every year or so.
const MAX_TREES: usize = 64;
/// Largest state file: the notes of all trees and of an alarm, each character of which may be escaped, and a proof.
const MAX_FILE: usize = 2 * (MAX_TREES + 4) * MAX_KEPT_NOTE;
/// The pause before a smaller tree is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A checkpoint that the log's key signed, and its note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signed {
    pub(super) checkpoint: Checkpoint,
    pub(super) note: String,
}

impl Signed {
    /// Reads a note that the log must have signed.
    pub(super) fn read(note: &str, log: &TrustedLog) -> Result<Self, LogError> {
        let parsed = Note::parse(note.as_bytes())
            .map_err(|error| invalid("CHECKPOINT_MALFORMED", error.to_string()))?;
        let checkpoint = log
            .key
            .verify_checkpoint(&parsed)
            .map_err(|error| invalid(error.reason(), error.to_string()))?;
        Ok(Self {
            checkpoint,
            note: note.to_owned(),
        })
    }
}

pub(super) fn invalid(reason: &'static str, detail: impl Into<String>) -> LogError {
    LogError::AnswerInvalid {
        reason,
        detail: detail.into(),
    }
}

/// How a checkpoint is related to a smaller one.
pub(super) enum Relation {
    /// The smaller one is its beginning.
    Extends,
    /// It is not, as the log itself shows.
    Differs(Option<Beginning>),
}

/// The beginning that a larger tree really has.
pub(super) struct Beginning {
    /// The root over as many leaves as the smaller tree has.
    pub(super) root: Hash,
    /// RFC 6962 consistency proof from there.
    pub(super) proof: Vec<Hash>,
}

/// What keeps a log from being trusted, and the proof of it, if it is one that can be shown to others.
struct Alarm {
    error: LogError,
    fork: Option<ForkProof>,
}

impl From<LogError> for Alarm {
    fn from(error: LogError) -> Self {
        Self { error, fork: None }
    }
}

/// Asks the log about its history.
///
/// All methods fail as those of [`LogReader`](super::LogReader) do.
#[async_trait]
pub(super) trait History: Send + Sync {
    /// How `new` is related to `old`, which is of the same tree, smaller, and not empty.
    async fn relation(
        &self,
        old: &Checkpoint,
        new: &Checkpoint,
        deadline: Instant,
    ) -> Result<Relation, LogError>;

    /// The newest checkpoint that the log shows.
    async fn current(&self, deadline: Instant) -> Result<Signed, LogError>;

    /// The last checkpoint of the tree `origin` that the log has replaced by another, if it says that it has.
    async fn replaced(&self, origin: &str, deadline: Instant) -> Result<Option<Signed>, LogError>;
}

/// The sizes seen when a request began.
pub(super) struct Mark(Vec<(String, u64)>);

impl Mark {
    fn size(&self, origin: &str) -> u64 {
        let of_it = self.0.iter().find(|(name, _)| name == origin);
        of_it.map_or(0, |(_, size)| *size)
    }
}

/// See the module's text.
pub(super) struct Seen {
    log: TrustedLog,
    stale_timeout: Duration,
    file: Option<PathBuf>,
    view: Arc<Mutex<View>>,
    /// Held by whoever compares and keeps.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// The fork that was seen, for as long as its alarm lasts.
    forks: watch::Sender<Option<Arc<ForkProof>>>,
}

#[derive(Clone, Default)]
struct View {
    /// The newest checkpoint of each tree; the tree that is written to comes last.
    trees: Vec<Signed>,
    roots: BTreeMap<(String, u64), Hash>,
    alarm: Option<LogError>,
    /// Whether the alarm stands in the file, so that an operator can clear it by removing that.
    is_kept: bool,
    /// What raised it.
    evidence: String,
    /// What proves it to others.
    fork: Option<Arc<ForkProof>>,
}

impl View {
    fn tree(&self, origin: &str) -> Option<&Signed> {
        self.trees
            .iter()
            .find(|signed| signed.checkpoint.origin == origin)
    }

    fn remember(&mut self, checkpoint: &Checkpoint) {
        while self.roots.len() >= REMEMBERED {
            self.roots.pop_first();
        }
        self.roots
            .insert((checkpoint.origin.clone(), checkpoint.size), checkpoint.root);
    }

    fn keep(&mut self, signed: Signed) {
        self.remember(&signed.checkpoint);
        let origin = &signed.checkpoint.origin;
        match self
            .trees
            .iter_mut()
            .find(|kept| kept.checkpoint.origin == *origin)
        {
            Some(kept) => *kept = signed,
            None => self.trees.push(signed),
        }
    }

    fn to_value(&self) -> Value {
        let notes: Vec<&str> = self.trees.iter().map(|signed| signed.note.as_str()).collect();
        let alarm = self.alarm.as_ref().map(|alarm| {
            let detail = match alarm {
                LogError::Forked(detail) | LogError::RolledBack(detail) => detail.clone(),
                other => other.to_string(),
            };
            let fork = self.fork.as_ref().map(|fork| fork.to_value());
            json!({"checkpoint": self.evidence, "detail": detail, "fork": fork, "reason": alarm.reason()})
        });
        json!({"alarm": alarm, "checkpoints": notes})
    }
}

impl Seen {
    /// What is kept of `log` in `directory`; without one nothing is kept beyond this value.
    pub(super) fn open(
        log: TrustedLog,
        directory: Option<&Path>,
        stale_timeout: Duration,
    ) -> Result<Self, OpenError> {
        let file = directory.map(|directory| directory.join(format!("{}.json", hex::encode(log.key.log_id))));
        let mut view = View::default();
        if let Some(file) = &file {
            let unreadable = |detail: String| OpenError::State {
                file: file.clone(),
                detail,
            };
            match fs::read(file) {
                Ok(bytes) => view = read_state(&bytes, &log).map_err(unreadable)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let parent = file.parent().unwrap_or(Path::new("."));
                    fs::create_dir_all(parent).map_err(|error| unreadable(error.to_string()))?;
                }
                Err(error) => return Err(unreadable(error.to_string())),
            }
        }
        if let Some(alarm) = &view.alarm {
            tracing::error!(log = log.name(), %alarm, "this log is not trusted until its state file is removed");
        }
        alarm_gauge(&log).set(u8::from(view.alarm.is_some()));
        Ok(Self {
            log,
            stale_timeout,
            file,
            forks: watch::Sender::new(view.fork.clone()),
            view: Arc::new(Mutex::new(view)),
            gate: Arc::default(),
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sizes seen so far, for a request that begins now.
    ///
    /// # Errors
    /// The alarm, if one was raised and the state file is still there.
    pub(super) fn mark(&self) -> Result<Mark, LogError> {
        let mut view = self.view();
        if let Some(alarm) = &view.alarm {
            let is_cleared = view.is_kept && self.file.as_ref().is_some_and(|file| !file.exists());
            if !is_cleared {
                return Err(alarm.clone());
            }
            tracing::warn!(
                log = self.log.name(),
                "the state file was removed, the log is trusted anew"
            );
            *view = View::default();
            alarm_gauge(&self.log).set(0);
            self.forks.send_replace(None);
        }
        let sizes = view.trees.iter().map(|signed| &signed.checkpoint);
        Ok(Mark(sizes.map(|kept| (kept.origin.clone(), kept.size)).collect()))
    }

    /// The fork that was seen, now and whenever that changes.
    pub(super) fn forks(&self) -> Forks {
        self.forks.subscribe()
    }

    /// The newest checkpoint of the tree that is written to.
    pub(super) fn newest(&self) -> Option<Signed> {
        self.view().trees.last().cloned()
    }

    /// Holds `signed` against what was seen, and keeps it if it is newer.
    ///
    /// # Errors
    /// `LOG_FORK` and `LOG_ROLLED_BACK`, which stay; whatever kept the log from being asked, which does not.
    pub(super) async fn observe(
        &self,
        signed: &Signed,
        mark: &Mark,
        log: &dyn History,
        deadline: Instant,
    ) -> Result<(), LogError> {
        if signed.note.len() > MAX_KEPT_NOTE {
            let detail = format!("a checkpoint of {} bytes", signed.note.len());
            return Err(invalid("CHECKPOINT_TOO_LARGE", detail));
        }
        let waited = timeout_at(deadline, self.gate.clone().lock_owned()).await;
        let gate =
            waited.map_err(|_| LogError::Unavailable("its history could not be compared in time".into()))?;
        let shown = &signed.checkpoint;
        let (seen_root, known) = {
            let view = self.view();
            if let Some(alarm) = &view.alarm {
                return Err(alarm.clone());
            }
            let root = view.roots.get(&(shown.origin.clone(), shown.size)).copied();
            (root, view.tree(&shown.origin).cloned())
        };
        let is_smaller = shown.size < mark.size(&shown.origin);
        match seen_root {
            Some(root) if root != shown.root => {
                // The alarm first: to look for a proof of it takes the liar's own answers.
                let alarm = self.raise(two_roots(shown.size).into(), signed, gate).await;
                let until = deadline.min(Instant::now() + self.stale_timeout);
                if let Some(known) = &known
                    && let Some(fork) = contradiction(signed, known, log, until).await
                {
                    self.prove(fork).await;
                }
                return Err(alarm);
            }
            // A size that was seen before may be what the log has shrunk to.
            Some(_) if !is_smaller => return Ok(()),
            _ => {}
        }
        let Some(known) = known else {
            let mut next = self.view().clone();
            if next.trees.is_empty() || self.was_replaced(log, deadline).await? {
                next.keep(signed.clone());
            } else if is_retired(shown, log, deadline).await? {
                next.remember(shown);
                next.trees.insert(0, signed.clone());
            } else {
                let detail = format!(
                    "the tree `{}` took the place of the one seen before",
                    shown.origin
                );
                return Err(self.raise(LogError::Forked(detail).into(), signed, gate).await);
            }
            return self.store(next, gate).await;
        };
        if is_smaller && let Some(alarm) = self.is_alarming(&known, log, deadline).await? {
            return Err(self.raise(alarm, signed, gate).await);
        }
        let (old, new) = if shown.size < known.checkpoint.size {
            (signed, &known)
        } else {
            (&known, signed)
        };
        if let Relation::Differs(beginning) =
            relation(&old.checkpoint, &new.checkpoint, log, deadline).await?
        {
            let (old_size, new_size) = (old.checkpoint.size, new.checkpoint.size);
            let error = LogError::Forked(format!(
                "its tree of {new_size} does not extend the one of {old_size}"
            ));
            let fork = beginning.map(|beginning| fork_proof(old, new, beginning));
            return Err(self.raise(Alarm { error, fork }, signed, gate).await);
        }
        if shown.size > known.checkpoint.size {
            self.keep(signed, gate).await
        } else {
            self.view().remember(shown);
            Ok(())
        }
    }

    /// True if the log says itself that the last tree seen was replaced, and shows it whole.
    async fn was_replaced(&self, log: &dyn History, deadline: Instant) -> Result<bool, LogError> {
        let Some(last) = self.newest() else {
            return Ok(true);
        };
        is_retired(&last.checkpoint, log, deadline).await
    }

    /// Looks whether the log has really shrunk, or an old copy was read: the alarm, if it has.
    async fn is_alarming(
        &self,
        known: &Signed,
        log: &dyn History,
        deadline: Instant,
    ) -> Result<Option<Alarm>, LogError> {
        let Signed {
            checkpoint: known,
            note,
        } = known;
        let until = deadline.min(Instant::now() + self.stale_timeout);
        loop {
            let mut shown = log.current(deadline).await?;
            if shown.checkpoint.origin != known.origin {
                let Some(retired) = log.replaced(&known.origin, deadline).await? else {
                    let detail = format!(
                        "the tree `{}` took the place of the one seen before",
                        shown.checkpoint.origin
                    );
                    return Ok(Some(LogError::Forked(detail).into()));
                };
                shown = retired;
            }
            let current = &shown.checkpoint;
            if current.size == known.size && current.root != known.root {
                let fork = ForkProof {
                    first: note.clone(),
                    second: shown.note,
                    root: current.root,
                    consistency: Vec::new(),
                };
                return Ok(Some(Alarm {
                    error: two_roots(known.size),
                    fork: Some(fork),
                }));
            }
            if current.size >= known.size {
                return Ok(None);
            }
            if Instant::now() + LOOK_AGAIN >= until {
                let detail = format!("it has {} entries and had {}", current.size, known.size);
                return Ok(Some(LogError::RolledBack(detail).into()));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn keep(&self, signed: &Signed, gate: OwnedMutexGuard<()>) -> Result<(), LogError> {
        let mut next = self.view().clone();
        next.keep(signed.clone());
        self.store(next, gate).await
    }

    /// Raises the alarm, which holds even if it cannot be written.
    async fn raise(&self, alarm: Alarm, signed: &Signed, gate: OwnedMutexGuard<()>) -> LogError {
        let Alarm { error: alarm, fork } = alarm;
        let reason = alarm.reason();
        tracing::error!(log = self.log.name(), file = ?self.file, reason, %alarm, "ALARM: this log is not trusted any more");
        alarm_gauge(&self.log).set(1);
        let mut next = self.view().clone();
        next.alarm = Some(alarm.clone());
        next.evidence = signed.note.clone();
        next.fork = fork.and_then(|fork| self.proven(fork));
        *self.view() = next.clone();
        self.forks.send_replace(next.fork.clone());
        next.is_kept = true;
        if let Err(error) = self.store(next, gate).await {
            tracing::error!(log = self.log.name(), %error, "the alarm could not be written");
        }
        alarm
    }

    /// Keeps the proof of an alarm that was raised without one.
    async fn prove(&self, fork: ForkProof) {
        let Some(fork) = self.proven(fork) else { return };
        let gate = self.gate.clone().lock_owned().await;
        let mut next = self.view().clone();
        // An operator may have cleared it meanwhile.
        if next.alarm.is_none() {
            return;
        }
        next.fork = Some(fork);
        self.forks.send_replace(next.fork.clone());
        if let Err(error) = self.store(next, gate).await {
            tracing::error!(log = self.log.name(), %error, "the proof of the fork could not be written");
        }
    }

    /// What a liar shows beside its two checkpoints need not hold.
    fn proven(&self, fork: ForkProof) -> Option<Arc<ForkProof>> {
        fork.verify(&self.log.key).is_ok().then(|| Arc::new(fork))
    }

    /// Writes `next`, then lets it be seen. Goes on if the caller is gone, with the gate closed.
    async fn store(&self, next: View, gate: OwnedMutexGuard<()>) -> Result<(), LogError> {
        let Some(file) = self.file.clone() else {
            *self.view() = next;
            return Ok(());
        };
        let view = self.view.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let _gate = gate;
            write(&file, next.to_value().to_string().as_bytes())?;
            *view.lock().unwrap_or_else(PoisonError::into_inner) = next;
            Ok(())
        });
        match stored.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(LogError::Storage(Arc::new(error))),
            Err(error) => Err(LogError::Storage(Arc::new(io::Error::other(error)))),
        }
    }
}

/// 1 while the log is not trusted.
fn alarm_gauge(log: &TrustedLog) -> metrics::Gauge {
    metrics::gauge!("stella_log_alarm", "log_id" => hex::encode(log.key.log_id))
}

fn two_roots(size: u64) -> LogError {
    LogError::Forked(format!("it signed two roots for size {size}"))
}

/// How `new` is related to `old`, which is of the same tree and no larger.
async fn relation(
    old: &Checkpoint,
    new: &Checkpoint,
    log: &dyn History,
    deadline: Instant,
) -> Result<Relation, LogError> {
    if old.size == 0 || (old.size, old.root) == (new.size, new.root) {
        return Ok(Relation::Extends);
    }
    if old.size == new.size {
        return Ok(Relation::Differs(Some(Beginning {
            root: new.root,
            proof: Vec::new(),
        })));
    }
    log.relation(old, new, deadline).await
}

fn fork_proof(old: &Signed, new: &Signed, beginning: Beginning) -> ForkProof {
    ForkProof {
        first: old.note.clone(),
        second: new.note.clone(),
        root: beginning.root,
        consistency: beginning.proof,
    }
}

/// The proof that `shown`, which has another root than was seen for its size, and `known` are a fork; none if the log
/// does not show it.
async fn contradiction(
    shown: &Signed,
    known: &Signed,
    log: &dyn History,
    deadline: Instant,
) -> Option<ForkProof> {
    let (old, new) = if shown.checkpoint.size <= known.checkpoint.size {
        (shown, known)
    } else {
        (known, shown)
    };
    match relation(&old.checkpoint, &new.checkpoint, log, deadline).await {
        Ok(Relation::Differs(Some(beginning))) => Some(fork_proof(old, new, beginning)),
        _ => None,
    }
}

/// True if the log says that it has replaced the tree of `seen`, and what it shows of that tree extends `seen`.
async fn is_retired(seen: &Checkpoint, log: &dyn History, deadline: Instant) -> Result<bool, LogError> {
    let Some(last) = log.replaced(&seen.origin, deadline).await? else {
        return Ok(false);
    };
    let last = last.checkpoint;
    match seen.size {
        0 => Ok(true),
        size if size < last.size => {
            let relation = log.relation(seen, &last, deadline).await?;
            Ok(matches!(relation, Relation::Extends))
        }
        size => Ok((size, seen.root) == (last.size, last.root)),
    }
}

/// Replaces the file as a whole: what a crash leaves is the old one or the new one.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = file.with_extension("json.next");
    let mut out = File::create(&next)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&next, file)?;
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn read_state(bytes: &[u8], log: &TrustedLog) -> Result<View, String> {
    let limits = json::Limits {
        bytes: MAX_FILE,
        depth: 5,
        ..json::Limits::default()
    };
    let state = json::parse(bytes, &limits).map_err(|error| error.to_string())?;
    let mut view = View::default();
    let notes = state["checkpoints"].as_array().ok_or("it has no checkpoints")?;
    if notes.len() > MAX_TREES {
        return Err("it has too many checkpoints".into());
    }
    for note in notes {
        let signed =
            Signed::read(note.as_str().unwrap_or_default(), log).map_err(|error| error.to_string())?;
        view.keep(signed);
    }
    let alarm = &state["alarm"];
    let detail = alarm["detail"].as_str().unwrap_or_default().to_owned();
    view.alarm = match alarm["reason"].as_str() {
        Some("LOG_FORK") => Some(LogError::Forked(detail)),
        Some("LOG_ROLLED_BACK") => Some(LogError::RolledBack(detail)),
        None if alarm.is_null() => None,
        _ => return Err("its alarm is of no known kind".into()),
    };
    view.is_kept = view.alarm.is_some();
    view.evidence = alarm["checkpoint"].as_str().unwrap_or_default().to_owned();
    view.fork = match &alarm["fork"] {
        Value::Null => None,
        fork => Some(Arc::new(
            ForkProof::from_value(fork).ok_or("its fork is malformed")?,
        )),
    };
    Ok(view)
}
