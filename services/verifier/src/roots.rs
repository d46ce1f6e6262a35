//! The trust roots in force: the configured file, the key history as far as it was followed, and forks that were seen.
//!
//! The three are put together into one immutable set, so that a verdict names exactly what it believed. The history
//! only grows: an older or forked one is refused with `KEY_HISTORY_ROLLBACK`, and what is known stays in force.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use stella_attest::history::{HistoryError, KeyHistory};
use stella_attest::trust::{Purpose, TrustRoots};
use stella_serve::fs::{Access, write_atomic};
use tracing::{error, info};

/// The set in force, and where it comes from.
pub struct Roots {
    file: PathBuf,
    history_dir: PathBuf,
    current: ArcSwap<TrustRoots>,
    sources: Mutex<Sources>,
}

struct Sources {
    /// The file's bytes, to see when it changes.
    bytes: Vec<u8>,
    base: TrustRoots,
    history: Option<KeyHistory>,
    distrusted: Vec<[u8; 32]>,
}

impl Sources {
    fn combined(&self) -> TrustRoots {
        let mut roots = self.base.clone();
        if let Some(history) = &self.history {
            roots = roots.with_history(history.clone());
        }
        for log_id in &self.distrusted {
            roots = roots.with_distrusted(log_id);
        }
        roots
    }
}

impl Roots {
    /// Reads the configured file and what is kept in `state_dir`.
    ///
    /// # Errors
    /// The file or the kept history does not parse, or one contradicts the other.
    pub fn open(file: &Path, state_dir: &Path, distrusted: Vec<[u8; 32]>) -> anyhow::Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let base = TrustRoots::parse(&bytes).with_context(|| format!("`{}`", file.display()))?;
        let history_dir = state_dir.join("history");
        std::fs::create_dir_all(&history_dir)?;
        let kept =
            kept_history(&history_dir, &base).with_context(|| format!("`{}`", history_dir.display()))?;
        let history = newer(kept, base.history().cloned())?;
        let sources = Sources {
            bytes,
            base,
            history,
            distrusted,
        };
        let roots = Self {
            file: file.to_owned(),
            history_dir,
            current: ArcSwap::from_pointee(sources.combined()),
            sources: Mutex::new(sources),
        };
        roots.keep_history(&roots.sources())?;
        Ok(roots)
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set in force.
    pub fn current(&self) -> Arc<TrustRoots> {
        self.current.load_full()
    }

    /// Version of the key history in force, 0 without one.
    pub fn history_version(&self) -> u64 {
        self.current.load().history().map_or(0, KeyHistory::version)
    }

    /// Takes what the Signer says its whole history is; durable when this returns. Blocks.
    ///
    /// # Errors
    /// An older, forked or badly signed history; nothing is changed then.
    pub fn follow(&self, versions: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut sources = self.sources();
        let offered = {
            let keys = sources.base.keys_for(Purpose::KeyHistory);
            KeyHistory::parse(versions, &keys)?
        };
        let known = sources.history.as_ref().map_or(0, KeyHistory::version);
        if offered.version() < known {
            return Err(HistoryError::Rollback {
                version: offered.version(),
                known,
            }
            .into());
        }
        let before = sources.history.clone();
        sources.history = newer(before, Some(offered))?;
        if sources.history.as_ref().map_or(0, KeyHistory::version) == known {
            return Ok(());
        }
        self.keep_history(&sources)?;
        self.current.store(Arc::new(sources.combined()));
        let digest = self.current.load().digest();
        info!(version = self.history_version(), trust_roots = %digest, "key history followed");
        Ok(())
    }

    /// Distrusts logs of which a fork was seen.
    pub fn distrust(&self, log_ids: Vec<[u8; 32]>) {
        let mut sources = self.sources();
        sources.distrusted = log_ids;
        self.current.store(Arc::new(sources.combined()));
    }

