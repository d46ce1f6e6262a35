//! Idempotency keys: a repeated call gets the first one's answer.
//!
//! A key counts within (caller, tenant, method) for a day. What is remembered here is only which request it came with
//! and where the audit log has the outcome; the answer is made again from there. A [`Ticket`] stands for a call that
//! runs: the same key is refused meanwhile, and if the call fails, the key is as it was before.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stella_attest::digest::Digest;
use stella_attest::timestamp::Timestamp;
pub(crate) use stella_serve::idempotency::Scope;
use stella_serve::idempotency::expiry;

use crate::audit::Location;

const SHARDS: usize = 16;

/// What a call has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Signed, and that was all that was asked for.
    Signed {
        /// The outcome record.
        outcome: Location,
    },
    /// Signed; not yet logged and witnessed. The retry goes on from here.
    Unlogged {
        /// The outcome record.
        outcome: Location,
    },
    /// Signed and logged.
    Logged {
        /// The outcome record.
        outcome: Location,
        /// The logged record.
        logged: Location,
        /// The checkpoint record that goes with it.
        checkpoint: Location,
    },
    /// A key was rotated.
    Rotated {
        /// The rotation record.
        rotation: Location,
    },
}

/// How a call with a key may go on.
#[derive(Debug)]
pub(crate) enum Begin {
    /// Nobody used the key.
    Fresh(Ticket),
    /// The call was begun and signed; log it.
    Resume(Ticket, Done),
    /// The call is finished: answer the same.
    Repeat(Done),
}

/// How a call that is signed and not logged stands.
#[derive(Debug)]
pub(crate) enum Resume {
    /// It waited to be taken up.
    Taken(Ticket),
    /// Its caller has taken it up.
    Running,
    /// Its caller has seen it through.
    Finished,
    /// Its key is not remembered any more.
    Forgotten,
}

/// Why a call with a key may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdempotencyError {
    /// The key came with another request before.
    #[error("the idempotency key was used for another request")]
    Reused,
    /// The call of that key still runs.
    #[error("a call with this idempotency key is still running")]
    Running,
    /// More keys are in use than are remembered at a time.
    #[error("too many idempotency keys are in use")]
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    request: Digest,
    expires: Timestamp,
    running: bool,
    done: Option<Done>,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Scope, Entry>,
    /// Scopes in the order in which they expire.
    order: VecDeque<(Timestamp, Scope)>,
}

/// All keys in use.
#[derive(Clone, Debug)]
pub(crate) struct Idempotency {
    shards: Arc<[Mutex<Shard>; SHARDS]>,
    shard_capacity: usize,
}

