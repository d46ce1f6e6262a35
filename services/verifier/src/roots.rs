//! The trust roots in force: the configured file, the key history as far as it was followed, and forks that were seen.
//!
//! The three are put together into one immutable set, so that a verdict names exactly what it believed. The history
//! only grows: an older or forked one is refused with `KEY_HISTORY_ROLLBACK`, and what is known stays in force. A version
//! is kept before it is believed, so a restart believes no less.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use stella_attest::history::{HistoryError, KeyHistory};
use stella_attest::trust::{Purpose, SigstoreRoots, TrustError, TrustRoots};
use stella_serve::fs::{self, Access, FsError};
use tracing::{error, info};

/// Largest trust-root file, and largest version of a key history, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Why new trust roots, or a new key history, are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    /// A file cannot be read or written.
    #[error("a file of the trust roots cannot be read or written")]
    File(#[from] FsError),
    /// The configured file is no set of trust roots.
    #[error("the trust roots do not hold")]
    Trust(#[from] TrustError),
    /// The history is older, forked, or not signed by the key-history key.
    #[error("the key history does not hold")]
    History(#[from] HistoryError),
}

impl RootsError {
    /// The reason code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => error.reason(),
            Self::Trust(error) => error.reason(),
            Self::History(error) => error.reason(),
        }
    }
}

/// The set in force, and where it comes from.
pub(crate) struct Roots {
    files: RootFiles,
    history_dir: PathBuf,
    current: ArcSwap<TrustRoots>,
    sources: Mutex<Sources>,
}

/// Where the configured set is read from.
#[derive(Clone, Debug)]
pub(crate) struct RootFiles {
    /// Our own format.
    pub(crate) stella: PathBuf,
    /// A Sigstore `trusted_root.json`, whose logs and authorities are added.
    pub(crate) sigstore: Option<PathBuf>,
}

/// The bytes of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RootBytes {
    stella: Vec<u8>,
    sigstore: Option<Vec<u8>>,
}

impl RootFiles {
    fn read(&self) -> Result<RootBytes, FsError> {
        Ok(RootBytes {
            stella: fs::read(&self.stella, MAX_FILE)?,
            sigstore: match &self.sigstore {
                Some(file) => Some(fs::read(file, MAX_FILE)?),
                None => None,
            },
        })
    }
}

impl RootBytes {
    fn parse(&self) -> Result<TrustRoots, TrustError> {
        let roots = TrustRoots::parse(&self.stella)?;
        match &self.sigstore {
            Some(bytes) => Ok(roots.with_sigstore(SigstoreRoots::parse(bytes)?)),
            None => Ok(roots),
        }
    }
}

struct Sources {
    /// The files' bytes when they were read last, taken or not; `None` if they could not be read.
    seen: Option<RootBytes>,
    base: TrustRoots,
    history: Option<KeyHistory>,
    distrusted: Vec<[u8; 32]>,
}

impl Roots {
    /// Reads the configured files and what is kept in `state_dir`; `distrusted` are logs of which a fork was seen.
    ///
    /// # Errors
    /// A file or the kept history does not parse, or one contradicts the other.
    pub(crate) fn open(
        files: RootFiles,
        state_dir: &Path,
        distrusted: Vec<[u8; 32]>,
    ) -> anyhow::Result<Self> {
        let file = files.stella.clone();
        let bytes = files.read()?;
        let base = bytes.parse().with_context(|| match &files.sigstore {
            Some(sigstore) => format!("`{}` and `{}`", file.display(), sigstore.display()),
            None => format!("`{}`", file.display()),
        })?;
        let history_dir = state_dir.join("history");
        std::fs::create_dir_all(&history_dir)
            .with_context(|| format!("cannot make `{}`", history_dir.display()))?;
        let contradiction = || format!("`{}` and `{}`", file.display(), history_dir.display());
        let kept = kept_versions(&history_dir)?;
        let kept = read_history(&kept, &base).with_context(contradiction)?;
        let history = longer(kept, base.history().cloned()).with_context(contradiction)?;
        keep(&history_dir, history.as_ref())?;
        let sources = Sources {
            seen: Some(bytes),
            base,
            history,
            distrusted,
        };
        Ok(Self {
            files,
            current: ArcSwap::from_pointee(combined(&sources)),
            history_dir,
            sources: Mutex::new(sources),
        })
    }

    /// The set in force.
    pub(crate) fn current(&self) -> Arc<TrustRoots> {
        self.current.load_full()
    }

