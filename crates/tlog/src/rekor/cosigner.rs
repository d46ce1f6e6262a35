//! Has checkpoints of a log elsewhere cosigned by the required witnesses, for all entries that wait at once.
//!
//! One task per log takes what has gathered, chooses the largest of their checkpoints, builds the consistency proof from
//! the tiles for each witness, asks each one once, and answers everybody with a proof that leads to the cosigned note.
//! What comes meanwhile shares the next round.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use stella_attest::cosignature;
use stella_attest::evidence::LogEntry;
use stella_attest::note::Note;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::seen::Signed;
use super::tiles::TileReader;
use crate::{LogError, Witness, WitnessError};

/// How often a witness may name another size than the one we prove from, before we stop believing it.
const ATTEMPTS: usize = 3;
/// How long it may take to see whether a log is there at all.
const LOOK: Duration = Duration::from_secs(1);
/// Most entries of one round.
const ROUND: usize = 1024;

/// An entry that is in the log and waits for a cosigned proof.
pub(super) struct Waiting {
    pub(super) entry: LogEntry,
    /// A checkpoint that covers the entry.
    pub(super) signed: Signed,
    /// When whoever waits gives up.
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<LogEntry, LogError>>,
}

pub(super) struct Cosigner {
    reader: Arc<TileReader>,
    witnesses: Vec<Known>,
    timeout: Duration,
    /// The last note that all witnesses cosigned.
    cosigned: Option<Signed>,
}

/// A witness and the size that it saw last, as far as we know.
struct Known {
    witness: Arc<dyn Witness>,
    size: u64,
}

/// Why a round failed.
enum Failure {
    /// A witness has seen a tree of this size already.
    Ahead(u64),
    Error(LogError),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::Error(error)
    }
}

impl From<WitnessError> for Failure {
    fn from(error: WitnessError) -> Self {
        Self::Error(witness_error(error))
    }
}

impl Cosigner {
    pub(super) fn new(reader: Arc<TileReader>, witnesses: Vec<Arc<dyn Witness>>, timeout: Duration) -> Self {
        let witnesses = witnesses.into_iter().map(|witness| Known { witness, size: 0 });
        Self {
            reader,
            witnesses: witnesses.collect(),
            timeout,
            cosigned: None,
        }
    }