    /// Reads the configured file again if it changed. A bad file keeps the old set in force. Blocks.
    pub fn reload(&self) {
        let mut sources = self.sources();
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) if bytes == sources.bytes => return,
            Ok(bytes) => bytes,
            Err(error) => return refused(&self.file, &error.into()),
        };
        let parsed = TrustRoots::parse(&bytes).map_err(anyhow::Error::from);
        let taken = parsed.and_then(|base| {
            let history = newer(sources.history.clone(), base.history().cloned())?;
            Ok((base, history))
        });
        sources.bytes = bytes;
        match taken {
            Ok((base, history)) => {
                (sources.base, sources.history) = (base, history);
                self.current.store(Arc::new(sources.combined()));
                info!(trust_roots = %self.current.load().digest(), "trust roots read again");
            }
            Err(error) => refused(&self.file, &error),
        }
    }

    fn keep_history(&self, sources: &Sources) -> anyhow::Result<()> {
        for (index, envelope) in sources.history.iter().flat_map(KeyHistory::envelopes).enumerate() {
            let path = self.history_dir.join(format!("{:06}.json", index + 1));
            if !path.exists() {
                write_atomic(&path, envelope, Access::Everybody)?;
            }
        }
        Ok(())
    }
}

fn refused(file: &Path, cause: &anyhow::Error) {
    metrics::counter!("stella_trust_roots_refused_total").increment(1);
    error!(file = %file.display(), error = format!("{cause:#}"), "new trust roots refused; the old ones stay");
}

fn kept_history(dir: &Path, base: &TrustRoots) -> anyhow::Result<Option<KeyHistory>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    files.sort();
    let versions = files.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(KeyHistory::parse(
        &versions,
        &base.keys_for(Purpose::KeyHistory),
    )?))
}

/// The longer of two histories, if one continues the other.
fn newer(a: Option<KeyHistory>, b: Option<KeyHistory>) -> Result<Option<KeyHistory>, HistoryError> {
    let (Some(a), Some(b)) = (&a, &b) else {
        return Ok(a.or(b));
    };
    let (longer, shorter) = if a.version() >= b.version() {
        (a, b)
    } else {
        (b, a)
    };
    match shorter.envelopes().all(|version| longer.knows(version)) {
        true => Ok(Some(longer.clone())),
        false => Err(HistoryError::Rollback {
            version: shorter.version(),
            known: longer.version(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stella_attest::history::{HistoryKey, KeyState};
    use stella_attest::key::{Algorithm, SigningKey};
    use stella_attest::trust::ConfiguredKey;

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

    #[test]
    fn an_older_or_forked_history_is_refused_and_the_known_one_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let history_key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let configured = ConfiguredKey {
            key: history_key.verifying_key().clone(),
            purpose: Purpose::KeyHistory,
            issuer: "stella".into(),
            tenants: Vec::new(),
            predicate_types: Vec::new(),
        };
        let base = TrustRoots::new(vec![configured], None, Vec::new(), Vec::new(), Vec::new());
        let file = dir.path().join("trust-roots.json");
        std::fs::write(&file, base.to_canonical()).expect("writes");

        let keys = [key(), key(), key()];
        let known = [history_key.verifying_key()];
        let v1 = KeyHistory::sign_next(None, &keys[..1], &history_key).expect("signs");
        let one = KeyHistory::parse(std::slice::from_ref(&v1), &known).expect("version 1");
        let v2 = KeyHistory::sign_next(Some(&one), &keys[..2], &history_key).expect("signs");
        let fork = KeyHistory::sign_next(Some(&one), &[keys[0].clone(), keys[2].clone()], &history_key)
            .expect("signs");

        let roots = Roots::open(&file, dir.path(), Vec::new()).expect("roots");
        let empty = roots.current().digest();
        roots.follow(&[v1.clone(), v2.clone()]).expect("two versions");
        let digest = roots.current().digest();
        assert_ne!(digest, empty);
        let restarted = Roots::open(&file, dir.path(), Vec::new()).expect("roots");
        for roots in [&roots, &restarted] {
            for (case, versions) in [
                ("older", vec![v1.clone()]),
                ("forked", vec![v1.clone(), fork.clone()]),
            ] {
                let refused = roots
                    .follow(&versions)
                    .map_err(|error| error.downcast_ref::<HistoryError>().map(HistoryError::reason));
                assert_eq!(refused, Err(Some("KEY_HISTORY_ROLLBACK")), "{case}");
                assert_eq!(
                    (roots.history_version(), roots.current().digest()),
                    (2, digest),
                    "{case}"
                );
            }
        }
        std::fs::write(&file, "{}").expect("writes");
        restarted.reload();
        assert_eq!(
            restarted.current().digest(),
            digest,
            "a bad file keeps the old set"
        );
    }
}