    /// Takes what the Signer says its whole history is; durable when this returns. Blocks.
    ///
    /// # Errors
    /// An older, forked or badly signed history; nothing is changed then.
    pub(crate) fn follow(&self, versions: &[Vec<u8>]) -> Result<(), RootsError> {
        let mut sources = self.sources();
        let offered = KeyHistory::parse(versions, &sources.base.keys_for(Purpose::KeyHistory))?;
        let known = version_of(sources.history.as_ref());
        if offered.version() < known {
            let version = offered.version();
            return Err(HistoryError::Rollback { version, known }.into());
        }
        let history = longer(sources.history.clone(), Some(offered))?;
        if version_of(history.as_ref()) == known {
            return Ok(());
        }
        keep(&self.history_dir, history.as_ref())?;
        sources.history = history;
        self.put_in_force(&sources, "key history followed");
        Ok(())
    }

    /// Distrusts logs of which a fork was seen, besides those that are distrusted already.
    pub(crate) fn distrust(&self, log_ids: Vec<[u8; 32]>) {
        let mut sources = self.sources();
        // Another call may have seen more by now, so nothing is taken away.
        sources.distrusted.extend(log_ids);
        sources.distrusted.sort_unstable();
        sources.distrusted.dedup();
        self.put_in_force(&sources, "a log is distrusted");
    }

    /// Reads the configured files again if they changed. A bad file keeps the old set in force. Blocks.
    pub(crate) fn reload(&self) {
        let mut sources = self.sources();
        let bytes = match self.files.read() {
            Ok(bytes) => bytes,
            Err(error) => {
                if sources.seen.take().is_some() {
                    refused("trust-roots", &error.into());
                }
                return;
            }
        };
        if sources.seen.as_ref() == Some(&bytes) {
            return;
        }
        let taken = self.replace_base(&mut sources, &bytes);
        sources.seen = Some(bytes);
        if let Err(error) = taken {
            refused("trust-roots", &error);
        }
    }

    /// The new set must be able to verify the history that is known.
    fn replace_base(&self, sources: &mut Sources, bytes: &RootBytes) -> Result<(), RootsError> {
        let base = bytes.parse()?;
        let known: Vec<Vec<u8>> = versions_of(sources.history.as_ref());
        let history = longer(read_history(&known, &base)?, base.history().cloned())?;
        keep(&self.history_dir, history.as_ref())?;
        (sources.base, sources.history) = (base, history);
        self.put_in_force(sources, "trust roots read again");
        Ok(())
    }

