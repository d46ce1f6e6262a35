//! The signed history of the keys, on disk and for those who follow it.
//!
//! Each version is a file that is never changed: `000001.json`, `000002.json`, …

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use prost::bytes::Bytes;
use stella_attest::history::{HistoryKey, KeyHistory};
use stella_attest::key::SigningKey;
use stella_serve::fs::{Access, write_atomic};
use tokio::sync::watch;

/// Keeps the history.
pub struct Ledger {
    dir: PathBuf,
    key: SigningKey,
    current: ArcSwap<KeyHistory>,
    version: watch::Sender<u64>,
    writing: Mutex<()>,
}

impl Ledger {
    /// Reads every version; without any, the first one is made of `first`. `recorded` is the newest version that the
    /// audit log knows of, 0 if it knows of none.
    ///
    /// # Errors
    /// A version does not fit, the newest ones are missing (`KEY_HISTORY_ROLLBACK`), or the first one cannot be written.
    pub fn open(dir: &Path, key: SigningKey, first: &[HistoryKey], recorded: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        let mut versions = Vec::new();
        loop {
            let path = path(dir, versions.len() as u64 + 1);
            match std::fs::read(&path) {
                Ok(bytes) => versions.push(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
            }
        }
        // An older history would have a retired key sign again.
        let found = versions.len() as u64;
        ensure!(
            found >= recorded,
            "the key history in `{}` has {found} versions, but the audit log records version {recorded}; put the newer \
             versions back [KEY_HISTORY_ROLLBACK]",
            dir.display()
        );
        if versions.is_empty() {
            let envelope = KeyHistory::sign_next(None, first, &key)?;
            write_atomic(&path(dir, 1), &envelope, Access::Everybody)?;
            versions.push(envelope);
        }
        let history = KeyHistory::parse(&versions, &[key.verifying_key()])
            .with_context(|| format!("the key history in `{}` does not hold", dir.display()))?;
        let (version, _) = watch::channel(history.version());
        Ok(Self {
            dir: dir.to_owned(),
            key,
            current: ArcSwap::from_pointee(history),
            version,
            writing: Mutex::new(()),
        })
    }

    /// The history as it is now.
    pub fn current(&self) -> Arc<KeyHistory> {
        self.current.load_full()
    }

    /// Signs and keeps the next version; durable when this returns. Blocks.
    ///
    /// # Errors
    /// It could not be written; nothing is changed.
    pub fn publish(&self, keys: &[HistoryKey]) -> anyhow::Result<u64> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut history = KeyHistory::clone(&self.current.load());
        let envelope = KeyHistory::sign_next(Some(&history), keys, &self.key)?;
        history.extend(&envelope, &[self.key.verifying_key()])?;
        let version = history.version();
        write_atomic(&path(&self.dir, version), &envelope, Access::Everybody)?;
        self.current.store(Arc::new(history));
        self.version.send_replace(version);
        Ok(version)
    }

    /// Tells when there is a newer version.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The versions after `known`, oldest first.
    pub fn after(&self, known: u64) -> Vec<Bytes> {
        let skip = usize::try_from(known).unwrap_or(usize::MAX);
        self.current()
            .envelopes()
            .skip(skip)
            .map(Bytes::copy_from_slice)
            .collect()
    }
}

fn path(dir: &Path, version: u64) -> PathBuf {
    dir.join(format!("{version:06}.json"))
}
