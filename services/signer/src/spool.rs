//! Envelopes that wait until every log has them, one file each.
//!
//! The audit log has a signature but not what it is over, which is all that most logs want. A Rekor v1 takes whole
//! envelopes; with one configured, an envelope is kept here from before its outcome is recorded until it is logged, so
//! that a crash in between loses nothing. A file without an outcome is what a crash left before anything was answered.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audit::record::CallId;

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    dir: Arc<Path>,
}

impl Spool {
    /// Opens `dir`, or makes it, and removes what belongs to none of `unfinished`.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub(crate) fn open(dir: &Path, unfinished: impl Iterator<Item = CallId>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // The folder is there after a crash, too.
        if let Some(parent) = dir.parent().filter(|parent| parent.is_dir()) {
            File::open(parent)?.sync_all()?;
        }
        let wanted: BTreeSet<String> = unfinished.map(name).collect();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let is_wanted = entry
                .file_name()
                .to_str()
                .is_some_and(|name| wanted.contains(name));
            if !is_wanted && is_ours(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir: dir.into() })
    }

    /// Keeps envelopes; durable when this returns. Blocks.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn keep(&self, envelopes: &[(CallId, Vec<u8>)]) -> io::Result<()> {
        for (call, envelope) in envelopes {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(self.path(*call))?;
            file.write_all(envelope)?;
            file.sync_all()?;
        }
        File::open(&*self.dir)?.sync_all()
    }

    /// The envelope of a call; `None` if it is not kept. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(&self, call: CallId) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(call)) {
            Ok(envelope) => Ok(Some(envelope)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets envelopes that are logged. Blocks. One that cannot be removed is removed at the next start.
    pub(crate) fn forget(&self, calls: &[CallId]) {
        for call in calls {
            if let Err(error) = fs::remove_file(self.path(*call)) {
                tracing::warn!(%call, %error, "an envelope that is logged is still kept");
            }
        }
    }

    fn path(&self, call: CallId) -> PathBuf {
        self.dir.join(name(call))
    }
}

fn name(call: CallId) -> String {
    format!("{call}.dsse.json")
}

/// True for a name that this folder gives.
fn is_ours(name: &str) -> bool {
    let number = name.strip_suffix(".dsse.json");
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_kept_is_there_until_it_is_forgotten_or_belongs_to_nobody() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path().join("spool");
        let (one, two) = (CallId::new(1, 1), CallId::new(1, 2));
        let spool = Spool::open(&dir, [].into_iter()).expect("made");
        spool
            .keep(&[(one, b"first".to_vec()), (two, b"second".to_vec())])
            .expect("kept");
        // Payloads of all tenants lie there.
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&spool.path(one))), (0o700, 0o600));
        fs::write(dir.join("notes.txt"), "an operator's").expect("written");

        let spool = Spool::open(&dir, [two].into_iter()).expect("opened");
        assert_eq!(spool.read(one).expect("reads"), None);
        assert_eq!(spool.read(two).expect("reads").as_deref(), Some(&b"second"[..]));
        assert!(dir.join("notes.txt").exists(), "not ours");
        spool.forget(&[two]);
        assert_eq!(spool.read(two).expect("reads"), None);
    }
}
