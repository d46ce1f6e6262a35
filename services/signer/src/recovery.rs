//! What the audit log says that an earlier run left: idempotency keys, signatures that are not logged, the last
//! checkpoint, and the latest trusted time of each key.

use std::collections::{BTreeMap, HashMap};

use stella_attest::checkpoint::Checkpoint;
use stella_attest::digest::Digest;
use stella_attest::key::KeyId;
use stella_attest::note::Note;
use stella_attest::timestamp::Timestamp;

use crate::audit::record::{CallId, Draft, Fields};
use crate::audit::{AuditError, Location};
use crate::idempotency::{Done, Idempotency, Resume, Scope};
use crate::order::Transparency;
use crate::signer::Unfinished;

/// A call as far as it came.
struct Call {
    key: String,
    pae: Digest,
    transparency: Transparency,
    idempotency: Option<(Scope, Digest)>,
    at: Timestamp,
    outcome: Option<(Location, Vec<u8>)>,
}

/// What is read from the records, one after the other.
#[derive(Default)]
pub(crate) struct Recovery {
    /// Calls that are not known to be over.
    open: BTreeMap<CallId, Call>,
    finished: Vec<(Scope, Digest, Timestamp, Done)>,
    /// Where the last checkpoint record stands.
    checkpoint: Option<Location>,
    /// The largest checkpoint that was recorded: calls that end together are not recorded in the order of theirs.
    floor: Option<Checkpoint>,
    latest: HashMap<KeyId, Timestamp>,
    /// The newest version of the key history that a rotation was recorded with.
    history_version: u64,
}

impl Recovery {
    /// Takes one record.
    pub(crate) fn visit(&mut self, at: Location, fields: &Fields<'_>) -> Result<(), AuditError> {
        let malformed = || AuditError::Corrupt {
            seq: fields.seq,
            what: "a member is missing",
        };
        match &*fields.kind {
            "intent" => {
                let call = fields.call().ok_or_else(malformed)?;
                self.open.insert(call, intent(fields).ok_or_else(malformed)?);
            }
            "outcome" => {
                let call = fields.call().ok_or_else(malformed)?;
                let signature = fields.signature().ok_or_else(malformed)?;
                if let Some(open) = self.open.get_mut(&call) {
                    open.outcome = Some((at, signature));
                    if open.transparency == Transparency::None {
                        self.finish(call, |outcome| Done::Signed { outcome });
                    }
                }
            }
            "logged" => {
                let call = fields.call().ok_or_else(malformed)?;
                self.note_latest(call, fields.trusted_at());
                let checkpoint = self.checkpoint.unwrap_or(at);
                self.finish(call, |outcome| Done::Logged {
                    outcome,
                    logged: at,
                    checkpoint,
                });
            }
            "abandoned" => {
                self.open.remove(&fields.call().ok_or_else(malformed)?);
            }
            "rotation" => {
                self.history_version = self.history_version.max(fields.version.ok_or_else(malformed)?);
                if fields.phase.as_deref() != Some("done") {
                    return Ok(());
                }
                let who = fields.caller.as_deref().zip(fields.tenant.as_deref());
                if let (Some((caller, tenant)), Some((key, request)), Some(when)) =
                    (who, fields.idempotency(), fields.at())
                {
                    let scope = Scope::new(caller, tenant, "RotateKey", key);
                    self.finished
                        .push((scope, request, when, Done::Rotated { rotation: at }));
                }
            }
            "checkpoint" => {
                self.checkpoint = Some(at);
                let found = checkpoint(fields.note.as_deref().ok_or_else(malformed)?);
                let floor = self.floor.as_ref().map(|floor| floor.size);
                self.floor = found
                    .filter(|found| Some(found.size) > floor)
                    .or(self.floor.take());
            }
            _ => {}
        }
        Ok(())
    }

    fn note_latest(&mut self, call: CallId, trusted_at: Option<Timestamp>) {
        let id = self
            .open
            .get(&call)
            .and_then(|open| open.key.parse::<KeyId>().ok());
        if let (Some(id), Some(at)) = (id, trusted_at) {
            let latest = self.latest.entry(id).or_insert(at);
            *latest = at.max(*latest);
        }
    }

