//! The audit log: what was signed, for whom, and under which policy.
//!
//! It is append-only and tamper-evident: newline-delimited RFC 8785 JSON in segment files, each record naming the
//! SHA-256 of the line before it, the last one held by the head (`head.rs`). It is also the Signer's memory: what
//! was begun and not finished, idempotency keys, the last checkpoint of the log are all read from it at start, so that
//! there is one truth and one sync per signature.
//!
//! `record` has the form of the lines, `read` checks the log at start, `writer` is the only thread that writes.

mod head;
mod read;
pub(crate) mod record;
mod writer;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use stella_attest::digest::Digest;
use stella_attest::key::SigningKey;
use stella_attest::timestamp::Timestamp;
use tokio::sync::oneshot;

use head::HeadFile;
use record::{CallId, Draft, Fields};
use writer::{Append, Writer};

/// Why the audit log could not be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// A record is not what was written.
    #[error("record {seq} of the audit log: {what}")]
    Corrupt {
        /// Number of the record.
        seq: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The head is not what the holder of the audit key wrote.
    #[error("`{}` was altered, or the audit key is another one", path.display())]
    Head {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the log open.
    #[error("`{}` is in use by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file could not be opened or read.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Records could not be made durable; nothing was signed or answered on their strength.
    #[error("the audit log cannot be written")]
    Unavailable(#[source] Arc<io::Error>),
    /// The writer has ended, because the process ends.
    #[error("the audit log is closed")]
    Closed,
}

impl AuditError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } | Self::Head { .. } => "AUDIT_CORRUPT",
            Self::Locked { .. } => "AUDIT_LOCKED",
            Self::Io { .. } | Self::Unavailable(_) | Self::Closed => "AUDIT_UNAVAILABLE",
        }
    }

    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the first record of its segment.
    segment: u64,
    offset: u64,
    length: u32,
}

#[cfg(test)]
impl Location {
    /// A place that only tells itself from others.
    pub(crate) fn for_tests(offset: u64) -> Self {
        Self {
            segment: 1,
            offset,
            length: 1,
        }
    }
}

/// A record that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Where it stands.
    pub(crate) at: Location,
    /// Its number.
    pub(crate) seq: u64,
    /// Where its checkpoint record stands, for one that was given with a note.
    pub(crate) checkpoint: Option<Location>,
}

/// What `Audit::open` needs.
pub(crate) struct AuditOptions<'a> {
    /// Folder of the log; made if it is missing.
    pub(crate) dir: &'a Path,
    /// A segment of this many bytes is followed by a new one.
    pub(crate) segment_bytes: u64,
    /// The audit key.
    pub(crate) key: &'a SigningKey,
    /// Digest of the signing policy, for the start record.
    pub(crate) policy: Digest,
    /// The log that signatures go to, for the start record.
    pub(crate) log_id: Option<&'a str>,
    /// The time now.
    pub(crate) now: Timestamp,
}

/// The open log.
pub(crate) struct Audit {
    dir: PathBuf,
    appends: Mutex<Option<mpsc::Sender<Append>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    start: u64,
    calls: AtomicU64,
    _lock: File,
}

impl Audit {
    /// Checks the whole log, gives every record to `visit`, cuts off a torn end and writes the start record.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`] with the number of the first record that is missing or altered.
    pub(crate) fn open(
        options: &AuditOptions<'_>,
        visit: &mut dyn FnMut(Location, &Fields<'_>) -> Result<(), AuditError>,
    ) -> Result<Self, AuditError> {
        let dir = options.dir;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| AuditError::io(dir, error))?;
        let lock = lock(dir)?;
        let (head_file, head) = HeadFile::open(dir, options.key)?;
        let mut checkpoint = None;
        let mut visit_and_keep = |at: Location, fields: &Fields<'_>| {
            if let (true, Some(note)) = (fields.kind == "checkpoint", &fields.note) {
                checkpoint = Some((at, Arc::from(&**note)));
            }
            visit(at, fields)
        };
        let tail = read::scan(dir, head.as_ref(), &mut visit_and_keep)?;
        let head_state = match (head, tail.seq) {
            (_, 0) => "new",
            (Some(_), _) => "checked",
            (None, _) => "missing",
        };
        if head_state == "missing" {
            tracing::warn!(dir = %dir.display(), "the audit log has no head: its end was not checked");
        }
        let (sender, receiver) = mpsc::channel();
        let writer = Writer::new(dir.to_owned(), options.segment_bytes, head_file, tail, checkpoint);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| AuditError::io(dir, error))?;
        let audit = Self {
            dir: dir.to_owned(),
            appends: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            start: tail.seq + 1,
            calls: AtomicU64::new(1),
            _lock: lock,
        };
        let start = Draft::start(options.now, head_state, &options.policy, options.log_id);
        audit.append_blocking(vec![start])?;
        Ok(audit)
    }

    /// A new call's id.
    pub(crate) fn next_call(&self) -> CallId {
        CallId::new(self.start, self.calls.fetch_add(1, Ordering::Relaxed))
    }

    /// Appends records side by side and waits until they are durable.
    pub(crate) async fn append(&self, drafts: Vec<Draft>) -> Result<Vec<Written>, AuditError> {
        self.send(drafts).await.unwrap_or(Err(AuditError::Closed))
    }

    /// As [`Audit::append`], for threads that may block.
    pub(crate) fn append_blocking(&self, drafts: Vec<Draft>) -> Result<Vec<Written>, AuditError> {
        self.send(drafts)
            .blocking_recv()
            .unwrap_or(Err(AuditError::Closed))
    }

    fn send(&self, drafts: Vec<Draft>) -> oneshot::Receiver<Result<Vec<Written>, AuditError>> {
        let (done, receiver) = oneshot::channel();
        if let Some(appends) = &*self.appends.lock().unwrap_or_else(PoisonError::into_inner) {
            // A writer that is gone drops `done`, which the receiver sees.
            let _ = appends.send(Append { drafts, done });
        }
        receiver
    }

    /// Reads the record at `location`, which this log gave out, and hands it to `read`. Blocks for one read.
    pub(crate) fn read<T>(
        &self,
        location: Location,
        read: impl FnOnce(&Fields<'_>) -> Option<T>,
    ) -> Result<T, AuditError> {
        let path = read::segment_path(&self.dir, location.segment);
        let mut line = vec![0; location.length as usize];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut line, location.offset))
            .map_err(|error| AuditError::io(&path, error))?;
        let malformed = || AuditError::io(&path, io::Error::from(io::ErrorKind::InvalidData));
        Fields::parse(&line)
            .and_then(|fields| read(&fields))
            .ok_or_else(malformed)
    }

    /// Waits until everything is written, and closes the log.
    pub(crate) fn close(&self) {
        self.appends.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer of the audit log panicked");
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join("lock");
    let failed = |error| AuditError::io(&path, error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AuditError::Locked { path }),
        Err(fs::TryLockError::Error(error)) => Err(AuditError::io(&path, error)),
    }
}
