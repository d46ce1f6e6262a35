//! The witness of the logs: cosigns a checkpoint only if it extends the one that it cosigned last.
//!
//! It compares with the size and root that it keeps per log, so a log can be neither forked nor shortened without the
//! witness seeing it. What it has cosigned is durable before the cosignature leaves the process. A second root for one
//! size is proof of a fork, and others who see one show their proof: the log is distrusted from then on, in the trust
//! roots themselves.

use std::sync::{Mutex, PoisonError};

use stella_attest::checkpoint::{Checkpoint, CheckpointError};
use stella_attest::cosignature;
use stella_attest::fork::{ForkError, ForkProof};
use stella_attest::key::SigningKey;
use stella_attest::merkle::{self, Hash};
use stella_attest::note::{Note, NoteError, NoteKey};
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::TrustRoots;
use stella_proto::status::{refuse, refuse_field, refuse_with};
use tonic::{Code, Status};
use tracing::{error, info};

use crate::heads::{Head, Heads};

/// The metadata of a refusal under which it carries the kept size.
pub(crate) const KEPT_SIZE: &str = "size";

/// Why a checkpoint is not cosigned.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// It is not a signed note.
    #[error("the checkpoint is not a signed note")]
    Malformed(#[source] NoteError),
    /// No trusted log has its origin and key.
    #[error("no trusted log of this origin signed the checkpoint")]
    UnknownLog,
    /// It bears a trusted log's origin, and not its signature.
    #[error("the checkpoint is not signed by its log")]
    Signature(#[source] CheckpointError),
    /// The log was found to be forked.
    #[error("the log is distrusted")]
    Distrusted,
    /// `old_size` is not the size that was cosigned last.
    #[error("the last checkpoint that was cosigned has size {kept}")]
    OtherSize {
        /// The size that is kept.
        kept: u64,
    },
    /// It is smaller than the one that was cosigned last.
    #[error("size {size} is smaller than {kept}, which was cosigned already")]
    Stale {
        /// Its size.
        size: u64,
        /// The size that is kept.
        kept: u64,
    },
    /// The proof does not lead from the old tree to the new one.
    #[error("the consistency proof does not hold")]
    Inconsistent,
    /// Another root for a size that was cosigned already.
    #[error("another root for size {0} was cosigned already")]
    Fork(u64),
    /// No trusted log signed the first checkpoint of a fork.
    #[error("no trusted log signed the first checkpoint")]
    ForkOfUnknownLog,
    /// What was shown is no proof of a fork.
    #[error("this is no proof of a fork: {0}")]
    NoFork(#[source] ForkError),
    /// The witness cannot remember, so it does not cosign.
    #[error("the witness cannot keep its state")]
    Storage(#[source] anyhow::Error),
    /// The witness cannot sign.
    #[error("the witness cannot sign")]
    Signing(#[source] NoteError),
}

impl WitnessError {
    /// The refusal on the wire. Where the kept size helps the log, it stands in the metadata as `size`.
    pub(crate) fn to_status(&self, text: String) -> Status {
        const PROOF: &str = "consistency_proof";
        match self {
            Self::Malformed(_) => {
                refuse_field(Code::InvalidArgument, "CHECKPOINT_MALFORMED", "checkpoint", text)
            }
            Self::UnknownLog => refuse_field(Code::FailedPrecondition, "LOG_UNKNOWN", "checkpoint", text),
            Self::ForkOfUnknownLog => refuse_field(Code::FailedPrecondition, "LOG_UNKNOWN", "first", text),
            Self::Signature(cause) => {
                refuse_field(Code::FailedPrecondition, cause.reason(), "checkpoint", text)
            }
            Self::Distrusted => refuse(Code::FailedPrecondition, "LOG_DISTRUSTED", text),
            Self::OtherSize { kept } => refuse_with(
                Code::Aborted,
                "OLD_SIZE_MISMATCH",
                text,
                KEPT_SIZE,
                kept.to_string(),
            ),
            Self::Stale { kept, .. } => {
                let kept = kept.to_string();
                refuse_with(
                    Code::FailedPrecondition,
                    "CHECKPOINT_STALE",
                    text,
                    KEPT_SIZE,
                    kept,
                )
            }
            Self::Inconsistent => refuse_field(Code::FailedPrecondition, "CONSISTENCY_INVALID", PROOF, text),
            Self::Fork(_) => refuse(Code::FailedPrecondition, "LOG_FORK", text),
            Self::NoFork(cause) => {
                let (reason, field) = match cause {
                    ForkError::Note { field, .. } => ("CHECKPOINT_MALFORMED", *field),
                    ForkError::Checkpoint { field, source } => (source.reason(), *field),
                    ForkError::OtherTree => ("FORK_UNPROVEN", "second"),
                    ForkError::Unproven(_) => ("CONSISTENCY_INVALID", PROOF),
                    ForkError::NoFork => ("FORK_UNPROVEN", "root"),
                };
                let code = match reason {
                    "CHECKPOINT_MALFORMED" => Code::InvalidArgument,
                    _ => Code::FailedPrecondition,
                };
                refuse_field(code, reason, field, text)
            }
            Self::Storage(_) => refuse(Code::Unavailable, "WITNESS_STATE_UNAVAILABLE", text),
            Self::Signing(_) => refuse(Code::Internal, "WITNESS_KEY_FAILED", text),
        }
    }
}

/// A request to cosign.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The size that the caller believes was cosigned last.
    pub(crate) old_size: u64,
    /// RFC 6962 consistency proof from there.
    pub(crate) proof: Vec<Hash>,
    /// The signed note.
    pub(crate) checkpoint: Vec<u8>,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The signature line, ended by a newline.
    pub(crate) line: String,
}

/// The witness: a key, a name, and what it has seen.
pub(crate) struct Witness {
    key: SigningKey,
    public: NoteKey,
    heads: Mutex<Heads>,
}

impl Witness {
    /// # Errors
    /// [`NoteError`] if the key is not Ed25519 or the name cannot stand in a note.
    pub(crate) fn new(name: &str, key: SigningKey, heads: Heads) -> Result<Self, NoteError> {
        let public = NoteKey::cosignature(name, key.verifying_key())?;
        Ok(Self {
            key,
            public,
            heads: Mutex::new(heads),
        })
    }

    /// The verifier key that trust roots name it by.
    pub(crate) fn public(&self) -> &NoteKey {
        &self.public
    }

    /// The logs of which a fork was seen.
    pub(crate) fn forked(&self) -> Vec<[u8; 32]> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).forked()
    }

    /// Cosigns, or says why not. Blocks until what it saw is durable.
    ///
    /// # Errors
    /// [`WitnessError`]; after [`WitnessError::Fork`] the log is in [`forked`](Self::forked).
    pub(crate) fn cosign(
        &self,
        order: &Order,
        roots: &TrustRoots,
        now: Timestamp,
    ) -> Result<Answer, WitnessError> {
        let note = Note::parse(&order.checkpoint).map_err(WitnessError::Malformed)?;
        let (log_id, checkpoint) = trusted(&note, roots)?;
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = heads.get(&checkpoint.origin, &log_id).cloned();
        if kept.as_ref().is_some_and(|head| head.fork.is_some()) {
            return Err(WitnessError::Distrusted);
        }
        match (extends(&checkpoint, kept.as_ref(), order), kept) {
            (Ok(()), _) => {}
            (Err(WitnessError::Fork(size)), Some(kept)) => {
                let fork = ForkProof {
                    first: kept.checkpoint.clone(),
                    second: note.to_string(),
                    root: checkpoint.root,
                    consistency: Vec::new(),
                };
                let detail = "two signed roots for one size; the log is distrusted";
                if let Err(cause) = distrust(&mut heads, kept, fork, size, detail) {
                    error!(
                        error = format!("{cause:#}"),
                        "the fork is not kept; a restart would forget it"
                    );
                }
                return Err(WitnessError::Fork(size));
            }
            (Err(refused), _) => return Err(refused),
        }
        let line =
            cosignature::cosign(self.public.name(), &self.key, &note, now).map_err(WitnessError::Signing)?;
        let (origin, size) = (checkpoint.origin.clone(), checkpoint.size);
        let head = Head {
            origin: checkpoint.origin,
            log_id,
            size,
            root: checkpoint.root,
            checkpoint: note.to_string(),
            fork: None,
        };
        heads.keep(head).map_err(WitnessError::Storage)?;
        info!(%origin, size, "checkpoint cosigned");
        Ok(Answer { line })
    }

    /// Takes a fork that somebody else saw; the id of its log, which is in [`forked`](Self::forked) from then on. Blocks
    /// until it is durable.
    ///
    /// # Errors
    /// [`WitnessError::ForkOfUnknownLog`], [`WitnessError::NoFork`]; [`WitnessError::Storage`] if it could not be kept: the log
    /// is distrusted then, too, for as long as this process runs.
    pub(crate) fn take(&self, fork: ForkProof, roots: &TrustRoots) -> Result<[u8; 32], WitnessError> {
        let mut refused = WitnessError::ForkOfUnknownLog;
        for log in roots.logs() {
            match fork.verify(&log.key) {
                Ok((first, second)) => {
                    let log_id = log.key.log_id;
                    let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
                    let kept = heads.get(&first.origin, &log_id).cloned();
                    if let Some(known) = kept.as_ref().filter(|head| head.fork.is_some()) {
                        // The disk may have been full when it was seen.
                        if !heads.is_written(known) {
                            heads.keep(known.clone()).map_err(WitnessError::Storage)?;
                        }
                        return Ok(log_id);
                    }
                    let kept = kept.unwrap_or(Head {
                        origin: first.origin,
                        log_id,
                        size: first.size,
                        root: first.root,
                        checkpoint: fork.first.clone(),
                        fork: None,
                    });
                    let detail = "a fork of the log was proven by who saw it; the log is distrusted";
                    distrust(&mut heads, kept, fork, second.size, detail).map_err(WitnessError::Storage)?;
                    return Ok(log_id);
                }
                // Who has not signed the first checkpoint is another log.
                Err(ForkError::Checkpoint {
                    field: "first",
                    source: CheckpointError::Origin(_) | CheckpointError::Signature(_),
                }) => {}
                Err(error) => refused = WitnessError::NoFork(error),
            }
        }
        Err(refused)
    }
}

/// Keeps the proof that the log of `kept` was forked.
fn distrust(
    heads: &mut Heads,
    kept: Head,
    fork: ForkProof,
    size: u64,
    detail: &'static str,
) -> anyhow::Result<()> {
    error!(
        origin = %kept.origin, log_id = %hex::encode(kept.log_id), size, reason = "LOG_FORK", "{detail}"
    );
    metrics::counter!("stella_log_forks_total").increment(1);
    heads.keep(Head {
        fork: Some(fork),
        ..kept
    })
}

/// Finds the trusted log that signed the note.
fn trusted(note: &Note, roots: &TrustRoots) -> Result<([u8; 32], Checkpoint), WitnessError> {
    let origin = note.text().lines().next().unwrap_or_default();
    let mut refused = WitnessError::UnknownLog;
    for log in roots.logs().iter().filter(|log| log.key.origin == origin) {
        match log.key.verify_checkpoint(note) {
            Ok(_) if log.distrusted => return Err(WitnessError::Distrusted),
            Ok(checkpoint) => return Ok((log.key.log_id, checkpoint)),
            Err(error) => refused = WitnessError::Signature(error),
        }
    }
    Err(refused)
}

fn extends(checkpoint: &Checkpoint, kept: Option<&Head>, order: &Order) -> Result<(), WitnessError> {
    let (kept_size, kept_root) = kept.map_or((0, merkle::EMPTY_ROOT), |head| (head.size, head.root));
    // Another root for no leaves is no tree at all; it is refused below.
    if kept_size > 0 && checkpoint.size == kept_size && checkpoint.root != kept_root {
        return Err(WitnessError::Fork(kept_size));
    }
    if checkpoint.size < kept_size {
        return Err(WitnessError::Stale {
            size: checkpoint.size,
            kept: kept_size,
        });
    }
    if order.old_size != kept_size {
        return Err(WitnessError::OtherSize { kept: kept_size });
    }
    if kept_size == 0 {
        let is_root_possible = checkpoint.size > 0 || checkpoint.root == merkle::EMPTY_ROOT;
        return if order.proof.is_empty() && is_root_possible {
            Ok(())
        } else {
            Err(WitnessError::Inconsistent)
        };
    }
    merkle::verify_consistency(
        kept_size,
        checkpoint.size,
        &order.proof,
        &kept_root,
        &checkpoint.root,
    )
    .map_err(|_| WitnessError::Inconsistent)
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;
