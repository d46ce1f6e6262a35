//! Reads logs that lie in C2SP tiles (tlog-tiles) behind HTTP: a Rekor v2, the embedded log, or files on any server.
//!
//! A proof is built here from the tiles and must lead to a checkpoint that the log's key signed, so tiles need not be
//! believed to be cached. The right edge of a tree lies in partial tiles, which give way to the full one when the log
//! has grown; either is read.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use reqwest::StatusCode;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::digest::Digest;
use stella_attest::evidence::{InclusionProof, LogEntry};
use stella_attest::json;
use stella_attest::merkle::{self, Hash, NodeSource};
use stella_attest::note::MAX_NOTE;
use stella_attest::tile::{self, TILE_WIDTH, TileKind, TilePath};
use stella_attest::trust::TrustedLog;
use stella_attest::verify;
use tokio::time::{Instant, sleep};

use super::seen::{Beginning, History, Relation, Seen, Signed, invalid};
use super::{LogReader, OpenError, RekorConfig, log_error, open_http};
use crate::http::{Http, Request, jittered};
use crate::{Forks, LogError};

/// Full tiles that are cached: 8 KiB each.
const CACHED_TILES: usize = 1024;
/// Tiles that are asked for at once.
const TILES_AT_ONCE: usize = 16;
/// Largest bundle: 256 entries of 65,535 bytes, each with its length.
const MAX_BUNDLE: usize = 256 * (2 + 65_535);
/// The first pause before what is not published yet is asked for again; it doubles, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A reader of one log. An entry is found once a published checkpoint covers it.
pub struct TileReader {
    pub(super) tiles: Tiles,
    pub(super) seen: Seen,
    budget: Duration,
}

impl TileReader {
    /// A reader of the log whose `checkpoint` and `tile/…` lie below `config.url`: for a Rekor v2 or the embedded log
    /// `<base URL>/api/v2`, unless it is read elsewhere than it is written.
    ///
    /// # Errors
    /// [`OpenError`]: the URL, the HTTP client or the state file.
    pub fn open(config: RekorConfig) -> Result<Self, OpenError> {
        let http = open_http(&config.url, config.attempt_timeout)?;
        let seen = Seen::open(
            config.log.clone(),
            config.state_dir.as_deref(),
            config.stale_timeout,
        )?;
        Ok(Self {
            tiles: Tiles {
                http,
                log: config.log,
                cache: Mutex::default(),
            },
            seen,
            budget: config.budget,
        })
    }

    /// The entry at `index`, when a checkpoint covers it; waits for one until `deadline`.
    pub(super) async fn read(&self, index: u64, deadline: Instant) -> Result<LogEntry, LogError> {
        let signed = self.covering(index, deadline).await?;
        let body = self.tiles.body(index, signed.checkpoint.size, deadline).await?;
        self.tiles.entry(index, body, &signed, deadline).await
    }

