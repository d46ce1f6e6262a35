//! A transparency log in this process: a Rekor v2 without another one, in tiles on disk (C2SP tlog-tiles).
//!
//! A submission goes one way: [`intake`] checks its signature and puts it into the tree, durably, in batches;
//! [`cosigner`] has the batch's checkpoint cosigned and answers with the proof that leads to it. Beside that way,
//! [`publisher`] writes tiles and checkpoint for others to read, and [`sweeper`] tidies up. Each is a thread with a queue
//! before it, so one batch is checked while another is flushed and a third is at the witnesses. [`open`] makes sense of
//! what a crash left. [`keeper`] starts the threads, and starts them anew where a file could not be written: it opens
//! the log again as after a crash, once the disk takes something.
//!
//! An answer is durable, for it is in the journal; its tiles are in their files within the publication interval.
//!
//! Who appends for others, as the [`face`](crate::face) does, is answered when the batch is durable, before the witnesses.
//!
//! The same entry is logged once: who submits it again gets the same index, with a newer checkpoint.

mod cosigner;
mod files;
mod intake;
mod journal;
mod keeper;
mod open;
mod publisher;
mod queue;
mod sweeper;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::evidence::{InclusionProof, LogEntry};
use stella_attest::hashedrekord;
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};
use stella_attest::merkle::{self, Hash, MemoryTree};
use stella_attest::tile::{self, TILE_WIDTH, TileKind, TilePath};
use tokio::sync::{oneshot, watch};

use self::intake::Raw;
use self::keeper::{Event, Keeper, Outlook, Running};
use crate::{LogError, Submission, TransparencyLog, Witness};

pub use self::open::OpenError;

/// Most entries of a batch, whatever the configuration says: the journal counts them in two bytes.
const BATCH_LIMIT: usize = 4096;

/// Where the log is and how it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// Directory of the log; made if it is missing.
    pub dir: PathBuf,
    /// The log's name: the host of its base URL. Fixed when the log is made.
    pub origin: String,
    /// Most entries that one checkpoint adds.
    pub batch_max: usize,
    /// Most submissions that may wait for an answer; more are refused with `LOG_BUSY`.
    pub waiting_max: usize,
    /// Files are written for others to read at most this often; a batch that comes alone is written at once.
    pub publish_interval: Duration,
    /// How long a witness may take.
    pub witness_timeout: Duration,
    /// Size at which the journal begins a new segment.
    pub segment_bytes: u64,
}

impl EmbeddedConfig {
    /// The log `origin` in `dir`, with what has proven sensible for the rest.
    pub fn new(dir: impl Into<PathBuf>, origin: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            origin: origin.into(),
            batch_max: 512,
            waiting_max: 65_536,
            publish_interval: Duration::from_millis(20),
            witness_timeout: Duration::from_secs(10),
            segment_bytes: 64 << 20,
        }
    }
}

/// A checkpoint and the signed note that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What the log states.
    pub checkpoint: Checkpoint,
    /// The note, with the log's signature and, if it was cosigned, the witnesses'.
    pub note: Arc<str>,
}

/// The tree, and where each leaf stands in it.
#[derive(Default)]
struct Tree {
    nodes: MemoryTree,
    index: HashMap<Hash, u64>,
}

impl Tree {
    /// Adds a leaf and returns its index. Of equal leaves, which only a foreign writer makes, the first is found.
    fn push(&mut self, leaf: Hash) -> u64 {
        let index = self.nodes.size();
        self.nodes.push(leaf);
        self.index.entry(leaf).or_insert(index);
        index
    }
}

/// What all stages see.
struct Shared {
    dir: PathBuf,
    log: LogKey,
    tree: RwLock<Tree>,
    /// The newest checkpoint that is durable.
    durable: watch::Sender<Arc<Signed>>,
    /// The newest one whose tiles are in their files.
    published: watch::Sender<Arc<Signed>>,
    /// The newest one that all required witnesses cosigned.
    cosigned: watch::Sender<Option<Arc<Signed>>>,
    failed: OnceLock<LogError>,
    keeper: mpsc::Sender<Event>,
}