    fn finish(&mut self, call: CallId, done: impl FnOnce(Location) -> Done) {
        let Some(open) = self.open.remove(&call) else {
            return;
        };
        if let (Some((scope, request)), Some((outcome, _))) = (open.idempotency, open.outcome) {
            self.finished.push((scope, request, open.at, done(outcome)));
        }
    }

    /// The largest checkpoint that was recorded.
    pub(crate) fn floor(&self) -> Option<Checkpoint> {
        self.floor.clone()
    }

    /// The newest version of the key history that was recorded; 0 if none was.
    pub(crate) fn history_version(&self) -> u64 {
        self.history_version
    }

    /// Fills `idempotency`; returns the records of abandoned intents, what must be logged, and the latest times.
    pub(crate) fn take_up(
        self,
        idempotency: &Idempotency,
        now: Timestamp,
    ) -> (Vec<Draft>, Vec<Unfinished>, HashMap<KeyId, Timestamp>) {
        for (scope, request, at, done) in self.finished {
            idempotency.restore(scope, request, at, done, now);
        }
        let (mut abandoned, mut unfinished) = (Vec::new(), Vec::new());
        for (call, open) in self.open {
            let Some((outcome, signature)) = open.outcome else {
                abandoned.push(Draft::abandoned(
                    now,
                    call,
                    "the process ended before the key signed",
                ));
                continue;
            };
            if let Some((scope, request)) = open.idempotency {
                idempotency.restore(scope, request, open.at, Done::Unlogged { outcome }, now);
            }
            let scope = open.idempotency.map(|(scope, _)| scope);
            let ticket = scope.and_then(|scope| match idempotency.resume(scope) {
                Resume::Taken(ticket) => Some(ticket),
                // The key's day is over.
                Resume::Running | Resume::Finished | Resume::Forgotten => None,
            });
            unfinished.push(Unfinished {
                call,
                key: open.key,
                pae: open.pae,
                signature,
                outcome,
                scope,
                ticket,
            });
        }
        (abandoned, unfinished, self.latest)
    }
}

fn checkpoint(note: &str) -> Option<Checkpoint> {
    Checkpoint::parse(Note::parse(note.as_bytes()).ok()?.text()).ok()
}

fn intent(fields: &Fields<'_>) -> Option<Call> {
    let (caller, tenant) = (fields.caller.as_deref()?, fields.tenant.as_deref()?);
    let method = fields.method.as_deref()?;
    let idempotency = fields
        .idempotency()
        .map(|(key, request)| (Scope::new(caller, tenant, method, key), request));
    Some(Call {
        key: fields.key.as_deref()?.to_owned(),
        pae: fields.pae()?,
        transparency: fields.transparency()?,
        idempotency,
        at: fields.at()?,
        outcome: None,
    })
}

#[cfg(test)]
mod tests {
    use stella_attest::key::{Algorithm, SigningKey};
    use stella_attest::merkle::EMPTY_ROOT;
    use stella_attest::note::NoteSigner;

    use super::*;

    #[test]
    fn the_floor_is_the_largest_checkpoint_whatever_was_recorded_last() {
        let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let signer = NoteSigner::new("log", &key).expect("a signer");
        let mut recovery = Recovery::default();
        for (seq, size) in [(1, 10), (2, 12), (3, 11)] {
            let checkpoint = Checkpoint {
                origin: "log".into(),
                size,
                root: EMPTY_ROOT,
                extensions: Vec::new(),
            };
            let note = Note::sign(&checkpoint.to_text(), &signer)
                .expect("a note")
                .to_string();
            let line = serde_json::json!({
                "at": "2025-11-11T12:00:00Z", "kind": "checkpoint", "note": note, "previous": "", "seq": seq,
            });
            let line = line.to_string();
            let fields = Fields::parse(line.as_bytes()).expect("a record");
            recovery.visit(Location::for_tests(seq), &fields).expect("whole");
        }
        assert_eq!(recovery.floor().map(|floor| floor.size), Some(12));
        assert_eq!(recovery.checkpoint, Some(Location::for_tests(3)));
    }
}