impl Idempotency {
    /// Remembers at most about `capacity` keys at a time.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            shards: Arc::new(std::array::from_fn(|_| Mutex::default())),
            shard_capacity: capacity.div_ceil(SHARDS).max(1),
        }
    }

    /// Begins a call, or tells what became of the one that used the key before.
    pub(crate) fn begin(
        &self,
        scope: Scope,
        request: Digest,
        now: Timestamp,
    ) -> Result<Begin, IdempotencyError> {
        let mut shard = self.shard(&scope);
        shard.expire(now);
        if let Some(entry) = shard.entries.get_mut(&scope) {
            if entry.request != request {
                return Err(IdempotencyError::Reused);
            }
            if entry.running {
                return Err(IdempotencyError::Running);
            }
            return Ok(match entry.done {
                Some(done @ Done::Unlogged { .. }) => {
                    entry.running = true;
                    Begin::Resume(self.ticket(scope), done)
                }
                Some(done) => Begin::Repeat(done),
                None => {
                    entry.running = true;
                    Begin::Fresh(self.ticket(scope))
                }
            });
        }
        if shard.entries.len() >= self.shard_capacity {
            return Err(IdempotencyError::Full);
        }
        shard.insert(
            scope,
            Entry {
                request,
                expires: expiry(now),
                running: true,
                done: None,
            },
        );
        drop(shard);
        Ok(Begin::Fresh(self.ticket(scope)))
    }

    /// Takes up a key that was read from the audit log, used at `at`.
    pub(crate) fn restore(&self, scope: Scope, request: Digest, at: Timestamp, done: Done, now: Timestamp) {
        if expiry(at) > now {
            let mut shard = self.shard(&scope);
            shard.insert(
                scope,
                Entry {
                    request,
                    expires: expiry(at),
                    running: false,
                    done: Some(done),
                },
            );
        }
    }

    /// Takes the ticket of a call that is signed and not logged, for the Signer's own retry.
    pub(crate) fn resume(&self, scope: Scope) -> Resume {
        let mut shard = self.shard(&scope);
        let Some(entry) = shard.entries.get_mut(&scope) else {
            return Resume::Forgotten;
        };
        if entry.running {
            return Resume::Running;
        }
        if !matches!(entry.done, Some(Done::Unlogged { .. })) {
            return Resume::Finished;
        }
        entry.running = true;
        drop(shard);
        Resume::Taken(self.ticket(scope))
    }

    fn ticket(&self, scope: Scope) -> Ticket {
        Ticket {
            keys: self.clone(),
            scope,
        }
    }

    fn shard(&self, scope: &Scope) -> MutexGuard<'_, Shard> {
        let shard = usize::from(scope.as_bytes()[0]) % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn insert(&mut self, scope: Scope, entry: Entry) {
        self.order.push_back((entry.expires, scope));
        self.entries.insert(scope, entry);
    }

    /// Forgets the keys whose day is over. One that runs is kept until it ends.
    fn expire(&mut self, now: Timestamp) {
        while let Some((expires, scope)) = self.order.front().copied()
            && expires <= now
        {
            self.order.pop_front();
            match self.entries.get(&scope) {
                Some(entry) if entry.running => self.order.push_back((expiry(now), scope)),
                Some(entry) if entry.expires <= now => {
                    self.entries.remove(&scope);
                }
                Some(_) | None => {}
            }
        }
    }
}

/// A call that runs under a key. Dropped before [`Ticket::finish`], it leaves the key as it was.
#[derive(Debug)]
pub(crate) struct Ticket {
    keys: Idempotency,
    scope: Scope,
}

impl Ticket {
    /// Remembers how far the call came; it still runs.
    pub(crate) fn reached(&self, done: Done) {
        if let Some(entry) = self.keys.shard(&self.scope).entries.get_mut(&self.scope) {
            entry.done = Some(done);
        }
    }

