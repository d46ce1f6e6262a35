//! From durable batches to files that others read, and to answers.
//!
//! The journal has the batch already; tiles and checkpoint are written here without a flush, the checkpoint last, so
//! that what it covers is there. When batches come faster than files can be written, several are published at once.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use stella_attest::tile::{TILE_WIDTH, TileKind, TilePath};
use tokio::sync::mpsc::UnboundedSender;

use super::intake::{Committed, Waiting, refuse};
use super::queue::Queue;
use super::sweeper::Chore;
use super::{Shared, Signed, files};
use crate::LogError;

/// What has been published and waits for witnesses.
pub(super) struct Published {
    pub(super) signed: Arc<Signed>,
    pub(super) waiting: Vec<Waiting>,
}

pub(super) struct Publisher {
    pub(super) shared: Arc<Shared>,
    /// The entries of the bundle that is not full, as in its file.
    pub(super) edge: Vec<u8>,
    /// Leaves whose tiles are written.
    pub(super) size: u64,
    pub(super) chores: Sender<Chore>,
    /// Where answers go that witnesses have to cosign first.
    pub(super) cosigner: Option<UnboundedSender<Published>>,
}

impl Publisher {
    /// Works until `committed` is closed.
    pub(super) fn run(mut self, committed: &Queue<Committed>) {
        loop {
            let batches = committed.take();
            let Some(last) = batches.last() else { return };
            let signed = last.signed.clone();
            let written = match self.shared.failure() {
                Some(error) => Err(error),
                None => self
                    .write(&batches, &signed)
                    .map_err(|error| self.shared.fail(error)),
            };
            let waiting: Vec<Waiting> = batches.into_iter().flat_map(|batch| batch.waiting).collect();
            match written {
                Ok(()) => self.answer(signed, waiting),
                Err(error) => refuse(waiting, &error),
            }
        }
    }

    fn write(&mut self, batches: &[Committed], signed: &Arc<Signed>) -> io::Result<()> {
        let size = signed.checkpoint.size;
        if size == self.size {
            return Ok(());
        }
        let dir = &self.shared.dir;
        let mut count = self.size;
        for batch in batches {
            let mut start = 0;
            for end in &batch.ends {
                self.edge.extend_from_slice(&batch.entries[start..*end]);
                start = *end;
                count += 1;
                if count.is_multiple_of(u64::from(TILE_WIDTH)) {
                    let index = count / u64::from(TILE_WIDTH) - 1;
                    let tile = TilePath {
                        kind: TileKind::Entries,
                        index,
                        width: TILE_WIDTH,
                    };
                    files::write_tile(dir, &tile, &self.edge)?;
                    self.edge.clear();
                }
            }
        }
        for tile in files::tiles_between(self.size, size) {
            match tile.kind {
                TileKind::Hashes(level) => {
                    let hashes = files::hashes_of(&self.shared.tree().nodes, level, &tile);
                    files::write_tile(dir, &tile, &hashes)?;
                }
                TileKind::Entries if tile.is_partial() => files::write_tile(dir, &tile, &self.edge)?,
                TileKind::Entries => {}
            }
            if !tile.is_partial() {
                // The sweeper ends after the publisher.
                let _ = self.chores.send(Chore::Full(tile));
            }
        }
        files::replace(dir, files::CHECKPOINT, signed.note.as_bytes())?;
        self.size = size;
        self.shared.published.send_replace(signed.clone());
        Ok(())
    }

    fn answer(&self, signed: Arc<Signed>, waiting: Vec<Waiting>) {
        match &self.cosigner {
            None => {
                for waiting in waiting {
                    waiting.answer_with(&self.shared, &signed);
                }
            }
            Some(cosigner) => {
                if let Err(refused) = cosigner.send(Published { signed, waiting }) {
                    refuse(refused.0.waiting, &LogError::Closed);
                }
            }
        }
    }
}

impl Waiting {
    /// Answers with the proof that leads to `signed`, which covers the entry.
    pub(super) fn answer_with(self, shared: &Shared, signed: &Signed) {
        let entry = shared.entry_of(self.index, self.body, signed);
        self.answer.give(Ok(entry));
    }
}
