//! Idempotency keys: a repeated start gets the job of the first one.
//!
//! A key counts within (caller, tenant, method) for a day. It is stored in the transaction that stores its job, so there
//! is never a key whose call still runs.

use stella_attest::digest::{Digest, Hasher};
use stella_attest::timestamp::Timestamp;

/// How long a key is remembered, in seconds.
pub(crate) const KEPT_SECONDS: i64 = 24 * 60 * 60;

/// A caller's key: 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key has 1 to 128 visible ASCII characters")]
pub struct IdempotencyKeyError;

impl IdempotencyKey {
    /// The key of a request; an empty text means that the caller gave none.
    ///
    /// # Errors
    /// [`IdempotencyKeyError`] if the text is too long or has other characters.
    pub fn parse(text: String) -> Result<Option<Self>, IdempotencyKeyError> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > 128 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(IdempotencyKeyError);
        }
        Ok(Some(Self(text)))
    }
}

/// A key as it is stored, and the request that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// SHA-256 of the key with all that it counts within.
    pub scope: Digest,
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
            scope: digest(&[caller, tenant, method, &key.0]),
            request: digest(request),
            expires: Timestamp::from_unix(now.unix().saturating_add(KEPT_SECONDS)),
        }
    }
}

/// The digest of `parts`; parts are apart even if their texts run together.
fn digest(parts: &[&str]) -> Digest {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_visible_ascii() {
        let key = |text: &str| IdempotencyKey::parse(text.into()).map(|key| key.map(|key| key.0));
        for (case, text, want) in [
            ("none", String::new(), Ok(None)),
            ("a word", "retry-1".to_owned(), Ok(Some("retry-1".to_owned()))),
            ("the longest", "x".repeat(128), Ok(Some("x".repeat(128)))),
            ("too long", "x".repeat(129), Err(IdempotencyKeyError)),
            ("a space", "a b".to_owned(), Err(IdempotencyKeyError)),
            ("a newline", "a\n".to_owned(), Err(IdempotencyKeyError)),
            ("not ASCII", "ü".to_owned(), Err(IdempotencyKeyError)),
        ] {
            assert_eq!(key(&text), want, "{case}");
        }
    }

    #[test]
    fn a_key_counts_within_its_caller_tenant_and_method() {
        let key = IdempotencyKey("k".to_owned());
        let now = Timestamp::from_unix(1_762_862_400);
        let scope = |caller, tenant, method| KeyUse::new(caller, tenant, method, &key, &["all"], now).scope;
        let first = scope("ci", "acme", "StartBackfill");
        for (case, other) in [
            ("another caller", scope("c", "acme", "StartBackfill")),
            ("another tenant", scope("ci", "umbrella", "StartBackfill")),
            ("another method", scope("ci", "acme", "Start")),
            (
                "the same letters cut elsewhere",
                scope("cia", "cme", "StartBackfill"),
            ),
        ] {
            assert_ne!(first, other, "{case}");
        }
        assert_eq!(first, scope("ci", "acme", "StartBackfill"));
    }
}
