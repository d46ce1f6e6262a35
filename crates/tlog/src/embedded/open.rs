//! Opens a log: finds out what it holds, repairs what a crash left, and refuses what a crash cannot explain.
//!
//! The journal says what was logged last; bundles of entries say what was logged before. All else follows from the
//! entries and must agree with them: every tile, the signed checkpoints, the floor that the caller remembers. A tile
//! that is missing, cut or full of zeros where the journal reaches is what a power failure leaves, and is written
//! again; any other difference was made by someone.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::key::SigningKey;
use stella_attest::merkle::{self, Hash};
use stella_attest::note::{NoteError, NoteSigner};
use stella_attest::tile::{self, TILE_WIDTH, TileKind, TilePath};

use super::journal::{self, Closed, Journal, Segment};
use super::publisher::Edge;
use super::{EmbeddedConfig, Signed, Tree, files, intake};

const WIDTH: u64 = TILE_WIDTH as u64;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The key is not Ed25519, or the origin cannot stand in a note.
    #[error("the log cannot sign as `{origin}` with this key")]
    Key {
        /// The configured origin.
        origin: String,
        /// What is wrong with it.
        source: NoteError,
    },
    /// The log was made with another origin or key; these are fixed for its lifetime.
    #[error("the log is `{found}`, not `{wanted}`")]
    OriginChanged {
        /// The log's verifier key, or the origin of the remembered checkpoint.
        found: String,
        /// What the configuration says.
        wanted: String,
    },
    /// The log is not a continuation of the one that is remembered: an older copy, or another tree.
    #[error("the log has {found} entries and does not continue the remembered one of {remembered}")]
    RolledBack {
        /// Entries in the log.
        found: u64,
        /// Entries in the remembered checkpoint.
        remembered: u64,
    },
    /// A file of the log is missing or was altered.
    #[error("`{file}` of the log is damaged: {what}")]
    Corrupt {
        /// The file, relative to the log's directory.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Another process has the log open.
    #[error("another process has the log open")]
    Locked,
    /// The log's files cannot be read or written.
    #[error("the log's files cannot be read or written")]
    Io(#[from] io::Error),
}

impl OpenError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Key { .. } => "LOG_KEY_UNUSABLE",
            Self::OriginChanged { .. } => "LOG_ORIGIN_CHANGED",
            Self::RolledBack { .. } => "LOG_ROLLED_BACK",
            Self::Corrupt { .. } => "LOG_CORRUPT",
            Self::Locked => "LOG_LOCKED",
            Self::Io(_) => "LOG_UNAVAILABLE",
        }
    }

    fn corrupt(file: impl ToString, what: impl ToString) -> Self {
        Self::Corrupt {
            file: file.to_string(),
            what: what.to_string(),
        }
    }
}

/// A log as it was found, ready to go on.
pub(super) struct Opened {
    pub(super) lock: File,
    pub(super) log: LogKey,
    pub(super) tree: Tree,
    /// The entries of the bundle that is not full.
    pub(super) edge: Edge,
    pub(super) signed: Arc<Signed>,
    pub(super) cosigned: Option<Arc<Signed>>,
    pub(super) journal: Journal,
    /// Segments of the journal that are written no more.
    pub(super) closed: Vec<Closed>,
    /// Index of the first entry in the journal: all before are durable in tiles.
    pub(super) base: u64,
}

