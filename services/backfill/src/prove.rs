//! Proves the events of one page: finds their attestations and has Feedser attach the first that verifies.
//!
//! The page goes in rounds. Each round sends, for every event that is still open, its next candidate; an event is
//! settled by the first that is attached, and given up when there is no candidate left. What verifies is decided by the
//! Verifier alone: candidates are only left out where they could not fit the event's kind.
//!
//! Everything here may be done again: an envelope that is attached already is answered with the job that did it.

use std::collections::HashMap;
use std::sync::Arc;

use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_proto::status::from_item_error;
use stella_proto::types::v1::ItemError;
use stella_serve::access::Tenant;
use stella_serve::upstream;
use tonic::{Code, Status};

use crate::error::Error;
use crate::job::{Listed, NOT_FOUND, Outcome, Refusal};
use crate::remote::{Answer, AttachOrder, Candidate, Feedser, LastIfNone, MAX_SUBJECTS};

/// Most candidates that are tried for one event.
const MAX_CANDIDATES: usize = 100;

/// Most failed checks that are listed of one event.
const MAX_CHECKS: usize = 32;

/// How the message of a failed verification begins; its failed checks follow.
const VERIFICATION_FAILED: &str = "verification failed: ";

/// Proves `events` for `job`; one outcome for each event, in order.
///
/// # Errors
/// What keeps the whole page from being proven, for now or for good. Events that were attached before stay attached.
pub(crate) async fn prove(
    feedser: &Feedser,
    tenant: &Tenant,
    job: &str,
    events: &[Listed],
) -> Result<Vec<Outcome>, Error> {
    let found = find(feedser, tenant, events).await?;
    let mut attempts: Vec<Attempt<'_>> = Vec::with_capacity(events.len());
    for event in events {
        let found = found
            .get(&event.subject)
            .ok_or(Error::BadAnswer("a subject was not looked up"))?;
        attempts.push(Attempt::new(event, Arc::clone(found)));
    }
    loop {
        let mut round: Vec<(usize, Candidate)> = Vec::new();
        for (number, attempt) in attempts.iter_mut().enumerate() {
            round.extend(attempt.next().map(|candidate| (number, candidate)));
        }
        if round.is_empty() {
            break;
        }
        let orders = round.iter().map(|(number, candidate)| AttachOrder {
            event_id: &attempts[*number].event.id,
            envelope: candidate.envelope,
        });
        let orders: Vec<AttachOrder<'_>> = orders.collect();
        let answers = feedser.attach(tenant, job, &orders).await?;
        for ((number, candidate), answer) in round.into_iter().zip(answers) {
            attempts[number].hear(job, &candidate, answer)?;
        }
    }
    Ok(attempts.into_iter().map(Attempt::outcome).collect())
}

/// What the repository has for a subject: candidates in the order in which they are tried, or why it did not say.
type Found = Result<Vec<Candidate>, Refusal>;

