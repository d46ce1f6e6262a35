//! From submissions to durable batches.
//!
//! Checkers, one a core, verify signatures and build entries. One writer takes what they have checked, adds what is new
//! to the tree, signs the checkpoint, and writes both into the journal with one flush. Only then does the batch go on:
//! its entries to the [`publisher`](super::publisher), those who wait to the [`cosigner`](super::cosigner).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use stella_attest::checkpoint::Checkpoint;
use stella_attest::hashedrekord;
use stella_attest::key::SigningKey;
use stella_attest::merkle::{self, Hash};
use stella_attest::note::{Note, NoteError, NoteSigner};
use stella_attest::tile;
use tokio::sync::mpsc::UnboundedSender;

use super::journal::{Closed, Journal};
use super::publisher::Work;
use super::queue::Queue;
use super::sweeper::Chore;
use super::{Answer, Appended, Shared, Signed};
use crate::{LogError, Submission};

/// A submission that nobody has looked at.
pub(super) struct Raw {
    pub(super) submission: Submission,
    pub(super) answer: Answer,
}

/// A submission whose signature verifies.
pub(super) struct Checked {
    leaf: Hash,
    body: Vec<u8>,
    answer: Answer,
}

/// Someone who waits for the proof of an entry that is in the tree.
pub(super) struct Waiting {
    pub(super) index: u64,
    /// True if the entry came with this submission.
    is_new: bool,
    pub(super) body: Vec<u8>,
    pub(super) answer: Answer,
}

/// A checkpoint that is durable, and those who wait for entries that it covers.
pub(super) struct Durable {
    pub(super) signed: Arc<Signed>,
    pub(super) waiting: Vec<Waiting>,
}

/// Starts the checkers; they end when `raw` is closed.
pub(super) fn start_checkers(
    raw: &Arc<Queue<Raw>>,
    checked: &Arc<Queue<Checked>>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let count = thread::available_parallelism().map_or(1, usize::from);
    let mut threads = Vec::new();
    for number in 0..count {
        let (raw, checked) = (raw.clone(), checked.clone());
        let name = format!("log-check-{number}");
        threads.push(
            thread::Builder::new()
                .name(name)
                .spawn(move || check_all(&raw, &checked))?,
        );
    }
    Ok(threads)
}

fn check_all(raw: &Queue<Raw>, checked: &Queue<Checked>) {
    loop {
        let taken = raw.take();
        if taken.is_empty() {
            return;
        }
        for Raw { submission, answer } in taken {
            match check(&submission) {
                Ok((leaf, body)) => checked.push_announced(Checked { leaf, body, answer }),
                Err(refusal) => {
                    checked.withdraw();
                    answer.give(Err(refusal));
                }
            }
        }
    }
}

fn check(submission: &Submission) -> Result<(Hash, Vec<u8>), LogError> {
    let Submission {
        pae_digest,
        signature,
        key,
        ..
    } = submission;
    if !key.verify_digest(pae_digest, signature) {
        return Err(LogError::SignatureInvalid);
    }
    let body = hashedrekord::entry_body(pae_digest, signature, key).map_err(|_| LogError::KeyNotLoggable)?;
    if body.len() > usize::from(u16::MAX) {
        return Err(LogError::EntryTooLarge(body.len()));
    }
    Ok((merkle::leaf_hash(&body), body))
}

/// The one thread that changes the tree.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Arc<SigningKey>,
    pub(super) journal: Journal,
    pub(super) segment_bytes: u64,
    pub(super) publisher: Arc<Queue<Work>>,
    pub(super) cosigner: UnboundedSender<Durable>,
    pub(super) chores: Sender<Chore>,
}