    /// Works until nobody is left who could send.
    pub(super) async fn run(mut self, mut arriving: UnboundedReceiver<Waiting>) {
        let mut round = Vec::new();
        while arriving.recv_many(&mut round, ROUND).await > 0 {
            round.retain(|waiting: &Waiting| !waiting.answer.is_closed());
            let Some(deadline) = round.iter().map(|waiting| waiting.deadline).max() else {
                continue;
            };
            let proven = timeout_at(deadline, self.prove(&round, deadline)).await;
            let late = || witness_error(WitnessError::Unavailable("no cosignature in time".into()));
            match proven.unwrap_or_else(|_| Err(late())) {
                Ok(entries) => {
                    for (waiting, entry) in round.drain(..).zip(entries) {
                        // Whoever has gone away meanwhile finds the entry when it asks again.
                        let _ = waiting.answer.send(Ok(entry));
                    }
                }
                Err(error) => {
                    for waiting in round.drain(..) {
                        let _ = waiting.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// The entries of `round`, in its order, under one cosigned checkpoint.
    async fn prove(&mut self, round: &[Waiting], deadline: Instant) -> Result<Vec<LogEntry>, LogError> {
        let mut last = 0;
        for waiting in round {
            last = last.max(waiting.entry.log_index);
        }
        let is_covered = |signed: &&Signed| last < signed.checkpoint.size;
        let cosigned = match self.cosigned.as_ref().filter(is_covered) {
            Some(cosigned) => cosigned.clone(),
            None => {
                let largest = round.iter().map(|waiting| &waiting.signed);
                let Some(largest) = largest.max_by_key(|signed| signed.checkpoint.size) else {
                    return Ok(Vec::new());
                };
                let cosigned = self.cosign_or_newer(largest.clone(), deadline).await?;
                self.cosigned = Some(cosigned.clone());
                cosigned
            }
        };
        let bodies = round
            .iter()
            .map(|waiting| (waiting.entry.log_index, waiting.entry.body.clone()));
        self.reader
            .tiles
            .entries(bodies.collect(), &cosigned, deadline)
            .await
    }

    /// `signed` with a line by every witness; a newer checkpoint if one of them has seen a newer one already, as happens
    /// where others write to the log and have it witnessed, too.
    async fn cosign_or_newer(&mut self, mut signed: Signed, deadline: Instant) -> Result<Signed, LogError> {
        let mut refused = LogError::CheckpointStale(WitnessError::Stale);
        for _ in 0..ATTEMPTS {
            let ahead = match self.cosign(&signed, deadline).await {
                Ok(cosigned) => return Ok(cosigned),
                Err(Failure::Ahead(size)) => size,
                Err(Failure::Error(error)) => return Err(error),
            };
            // The log may not have published it yet, or may have been rolled back.
            let until = deadline.min(Instant::now() + self.timeout);
            signed = match self.reader.covering(ahead - 1, until).await {
                Ok(newer) => newer,
                Err(error @ LogError::Unavailable(_)) => {
                    // A log that answers, and has no such checkpoint, was rolled back; one that does not answer is away.
                    if self.reader.look(until.max(Instant::now() + LOOK)).await.is_err() {
                        refused = error;
                    }
                    break;
                }
                Err(error) => return Err(error),
            };
        }
        // Whichever of them was wrong: the next round hears from the witnesses again what they saw.
        for known in &mut self.witnesses {
            known.size = 0;
        }
        Err(refused)
    }

    async fn cosign(&mut self, signed: &Signed, deadline: Instant) -> Result<Signed, Failure> {
        let (reader, wait) = (&self.reader, self.timeout);
        let asked = self
            .witnesses
            .iter_mut()
            .map(|known| ask(reader, known, signed, wait, deadline));
        let mut note = parse(signed)?;
        for lines in join_all(asked).await {
            note = note
                .with_lines(&lines?)
                .map_err(|error| WitnessError::Refused(error.to_string()))?;
        }
        Ok(Signed {
            checkpoint: signed.checkpoint.clone(),
            note: note.to_string(),
        })
    }
}

/// Asks one witness, again if it saw another size than we thought; its line verifies.
async fn ask(
    reader: &TileReader,
    known: &mut Known,
    signed: &Signed,
    wait: Duration,
    deadline: Instant,
) -> Result<String, Failure> {
    let checkpoint = &signed.checkpoint;
    for _ in 0..ATTEMPTS {
        if known.size > checkpoint.size {
            return Err(Failure::Ahead(known.size));
        }
        let (proof, _) = reader.tiles.consistency(known.size, checkpoint, deadline).await?;
        let asked = known.witness.cosign(known.size, &proof, &signed.note);
        let answer = timeout(wait, asked).await;
        match answer.unwrap_or_else(|_| Err(WitnessError::Unavailable("no answer in time".into()))) {
            Ok(lines) => {
                check_lines(signed, known.witness.as_ref(), &lines)?;
                known.size = checkpoint.size;
                return Ok(lines);
            }
            Err(WitnessError::KeptSize { kept }) if kept != known.size => known.size = kept,
            Err(error) => return Err(error.into()),
        }
    }
    Err(WitnessError::Refused("it names another size each time".into()).into())
}

/// The answer is one line by the witness's own key, on this checkpoint.
fn check_lines(signed: &Signed, witness: &dyn Witness, lines: &str) -> Result<(), Failure> {
    let refused = |error: String| WitnessError::Refused(error);
    let note = parse(signed)?;
    let before = note.signatures_by(witness.key()).count();
    let count = note.signatures().len();
    let note = note
        .with_lines(lines)
        .map_err(|error| refused(error.to_string()))?;
    let time = cosignature::verify(&note, witness.key()).map_err(|error| refused(error.to_string()))?;
    if time.is_none() || note.signatures().len() != count - before + 1 {
        return Err(refused("its answer is not one line by its own key".into()).into());
    }
    Ok(())
}

fn parse(signed: &Signed) -> Result<Note, LogError> {
    Note::parse(signed.note.as_bytes())
        .map_err(|error| super::seen::invalid("CHECKPOINT_MALFORMED", error.to_string()))
}

fn witness_error(error: WitnessError) -> LogError {
    match error {
        WitnessError::Unavailable(_) | WitnessError::KeptSize { .. } | WitnessError::Refused(_) => {
            LogError::WitnessUnavailable(error)
        }
        WitnessError::Stale => LogError::CheckpointStale(error),
        WitnessError::ConsistencyInvalid => LogError::ConsistencyInvalid(error),
        WitnessError::Fork => LogError::Fork(error),
    }
}
