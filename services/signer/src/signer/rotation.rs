//! Rotates: a prepared key signs from now on, the old one finishes its calls and is retired.

use std::sync::{Arc, PoisonError};

use stella_attest::history::{HistoryKey, KeyState};
use stella_attest::key::{KeyId, VerifyingKey};
use stella_attest::timestamp::Timestamp;

use super::{Asker, Signer};
use crate::audit::Location;
use crate::audit::record::{Draft, Phase, RecordedKey, Rotation};
use crate::error::Error;
use crate::idempotency::{Begin, Done, Scope};
use crate::order::RotateOrder;

/// What a rotation came to.
#[derive(Debug)]
pub struct Rotated {
    /// The key that signs now.
    pub active: HistoryKey,
    /// The key that signs no more, if the slot had one.
    pub retired: Option<HistoryKey>,
    /// The version of the history that says so.
    pub version: u64,
}

impl Signer {
    /// Activates a prepared key of `slot`, lets the calls of the old one finish, and retires it.
    ///
    /// # Errors
    /// [`Error`] if the policy lets the caller sign nothing with the slot, if there is nothing to rotate to, or if the
    /// history cannot be kept.
    pub async fn rotate(self: &Arc<Self>, asker: Asker, order: RotateOrder) -> Result<Rotated, Error> {
        let policy = &self.parts.policy;
        if !policy.may_use(&asker.caller, &asker.tenant, &order.slot) {
            return Err(Error::KeyNotAllowed {
                caller: asker.caller,
                slot: order.slot,
            });
        }
        let signer = Arc::clone(self);
        let task = tokio::spawn(async move { signer.rotate_with_key(&asker, &order).await });
        task.await.map_err(|_| Error::CutOff)?
    }

    async fn rotate_with_key(&self, asker: &Asker, order: &RotateOrder) -> Result<Rotated, Error> {
        let Some(key) = &order.idempotency else {
            return Ok(self.rotate_now(asker, order).await?.0);
        };
        let scope = Scope::new(&asker.caller, &asker.tenant, "RotateKey", key.as_str());
        match self.idempotency.begin(scope, order.digest(), self.now())? {
            Begin::Fresh(ticket) => {
                let (rotated, rotation) = self.rotate_now(asker, order).await?;
                ticket.finish(Done::Rotated { rotation });
                Ok(rotated)
            }
            Begin::Resume(_, done) | Begin::Repeat(done) => self.rotated_before(done),
        }
    }

    /// The answer of a rotation that is recorded.
    fn rotated_before(&self, done: Done) -> Result<Rotated, Error> {
        let Done::Rotated { rotation } = done else {
            return Err(Error::CutOff);
        };
        let (new, old, version) = self.audit.read(rotation, |fields| {
            let old = fields.old_key.as_deref().unwrap_or_default().to_owned();
            Some((fields.new_key.as_deref()?.to_owned(), old, fields.version?))
        })?;
        let history = self.parts.ledger.current();
        let find = |id: &str| {
            history
                .keys()
                .iter()
                .find(|key| key.key.key_id().as_str() == id)
                .cloned()
        };
        Ok(Rotated {
            active: find(&new).ok_or(Error::NoKey(new))?,
            retired: find(&old),
            version,
        })
    }

    async fn rotate_now(&self, asker: &Asker, order: &RotateOrder) -> Result<(Rotated, Location), Error> {
        let (slot, to) = (order.slot.as_str(), order.to.clone());
        let request = order.digest();
        let idempotency = order.idempotency.as_ref();
        let idempotency = idempotency.map(|key| RecordedKey {
            key: key.as_str(),
            request: &request,
        });
        let _one = self.rotating.lock().await;
        let mut keys = self.keys()?;
        let new = choose(&keys, slot, to)?;
        self.parts.logs.accepts(&new)?;
        let old = self
            .active
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(slot)
            .cloned();
        let call = self.audit.next_call();
        let record = |phase: Phase, version: u64| {
            let old_key = old
                .as_ref()
                .map(|old| old.key.key_id().as_str())
                .unwrap_or_default();
            Draft::rotation(
                self.now(),
                &Rotation {
                    call,
                    caller: &asker.caller,
                    idempotency,
                    new_key: new.key_id().as_str(),
                    old_key,
                    phase,
                    slot,
                    tenant: &asker.tenant,
                    version,
                },
            )
        };
        // Verifiers learn of the new key before it signs anything.
        for key in keys.iter_mut().filter(|key| key.key == new) {
            key.state = KeyState::Active;
            key.activated_at = Some(self.now());
        }
        let version = self.publish(&keys).await?;
        self.audit.append(vec![record(Phase::Begun, version)]).await?;
        self.read_active()?;
        let Some(old) = &old else {
            let rotation = self.append_one(record(Phase::Done, version)).await?;
            return Ok((
                Rotated {
                    active: find(&keys, &new)?,
                    retired: None,
                    version,
                },
                rotation,
            ));
        };
        drop(old.gate.write().await);
        let latest = self
            .latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(old.key.key_id())
            .copied();
        // The clock is in whole seconds, rounded down: the next second is the rounded-up now.
        let clock = Timestamp::from_unix(self.now().unix() + 1);
        for key in keys.iter_mut().filter(|key| key.key == old.key) {
            key.state = KeyState::Retired;
            key.retired_at = Some(latest.map_or(clock, |latest| latest.max(clock)));
        }
        let version = self.publish(&keys).await?;
        let rotation = self.append_one(record(Phase::Done, version)).await?;
        Ok((
            Rotated {
                active: find(&keys, &new)?,
                retired: Some(find(&keys, &old.key)?),
                version,
            },
            rotation,
        ))
    }

    async fn append_one(&self, draft: Draft) -> Result<Location, Error> {
        let written = self.audit.append(vec![draft]).await?;
        written.last().map(|written| written.at).ok_or(Error::CutOff)
    }

    async fn publish(&self, keys: &[HistoryKey]) -> Result<u64, Error> {
        tokio::task::block_in_place(|| self.parts.ledger.publish(keys)).map_err(Error::History)
    }
}

fn find(keys: &[HistoryKey], key: &VerifyingKey) -> Result<HistoryKey, Error> {
    let found = keys.iter().find(|known| known.key == *key).cloned();
    found.ok_or_else(|| Error::NoKey(key.key_id().to_string()))
}

fn choose(keys: &[HistoryKey], slot: &str, to: Option<KeyId>) -> Result<VerifyingKey, Error> {
    let prepared = |key: &&HistoryKey| key.slot == slot && key.state == KeyState::Prepared;
    if let Some(to) = to {
        let named = keys.iter().find(|key| *key.key.key_id() == to);
        let named = named.ok_or_else(|| Error::NoKey(to.to_string()))?;
        return if prepared(&named) {
            Ok(named.key.clone())
        } else {
            Err(Error::NotPrepared(to))
        };
    }
    let mut candidates = keys.iter().filter(prepared);
    match (candidates.next(), candidates.next()) {
        (None, _) => Err(Error::NoPreparedKey(slot.to_owned())),
        (Some(only), None) => Ok(only.key.clone()),
        (Some(_), Some(_)) => Err(Error::SeveralPreparedKeys(slot.to_owned())),
    }
}