    /// A checkpoint that is observed and covers `index`; the newest seen does if it can.
    pub(super) async fn covering(&self, index: u64, deadline: Instant) -> Result<Signed, LogError> {
        self.seen.mark()?;
        if let Some(signed) = self.seen.newest().filter(|signed| index < signed.checkpoint.size) {
            return Ok(signed);
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let signed = self.look(deadline).await?;
            if index < signed.checkpoint.size {
                return Ok(signed);
            }
            if Instant::now() + pause >= deadline {
                let detail = format!("index {index} is in no checkpoint yet");
                return Err(LogError::Unavailable(detail));
            }
            sleep(jittered(pause)).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// The checkpoint that the log shows now, observed.
    pub(super) async fn look(&self, deadline: Instant) -> Result<Signed, LogError> {
        let mark = self.seen.mark()?;
        let signed = self.tiles.current(deadline).await?;
        self.seen.observe(&signed, &mark, &self.tiles, deadline).await?;
        Ok(signed)
    }
}

#[async_trait]
impl LogReader for TileReader {
    fn log_id(&self) -> [u8; 32] {
        self.tiles.log.key.log_id
    }

    fn forks(&self) -> Option<Forks> {
        Some(self.seen.forks())
    }

    async fn entry_by_index(&self, index: u64) -> Result<LogEntry, LogError> {
        let deadline = Instant::now() + self.budget;
        self.seen.mark()?;
        let known = self.seen.newest().filter(|signed| index < signed.checkpoint.size);
        let signed = match known {
            Some(signed) => signed,
            None => self.look(deadline).await?,
        };
        if index >= signed.checkpoint.size {
            return Err(LogError::EntryNotFound);
        }
        self.read(index, deadline).await
    }

    async fn entry_by_uuid(&self, _uuid: &str) -> Result<LogEntry, LogError> {
        Err(LogError::NotSearchable("id"))
    }

    async fn find(&self, _digest: &Digest) -> Result<Vec<String>, LogError> {
        Err(LogError::NotSearchable("digest"))
    }
}

/// The files of a log.
pub(super) struct Tiles {
    http: Http,
    pub(super) log: TrustedLog,
    cache: Mutex<Cache>,
}

/// Full tiles, the oldest of which goes first.
#[derive(Default)]
struct Cache {
    tiles: HashMap<TilePath, Arc<[Hash]>>,
    order: VecDeque<TilePath>,
}

/// The nodes of a tree, as far as its tiles were read.
struct View {
    size: u64,
    tiles: HashMap<TilePath, Arc<[Hash]>>,
    /// What was asked for and is not here.
    missing: RefCell<BTreeSet<TilePath>>,
}

impl View {
    /// The hash tile `index` of the tile level `level`, as wide as it is in a tree of this size.
    fn path(&self, level: u8, index: u64) -> TilePath {
        let hashes = self.size.checked_shr(8 * u32::from(level)).unwrap_or(0);
        let width = (hashes.saturating_sub(index * u64::from(TILE_WIDTH))).min(u64::from(TILE_WIDTH)) as u16;
        TilePath {
            kind: TileKind::Hashes(level),
            index,
            width,
        }
    }
}

impl NodeSource for View {
    type Error = Infallible;

    /// A node that cannot be had is noted as missing, so that one pass finds all that has to be read.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Infallible> {
        let height = level % 8;
        let first = index << height;
        let path = self.path(level / 8, first / u64::from(TILE_WIDTH));
        let offset = (first % u64::from(TILE_WIDTH)) as usize;
        let Some(hashes) = self
            .tiles
            .get(&path)
            .and_then(|tile| tile.get(offset..offset + (1 << height)))
        else {
            self.missing.borrow_mut().insert(path);
            return Ok([0; 32]);
        };
        let mut hashes = hashes.to_vec();
        while hashes.len() > 1 {
            hashes = hashes
                .chunks(2)
                .map(|pair| merkle::node_hash(&pair[0], &pair[1]))
                .collect();
        }
        Ok(hashes[0])
    }
}

impl Tiles {
    /// The entry with its proof under `signed`, which covers it; `body` is what the log says the entry is.
    pub(super) async fn entry(
        &self,
        index: u64,
        body: Vec<u8>,
        signed: &Signed,
        deadline: Instant,
    ) -> Result<LogEntry, LogError> {
        let mut entries = self.entries(vec![(index, body)], signed, deadline).await?;
        Ok(entries.remove(0))
    }

