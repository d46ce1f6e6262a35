//! Signs the orders of one message: on every core, with one write to the audit log, as one batch of the log.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use stella_attest::digest::Digest;
use stella_attest::dsse;
use stella_attest::statement::PAYLOAD_TYPE;

use super::{Active, Asker, Recorded, Signed, Signer, answer, recorded, submission, unlogged};
use crate::audit::Location;
use crate::audit::record::Draft;
use crate::error::Error;
use crate::order::{SignOrder, Transparency};

/// An order of the message; `place` is where it stands there, and so its result.
struct Placed {
    place: usize,
    order: SignOrder,
}

/// An order that its slot's active key signs.
struct Entered {
    place: usize,
    order: SignOrder,
    active: Arc<Active>,
}

/// What an order became. Its outcome's location is known once both drafts are written.
struct SignedOrder {
    place: usize,
    transparency: Transparency,
    recorded: Recorded,
    intent: Draft,
    outcome: Draft,
}

/// The result of the order at that place.
type Outcome = (usize, Result<Signed, Error>);

impl Signer {
    /// Signs the orders of one message.
    ///
    /// Each order has its own result, in order; orders with an idempotency key go their own way.
    pub async fn sign_batch(
        self: &Arc<Self>,
        asker: &Asker,
        orders: Vec<Result<SignOrder, Error>>,
    ) -> Vec<Result<Signed, Error>> {
        let mut results: Vec<Option<Result<Signed, Error>>> = Vec::new();
        let (mut plain, mut keyed) = (Vec::new(), Vec::new());
        for (place, order) in orders.into_iter().enumerate() {
            results.push(None);
            match order.and_then(|order| self.allow(asker, &order).map(|()| order)) {
                Err(error) => results[place] = Some(Err(error)),
                Ok(order) if order.idempotency.is_some() => keyed.push(Placed { place, order }),
                Ok(order) => plain.push(Placed { place, order }),
            }
        }
        let keyed = keyed.into_iter().map(|Placed { place, order }| {
            let (signer, asker) = (Arc::clone(self), asker.clone());
            let task = tokio::spawn(async move { signer.sign_with_key(&asker, &order, "SignBatch").await });
            async move { (place, task.await.unwrap_or(Err(Error::CutOff))) }
        });
        let (signer, asker) = (Arc::clone(self), asker.clone());
        let plain = tokio::spawn(async move { signer.sign_plain(asker, plain).await });
        let (keyed, plain) = tokio::join!(join_all(keyed), plain);
        for (place, result) in keyed.into_iter().chain(plain.unwrap_or_default()) {
            results[place] = Some(result);
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or(Err(Error::CutOff)))
            .collect()
    }

    /// Signs the orders without an idempotency key.
    async fn sign_plain(self: Arc<Self>, asker: Asker, orders: Vec<Placed>) -> Vec<Outcome> {
        let mut results = Vec::with_capacity(orders.len());
        let mut entered = Vec::with_capacity(orders.len());
        // The gates stay open until every order is logged.
        let mut gates = HashMap::new();
        for Placed { place, order } in orders {
            if !gates.contains_key(&order.slot) {
                match self.enter(&order.slot).await {
                    Ok(active) => drop(gates.insert(order.slot.clone(), active)),
                    Err(error) => {
                        results.push((place, Err(error)));
                        continue;
                    }
                }
            }
            let active = Arc::clone(&gates[&order.slot].0);
            match Self::in_scope(&active, &asker, &order) {
                Ok(()) => entered.push(Entered { place, order, active }),
                Err(error) => results.push((place, Err(error))),
            }
        }
        let mut signed = Vec::with_capacity(entered.len());
        let mut drafts = Vec::with_capacity(entered.len() * 2);
        for result in self.sign_on_every_core(&asker, entered).await {
            match result {
                Ok(order) => {
                    drafts.extend([order.intent, order.outcome]);
                    signed.push((order.place, order.transparency, order.recorded));
                }
                Err((place, error)) => results.push((place, Err(error))),
            }
        }
        let to_log = signed
            .iter()
            .filter(|(_, transparency, _)| *transparency == Transparency::Required);
        let envelopes = to_log.map(|(_, _, recorded)| (recorded.call, recorded.canonical.clone()));
        if let Err(error) = self.keep(envelopes).await {
            for (place, ..) in signed {
                results.push((place, Err(Error::Spool(Arc::clone(&error)))));
            }
            return results;
        }
        let written = match self.audit.append(drafts).await {
            Ok(written) => written,
            Err(error) => {
                for (place, ..) in signed {
                    results.push((place, Err(Error::Audit(error.clone()))));
                }
                return results;
            }
        };
        // Each order wrote intent and outcome, in this order.
        for ((_, _, recorded), pair) in signed.iter_mut().zip(written.chunks(2)) {
            if let Some(outcome) = pair.last() {
                recorded.outcome = outcome.at;
            }
        }
        let mut wanted = Vec::new();
        for (place, transparency, recorded) in signed {
            match transparency {
                Transparency::None => results.push((place, Ok(unlogged(recorded)))),
                Transparency::Required => wanted.push((place, recorded)),
            }
        }
        results.extend(self.log_all(wanted).await);
        results
    }

