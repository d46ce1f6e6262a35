//! Signatures of an earlier run that its end left unlogged.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use stella_attest::digest::Digest;
use stella_tlog::LogError;

use super::{Recorded, Signer, signature};
use crate::audit::record::CallId;
use crate::audit::{AuditError, Location};
use crate::error::Error;
use crate::idempotency::{Resume, Scope, Ticket};

/// Signatures that are logged at the same time.
const UNFINISHED_AT_A_TIME: usize = 512;
/// Pauses before those are tried again that could not be logged.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A signature of an earlier run that must be logged.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) call: CallId,
    pub(crate) key: String,
    pub(crate) pae: Digest,
    pub(crate) signature: Vec<u8>,
    pub(crate) outcome: Location,
    pub(crate) scope: Option<Scope>,
    /// Taken before the doors open, so that no retry logs it at the same time.
    pub(crate) ticket: Option<Ticket>,
}

impl Signer {
    /// Logs what was signed before the process ended and is not known to be logged; returns when all of it is.
    ///
    /// A witness that is away, or a log that is busy, is waited for: nobody else may ever ask for these signatures.
    pub(crate) async fn log_unfinished(&self, mut unfinished: Vec<Unfinished>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let round = stream::iter(unfinished).map(|left| self.log_left(left));
            let again = round.buffer_unordered(UNFINISHED_AT_A_TIME);
            unfinished = again.filter_map(|left| async { left }).collect().await;
            if unfinished.is_empty() {
                return;
            }
            tracing::warn!(
                count = unfinished.len(),
                "signatures of an earlier run are not logged yet"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Logs one; gives it back if that must be tried again.
    async fn log_left(&self, mut left: Unfinished) -> Option<Unfinished> {
        let ticket = match (left.ticket.take(), left.scope) {
            (None, Some(scope)) => match self.idempotency.resume(scope) {
                Resume::Taken(ticket) => Some(ticket),
                Resume::Running => return Some(left),
                Resume::Finished => return None,
                Resume::Forgotten => None,
            },
            (ticket, _) => ticket,
        };
        let history = self.parts.ledger.current();
        let known = history
            .keys()
            .iter()
            .find(|known| known.key.key_id().as_str() == left.key)?;
        let canonical = match self.kept(left.call).await {
            Ok(Some(canonical)) => canonical,
            Ok(None) if self.parts.logs.take_envelopes() => {
                tracing::warn!(call = %left.call, "the envelope of a signature of an earlier run is not kept, so it is not logged");
                return None;
            }
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, "an envelope of an earlier run cannot be read");
                return Some(left);
            }
        };
        let signed = Recorded {
            canonical,
            pae: left.pae,
            signature: signature(left.signature.clone()),
            key: known.key.clone(),
            call: left.call,
            outcome: left.outcome,
        };
        let _gate = match self.hold(&known.key).await {
            Ok(gate) => gate,
            Err(error) => {
                tracing::warn!(%error, "a signature of an earlier run is not logged");
                return None;
            }
        };
        match self.log(signed, ticket).await {
            Ok(_) => None,
            // What will not change by asking again.
            Err(
                error @ (Error::NoLog
                | Error::Log(
                    LogError::KeyNotLoggable
                    | LogError::SignatureInvalid
                    | LogError::EntryTooLarge(_)
                    | LogError::Refused { .. }
                    | LogError::Closed,
                )
                | Error::Audit(AuditError::Corrupt { .. })),
            ) => {
                tracing::warn!(%error, "a signature of an earlier run is not logged before the next start");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a signature of an earlier run is not logged yet");
                Some(left)
            }
        }
    }

    /// The envelope of a call of an earlier run, if it was kept.
    async fn kept(&self, call: CallId) -> Result<Option<Vec<u8>>, Error> {
        let Some(spool) = self.parts.spool.clone() else {
            return Ok(None);
        };
        let read = tokio::task::spawn_blocking(move || spool.read(call)).await;
        let kept = read.map_err(|_| Error::CutOff)?;
        kept.map_err(|error| Error::Spool(Arc::new(error)))
    }
}