    /// The same for several at once, whose tiles are read once.
    pub(super) async fn entries(
        &self,
        bodies: Vec<(u64, Vec<u8>)>,
        signed: &Signed,
        deadline: Instant,
    ) -> Result<Vec<LogEntry>, LogError> {
        let size = signed.checkpoint.size;
        let mut is_fresh = false;
        loop {
            let proofs = self.with_view(size, deadline, |view| {
                let mut proofs = Vec::with_capacity(bodies.len());
                for (index, _) in &bodies {
                    let Ok(proof) = merkle::inclusion_proof(view, *index, size);
                    proofs.push(proof);
                }
                proofs
            });
            let mut entries = Vec::with_capacity(bodies.len());
            let mut refused = None;
            for ((index, body), hashes) in bodies.iter().zip(proofs.await?) {
                let entry = self.put_together(*index, body, hashes, signed)?;
                if let Err((reason, detail)) = verify::check_entry(&entry, &self.log) {
                    refused = Some(invalid(reason, detail));
                }
                entries.push(entry);
            }
            match refused {
                None => return Ok(entries),
                // A tile of the cache may be at fault, so that asking again helps.
                Some(_) if !is_fresh => self.cache().clear(),
                Some(error) => return Err(error),
            }
            is_fresh = true;
        }
    }

    fn put_together(
        &self,
        index: u64,
        body: &[u8],
        hashes: Vec<Hash>,
        signed: &Signed,
    ) -> Result<LogEntry, LogError> {
        let document = json::parse(body, &json::Limits::default())
            .map_err(|error| invalid("ENTRY_MALFORMED", error.to_string()))?;
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        Ok(LogEntry {
            log_id: self.log.key.log_id,
            kind: text("kind"),
            version: text("apiVersion"),
            log_index: index,
            integrated_time: None,
            promise: None,
            proof: Some(InclusionProof {
                log_index: index,
                tree_size: signed.checkpoint.size,
                root: signed.checkpoint.root,
                hashes,
                checkpoint: signed.note.clone(),
            }),
            body: body.to_vec(),
        })
    }

    /// The proof that the first `old` leaves are the beginning of `new`, and the root over them, both made from tiles
    /// that lead to the root of `new`; empty for `old` 0 or that of `new`.
    pub(super) async fn consistency(
        &self,
        old: u64,
        new: &Checkpoint,
        deadline: Instant,
    ) -> Result<(Vec<Hash>, Hash), LogError> {
        if old == 0 || old == new.size {
            let root = if old == 0 { merkle::EMPTY_ROOT } else { new.root };
            return Ok((Vec::new(), root));
        }
        let mut is_fresh = false;
        loop {
            let made = self.with_view(new.size, deadline, |view| {
                let (Ok(proof), Ok(root)) = (
                    merkle::consistency_proof(view, old, new.size),
                    merkle::root(view, old),
                );
                (proof, root)
            });
            let (proof, root) = made.await?;
            match merkle::verify_consistency(old, new.size, &proof, &root, &new.root) {
                Ok(()) => return Ok((proof, root)),
                Err(_) if !is_fresh => self.cache().clear(),
                Err(error) => return Err(invalid(error.reason(), error.to_string())),
            }
            is_fresh = true;
        }
    }