impl Shared {
    /// No code runs under the lock that could leave the tree half changed.
    fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree_mut(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why these threads take nothing more, if they do not.
    fn failure(&self) -> Option<LogError> {
        self.failed.get().cloned()
    }

    /// Ends the work of these threads: after a failed write nobody knows what is on the disk until it is read again.
    fn fail(&self, error: io::Error) -> LogError {
        let failure = self.failed.get_or_init(|| {
            tracing::error!(%error, "the log cannot write and takes nothing until it is opened again");
            // A keeper that is gone has closed the log.
            let _ = self.keeper.send(Event::Failed);
            LogError::Storage(Arc::new(error))
        });
        failure.clone()
    }

    /// The entry with its proof; `signed` covers it.
    fn entry_of(&self, index: u64, body: Vec<u8>, signed: &Signed) -> LogEntry {
        let Checkpoint { size, root, .. } = signed.checkpoint;
        // The tree has every node of a size that was signed.
        let hashes = merkle::inclusion_proof(&self.tree().nodes, index, size).unwrap_or_default();
        LogEntry {
            log_id: self.log.log_id,
            kind: hashedrekord::KIND.to_owned(),
            version: hashedrekord::VERSION.to_owned(),
            log_index: index,
            integrated_time: None,
            promise: None,
            proof: Some(InclusionProof {
                log_index: index,
                tree_size: size,
                root,
                hashes,
                checkpoint: signed.note.to_string(),
            }),
            body,
        }
    }
}

/// An entry that is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The entry with its proof.
    pub entry: LogEntry,
    /// True if this submission put it there; false if it had been there before.
    pub is_new: bool,
}

/// The way back to who submitted; while it stands, the submission counts as waiting.
struct Answer {
    sender: oneshot::Sender<Result<Appended, LogError>>,
    /// Whether the proof must lead to a cosigned checkpoint.
    needs_witness: bool,
    _place: Place,
}

impl Answer {
    /// Answers. Whoever has gone away meanwhile finds the entry when it asks again.
    fn give(self, outcome: Result<Appended, LogError>) {
        let _ = self.sender.send(outcome);
    }
}

struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place among at most `most`.
    fn take(waiting: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(waiting.clone());
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        (before < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The log. Closes when dropped, which waits for what is under way; see [`close`](Self::close).
pub struct EmbeddedLog {
    log: LogKey,
    outlook: Outlook,
    running: Arc<RwLock<Arc<Running>>>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    is_witnessed: bool,
    to_keeper: mpsc::Sender<Event>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedLog {
    /// Opens the log of `config`, or makes it. Reads all of it, so it is for a thread that may block.
    ///
    /// `floor` is the newest checkpoint that the caller remembers from elsewhere. All of `witnesses` must cosign before
    /// anyone is answered; with none, the log's own signature is enough.
    pub fn open(
        config: EmbeddedConfig,
        key: SigningKey,
        floor: Option<Checkpoint>,
        witnesses: Vec<Arc<dyn Witness>>,
    ) -> Result<Self, OpenError> {
        let opened = open::open(&config, &key, floor.as_ref())?;
        let log = opened.log.clone();
        let outlook = Outlook::new(&opened);
        let (to_keeper, events) = mpsc::channel();
        let (waiting_max, is_witnessed) = (config.waiting_max, !witnesses.is_empty());
        let (keeper, running) = Keeper::start(
            config,
            key,
            witnesses,
            outlook.clone(),
            opened,
            (to_keeper.clone(), events),
        )?;
        Ok(Self {
            log,
            outlook,
            running,
            waiting: Arc::default(),
            waiting_max,
            is_witnessed,
            to_keeper,
            keeper: Mutex::new(Some(keeper)),
        })
    }

    /// The threads that work now, or those that failed last.
    fn running(&self) -> Arc<Running> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&running)
    }

    /// The log's origin, key and id.
    pub fn log_key(&self) -> &LogKey {
        &self.log
    }

    /// The checkpoint that answers lead to now: the newest cosigned one if there are required witnesses and it exists,
    /// else the newest one.
    pub fn checkpoint(&self) -> Arc<Signed> {
        let cosigned = if self.is_witnessed {
            self.outlook.cosigned.borrow().clone()
        } else {
            None
        };
        cosigned.unwrap_or_else(|| self.outlook.durable.borrow().clone())
    }

    /// The newest durable checkpoint, cosigned or not, and each one after it.
    pub fn watch_checkpoints(&self) -> watch::Receiver<Arc<Signed>> {
        self.outlook.durable.subscribe()
    }

    /// The newest checkpoint whose tiles are in their files, and each one after it.
    pub fn watch_published(&self) -> watch::Receiver<Arc<Signed>> {
        self.outlook.published.subscribe()
    }

    /// Index of the entry with this leaf hash, if it is durable.
    pub fn find(&self, leaf: &Hash) -> Option<u64> {
        let size = self.outlook.durable.borrow().checkpoint.size;
        let running = self.running();
        let index = running.shared.tree().index.get(leaf).copied();
        index.filter(|index| *index < size)
    }

    /// Logs a signature like [`submit`](TransparencyLog::submit), but waits for no witness: the proof leads to a checkpoint
    /// that the log alone has signed. The witnesses are asked afterwards.
    pub async fn append(&self, submission: Submission) -> Result<Appended, LogError> {
        self.take_in(submission, false).await
    }

    async fn take_in(&self, submission: Submission, needs_witness: bool) -> Result<Appended, LogError> {
        self.accepts(&submission.key)?;
        let running = self.running();
        if let Some(error) = running.shared.failure() {
            return Err(error);
        }
        let place = Place::take(&self.waiting, self.waiting_max).ok_or(LogError::Busy)?;
        let (sender, answered) = oneshot::channel();
        let answer = Answer {
            sender,
            needs_witness,
            _place: place,
        };
        running.checked.announce();
        if running.raw.push(Raw { submission, answer }).is_err() {
            running.checked.withdraw();
            return Err(running.shared.failure().unwrap_or(LogError::Closed));
        }
        answered.await.unwrap_or(Err(LogError::Closed))
    }

    /// The newest checkpoint whose tiles are in their files, cosigned if it has been.
    pub fn published(&self) -> Arc<Signed> {
        let published = self.outlook.published.borrow().clone();
        let cosigned = self.outlook.cosigned.borrow().clone();
        cosigned
            .filter(|cosigned| cosigned.checkpoint == published.checkpoint)
            .unwrap_or(published)
    }

    /// The content of a tile; `None` if no published checkpoint has it, or the full one has taken its place. Reads a
    /// file.
    pub fn read_tile(&self, tile: &TilePath) -> io::Result<Option<Vec<u8>>> {
        let (_, end) = files::leaves_of(tile);
        if end > self.outlook.published.borrow().checkpoint.size {
            return Ok(None);
        }
        files::read(&self.running().shared.dir.join(tile.to_string()))
    }

    /// The entry at `index` with its proof; `None` if it is not published yet, or not covered by
    /// [`checkpoint`](Self::checkpoint). Reads a file.
    pub fn entry(&self, index: u64) -> Result<Option<LogEntry>, LogError> {
        let signed = self.checkpoint();
        let published = self.outlook.published.borrow().checkpoint.size;
        if index >= signed.checkpoint.size.min(published) {
            return Ok(None);
        }
        let body = self
            .body(index, published)
            .map_err(|error| LogError::Storage(Arc::new(error)))?;
        Ok(Some(self.running().shared.entry_of(index, body, &signed)))
    }

    /// Reads a body from its bundle: the full one, or the partial one of the published size.
    fn body(&self, index: u64, size: u64) -> io::Result<Vec<u8>> {
        let width = u64::from(TILE_WIDTH);
        let full = TilePath {
            kind: TileKind::Entries,
            index: index / width,
            width: TILE_WIDTH,
        };
        let at_edge = index / width == size / width;
        let tile = if at_edge {
            TilePath {
                width: (size % width) as u16,
                ..full
            }
        } else {
            full
        };
        // A partial bundle gives way to the full one when that is there.
        let dir = &self.running().shared.dir;
        let (tile, bytes) = match files::read(&dir.join(tile.to_string()))? {
            Some(bytes) => (tile, bytes),
            None => (full, std::fs::read(dir.join(full.to_string()))?),
        };
        let entries = tile::read_entries(&bytes, tile.width).map_err(io::Error::other)?;
        let entry = entries.get((index % width) as usize).map(|entry| entry.to_vec());
        entry.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    /// The proof that the tree of `old` leaves is the beginning of that of `new`, which must be durable; else `None`.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Option<Vec<Hash>> {
        let size = self.outlook.durable.borrow().checkpoint.size;
        let is_known = old <= new && new <= size;
        is_known.then(|| merkle::consistency_proof(&self.running().shared.tree().nodes, old, new).ok())?
    }

    /// Whether the log takes submissions. False from a write that failed until the log, opened again, can go on.
    pub fn watch_health(&self) -> watch::Receiver<bool> {
        self.outlook.is_working.subscribe()
    }

    /// Finishes what is under way and flushes everything; what waits for a witness is refused. Blocks. After it, and
    /// after a second call, every submission is refused.
    pub fn close(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            // A keeper that is gone panicked, which its thread has said.
            let _ = self.to_keeper.send(Event::Close);
            let _ = keeper.join();
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl TransparencyLog for EmbeddedLog {
    async fn submit(&self, submission: Submission) -> Result<LogEntry, LogError> {
        let appended = self.take_in(submission, true).await?;
        Ok(appended.entry)
    }

    fn log_id(&self) -> [u8; 32] {
        self.log.log_id
    }

    /// Takes P-256 and RSA: their signatures verify over the SHA-256 digest that the entry holds.
    fn accepts(&self, key: &VerifyingKey) -> Result<(), LogError> {
        match key.algorithm() {
            Algorithm::EcdsaP256 | Algorithm::Rsa if key.is_loggable() => Ok(()),
            _ => Err(LogError::KeyNotLoggable),
        }
    }
}
