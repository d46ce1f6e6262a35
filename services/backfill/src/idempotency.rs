//! Idempotency keys: a repeated start gets the job of the first one.
//!
//! A key counts within (caller, tenant, method) for a day. It is stored in the transaction that stores its job, so there
//! is never a key whose call still runs.

use stella_attest::digest::Digest;
use stella_attest::timestamp::Timestamp;
use stella_serve::idempotency::{IdempotencyKey, Scope, expiry, request_digest};

/// A key as it is stored, and the request that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The key with all that it counts within.
    pub scope: Scope,
    /// SHA-256 of all that makes the request this one.
    pub request: Digest,
    /// When the key may be used for another request.
    pub expires: Timestamp,
}

impl KeyUse {
    /// The use of `key` by `caller` for `tenant` on `method` at `now`; `request` is all that makes the request this one.
    pub(crate) fn new(
        caller: &str,
        tenant: &str,
        method: &str,
        key: &IdempotencyKey,
        request: &[&str],
        now: Timestamp,
    ) -> Self {
        Self {
            scope: Scope::new(caller, tenant, method, key.as_str()),
            request: request_digest(request),
            expires: expiry(now),
        }
    }
}
