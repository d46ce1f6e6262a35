//! Makes the tiles themselves durable, so that journal and partial tiles may go.
//!
//! Nobody waits for this. A full tile is flushed some time after it was written, and its partial ones are removed; a
//! segment of the journal is removed when all its entries stand in full, flushed bundles.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use stella_attest::tile::{TILE_WIDTH, TileKind, TilePath};

use super::files;
use super::journal::{self, Closed};

/// How long a full tile waits for company.
const PAUSE: Duration = Duration::from_secs(1);

/// Full tiles that are not kept waiting.
const MANY: usize = 64;

/// Something to be made durable, or to be removed after that.
pub(super) enum Chore {
    /// A tile that is full now.
    Full(TilePath),
    /// A segment of the journal that is written no more.
    Segment(Closed),
}

pub(super) struct Sweeper {
    pub(super) dir: PathBuf,
    /// Leaves that stand in full, flushed bundles.
    pub(super) durable: u64,
    pub(super) segments: Vec<Closed>,
    pub(super) full: BTreeSet<TilePath>,
}

impl Sweeper {
    /// Works until nobody is left who could send a chore; sweeps a last time then.
    pub(super) fn run(mut self, chores: &Receiver<Chore>) -> Self {
        let mut since = Instant::now();
        loop {
            let is_idle = self.full.is_empty();
            let received = if is_idle {
                chores.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                chores.recv_timeout(PAUSE.saturating_sub(since.elapsed()))
            };
            match received {
                Ok(Chore::Full(tile)) => {
                    if is_idle {
                        since = Instant::now();
                    }
                    self.full.insert(tile);
                    if self.full.len() < MANY {
                        continue;
                    }
                }
                Ok(Chore::Segment(closed)) => {
                    self.segments.push(closed);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.sweep_or_say();
                    return self;
                }
            }
            self.sweep_or_say();
            since = Instant::now();
        }
    }

    fn sweep_or_say(&mut self) {
        if let Err(error) = self.sweep() {
            // The journal keeps what could not be flushed; the next sweep tries again.
            tracing::warn!(%error, "the log's tiles could not be flushed");
        }
    }

    fn sweep(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.full.iter().map(ToString::to_string).collect();
        files::sync_all(&self.dir, names.iter().map(String::as_str))?;
        for tile in std::mem::take(&mut self.full) {
            if tile.kind == TileKind::Entries {
                self.durable = self.durable.max((tile.index + 1) * u64::from(TILE_WIDTH));
            }
            remove_folder(&files::partial_folder(&self.dir, &tile))?;
        }
        while self
            .segments
            .first()
            .is_some_and(|oldest| oldest.end <= self.durable)
        {
            journal::remove(&self.dir, &self.segments.remove(0))?;
        }
        Ok(())
    }

    /// Flushes the tree's right edge and its checkpoint, and removes the whole journal: all is in its place.
    pub(super) fn settle(mut self, size: u64, last: Closed) -> io::Result<()> {
        if !self.full.is_empty() {
            self.sweep()?;
        }
        let edge: Vec<String> = files::partial_tiles(size)
            .iter()
            .map(ToString::to_string)
            .collect();
        let names = edge.iter().map(String::as_str).chain([files::CHECKPOINT]);
        files::sync_all(&self.dir, names)?;
        self.segments.push(last);
        for segment in &self.segments {
            journal::remove(&self.dir, segment)?;
        }
        Ok(())
    }
}

fn remove_folder(folder: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
