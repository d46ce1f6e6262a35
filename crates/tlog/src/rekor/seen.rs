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
use stella_attest::json;
use stella_attest::merkle::Hash;
use stella_attest::note::Note;
use stella_attest::trust::TrustedLog;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout_at};

use super::OpenError;
use crate::LogError;

/// How many roots are remembered, so that a size seen before need not be proven again.
const REMEMBERED: usize = 4096;
/// Largest state file.
const MAX_FILE: usize = 4 << 20;
/// Most trees of one log: a Rekor v1 begins a new one every year or so.
const MAX_TREES: usize = 64;
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

/// Asks the log about its history.
#[async_trait]
pub(super) trait History: Send + Sync {
    /// Whether `old` is the beginning of `new`, both of one tree and neither empty; false only if that was shown.
    async fn extends(&self, old: &Checkpoint, new: &Checkpoint, deadline: Instant) -> Result<bool, LogError>;

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
            json!({"checkpoint": self.evidence, "detail": detail, "reason": alarm.reason()})
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
        Ok(Self {
            log,
            stale_timeout,
            file,
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
        }
        let sizes = view.trees.iter().map(|signed| &signed.checkpoint);
        Ok(Mark(sizes.map(|kept| (kept.origin.clone(), kept.size)).collect()))
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
                let detail = format!("it signed two roots for size {}", shown.size);
                return Err(self.raise(LogError::Forked(detail), signed, gate).await);
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
                return Err(self.raise(LogError::Forked(detail), signed, gate).await);
            }
            return self.store(next, gate).await;
        };
        let known = known.checkpoint;
        if is_smaller && let Some(alarm) = self.is_alarming(&known, log, deadline).await? {
            return Err(self.raise(alarm, signed, gate).await);
        }
        let (old, new) = if shown.size < known.size {
            (shown, &known)
        } else {
            (&known, shown)
        };
        let is_same_tree = match old.size {
            0 => true,
            size if size == new.size => old.root == new.root,
            _ => log.extends(old, new, deadline).await?,
        };
        if !is_same_tree {
            let detail = format!("its tree of {} does not extend the one of {}", new.size, old.size);
            return Err(self.raise(LogError::Forked(detail), signed, gate).await);
        }
        if shown.size > known.size {
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
        known: &Checkpoint,
        log: &dyn History,
        deadline: Instant,
    ) -> Result<Option<LogError>, LogError> {
        let until = deadline.min(Instant::now() + self.stale_timeout);
        loop {
            let mut current = log.current(deadline).await?.checkpoint;
            if current.origin != known.origin {
                let Some(retired) = log.replaced(&known.origin, deadline).await? else {
                    let detail = format!(
                        "the tree `{}` took the place of the one seen before",
                        current.origin
                    );
                    return Ok(Some(LogError::Forked(detail)));
                };
                current = retired.checkpoint;
            }
            if current.size == known.size && current.root != known.root {
                let detail = format!("it signed two roots for size {}", known.size);
                return Ok(Some(LogError::Forked(detail)));
            }
            if current.size >= known.size {
                return Ok(None);
            }
            if Instant::now() + LOOK_AGAIN >= until {
                let detail = format!("it has {} entries and had {}", current.size, known.size);
                return Ok(Some(LogError::RolledBack(detail)));
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
    async fn raise(&self, alarm: LogError, signed: &Signed, gate: OwnedMutexGuard<()>) -> LogError {
        tracing::error!(log = self.log.name(), file = ?self.file, reason = alarm.reason(), %alarm, "ALARM: this log is not trusted any more");
        let mut next = self.view().clone();
        next.alarm = Some(alarm.clone());
        next.evidence = signed.note.clone();
        *self.view() = next.clone();
        next.is_kept = true;
        if let Err(error) = self.store(next, gate).await {
            tracing::error!(log = self.log.name(), %error, "the alarm could not be written");
        }
        alarm
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

/// True if the log says that it has replaced the tree of `seen`, and what it shows of that tree extends `seen`.
async fn is_retired(seen: &Checkpoint, log: &dyn History, deadline: Instant) -> Result<bool, LogError> {
    let Some(last) = log.replaced(&seen.origin, deadline).await? else {
        return Ok(false);
    };
    let last = last.checkpoint;
    match seen.size {
        0 => Ok(true),
        size if size < last.size => log.extends(seen, &last, deadline).await,
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
        depth: 4,
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
    Ok(view)
}
