//! The temporary directory of a peer.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Waits until standard input closes, which it does when the process that holds it ends, and removes directory `$0`. A
/// peer that is just dying may still write.
const UNDERTAKER: &str = r#"cat > /dev/null
for _ in $(seq 100); do rm -rf -- "$0" 2> /dev/null && exit; sleep 0.1; done"#;

/// A directory that goes when this is dropped, or when this process ends, however it does.
pub(crate) struct Home {
    directory: TempDir,
    undertaker: Child,
}

impl Home {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // PostgreSQL runs as a user of its own and must reach its part.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
            .expect("the mode of an own directory");
        let undertaker = Command::new("sh")
            .args(["-c", UNDERTAKER])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        Self {
            directory,
            undertaker,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path below it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a directory below it.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.file(name);
        std::fs::create_dir_all(&folder).expect("a directory below an own one");
        folder
    }

    /// Writes a file below it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.file(name);
        std::fs::write(&file, content).expect("a file in an own directory");
        file
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.undertaker.kill();
        let _ = self.undertaker.wait();
    }
}