/// Opens the log of `config`, or makes it.
pub(super) fn open(
    config: &EmbeddedConfig,
    key: &SigningKey,
    floor: Option<&Checkpoint>,
) -> Result<Opened, OpenError> {
    let EmbeddedConfig { dir, origin, .. } = config;
    let unusable = |source| OpenError::Key {
        origin: origin.clone(),
        source,
    };
    NoteSigner::new(origin, key).map_err(unusable)?;
    let log = LogKey::new(origin, key.verifying_key().clone()).map_err(unusable)?;
    if let Some(floor) = floor.filter(|floor| floor.origin != *origin) {
        return Err(OpenError::OriginChanged {
            found: floor.origin.clone(),
            wanted: origin.clone(),
        });
    }
    fs::create_dir_all(dir)?;
    let lock = lock(dir)?;
    identify(dir, &log, floor)?;
    Journal::prepare(dir)?;

    let stored = signed_file(dir, files::CHECKPOINT, &log)?;
    let cosigned = signed_file(dir, files::COSIGNED, &log)?;
    let segments = journal::read(dir)?.map_err(|(path, what)| {
        OpenError::corrupt(path.strip_prefix(dir).unwrap_or(&path).display(), what)
    })?;
    if stored.is_none() && segments.is_empty() && dir.join("tile").exists() {
        return Err(OpenError::corrupt(files::CHECKPOINT, "it is missing"));
    }
    let stored_size = stored.as_ref().map_or(0, |signed| signed.checkpoint.size);
    let base = segments
        .first()
        .map_or(stored_size, |segment| segment.records[0].first);

    let mut reader = Reader {
        dir,
        base,
        tree: Tree::default(),
        edge: Edge::default(),
    };
    reader.read_bundles()?;
    reader.replay(&segments)?;
    let newest = newest_checkpoint(&segments, &log)?;
    let Reader { tree, edge, .. } = reader;
    let size = tree.nodes.size();
    if let Some(newest) = &newest {
        expect(
            &tree,
            "journal",
            &newest.checkpoint,
            newest.checkpoint.size == size,
        )?;
    }
    for (file, signed) in [(files::CHECKPOINT, &stored), (files::COSIGNED, &cosigned)] {
        if let Some(signed) = signed {
            expect(&tree, file, &signed.checkpoint, signed.checkpoint.size <= size)?;
        }
    }
    check_tiles(dir, &tree, &edge, base, cosigned.as_ref())?;
    if let Some(floor) = floor {
        continues(&tree, floor)?;
    }

    let signed = match newest.or(stored.clone()) {
        Some(signed) => signed,
        None => intake::sign(origin, key, size, tree.nodes.root()).map_err(unusable)?,
    };
    if stored.as_ref() != Some(&signed) {
        files::replace_durably(dir, files::CHECKPOINT, signed.note.as_bytes())?;
    }
    let (journal, closed) = match segments.split_last() {
        Some((last, before)) => (
            Journal::resume(last, size)?,
            before.iter().map(Segment::closed).collect(),
        ),
        None => (Journal::begin(dir, size, &signed.note)?, Vec::new()),
    };
    let (signed, cosigned) = (Arc::new(signed), cosigned.map(Arc::new));
    Ok(Opened {
        lock,
        log,
        tree,
        edge,
        signed,
        cosigned,
        journal,
        closed,
        base,
    })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let file = File::create(dir.join(files::LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Holds the log to the origin and key that it was made with; a new log gets them here.
fn identify(dir: &Path, log: &LogKey, floor: Option<&Checkpoint>) -> Result<(), OpenError> {
    let wanted = format!("{}\n", log.note_key());
    if let Some(found) = files::read(&dir.join(files::VERIFIER_KEY))? {
        if found == wanted.as_bytes() {
            return Ok(());
        }
        let found = String::from_utf8_lossy(&found[..found.len().min(2048)])
            .trim_end()
            .to_owned();
        return Err(OpenError::OriginChanged {
            found,
            wanted: wanted.trim_end().to_owned(),
        });
    }
    if dir.join(files::CHECKPOINT).exists() || dir.join("tile").exists() {
        return Err(OpenError::corrupt(files::VERIFIER_KEY, "it is missing"));
    }
    if let Some(floor) = floor.filter(|floor| floor.size > 0) {
        return Err(OpenError::RolledBack {
            found: 0,
            remembered: floor.size,
        });
    }
    files::replace_durably(dir, files::VERIFIER_KEY, wanted.as_bytes())?;
    Ok(())
}

fn signed_file(dir: &Path, name: &str, log: &LogKey) -> Result<Option<Signed>, OpenError> {
    files::read_signed(dir, name, log)?
        .transpose()
        .map_err(|what| OpenError::corrupt(name, what))
}

/// The checkpoint of the last record, which covers all of the journal.
fn newest_checkpoint(segments: &[Segment], log: &LogKey) -> Result<Option<Signed>, OpenError> {
    let Some(record) = segments.last().and_then(|segment| segment.records.last()) else {
        return Ok(None);
    };
    let signed = files::signed_from(&record.checkpoint, log);
    signed
        .map(Some)
        .map_err(|what| OpenError::corrupt("journal", what))
}

/// A signed checkpoint must be of a size that the log has reached, and of this tree.
fn expect(tree: &Tree, file: &str, checkpoint: &Checkpoint, is_reached: bool) -> Result<(), OpenError> {
    if !is_reached {
        let what = format!(
            "it is of {} entries, but there are {}",
            checkpoint.size,
            tree.nodes.size()
        );
        return Err(OpenError::corrupt(file, what));
    }
    if root_at(tree, checkpoint.size) != Some(checkpoint.root) {
        return Err(OpenError::corrupt(file, "its root is not that of the entries"));
    }
    Ok(())
}

fn root_at(tree: &Tree, size: u64) -> Option<Hash> {
    merkle::root(&tree.nodes, size).ok()
}

/// The tree has grown out of the one that is remembered.
fn continues(tree: &Tree, floor: &Checkpoint) -> Result<(), OpenError> {
    let found = tree.nodes.size();
    if floor.size > found || root_at(tree, floor.size) != Some(floor.root) {
        return Err(OpenError::RolledBack {
            found,
            remembered: floor.size,
        });
    }
    Ok(())
}

/// Collects the entries in their order.
struct Reader<'a> {
    dir: &'a Path,
    base: u64,
    tree: Tree,
    /// The entries of the bundle that is not full.
    edge: Edge,
}

impl Reader<'_> {
    /// Reads the entries before the journal.
    fn read_bundles(&mut self) -> Result<(), OpenError> {
        for index in 0..self.base / WIDTH {
            let tile = TilePath {
                kind: TileKind::Entries,
                index,
                width: TILE_WIDTH,
            };
            let bytes = files::read(&self.dir.join(tile.to_string()))?;
            let bytes = bytes.ok_or_else(|| OpenError::corrupt(tile, "it is missing"))?;
            let entries =
                tile::read_entries(&bytes, TILE_WIDTH).map_err(|error| OpenError::corrupt(tile, error))?;
            for entry in entries {
                self.tree.push(merkle::leaf_hash(entry));
            }
        }
        let width = (self.base % WIDTH) as u16;
        if width > 0 { self.read_edge(width) } else { Ok(()) }
    }

    /// Reads the entries that the journal's first bundle has from before: from the partial bundle, or from the full one
    /// that has taken its place since.
    fn read_edge(&mut self, width: u16) -> Result<(), OpenError> {
        let partial = TilePath {
            kind: TileKind::Entries,
            index: self.base / WIDTH,
            width,
        };
        let full = TilePath {
            width: TILE_WIDTH,
            ..partial
        };
        let (tile, bytes) = match files::read(&self.dir.join(partial.to_string()))? {
            Some(bytes) => (partial, Some(bytes)),
            None => (full, files::read(&self.dir.join(full.to_string()))?),
        };
        let bytes = bytes.ok_or_else(|| OpenError::corrupt(partial, "it is missing"))?;
        let entries =
            tile::read_entries(&bytes, tile.width).map_err(|error| OpenError::corrupt(tile, error))?;
        for entry in entries.into_iter().take(usize::from(width)) {
            self.add(entry).map_err(|error| OpenError::corrupt(tile, error))?;
        }
        Ok(())
    }

    /// Reads the entries of the journal. Bundles that they fill are compared with their files.
    fn replay(&mut self, segments: &[Segment]) -> Result<(), OpenError> {
        for record in segments.iter().flat_map(|segment| &segment.records) {
            if record.first != self.tree.nodes.size() {
                let what = format!(
                    "a batch begins at {} instead of {}",
                    record.first,
                    self.tree.nodes.size()
                );
                return Err(OpenError::corrupt("journal", what));
            }
            for entry in &record.entries {
                self.add(entry)
                    .map_err(|error| OpenError::corrupt("journal", error))?;
                let size = self.tree.nodes.size();
                if size.is_multiple_of(WIDTH) {
                    let tile = TilePath {
                        kind: TileKind::Entries,
                        index: size / WIDTH - 1,
                        width: TILE_WIDTH,
                    };
                    compare(self.dir, &tile, self.edge.first(TILE_WIDTH), true)?;
                    self.edge.clear();
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, entry: &[u8]) -> Result<(), tile::TileError> {
        self.edge.push(entry)?;
        self.tree.push(merkle::leaf_hash(entry));
        Ok(())
    }
}

/// Holds every tile of hashes, and the bundle at the edge, to the entries.
fn check_tiles(
    dir: &Path,
    tree: &Tree,
    edge: &Edge,
    base: u64,
    cosigned: Option<&Signed>,
) -> Result<(), OpenError> {
    let size = tree.nodes.size();
    let mut tiles = files::tiles_between(0, size);
    tiles.extend(
        cosigned
            .into_iter()
            .flat_map(|signed| files::partial_tiles_at(signed.checkpoint.size, size)),
    );
    for tile in tiles {
        let (_, end) = files::leaves_of(&tile);
        // What reaches behind the base may not have been flushed, nor may partial tiles, which soon give way.
        let may_be_torn = end > base || tile.is_partial();
        match tile.kind {
            TileKind::Hashes(level) => compare(
                dir,
                &tile,
                &files::hashes_of(&tree.nodes, level, &tile),
                may_be_torn,
            )?,
            TileKind::Entries if tile.is_partial() => {
                compare(dir, &tile, edge.first(tile.width), may_be_torn)?
            }
            TileKind::Entries => {}
        }
    }
    Ok(())
}

/// Compares a tile with what it must hold; writes it again if a crash can explain the difference.
fn compare(dir: &Path, tile: &TilePath, wanted: &[u8], may_be_torn: bool) -> Result<(), OpenError> {
    match files::read(&dir.join(tile.to_string()))? {
        Some(found) if found == wanted => return Ok(()),
        Some(found) if !(may_be_torn && is_torn(&found, wanted)) => {
            return Err(OpenError::corrupt(tile, "it does not agree with the entries"));
        }
        None if !may_be_torn => return Err(OpenError::corrupt(tile, "it is missing")),
        Some(_) | None => {}
    }
    tracing::info!(%tile, "a tile is written again after a crash");
    files::write_tile(dir, tile, wanted)?;
    Ok(())
}

/// A file that was never flushed is cut short, or has zeros where its content did not arrive.
fn is_torn(found: &[u8], wanted: &[u8]) -> bool {
    found.len() <= wanted.len()
        && found
            .iter()
            .zip(wanted)
            .all(|(found, wanted)| found == wanted || *found == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_bytes_and_zeros_pass_for_a_crash() {
        for (case, found, is_explained) in [
            ("nothing arrived", &b""[..], true),
            ("cut", b"abc", true),
            ("zeros", &[0; 6], true),
            ("zeros behind a block", b"abc\0\0\0", true),
            ("another byte", b"abcdeg", false),
            ("another start", b"xbc", false),
            ("longer", b"abcdef\0", false),
        ] {
            assert_eq!(is_torn(found, b"abcdef"), is_explained, "{case}");
        }
    }
}