    async fn sign_on_every_core(
        self: &Arc<Self>,
        asker: &Asker,
        orders: Vec<Entered>,
    ) -> Vec<Result<SignedOrder, (usize, Error)>> {
        let share = orders.len().div_ceil(self.cores).max(1);
        let mut orders = orders.into_iter();
        let mut tasks = Vec::new();
        loop {
            let part: Vec<Entered> = orders.by_ref().take(share).collect();
            if part.is_empty() {
                break;
            }
            let (signer, asker) = (Arc::clone(self), asker.clone());
            let places: Vec<usize> = part.iter().map(|order| order.place).collect();
            let work = move || {
                part.into_iter()
                    .map(|order| signer.sign_entered(&asker, order))
                    .collect::<Vec<_>>()
            };
            tasks.push((places, tokio::task::spawn_blocking(work)));
        }
        let mut signed = Vec::new();
        for (places, task) in tasks {
            match task.await {
                Ok(part) => signed.extend(part),
                Err(_) => signed.extend(places.into_iter().map(|place| Err((place, Error::CutOff)))),
            }
        }
        signed
    }

    fn sign_entered(&self, asker: &Asker, entered: Entered) -> Result<SignedOrder, (usize, Error)> {
        let Entered { place, order, active } = entered;
        let call = self.audit.next_call();
        let pae = dsse::pae(PAYLOAD_TYPE, &order.payload);
        let digest = Digest::of(&pae);
        let intent = self.intent(asker, &order, "SignBatch", &active.key, call, &digest);
        let id = active.key.key_id();
        let signature = self
            .parts
            .backend
            .sign_blocking(id, &pae)
            .map_err(|error| (place, error.into()))?;
        let outcome = Draft::outcome(self.now(), call, id.as_str(), &signature);
        let key = active.key.clone();
        Ok(SignedOrder {
            place,
            transparency: order.transparency,
            recorded: recorded(&order.payload, digest, signature, key, call, Location::default()),
            intent,
            outcome,
        })
    }

    async fn log_all(&self, signed: Vec<(usize, Recorded)>) -> Vec<Outcome> {
        let submissions = signed
            .iter()
            .map(|(_, recorded)| self.parts.logs.submit(submission(recorded)));
        let logged = join_all(submissions).await;
        let mut drafts: Vec<Draft> = Vec::with_capacity(logged.len());
        let mut calls = Vec::new();
        for ((_, recorded), logs) in signed.iter().zip(&logged) {
            if let Ok(logs) = logs {
                drafts.extend(self.logged(recorded, logs));
                calls.push(recorded.call);
            }
        }
        let written = if drafts.is_empty() {
            Ok(Vec::new())
        } else {
            self.audit.append(drafts).await
        };
        if written.is_ok() {
            self.forget(calls);
        }
        let results = signed.into_iter().zip(logged).map(|((place, recorded), logs)| {
            let result = match (logs, &written) {
                (Err(error), _) => Err(error),
                (Ok(_), Err(error)) => Err(Error::Audit(error.clone())),
                (Ok(logs), Ok(_)) => {
                    let timestamp = logs.stamp.map(|stamp| stamp.response);
                    Ok(answer(recorded, logs.entries, timestamp))
                }
            };
            (place, result)
        });
        results.collect()
    }
}