/// Looks up the subjects of `events`. Where an answer would be too large, in smaller parts.
async fn find(
    feedser: &Feedser,
    tenant: &Tenant,
    events: &[Listed],
) -> Result<HashMap<Digest, Arc<Found>>, Error> {
    let mut subjects: Vec<Digest> = events.iter().map(|event| event.subject).collect();
    subjects.sort_unstable();
    subjects.dedup();
    let mut parts: Vec<Vec<Digest>> = subjects.chunks(MAX_SUBJECTS).map(<[Digest]>::to_vec).collect();
    let mut found = HashMap::with_capacity(subjects.len());
    while let Some(mut part) = parts.pop() {
        match feedser.find(tenant, &part).await {
            Ok(answer) => {
                for (subject, mut candidates) in answer {
                    candidates.sort_unstable();
                    found.insert(subject, Arc::new(Ok(candidates)));
                }
            }
            Err(Error::Upstream(status)) if is_too_large(&status) => match part[..] {
                [subject] => {
                    found.insert(subject, Arc::new(Err(Refusal::new("TOO_MANY_CANDIDATES"))));
                }
                _ => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
            },
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether an answer was refused for its size, by them or by us, so that smaller questions help.
pub(crate) fn is_too_large(status: &Status) -> bool {
    let reason = stella_proto::status::reason(status);
    match status.code() {
        Code::ResourceExhausted => {
            matches!(reason.as_deref(), Some("TOO_MANY_ROWS" | "MESSAGE_TOO_LARGE"))
        }
        // This is what the client says of a message that it does not decode.
        code => code == Code::OutOfRange && reason.is_none(),
    }
}

/// One event and the candidates that were tried for it.
struct Attempt<'a> {
    event: &'a Listed,
    found: Arc<Found>,
    /// The first candidate that was not looked at.
    next: usize,
    tried: usize,
    /// Whether another envelope was in the way.
    conflict: bool,
    /// What was said against the first candidate that was refused.
    refusal: Option<Refusal>,
    outcome: Option<Outcome>,
}

impl<'a> Attempt<'a> {
    fn new(event: &'a Listed, found: Arc<Found>) -> Self {
        Self {
            event,
            found,
            next: 0,
            tried: 0,
            conflict: false,
            refusal: None,
            outcome: None,
        }
    }

    /// The next candidate to try; none if the event is settled or nothing is left.
    fn next(&mut self) -> Option<Candidate> {
        if self.outcome.is_some() {
            return None;
        }
        let candidates = match &*self.found {
            Ok(candidates) => candidates,
            Err(refusal) => {
                self.outcome = Some(Outcome::Unproven(refusal.clone()));
                return None;
            }
        };
        while let Some(candidate) = candidates.get(self.next) {
            if self.tried == MAX_CANDIDATES && may_prove(self.event.kind, &candidate.predicate_type) {
                let failed_checks = self
                    .refusal
                    .take()
                    .map(|refusal| refusal.failed_checks)
                    .unwrap_or_default();
                self.refusal = Some(Refusal {
                    reason: "TOO_MANY_CANDIDATES".to_owned(),
                    failed_checks,
                });
                return None;
            }
            self.next += 1;
            if may_prove(self.event.kind, &candidate.predicate_type) {
                self.tried += 1;
                return Some(candidate.clone());
            }
        }
        None
    }

    /// Takes the answer about `candidate`.
    fn hear(&mut self, job: &str, candidate: &Candidate, answer: Answer) -> Result<(), Error> {
        let refused = match answer {
            Answer::AlreadyAttached { job: attached_by } if attached_by != job => {
                self.outcome = Some(Outcome::AlreadyProven);
                return Ok(());
            }
            // Attached by this job before the process ended counts as attached now.
            Answer::Attached | Answer::AlreadyAttached { .. } => {
                self.outcome = Some(Outcome::Proven {
                    seconds: seconds_after(self.event.ts, candidate),
                });
                return Ok(());
            }
            Answer::Refused(refused) => refused,
        };
        let status = from_item_error(&refused);
        if upstream::is_transient(&status) || is_forbidden(&status) {
            return Err(Error::Upstream(status));
        }
        match refused.reason.as_str() {
            // Perhaps by this job, before the process ended: then a later candidate is the one that is attached.
            "ENVELOPE_CONFLICT" => self.conflict = true,
            // These are about the event, and no other candidate changes them.
            "EVENT_NOT_FOUND" | "NO_RECEIPT" | "INTEGRITY" => {
                self.outcome = Some(Outcome::Unproven(refusal(&refused)));
            }
            _ => {
                self.refusal.get_or_insert_with(|| refusal(&refused));
            }
        }
        Ok(())
    }

    fn outcome(self) -> Outcome {
        match (self.outcome, self.refusal) {
            (Some(outcome), _) => outcome,
            (None, _) if self.conflict => Outcome::AlreadyProven,
            (None, Some(refusal)) => Outcome::Unproven(refusal),
            (None, None) => Outcome::Unproven(Refusal::new(NOT_FOUND)),
        }
    }
}

/// Whether an attestation could prove an event of this kind. What proves INGEST is the Verifier's configuration.
fn may_prove(kind: Kind, predicate_type: &str) -> bool {
    kind == Kind::Ingest || kind.accepts(predicate_type, &[])
}

/// How long after the event the attestation was made; 0 if before, or if one of them has no time.
fn seconds_after(ts: Option<Timestamp>, candidate: &Candidate) -> u64 {
    match (ts, candidate.time) {
        (Some(ts), LastIfNone::Some(time)) => u64::try_from(time.unix() - ts.unix()).unwrap_or_default(),
        (None, _) | (_, LastIfNone::None) => 0,
    }
}

/// Whether the refusal is about us and not about the item.
fn is_forbidden(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
    )
}

fn refusal(error: &ItemError) -> Refusal {
    let listed = error
        .message
        .strip_prefix(VERIFICATION_FAILED)
        .unwrap_or_default();
    let checks = listed.split(", ").filter(|check| is_code(check));
    Refusal {
        reason: if is_code(&error.reason) {
            error.reason.clone()
        } else {
            "UNKNOWN".to_owned()
        },
        failed_checks: checks.take(MAX_CHECKS).map(str::to_owned).collect(),
    }
}

/// Whether a text is what reasons and checks are made of.
fn is_code(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b':'))
}