    /// What `make` makes of the tree's nodes, with every tile read that it needs.
    async fn with_view<T>(
        &self,
        size: u64,
        deadline: Instant,
        make: impl Fn(&View) -> T + Send,
    ) -> Result<T, LogError>
    where
        T: Send,
    {
        let mut view = View {
            size,
            tiles: HashMap::new(),
            missing: RefCell::default(),
        };
        loop {
            let made = make(&view);
            let missing: Vec<TilePath> = view.missing.take().into_iter().collect();
            if missing.is_empty() {
                return Ok(made);
            }
            for paths in missing.chunks(TILES_AT_ONCE) {
                let read = try_join_all(paths.iter().map(|path| self.hashes(*path, deadline)));
                for (path, hashes) in paths.iter().zip(read.await?) {
                    view.tiles.insert(*path, hashes);
                }
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hashes of a tile, as many as its path says.
    async fn hashes(&self, path: TilePath, deadline: Instant) -> Result<Arc<[Hash]>, LogError> {
        let full = TilePath {
            width: TILE_WIDTH,
            ..path
        };
        let cached = self.cache().tiles.get(&full).cloned();
        if let Some(tile) = cached {
            return Ok(tile[..usize::from(path.width)].into());
        }
        let (found, bytes) = self.file(path, 32 * usize::from(TILE_WIDTH), deadline).await?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        if hashes.len() != usize::from(found.width) || !rest.is_empty() {
            return Err(invalid(
                "TILE_LENGTH",
                format!("{found} has {} bytes", bytes.len()),
            ));
        }
        if !found.is_partial() {
            self.cache().insert(found, hashes.into());
        }
        Ok(hashes[..usize::from(path.width)].into())
    }

    /// The body of the entry at `index` in a log that has at least `size`.
    async fn body(&self, index: u64, size: u64, deadline: Instant) -> Result<Vec<u8>, LogError> {
        let width = u64::from(TILE_WIDTH);
        let bundle = index / width;
        let path = TilePath {
            kind: TileKind::Entries,
            index: bundle,
            width: (size - bundle * width).min(width) as u16,
        };
        let (found, bytes) = self.file(path, MAX_BUNDLE, deadline).await?;
        let entries = tile::read_entries(&bytes, found.width)
            .map_err(|error| invalid(error.reason(), format!("{found}: {error}")))?;
        // The path holds the index, for `size` does.
        Ok(entries[(index % width) as usize].to_vec())
    }

    /// The file at `path`, or the full one that took its place; waits for one of them until `deadline`.
    async fn file(
        &self,
        path: TilePath,
        limit: usize,
        deadline: Instant,
    ) -> Result<(TilePath, Vec<u8>), LogError> {
        let full = TilePath {
            width: TILE_WIDTH,
            ..path
        };
        let mut pause = FIRST_PAUSE;
        loop {
            for place in BTreeSet::from([path, full]) {
                if let Some(bytes) = self.get(&format!("/{place}"), limit, deadline).await? {
                    return Ok((place, bytes));
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(LogError::Unavailable(format!("there is no {path}")));
            }
            sleep(jittered(pause)).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// What is at `path`, if there is something.
    async fn get(&self, path: &str, limit: usize, deadline: Instant) -> Result<Option<Vec<u8>>, LogError> {
        let answer = self.http.send(&Request::get(path, limit), deadline).await;
        let answer = answer.map_err(log_error)?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer.body)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(super::refused(&answer)),
        }
    }
}

impl Cache {
    fn insert(&mut self, path: TilePath, tile: Arc<[Hash]>) {
        if self.tiles.insert(path, tile).is_none() {
            self.order.push_back(path);
        }
        while self.order.len() > CACHED_TILES {
            if let Some(oldest) = self.order.pop_front() {
                self.tiles.remove(&oldest);
            }
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[async_trait]
impl History for Tiles {
    /// The prefix of `new` is made from tiles that lead to its root, so that another one is proof of a fork.
    async fn relation(
        &self,
        old: &Checkpoint,
        new: &Checkpoint,
        deadline: Instant,
    ) -> Result<Relation, LogError> {
        let (proof, root) = self.consistency(old.size, new, deadline).await?;
        Ok(if root == old.root {
            Relation::Extends
        } else {
            Relation::Differs(Some(Beginning { root, proof }))
        })
    }

    async fn current(&self, deadline: Instant) -> Result<Signed, LogError> {
        let Some(note) = self.get("/checkpoint", MAX_NOTE, deadline).await? else {
            return Err(LogError::Unavailable("there is no checkpoint".into()));
        };
        let note = String::from_utf8(note)
            .map_err(|_| invalid("CHECKPOINT_MALFORMED", "the checkpoint is not text"))?;
        Signed::read(&note, &self.log)
    }

    async fn replaced(&self, _origin: &str, _deadline: Instant) -> Result<Option<Signed>, LogError> {
        Ok(None)
    }
}