    /// The call is over, with this result.
    pub(crate) fn finish(self, done: Done) {
        self.reached(done);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut shard = self.keys.shard(&self.scope);
        if let Some(entry) = shard.entries.get_mut(&self.scope) {
            entry.running = false;
            if entry.done.is_none() {
                shard.entries.remove(&self.scope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use stella_serve::idempotency::KEPT_SECONDS;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(1_762_862_400 + seconds)
    }

    fn signed(offset: u64) -> Done {
        Done::Signed {
            outcome: Location::for_tests(offset),
        }
    }

    fn unlogged(offset: u64) -> Done {
        Done::Unlogged {
            outcome: Location::for_tests(offset),
        }
    }

    fn outcome(
        begun: Result<Begin, IdempotencyError>,
    ) -> Result<(&'static str, Option<Done>), IdempotencyError> {
        begun.map(|begin| match begin {
            Begin::Fresh(_) => ("fresh", None),
            Begin::Resume(_, done) => ("resume", Some(done)),
            Begin::Repeat(done) => ("repeat", Some(done)),
        })
    }

    #[test]
    fn a_key_gives_the_first_answer_within_its_scope_and_its_day() {
        let keys = Idempotency::new(1_000);
        let scope = Scope::new("ci", "acme", "Sign", "k");
        let (request, other) = (Digest::of(b"request"), Digest::of(b"other"));
        let Ok(Begin::Fresh(ticket)) = keys.begin(scope, request, at(0)) else {
            panic!("the key is new")
        };
        let running = outcome(keys.begin(scope, request, at(1)));
        ticket.finish(signed(7));
        let day = KEPT_SECONDS;
        for (case, scope, request, now, want) in [
            (
                "the same again",
                scope,
                request,
                at(2),
                Ok(("repeat", Some(signed(7)))),
            ),
            (
                "the last second of the day",
                scope,
                request,
                at(day - 1),
                Ok(("repeat", Some(signed(7)))),
            ),
            (
                "another request",
                scope,
                other,
                at(2),
                Err(IdempotencyError::Reused),
            ),
            (
                "another caller",
                Scope::new("c", "acme", "Sign", "k"),
                other,
                at(2),
                Ok(("fresh", None)),
            ),
            (
                "another tenant",
                Scope::new("ci", "umbrella", "Sign", "k"),
                other,
                at(2),
                Ok(("fresh", None)),
            ),
            (
                "another method",
                Scope::new("ci", "acme", "SignBatch", "k"),
                other,
                at(2),
                Ok(("fresh", None)),
            ),
            (
                "the same letters cut elsewhere",
                Scope::new("cia", "cme", "Sign", "k"),
                other,
                at(2),
                Ok(("fresh", None)),
            ),
            ("after the day", scope, other, at(day), Ok(("fresh", None))),
        ] {
            assert_eq!(outcome(keys.begin(scope, request, now)), want, "{case}");
        }
        assert_eq!(running, Err(IdempotencyError::Running));
    }

    #[test]
    fn a_call_that_fails_leaves_the_key_as_it_was() {
        let keys = Idempotency::new(1_000);
        let scope = Scope::new("ci", "acme", "Sign", "k");
        let request = Digest::of(b"request");
        let begin = |seconds| keys.begin(scope, request, at(seconds));

        assert_eq!(outcome(begin(0)), Ok(("fresh", None)), "new, and dropped at once");
        let Ok(Begin::Fresh(ticket)) = begin(1) else {
            panic!("nothing was kept of the failure")
        };
        ticket.reached(unlogged(1));
        drop(ticket);
        let Ok(Begin::Resume(ticket, done)) = begin(2) else {
            panic!("the signature was kept")
        };
        assert_eq!(done, unlogged(1));
        assert_eq!(outcome(begin(3)), Err(IdempotencyError::Running));
        assert!(matches!(keys.resume(scope), Resume::Running));
        drop(ticket);
        let Resume::Taken(ticket) = keys.resume(scope) else {
            panic!("it does not run any more")
        };
        assert_eq!(outcome(begin(4)), Err(IdempotencyError::Running));
        ticket.finish(signed(2));
        assert!(matches!(keys.resume(scope), Resume::Finished));
        let other = Scope::new("ci", "acme", "Sign", "other");
        assert!(matches!(keys.resume(other), Resume::Forgotten));
        assert_eq!(outcome(begin(4)), Ok(("repeat", Some(signed(2)))));
    }

    #[test]
    fn what_was_read_at_start_counts_until_its_day_is_over() {
        let keys = Idempotency::new(1_000);
        let request = Digest::of(b"request");
        let scope = |name| Scope::new("ci", "acme", "Sign", name);
        keys.restore(scope("old"), request, at(0), signed(1), at(KEPT_SECONDS));
        keys.restore(scope("young"), request, at(1), signed(2), at(KEPT_SECONDS));
        keys.restore(scope("open"), request, at(1), unlogged(3), at(KEPT_SECONDS));
        for (name, want) in [
            ("old", Ok(("fresh", None))),
            ("young", Ok(("repeat", Some(signed(2))))),
            ("open", Ok(("resume", Some(unlogged(3))))),
        ] {
            assert_eq!(
                outcome(keys.begin(scope(name), request, at(KEPT_SECONDS))),
                want,
                "{name}"
            );
        }
    }

    #[test]
    fn more_keys_than_are_remembered_are_refused_until_some_expire() {
        let keys = Idempotency::new(1);
        let request = Digest::of(b"request");
        let mut scopes = (0..).map(|n| Scope::new("ci", "acme", "Sign", &format!("{n}")));
        let first = scopes.next().expect("endless");
        let same_shard = scopes
            .find(|scope| scope.as_bytes()[0] % 16 == first.as_bytes()[0] % 16)
            .expect("endless");
        let Ok(Begin::Fresh(ticket)) = keys.begin(first, request, at(0)) else {
            panic!("the key is new")
        };
        ticket.finish(signed(1));
        assert_eq!(
            outcome(keys.begin(same_shard, request, at(1))),
            Err(IdempotencyError::Full)
        );
        assert_eq!(
            outcome(keys.begin(same_shard, request, at(KEPT_SECONDS))),
            Ok(("fresh", None))
        );
    }
}
