//! The one thread that writes the audit log.
//!
//! It takes whatever waits, gives every record its number and its predecessor's hash, writes all of it at once and
//! syncs once; only then does anybody hear that the records stand. Where that fails nobody is told that they stand, the
//! end of the file is cut back to what is durable, and the next batch tries again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use stella_attest::digest::Digest;
use tokio::sync::oneshot;

use super::head::HeadFile;
use super::read::{Tail, segment_path};
use super::record::Draft;
use super::{AuditError, Location, Written};

/// A write that has this many bytes takes no further records.
const BATCH_BYTES: usize = 4 << 20;

/// Records that belong together; they stand side by side in the log.
pub(super) struct Append {
    pub(super) drafts: Vec<Draft>,
    pub(super) done: oneshot::Sender<Result<Vec<Written>, AuditError>>,
}

/// The end of the log.
#[derive(Clone)]
struct End {
    tail: Tail,
    /// The last checkpoint record: where it stands and what its note is.
    checkpoint: Option<(Location, Arc<str>)>,
}

/// Owns the log's files while the process runs.
pub(super) struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    head: HeadFile,
    /// What is on the disk for good.
    durable: End,
    /// The segment that is open; `None` before the first write and after a failure.
    open: Option<(u64, File)>,
    buffer: Vec<u8>,
}

impl Writer {
    pub(super) fn new(
        dir: PathBuf,
        segment_bytes: u64,
        head: HeadFile,
        tail: Tail,
        checkpoint: Option<(Location, Arc<str>)>,
    ) -> Self {
        Self {
            dir,
            segment_bytes,
            head,
            durable: End { tail, checkpoint },
            open: None,
            buffer: Vec::new(),
        }
    }

    /// Runs until every sender is gone.
    pub(super) fn run(mut self, appends: &mpsc::Receiver<Append>) {
        let mut batch = Vec::new();
        while let Ok(first) = appends.recv() {
            let mut end = self.begin();
            batch.push((self.add(&first.drafts, &mut end), first));
            while self.buffer.len() < BATCH_BYTES
                && let Ok(next) = appends.try_recv()
            {
                batch.push((self.add(&next.drafts, &mut end), next));
            }
            let committed = self.commit(end);
            metrics::histogram!("stella_audit_batch_appends").record(batch.len() as f64);
            for (written, append) in batch.drain(..) {
                let answer = match &committed {
                    Ok(()) => Ok(written),
                    Err(failure) => Err(failure.clone()),
                };
                // Nobody waits any more where a call was given up; its records stand all the same.
                let _ = append.done.send(answer);
            }
        }
    }

    /// Where the next batch begins: behind what is durable, in a new segment if the last one is full.
    fn begin(&mut self) -> End {
        self.buffer.clear();
        let mut end = self.durable.clone();
        if end.tail.segment == 0 || end.tail.length >= self.segment_bytes {
            end.tail.segment = end.tail.seq + 1;
            end.tail.length = 0;
        }
        end
    }

    /// Gives the records their places.
    fn add(&mut self, drafts: &[Draft], end: &mut End) -> Vec<Written> {
        let mut written = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let mut checkpoint = None;
            if let Some((at, note)) = &draft.note {
                let known = end
                    .checkpoint
                    .as_ref()
                    .filter(|(_, last)| **last == **note)
                    .map(|(location, _)| *location);
                checkpoint = Some(known.unwrap_or_else(|| {
                    let location = self.line(&Draft::checkpoint(*at, note), &mut end.tail);
                    end.checkpoint = Some((location, note.as_str().into()));
                    location
                }));
            }
            let at = self.line(draft, &mut end.tail);
            written.push(Written {
                at,
                seq: end.tail.seq,
                checkpoint,
            });
        }
        written
    }

    fn line(&mut self, draft: &Draft, tail: &mut Tail) -> Location {
        let start = self.buffer.len();
        tail.seq += 1;
        draft.write(tail.hash.as_ref(), tail.seq, &mut self.buffer);
        let line = &self.buffer[start..self.buffer.len() - 1];
        tail.hash = Some(Digest::of(line));
        let location = Location {
            segment: tail.segment,
            offset: tail.length,
            length: line.len() as u32,
        };
        tail.length += line.len() as u64 + 1;
        location
    }

    /// Makes the batch durable, or leaves the log as it was.
    fn commit(&mut self, end: End) -> Result<(), AuditError> {
        match self.write(end.tail) {
            Ok(()) => {
                self.durable = end;
                if let Some(hash) = &self.durable.tail.hash {
                    self.head.write(self.durable.tail.seq, hash);
                }
                metrics::counter!("stella_audit_bytes_total").increment(self.buffer.len() as u64);
                Ok(())
            }
            Err(error) => {
                // What was written may or may not be on the disk: it is cut off before the next write.
                self.open = None;
                metrics::counter!("stella_audit_failures_total").increment(1);
                tracing::error!(dir = %self.dir.display(), %error, "the audit log was not written");
                Err(AuditError::Unavailable(Arc::new(error)))
            }
        }
    }

    fn write(&mut self, end: Tail) -> io::Result<()> {
        let start = end.length - self.buffer.len() as u64;
        let file = match self.open.take() {
            Some((segment, file)) if segment == end.segment => file,
            Some(_) | None => self.open_segment(end.segment, start)?,
        };
        file.write_all_at(&self.buffer, start)?;
        file.sync_data()?;
        self.open = Some((end.segment, file));
        Ok(())
    }

    /// Opens a segment for writing at `length`; what stands behind it was never acknowledged and goes.
    fn open_segment(&self, segment: u64, length: u64) -> io::Result<File> {
        let path = segment_path(&self.dir, segment);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.set_len(length)?;
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }
}
