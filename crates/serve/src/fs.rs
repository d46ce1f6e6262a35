//! Files that must be whole, and files that must be secret.
//!
//! A secret is read only if nobody but its owner can: the permissions are asked of the opened file, so that
//! what was checked is what is read. A file is replaced as one step: a temporary file beside it is written,
//! synced and renamed, and then the folder is synced; after a crash the old or the new one stands there, whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The largest key, certificate or table that is read, in bytes.
pub const FILE_LIMIT: u64 = 1 << 20;

/// Why a file was not read or written. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The file could not be opened or read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody besides the owner may read or change the secret.
    #[error("`{}` has mode {mode:04o}; a secret must be its owner's alone: chmod 600 {}", path.display(), path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no regular file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is larger than what it is for can need.
    #[error("`{}` is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// The file's bytes are not UTF-8.
    #[error("`{}` is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be written and synced.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FsError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "FILE_UNREADABLE",
            Self::Permissions { .. } => "KEY_FILE_PERMISSIONS",
            Self::NotAFile { .. } => "FILE_UNREADABLE",
            Self::TooLarge { .. } => "FILE_TOO_LARGE",
            Self::NotText { .. } => "FILE_NOT_TEXT",
            Self::Write { .. } => "FILE_NOT_WRITTEN",
        }
    }
}

/// Who may read a file that [`write_atomic`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner alone (0600).
    Owner,
    /// Everybody; its owner may write (0644).
    Everybody,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Everybody => 0o644,
        }
    }
}

/// Reads a file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FsError> {
    read_opened(open(path)?, path, limit)
}

/// Reads a text file of at most [`FILE_LIMIT`] bytes.
pub fn read_text(path: &Path) -> Result<String, FsError> {
    String::from_utf8(read(path, FILE_LIMIT)?).map_err(|_| FsError::NotText {
        path: path.to_owned(),
    })
}

/// Reads a secret of at most [`FILE_LIMIT`] bytes; refuses it if group or others have any permission on it.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FsError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|source| FsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FsError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    read_opened(file, path, FILE_LIMIT)
}

/// Reads a secret that is text, such as a PEM key. See [`read_secret`].
pub fn read_secret_text(path: &Path) -> Result<String, FsError> {
    String::from_utf8(read_secret(path)?).map_err(|_| FsError::NotText {
        path: path.to_owned(),
    })
}

/// Replaces `path` by a file of these bytes, durably and as one step. The folder must exist.
pub fn write_atomic(path: &Path, bytes: &[u8], access: Access) -> Result<(), FsError> {
    replace(path, bytes, access).map_err(|source| FsError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes what was renamed, made or removed in a folder durable.
pub fn sync_dir(dir: &Path) -> Result<(), FsError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| FsError::Write {
            path: dir.to_owned(),
            source,
        })
}

fn open(path: &Path) -> Result<File, FsError> {
    let unreadable = |source| FsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(FsError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(file)
}

fn read_opened(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, FsError> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FsError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > limit {
        return Err(FsError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("the path names no file"))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}-{}.new", std::process::id(), next_number()));
    let temporary = dir.join(temporary);
    let written = write_synced(&temporary, bytes, access).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The failure to write is what counts; a temporary file that stays behind is harmless.
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Two threads that replace the same file at the same time must not share a temporary one.
fn next_number() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_atomic(&path, b"secret", Access::Owner).unwrap();
        for (mode, want) in [
            (0o600, Ok(b"secret".to_vec())),
            (0o400, Ok(b"secret".to_vec())),
            (0o640, Err(("KEY_FILE_PERMISSIONS", "0640"))),
            (0o604, Err(("KEY_FILE_PERMISSIONS", "0604"))),
            (0o620, Err(("KEY_FILE_PERMISSIONS", "0620"))),
            (0o644, Err(("KEY_FILE_PERMISSIONS", "0644"))),
        ] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match (read_secret(&path), want) {
                (Ok(bytes), Ok(want)) => assert_eq!(bytes, want, "{mode:o}"),
                (Err(error), Err((reason, shown))) => {
                    assert_eq!(error.reason(), reason, "{mode:o}");
                    let text = error.to_string();
                    assert!(text.contains(shown) && text.contains("chmod 600"), "{text}");
                }
                (got, want) => panic!("{mode:o}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for (bytes, access, mode) in [
            (&b"one"[..], Access::Owner, 0o600),
            (b"two", Access::Everybody, 0o644),
            (b"", Access::Owner, 0o600),
        ] {
            write_atomic(&path, bytes, access).unwrap();
            assert_eq!(read(&path, 3).unwrap(), bytes);
            assert_eq!(path.metadata().unwrap().mode() & 0o777, mode);
        }
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["state"]);
    }

    #[test]
    fn what_is_no_file_too_large_or_no_text_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, &[0xff; 5], Access::Owner).unwrap();
        for (case, got, want) in [
            (
                "absent",
                read(&dir.path().join("absent"), 9).unwrap_err(),
                "FILE_UNREADABLE",
            ),
            ("a folder", read(dir.path(), 9).unwrap_err(), "FILE_UNREADABLE"),
            ("too large", read(&path, 4).unwrap_err(), "FILE_TOO_LARGE"),
            ("no text", read_text(&path).unwrap_err(), "FILE_NOT_TEXT"),
            (
                "no secret text",
                read_secret_text(&path).unwrap_err(),
                "FILE_NOT_TEXT",
            ),
        ] {
            assert_eq!(got.reason(), want, "{case}");
        }
        let lost = write_atomic(&dir.path().join("absent/file"), b"", Access::Owner).unwrap_err();
        assert_eq!(lost.reason(), "FILE_NOT_WRITTEN");
    }
}