    fn put_in_force(&self, sources: &Sources, why: &'static str) {
        let roots = combined(sources);
        info!(trust_roots = %roots.digest(), history = version_of(sources.history.as_ref()), "{why}");
        self.current.store(Arc::new(roots));
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells that new trust roots or a new history were refused: once in the log, and in a counter.
pub(crate) fn refused(what: &'static str, error: &RootsError) {
    metrics::counter!("stella_trust_refused_total", "what" => what, "reason" => error.reason()).increment(1);
    let mut causes = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        causes.push_str(": ");
        causes.push_str(&cause.to_string());
        next = cause.source();
    }
    error!(
        what,
        reason = error.reason(),
        error = causes,
        "refused; what was known stays in force"
    );
}

fn combined(sources: &Sources) -> TrustRoots {
    let mut roots = sources.base.clone();
    if let Some(history) = &sources.history {
        roots = roots.with_history(history.clone());
    }
    for log_id in &sources.distrusted {
        roots = roots.with_distrusted(log_id);
    }
    roots
}

fn version_of(history: Option<&KeyHistory>) -> u64 {
    history.map_or(0, KeyHistory::version)
}

fn versions_of(history: Option<&KeyHistory>) -> Vec<Vec<u8>> {
    let envelopes = history.into_iter().flat_map(KeyHistory::envelopes);
    envelopes.map(<[u8]>::to_vec).collect()
}

fn read_history(versions: &[Vec<u8>], base: &TrustRoots) -> Result<Option<KeyHistory>, HistoryError> {
    if versions.is_empty() {
        return Ok(None);
    }
    KeyHistory::parse(versions, &base.keys_for(Purpose::KeyHistory)).map(Some)
}

/// The longer of two histories, if one continues the other.
fn longer(known: Option<KeyHistory>, other: Option<KeyHistory>) -> Result<Option<KeyHistory>, HistoryError> {
    let (Some(known), Some(other)) = (&known, &other) else {
        return Ok(known.or(other));
    };
    let (longer, shorter) = match known.version() >= other.version() {
        true => (known, other),
        false => (other, known),
    };
    if shorter.envelopes().all(|version| longer.knows(version)) {
        return Ok(Some(longer.clone()));
    }
    Err(HistoryError::Rollback {
        version: other.version(),
        known: known.version(),
    })
}

/// Writes the versions that are not kept yet, one file each.
fn keep(dir: &Path, history: Option<&KeyHistory>) -> Result<(), FsError> {
    for (index, envelope) in history.into_iter().flat_map(KeyHistory::envelopes).enumerate() {
        let path = dir.join(format!("{:08}.json", index + 1));
        if !path.exists() {
            fs::write_atomic(&path, envelope, Access::Everybody)?;
        }
    }
    Ok(())
}

fn kept_versions(dir: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    let versions = files.iter().map(|file| fs::read(file, MAX_FILE));
    Ok(versions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stella_attest::history::{HistoryKey, KeyState};
    use stella_attest::key::{Algorithm, SigningKey};
    use stella_attest::trust::ConfiguredKey;

    fn files(stella: &Path) -> RootFiles {
        RootFiles {
            stella: stella.to_owned(),
            sigstore: None,
        }
    }

    fn key() -> HistoryKey {
        HistoryKey {
            key: SigningKey::generate(Algorithm::EcdsaP256)
                .expect("a key")
                .verifying_key()
                .clone(),
            slot: "default".into(),
            issuer: "stella".into(),
            tenants: vec!["*".into()],
            predicate_types: vec!["*".into()],
            state: KeyState::Active,
            activated_at: None,
            retired_at: None,
            revoked_at: None,
            revocation_reason: None,
        }
    }

    /// Trust roots with this key-history key, and a history.
    fn base(history_key: &SigningKey, issuer: &str, history: Option<KeyHistory>) -> TrustRoots {
        let configured = ConfiguredKey {
            key: history_key.verifying_key().clone(),
            purpose: Purpose::KeyHistory,
            issuer: issuer.into(),
            tenants: Vec::new(),
            predicate_types: Vec::new(),
        };
        TrustRoots::new(vec![configured], history, Vec::new(), Vec::new(), Vec::new())
    }

    /// Three versions, and another third one.
    struct Versions {
        history_key: SigningKey,
        versions: Vec<Vec<u8>>,
        fork: Vec<u8>,
    }

    impl Versions {
        fn new() -> Self {
            let history_key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
            let keys = [key(), key(), key(), key()];
            let mut versions: Vec<Vec<u8>> = Vec::new();
            let known = [history_key.verifying_key()];
            for count in 1..=3 {
                let last = (count > 1).then(|| KeyHistory::parse(&versions, &known).expect("a history"));
                let next = KeyHistory::sign_next(last.as_ref(), &keys[..count], &history_key).expect("signs");
                versions.push(next);
            }
            let two = KeyHistory::parse(&versions[..2], &known).expect("two versions");
            let other = [keys[0].clone(), keys[1].clone(), keys[3].clone()];
            let fork = KeyHistory::sign_next(Some(&two), &other, &history_key).expect("signs");
            Self {
                history_key,
                versions,
                fork,
            }
        }

        fn history(&self, count: usize) -> KeyHistory {
            let known = [self.history_key.verifying_key()];
            KeyHistory::parse(&self.versions[..count], &known).expect("a history")
        }

        fn forked(&self) -> Vec<Vec<u8>> {
            vec![
                self.versions[0].clone(),
                self.versions[1].clone(),
                self.fork.clone(),
            ]
        }
    }

    fn standing(roots: &Roots) -> (u64, stella_attest::digest::Digest) {
        let current = roots.current();
        (version_of(current.history()), current.digest())
    }

    #[test]
    fn an_older_or_forked_history_is_refused_and_the_known_one_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let given = Versions::new();
        let file = dir.path().join("trust-roots.json");
        std::fs::write(&file, base(&given.history_key, "stella", None).to_canonical()).expect("writes");

        let roots = Roots::open(files(&file), dir.path(), Vec::new()).expect("roots");
        let empty = roots.current().digest();
        roots.follow(&given.versions[..2]).expect("two versions");
        roots.follow(&given.versions).expect("one more");
        roots.follow(&given.versions).expect("the same again");
        let known = standing(&roots);
        assert_eq!(known.0, 3);
        assert_ne!(known.1, empty, "the digest tells what is believed");

        let stranger = Versions::new();
        let mut spoiled = given.versions.clone();
        spoiled[2] = b"{}".to_vec();
        let restarted = Roots::open(files(&file), dir.path(), Vec::new()).expect("roots");
        for roots in [&roots, &restarted] {
            for (case, versions, want) in [
                ("older", given.versions[..2].to_vec(), "KEY_HISTORY_ROLLBACK"),
                ("forked", given.forked(), "KEY_HISTORY_ROLLBACK"),
                (
                    "a version left out",
                    vec![given.versions[0].clone(), given.versions[2].clone()],
                    "KEY_HISTORY_ROLLBACK",
                ),
                (
                    "without its first version",
                    given.versions[1..].to_vec(),
                    "KEY_HISTORY_ROLLBACK",
                ),
                ("none at all", Vec::new(), "KEY_HISTORY_EMPTY"),
                (
                    "signed by a stranger",
                    stranger.versions.clone(),
                    "KEY_HISTORY_SIGNATURE",
                ),
                ("no envelope", spoiled.clone(), "KEY_HISTORY_MALFORMED"),
            ] {
                let refused = roots.follow(&versions).map_err(|error| error.reason());
                assert_eq!(refused, Err(want), "{case}");
                assert_eq!(standing(roots), known, "{case}");
            }
        }
    }

    #[test]
    fn a_new_file_is_taken_only_if_it_continues_what_is_known() {
        let dir = tempfile::tempdir().expect("a folder");
        let given = Versions::new();
        let file = dir.path().join("trust-roots.json");
        let write = |bytes: &[u8]| std::fs::write(&file, bytes).expect("writes");
        write(base(&given.history_key, "stella", Some(given.history(1))).to_canonical());
        let roots = Roots::open(files(&file), dir.path(), Vec::new()).expect("roots");
        roots.follow(&given.versions[..2]).expect("two versions");

        let known = standing(&roots);
        let known_keys = [given.history_key.verifying_key()];
        let forked = {
            let one = given.history(1);
            let other =
                KeyHistory::sign_next(Some(&one), &[one.keys()[0].clone(), key()], &given.history_key);
            let versions = [given.versions[0].clone(), other.expect("signs")];
            KeyHistory::parse(&versions, &known_keys).expect("a history")
        };
        let stranger = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        for (case, bytes) in [
            ("no trust roots", b"{}".to_vec()),
            (
                "a forked history",
                base(&given.history_key, "stella", Some(forked))
                    .to_canonical()
                    .to_vec(),
            ),
            (
                "another key-history key",
                base(&stranger, "stella", None).to_canonical().to_vec(),
            ),
        ] {
            write(&bytes);
            roots.reload();
            assert_eq!(standing(&roots), known, "{case}");
        }
        std::fs::remove_file(&file).expect("removes");
        roots.reload();
        assert_eq!(standing(&roots), known, "no file");

        write(base(&given.history_key, "renamed", None).to_canonical());
        roots.reload();
        let renamed = base(&given.history_key, "renamed", Some(given.history(2)));
        assert_eq!(
            standing(&roots),
            (2, renamed.digest()),
            "an older history in the file takes nothing back"
        );
        write(base(&given.history_key, "renamed", Some(given.history(3))).to_canonical());
        roots.reload();
        assert_eq!(standing(&roots).0, 3, "a longer history in the file is taken");
        let restarted = Roots::open(files(&file), dir.path(), Vec::new()).expect("roots");
        assert_eq!(standing(&restarted), standing(&roots));
    }

    #[test]
    fn it_does_not_start_with_a_kept_history_that_contradicts_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let given = Versions::new();
        let file = dir.path().join("trust-roots.json");
        let fork =
            KeyHistory::parse(&given.forked(), &[given.history_key.verifying_key()]).expect("a history");
        std::fs::write(
            &file,
            base(&given.history_key, "stella", Some(fork)).to_canonical(),
        )
        .expect("writes");
        let kept = dir.path().join("history");
        std::fs::create_dir(&kept).expect("a folder");
        let reason = |dir: &Path| match Roots::open(files(&file), dir, Vec::new()) {
            Ok(_) => None,
            Err(error) => error.downcast_ref::<HistoryError>().map(HistoryError::reason),
        };
        for (case, versions, want) in [
            ("nothing is kept", &given.versions[..0], None),
            (
                "another third version",
                &given.versions[..],
                Some("KEY_HISTORY_ROLLBACK"),
            ),
            (
                "a file is missing",
                &given.versions[1..],
                Some("KEY_HISTORY_ROLLBACK"),
            ),
        ] {
            std::fs::remove_dir_all(&kept).expect("removes");
            std::fs::create_dir(&kept).expect("a folder");
            for (index, version) in versions.iter().enumerate() {
                std::fs::write(kept.join(format!("{:08}.json", index + 1)), version).expect("writes");
            }
            assert_eq!(reason(dir.path()), want, "{case}");
        }
    }
}