impl Writer {
    /// Works until `checked` is closed; returns the segment it wrote last.
    pub(super) fn run(mut self, checked: &Queue<Checked>) -> Closed {
        loop {
            let batch = checked.take();
            if batch.is_empty() {
                return self.journal.close();
            }
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<Checked>) {
        let (entries, ends, waiting) = self.integrate(batch);
        if !ends.is_empty() {
            match self.make_durable(&entries, ends.len()) {
                Ok(signed) => {
                    self.shared.durable.send_replace(signed.clone());
                    // The publisher ends after the writer.
                    let _ = self.publisher.push(Work::Batch {
                        entries,
                        ends,
                        signed,
                    });
                }
                Err(error) => return refuse(waiting, &self.shared.fail(error)),
            }
        }
        let signed = self.shared.durable.borrow().clone();
        let waiting = self.answer_unwitnessed(waiting, &signed);
        if let Err(refused) = self.cosigner.send(Durable { signed, waiting }) {
            refuse(refused.0.waiting, &LogError::Closed);
        }
    }

    /// Answers those who want no witness, and returns the others.
    fn answer_unwitnessed(&self, all: Vec<Waiting>, signed: &Signed) -> Vec<Waiting> {
        let mut others = Vec::with_capacity(all.len());
        for one in all {
            if one.answer.needs_witness {
                others.push(one);
            } else {
                one.answer_with(&self.shared, signed);
            }
        }
        others
    }

    /// Adds what is new to the tree, and finds the place of what is not.
    ///
    /// The tree in memory runs ahead of the journal here. No proof is made for a size before its checkpoint is durable,
    /// and if it never is, this tree is given up.
    fn integrate(&self, batch: Vec<Checked>) -> (Vec<u8>, Vec<usize>, Vec<Waiting>) {
        let (mut entries, mut ends) = (Vec::new(), Vec::new());
        let mut waiting = Vec::with_capacity(batch.len());
        let failed = self.shared.failure();
        let mut tree = self.shared.tree_mut();
        for Checked { leaf, body, answer } in batch {
            if let Some(error) = &failed {
                answer.give(Err(error.clone()));
                continue;
            }
            let known = tree.index.get(&leaf).copied();
            let index = match known {
                Some(index) => index,
                None => {
                    if let Err(error) = tile::push_entry(&mut entries, &body) {
                        tracing::error!(%error, "an entry that was checked does not fit");
                        answer.give(Err(LogError::EntryTooLarge(body.len())));
                        continue;
                    }
                    ends.push(entries.len());
                    tree.push(leaf)
                }
            };
            waiting.push(Waiting {
                index,
                is_new: known.is_none(),
                body,
                answer,
            });
        }
        (entries, ends, waiting)
    }

    fn make_durable(&mut self, entries: &[u8], count: usize) -> io::Result<Arc<Signed>> {
        let (size, root) = {
            let tree = self.shared.tree();
            (tree.nodes.size(), tree.nodes.root())
        };
        let signed = sign(&self.shared.log.origin, &self.key, size, root).map_err(io::Error::other)?;
        let count = u16::try_from(count).map_err(io::Error::other)?;
        self.journal.append(entries, count, &signed.note)?;
        if self.journal.length() > self.segment_bytes {
            let next = Journal::begin(&self.shared.dir, size, &signed.note)?;
            let closed = std::mem::replace(&mut self.journal, next).close();
            // The sweeper ends after the writer.
            let _ = self.chores.send(Chore::Segment(closed));
        }
        Ok(Arc::new(signed))
    }
}

/// Signs a checkpoint with the log's key.
pub(super) fn sign(origin: &str, key: &SigningKey, size: u64, root: Hash) -> Result<Signed, NoteError> {
    let checkpoint = Checkpoint {
        origin: origin.to_owned(),
        size,
        root,
        extensions: Vec::new(),
    };
    let note = Note::sign(&checkpoint.to_text(), &NoteSigner::new(origin, key)?)?;
    Ok(Signed {
        checkpoint,
        note: note.to_string().into(),
    })
}

impl Waiting {
    /// Answers with the proof that leads to `signed`, which covers the entry.
    pub(super) fn answer_with(self, shared: &Shared, signed: &Signed) {
        let entry = shared.entry_of(self.index, self.body, signed);
        self.answer.give(Ok(Appended {
            entry,
            is_new: self.is_new,
        }));
    }
}

/// Gives the same refusal to all.
pub(super) fn refuse(waiting: Vec<Waiting>, error: &LogError) {
    for waiting in waiting {
        waiting.answer.give(Err(error.clone()));
    }
}
