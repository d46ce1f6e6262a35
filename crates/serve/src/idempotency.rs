//! Idempotency keys: what a caller may send as one, and within what it counts.
//!
//! A key counts within (caller, tenant, method) for a day. Where it is kept, and with what answer, is the service's own
//! affair.

use stella_attest::digest::{Digest, Hasher};
use stella_attest::timestamp::Timestamp;

/// How long a key is remembered, in seconds.
pub const KEPT_SECONDS: i64 = 24 * 60 * 60;

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

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key with all that it counts within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scope(Digest);

impl Scope {
    /// The scope of `key`, sent by `caller` for `tenant` to `method`.
    pub fn new(caller: &str, tenant: &str, method: &str, key: &str) -> Self {
        Self(request_digest(&[caller, tenant, method, key]))
    }

    /// The 32 bytes under which it is kept.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// SHA-256 of the parts that make a request this one; parts are apart even if their texts run together.
pub fn request_digest<T: AsRef<[u8]>>(parts: &[T]) -> Digest {
    let mut hasher = Hasher::new();
    for part in parts {
        let part = part.as_ref();
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finish()
}

/// When a key that was used at `used` may be used for another request.
pub fn expiry(used: Timestamp) -> Timestamp {
    Timestamp::from_unix(used.unix().saturating_add(KEPT_SECONDS))
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
        let first = Scope::new("ci", "acme", "StartBackfill", "k");
        for (case, other) in [
            ("another caller", Scope::new("c", "acme", "StartBackfill", "k")),
            (
                "another tenant",
                Scope::new("ci", "umbrella", "StartBackfill", "k"),
            ),
            ("another method", Scope::new("ci", "acme", "Start", "k")),
            ("another key", Scope::new("ci", "acme", "StartBackfill", "l")),
            (
                "the same letters cut elsewhere",
                Scope::new("cia", "cme", "StartBackfill", "k"),
            ),
        ] {
            assert_ne!(first, other, "{case}");
        }
        assert_eq!(first, Scope::new("ci", "acme", "StartBackfill", "k"));
    }

    #[test]
    fn what_was_kept_by_an_earlier_release_is_found_again() {
        // printf '\0\0\0\0\0\0\0\2ci\0\0\0\0\0\0\0\1k' | sha256sum
        assert_eq!(
            request_digest(&["ci", "k"]).to_string(),
            "sha256:429125064579f2bfee65be2d94105695b5a9e0fb65043b5c54c12276e59d4809"
        );
    }
}
