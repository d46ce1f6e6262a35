//! Jobs: what was asked, how far it is, and how each event came out.

use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_serve::access::Tenant;

/// The kinds that a job is about when the caller names none: those that decisions rest on.
pub const DEFAULT_KINDS: [Kind; 3] = [Kind::Sbom, Kind::Vex, Kind::Scan];

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works or waits.
    Running,
    /// It has gone through every event.
    Done,
    /// It was given up.
    Failed,
}

/// How the events of a job came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Proven by this job.
    pub proven: u64,
    /// Without an attestation that could prove them.
    pub not_found: u64,
    /// With attestations, none of which could be attached.
    pub errors: u64,
    /// Proven by somebody else while the job ran.
    pub already_proven: u64,
    /// Longest time between an event and the attestation that this job attached to it.
    pub latest_proof_seconds: u64,
}

impl Tally {
    /// How many events have come out.
    pub fn processed(&self) -> u64 {
        self.proven + self.not_found + self.errors + self.already_proven
    }

    /// Counts one more event.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Proven { seconds } => {
                self.proven += 1;
                self.latest_proof_seconds = self.latest_proof_seconds.max(*seconds);
            }
            Outcome::AlreadyProven => self.already_proven += 1,
            Outcome::Unproven(refusal) if refusal.reason == NOT_FOUND => self.not_found += 1,
            Outcome::Unproven(_) => self.errors += 1,
        }
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Whose events it proves.
    pub tenant: Tenant,
    /// Which kinds of them.
    pub kinds: Vec<Kind>,
    /// At most so many; 0 means all.
    pub limit: u64,
    /// Where it is in its life.
    pub state: State,
    /// How many events it is about; `None` until they were counted.
    pub total: Option<u64>,
    /// How they came out so far.
    pub tally: Tally,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed or waits.
    pub message: String,
}

/// An unproven event, as Feedser lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its `_id`.
    pub id: String,
    /// Its `kind`.
    pub kind: Kind,
    /// Its `subject.digest.sha256`.
    pub subject: Digest,
    /// Its `ts`, if that is a time.
    pub ts: Option<Timestamp>,
}

/// Events that are worked on and counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Which one of its job, from 1.
    pub number: u64,
    /// In the order of their append.
    pub events: Vec<Listed>,
}

/// The reason of an event without any attestation that could prove it.
pub(crate) const NOT_FOUND: &str = "NOT_FOUND";

/// Why an event could not be proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `NOT_FOUND`, or Feedser's reason.
    pub reason: String,
    /// The failed checks, as `NAME:REASON`.
    pub failed_checks: Vec<String>,
}

impl Refusal {
    /// A refusal without checks.
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            failed_checks: Vec::new(),
        }
    }
}

/// How an event came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This job proved it, with an attestation made so long after it.
    Proven { seconds: u64 },
    /// Somebody else did.
    AlreadyProven,
    /// Nobody did.
    Unproven(Refusal),
}

/// An event that a job could not prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// Its `_id`.
    pub event_id: String,
    /// Its `kind`.
    pub kind: Kind,
    /// Its `subject.digest.sha256`.
    pub subject: Digest,
    /// Why not.
    pub refusal: Refusal,
}

/// What a page adds to its job: the counts, and what could not be proven.
pub(crate) fn sum_up(events: Vec<Listed>, outcomes: Vec<Outcome>) -> (Tally, Vec<Unproven>) {
    let (mut tally, mut unproven) = (Tally::default(), Vec::new());
    for (event, outcome) in events.into_iter().zip(outcomes) {
        tally.count(&outcome);
        if let Outcome::Unproven(refusal) = outcome {
            unproven.push(Unproven {
                event_id: event.id,
                kind: event.kind,
                subject: event.subject,
                refusal,
            });
        }
    }
    (tally, unproven)
}
