//! Signs one order: intent, signature and outcome in one durable write, then the log.
//!
//! A retry with the same idempotency key goes on where the first call ended, with the recorded signature.

use std::sync::Arc;
use std::time::Duration;

use stella_attest::digest::Digest;
use stella_attest::dsse;
use stella_attest::key::VerifyingKey;
use stella_attest::statement::PAYLOAD_TYPE;
use tokio::time::timeout_at;

use super::{Asker, Recorded, Signed, Signer, answer, recorded, submission, unlogged};
use crate::audit::record::Draft;
use crate::audit::{Location, Written};
use crate::error::Error;
use crate::idempotency::{Begin, Done, Scope, Ticket};
use crate::order::{SignOrder, Transparency};

/// How long before the caller's deadline it hears that the log has not answered.
const TO_ANSWER: Duration = Duration::from_millis(250);

impl Signer {
    /// Signs one order.
    ///
    /// # Errors
    /// [`Error`]; after a failure to log, the retry with the same idempotency key takes up the recorded signature.
    pub async fn sign(self: &Arc<Self>, asker: Asker, order: SignOrder) -> Result<Signed, Error> {
        self.allow(&asker, &order)?;
        if order.transparency == Transparency::None && order.idempotency.is_none() {
            return self.sign_now(&asker, &order, "Sign").await;
        }
        // The call goes on if its caller leaves: what is signed must be recorded, and what is recorded logged.
        let signer = Arc::clone(self);
        let deadline = asker.deadline;
        let task = tokio::spawn(async move { signer.sign_with_key(&asker, &order, "Sign").await });
        let signed = match deadline.and_then(|deadline| deadline.checked_sub(TO_ANSWER)) {
            Some(last) => timeout_at(last.into(), task).await.map_err(|_| Error::Late)?,
            None => task.await,
        };
        signed.map_err(|_| Error::CutOff)?
    }

    pub(super) async fn sign_with_key(
        &self,
        asker: &Asker,
        order: &SignOrder,
        method: &str,
    ) -> Result<Signed, Error> {
        let Some(key) = &order.idempotency else {
            return self.sign_now(asker, order, method).await;
        };
        let scope = Scope::new(&asker.caller, &asker.tenant, method, key.as_str());
        let (ticket, done) = match self.idempotency.begin(scope, order.digest(), self.now())? {
            Begin::Fresh(ticket) => {
                let (active, _gate) = self.enter(&order.slot).await?;
                Self::in_scope(&active, asker, order)?;
                let recorded = self.record(asker, order, method, &active.key).await?;
                let outcome = recorded.outcome;
                if order.transparency == Transparency::None {
                    ticket.finish(Done::Signed { outcome });
                    return Ok(unlogged(recorded));
                }
                ticket.reached(Done::Unlogged { outcome });
                return self.log(recorded, Some(ticket)).await;
            }
            Begin::Resume(ticket, done) => (Some(ticket), done),
            Begin::Repeat(done) => (None, done),
        };
        self.again(order, ticket, done).await
    }

    /// Answers from what is recorded; logs first what is not logged yet.
    async fn again(&self, order: &SignOrder, ticket: Option<Ticket>, done: Done) -> Result<Signed, Error> {
        let (Done::Signed { outcome } | Done::Unlogged { outcome } | Done::Logged { outcome, .. }) = done
        else {
            return Err(Error::CutOff);
        };
        let (call, key, signature) = self.audit.read(outcome, |fields| {
            Some((
                fields.call()?,
                fields.key.as_deref()?.to_owned(),
                fields.signature()?,
            ))
        })?;
        let history = self.parts.ledger.current();
        let known = history
            .keys()
            .iter()
            .find(|known| known.key.key_id().as_str() == key);
        let key = known.map(|known| known.key.clone()).ok_or(Error::NoKey(key))?;
        let pae = Digest::of(&dsse::pae(PAYLOAD_TYPE, &order.payload));
        let recorded = recorded(&order.payload, pae, signature, key, call, outcome);
        match done {
            Done::Signed { .. } => Ok(unlogged(recorded)),
            Done::Logged { logged, .. } => {
                // The first timestamp counts: a later one would say that the signature is younger.
                let timestamp = self.audit.read(logged, |fields| Some(fields.timestamp()))?;
                let entries = self.parts.logs.enter(submission(&recorded)).await?;
                Ok(answer(recorded, entries, timestamp))
            }
            Done::Unlogged { .. } | Done::Rotated { .. } => {
                let _gate = self.hold(&recorded.key).await?;
                self.log(recorded, ticket).await
            }
        }
    }

    /// Signs an order that has no idempotency key.
    async fn sign_now(&self, asker: &Asker, order: &SignOrder, method: &str) -> Result<Signed, Error> {
        let (active, _gate) = self.enter(&order.slot).await?;
        Self::in_scope(&active, asker, order)?;
        let recorded = self.record(asker, order, method, &active.key).await?;
        match order.transparency {
            Transparency::None => Ok(unlogged(recorded)),
            Transparency::Required => self.log(recorded, None).await,
        }
    }

    /// Intent, signature and outcome; durable when this returns. The key lives in this process, so one write holds both.
    async fn record(
        &self,
        asker: &Asker,
        order: &SignOrder,
        method: &str,
        key: &VerifyingKey,
    ) -> Result<Recorded, Error> {
        let call = self.audit.next_call();
        let pae = dsse::pae(PAYLOAD_TYPE, &order.payload);
        let digest = Digest::of(&pae);
        let intent = self.intent(asker, order, method, key, call, &digest);
        let signature = self.parts.backend.sign(key.key_id(), &pae).await?;
        let outcome = Draft::outcome(self.now(), call, key.key_id().as_str(), &signature);
        let key = key.clone();
        let mut recorded = recorded(&order.payload, digest, signature, key, call, Location::default());
        if order.transparency == Transparency::Required {
            let envelope = std::iter::once_with(|| (call, recorded.canonical.clone()));
            self.keep(envelope).await.map_err(Error::Spool)?;
        }
        let written = self.audit.append(vec![intent, outcome]).await?;
        recorded.outcome = written.last().map(|written| written.at).ok_or(Error::CutOff)?;
        Ok(recorded)
    }

    /// Logs a recorded signature and records where it stands.
    pub(super) async fn log(&self, recorded: Recorded, ticket: Option<Ticket>) -> Result<Signed, Error> {
        let logs = self.parts.logs.submit(submission(&recorded)).await?;
        let written = self.audit.append(self.logged(&recorded, &logs)).await?;
        self.forget(vec![recorded.call]);
        if let (Some(ticket), Some(written)) = (ticket, written.first()) {
            ticket.finish(logged(recorded.outcome, written));
        }
        let timestamp = logs.stamp.map(|stamp| stamp.response);
        Ok(answer(recorded, logs.entries, timestamp))
    }
}

fn logged(outcome: Location, written: &Written) -> Done {
    Done::Logged {
        outcome,
        logged: written.at,
        checkpoint: written.checkpoint.unwrap_or(written.at),
    }
}
