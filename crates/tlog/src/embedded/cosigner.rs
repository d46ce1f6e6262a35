//! Has checkpoints cosigned by the required witnesses, then answers.
//!
//! One checkpoint is out at a time, the newest there is. What becomes durable meanwhile shares the next one. So however
//! many submissions wait, a witness is asked as often as it answers. Without witnesses the log's signature is enough.
//!
//! A checkpoint that nobody waits for is brought to the witnesses all the same; if they fail, the next one is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use stella_attest::cosignature;
use stella_attest::merkle;
use stella_attest::note::Note;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::intake::{Durable, Waiting, refuse};
use super::publisher::Work;
use super::queue::Queue;
use super::{Shared, Signed, files};
use crate::{LogError, Witness, WitnessError};

/// How often a witness may name another size than the one we prove from, before we stop believing it.
const ATTEMPTS: usize = 3;

pub(super) struct Cosigner {
    pub(super) shared: Arc<Shared>,
    pub(super) witnesses: Vec<Known>,
    pub(super) timeout: Duration,
    pub(super) publisher: Arc<Queue<Work>>,
    /// Turns true when the log closes.
    pub(super) closing: watch::Receiver<bool>,
}

/// A witness and the size that it saw last, as far as we know.
pub(super) struct Known {
    witness: Arc<dyn Witness>,
    size: u64,
}

impl Known {
    /// A witness that cosigned `last`, if its line is on it.
    pub(super) fn new(witness: Arc<dyn Witness>, last: Option<&Signed>) -> Self {
        let is_on_it = |signed: &&Signed| {
            let note = Note::parse(signed.note.as_bytes());
            note.is_ok_and(|note| matches!(cosignature::verify(&note, witness.key()), Ok(Some(_))))
        };
        let size = last.filter(is_on_it).map_or(0, |signed| signed.checkpoint.size);
        Self { witness, size }
    }
}

impl Cosigner {
    /// Works until nobody is left who could send.
    pub(super) async fn run(mut self, mut durable: UnboundedReceiver<Durable>) {
        while let Some(Durable {
            mut signed,
            mut waiting,
        }) = durable.recv().await
        {
            while let Ok(next) = durable.try_recv() {
                signed = next.signed;
                waiting.extend(next.waiting);
            }
            if self.witnesses.is_empty() {
                for one in waiting {
                    one.answer_with(&self.shared, &signed);
                }
                continue;
            }
            let mut closing = self.closing.clone();
            let outcome = tokio::select! {
                outcome = self.prove(&signed, &mut waiting) => outcome,
                _ = closing.wait_for(|is_closing| *is_closing) => Err(LogError::Closed),
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, size = signed.checkpoint.size, "the checkpoint is not cosigned");
                refuse(waiting, &error);
            }
        }
    }

    /// Answers all of `waiting`, or those that need no newer cosignature, and says why the others cannot be.
    async fn prove(&mut self, signed: &Signed, waiting: &mut Vec<Waiting>) -> Result<(), LogError> {
        self.answer_covered(waiting);
        if waiting.is_empty() && self.has_cosigned(signed) {
            return Ok(());
        }
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        let cosigned = self.cosign(signed).await?;
        files::write_checkpoint(&self.shared.dir, files::COSIGNED, &cosigned.note, true)
            .map_err(|error| self.shared.fail(error))?;
        let cosigned = Arc::new(cosigned);
        self.shared.cosigned.send_replace(Some(cosigned.clone()));
        // The publisher ends after the cosigner.
        let _ = self.publisher.push(Work::Cosigned(cosigned));
        self.answer_covered(waiting);
        Ok(())
    }

    /// True if the newest cosigned checkpoint is not older than this one.
    fn has_cosigned(&self, signed: &Signed) -> bool {
        let cosigned = self.shared.cosigned.borrow();
        cosigned
            .as_ref()
            .is_some_and(|cosigned| cosigned.checkpoint.size >= signed.checkpoint.size)
    }

    /// Answers those whose entries the newest cosigned checkpoint covers.
    fn answer_covered(&self, waiting: &mut Vec<Waiting>) {
        let cosigned = self.shared.cosigned.borrow().clone();
        let Some(cosigned) = cosigned else { return };
        for one in std::mem::take(waiting) {
            if one.index < cosigned.checkpoint.size {
                one.answer_with(&self.shared, &cosigned);
            } else {
                waiting.push(one);
            }
        }
    }

    /// The checkpoint with a line by every witness.
    async fn cosign(&mut self, signed: &Signed) -> Result<Signed, LogError> {
        let (shared, timeout) = (&self.shared, self.timeout);
        let asked = self
            .witnesses
            .iter_mut()
            .map(|known| ask(shared, known, signed, timeout));
        let mut note = parse(signed)?;
        for lines in join_all(asked).await {
            let lines = lines.map_err(log_error)?;
            note = note
                .with_lines(&lines)
                .map_err(|error| log_error(WitnessError::Refused(error.to_string())))?;
        }
        Ok(Signed {
            checkpoint: signed.checkpoint.clone(),
            note: note.to_string().into(),
        })
    }
}

/// Asks one witness, again if it saw another size than we thought; its line verifies.
async fn ask(
    shared: &Shared,
    known: &mut Known,
    signed: &Signed,
    timeout: Duration,
) -> Result<String, WitnessError> {
    let size = signed.checkpoint.size;
    for _ in 0..ATTEMPTS {
        let proof = merkle::consistency_proof(&shared.tree().nodes, known.size, size)
            .map_err(|error| WitnessError::Refused(error.to_string()))?;
        let asked = known.witness.cosign(known.size, &proof, &signed.note);
        let answer = tokio::time::timeout(timeout, asked).await;
        match answer.unwrap_or_else(|_| Err(WitnessError::Unavailable("no answer in time".into()))) {
            Ok(lines) => {
                check_lines(signed, known.witness.as_ref(), &lines)?;
                known.size = size;
                return Ok(lines);
            }
            Err(WitnessError::KeptSize { kept }) if kept > size => return Err(WitnessError::Stale),
            Err(WitnessError::KeptSize { kept }) if kept != known.size => known.size = kept,
            Err(error) => return Err(error),
        }
    }
    Err(WitnessError::Refused("it names another size each time".into()))
}

/// The answer is one line by the witness's own key, on this checkpoint.
fn check_lines(signed: &Signed, witness: &dyn Witness, lines: &str) -> Result<(), WitnessError> {
    let refused = |error: String| WitnessError::Refused(error);
    let note = Note::parse(signed.note.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let count = note.signatures().len();
    let note = note
        .with_lines(lines)
        .map_err(|error| refused(error.to_string()))?;
    let time = cosignature::verify(&note, witness.key()).map_err(|error| refused(error.to_string()))?;
    if time.is_none() || note.signatures().len() != count + 1 {
        return Err(refused("its answer is not one line by its own key".into()));
    }
    Ok(())
}

fn parse(signed: &Signed) -> Result<Note, LogError> {
    Note::parse(signed.note.as_bytes()).map_err(|error| LogError::Storage(Arc::new(io::Error::other(error))))
}

fn log_error(error: WitnessError) -> LogError {
    match error {
        WitnessError::Unavailable(_) | WitnessError::KeptSize { .. } | WitnessError::Refused(_) => {
            LogError::WitnessUnavailable(error)
        }
        WitnessError::Stale => LogError::CheckpointStale(error),
        WitnessError::ConsistencyInvalid => LogError::ConsistencyInvalid(error),
        WitnessError::Fork => LogError::Fork(error),
    }
}
