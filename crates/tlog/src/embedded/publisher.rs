//! From durable batches to files that others read.
//!
//! The journal has a batch before it comes here, so nothing here needs a flush, and nobody waits for it. Tiles are
//! written before the checkpoint that covers them. Making files is what costs: so what comes within the configured
//! interval after a publication is gathered and published at once, and only then does a checkpoint get partial tiles.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use stella_attest::tile::{self, TILE_WIDTH, TileError, TileKind, TilePath};

use super::queue::Queue;
use super::sweeper::Chore;
use super::{Shared, Signed, files};

const WIDTH: u64 = TILE_WIDTH as u64;

/// Something to be published.
pub(super) enum Work {
    /// A batch that is in the journal.
    Batch {
        /// Its entries as a bundle holds them.
        entries: Vec<u8>,
        /// Where each of them ends.
        ends: Vec<usize>,
        /// The checkpoint that covers them and all before.
        signed: Arc<Signed>,
    },
    /// A checkpoint that was cosigned and is kept: its partial tiles must be there.
    Cosigned(Arc<Signed>),
}

pub(super) struct Publisher {
    pub(super) shared: Arc<Shared>,
    pub(super) interval: Duration,
    pub(super) edge: Edge,
    /// Leaves whose tiles are written.
    pub(super) size: u64,
    pub(super) chores: Sender<Chore>,
}

/// The entries of the bundle that is not full, as in its file.
#[derive(Default)]
pub(super) struct Edge {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Edge {
    /// Adds an entry.
    pub(super) fn push(&mut self, entry: &[u8]) -> Result<(), TileError> {
        tile::push_entry(&mut self.bytes, entry)?;
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// Adds an entry that has its length before it.
    fn push_framed(&mut self, entry: &[u8]) {
        self.bytes.extend_from_slice(entry);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// The first entries.
    pub(super) fn first(&self, width: u16) -> &[u8] {
        let end = self.ends.get(usize::from(width).wrapping_sub(1)).copied();
        &self.bytes[..end.unwrap_or(self.bytes.len())]
    }
}

impl Publisher {
    /// Works until `queue` is closed.
    pub(super) fn run(mut self, queue: &Queue<Work>) {
        let mut not_before = Instant::now();
        loop {
            let works = queue.take_from(not_before);
            if works.is_empty() {
                return;
            }
            // After a failure the journal keeps what was not published.
            if self.shared.failure().is_none()
                && let Err(error) = self.publish(works)
            {
                self.shared.fail(error);
            }
            not_before = Instant::now() + self.interval;
        }
    }

    fn publish(&mut self, works: Vec<Work>) -> io::Result<()> {
        let (mut newest, mut cosigned) = (None, None);
        for work in works {
            match work {
                Work::Batch {
                    entries,
                    ends,
                    signed,
                } => {
                    self.add(&entries, &ends, signed.checkpoint.size)?;
                    newest = Some(signed);
                }
                Work::Cosigned(signed) => cosigned = Some(signed),
            }
        }
        if let Some(signed) = &newest {
            self.write_tiles(signed.checkpoint.size)?;
        }
        if let Some(signed) = cosigned {
            self.write_partial_tiles(signed.checkpoint.size)?;
        }
        if let Some(signed) = newest {
            files::write_checkpoint(&self.shared.dir, files::CHECKPOINT, &signed.note, false)?;
            self.shared.published.send_replace(signed);
        }
        Ok(())
    }

    /// Adds the entries of a batch to the edge; writes the bundles that it fills.
    fn add(&mut self, entries: &[u8], ends: &[usize], size: u64) -> io::Result<()> {
        let mut count = size - ends.len() as u64;
        let mut start = 0;
        for end in ends {
            self.edge.push_framed(&entries[start..*end]);
            (start, count) = (*end, count + 1);
            if count.is_multiple_of(WIDTH) {
                let tile = TilePath {
                    kind: TileKind::Entries,
                    index: count / WIDTH - 1,
                    width: TILE_WIDTH,
                };
                self.write(&tile)?;
                self.edge.clear();
            }
        }
        Ok(())
    }

    /// Writes the tiles that a tree of this size has and the published one has not.
    fn write_tiles(&mut self, size: u64) -> io::Result<()> {
        for tile in files::tiles_between(self.size, size) {
            // Full bundles were written when they became full.
            if tile.kind != TileKind::Entries || tile.is_partial() {
                self.write(&tile)?;
            }
            if !tile.is_partial() {
                // The sweeper ends after the publisher.
                let _ = self.chores.send(Chore::Full(tile));
            }
        }
        self.size = size;
        Ok(())
    }

    /// Writes the partial tiles of a tree of this size, where no full one has taken their place.
    fn write_partial_tiles(&self, size: u64) -> io::Result<()> {
        for tile in files::partial_tiles_at(size, self.size) {
            if !self.shared.dir.join(tile.to_string()).exists() {
                self.write(&tile)?;
            }
        }
        Ok(())
    }

    fn write(&self, tile: &TilePath) -> io::Result<()> {
        match tile.kind {
            TileKind::Entries => files::write_tile(&self.shared.dir, tile, self.edge.first(tile.width)),
            TileKind::Hashes(level) => {
                let hashes = files::hashes_of(&self.shared.tree().nodes, level, tile);
                files::write_tile(&self.shared.dir, tile, &hashes)
            }
        }
    }
}
