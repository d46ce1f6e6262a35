//! What a log entry binds, whichever log it is of.
//!
//! Rekor v2 and the embedded log have one kind, `hashedrekord` 0.0.2; Rekor v1 has `dsse` and `hashedrekord` 0.0.1.
//! Whoever judges an entry asks whether it [binds](Entry::binds) this signature by this key over these bytes.

use crate::digest::Digest;
use crate::hashedrekord;
use crate::rekor_v1;

/// What a body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What was signed.
    pub signed: Signed,
    /// The signatures over it; at least one.
    pub signatures: Vec<Bound>,
}

/// The digest by which a body names what was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// SHA-256 of the bytes that the signature is over: for an envelope its pre-authentication encoding.
    Message(Digest),
    /// SHA-256 of an envelope's payload.
    Payload(Digest),
}

/// A signature and the key that made it, as the body has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The signature's bytes.
    pub signature: Vec<u8>,
    /// The key's SubjectPublicKeyInfo; empty if the entry names a certificate.
    pub spki: Vec<u8>,
}

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A kind or version that is not read here.
    #[error("entries of this kind are not known")]
    KindUnknown,
    /// A member is missing, unknown or of the wrong form; or the body is of another kind than the entry says.
    #[error("`{0}` of the entry's body is missing, unknown or malformed")]
    Malformed(&'static str),
}

impl EntryError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::KindUnknown => "ENTRY_KIND_UNKNOWN",
            Self::Malformed(_) => "ENTRY_MALFORMED",
        }
    }
}

/// Reads the body of an entry of this kind and version.
///
/// # Errors
/// [`EntryError`]; nothing of a kind that is not known is read.
pub fn parse(kind: &str, version: &str, body: &[u8]) -> Result<Entry, EntryError> {
    match (kind, version) {
        (hashedrekord::KIND, hashedrekord::VERSION) => hashedrekord::parse_body(body)
            .map(Entry::from)
            .map_err(|error| EntryError::Malformed(error.field)),
        (rekor_v1::DSSE, rekor_v1::VERSION) => rekor_v1::parse_dsse(body),
        (rekor_v1::HASHEDREKORD, rekor_v1::VERSION) => rekor_v1::parse_hashedrekord(body),
        _ => Err(EntryError::KindUnknown),
    }
}

impl Entry {
    /// True if the entry names the key with this SubjectPublicKeyInfo.
    pub fn names(&self, spki: &[u8]) -> bool {
        self.signatures.iter().any(|bound| bound.spki == spki)
    }

    /// True if the entry holds a signature with these bytes.
    pub fn has(&self, signature: &[u8]) -> bool {
        self.signatures.iter().any(|bound| bound.signature == signature)
    }

    /// True if what was signed has the digest `message`, or is an envelope whose payload has the digest `payload`.
    pub fn is_over(&self, message: &Digest, payload: Option<&Digest>) -> bool {
        match &self.signed {
            Signed::Message(of) => of == message,
            Signed::Payload(of) => Some(of) == payload,
        }
    }

    /// Whether the entry is of this signature by this key, over bytes with the digest `message`, which are the
    /// pre-authentication encoding of a payload with the digest `payload` if there is one.
    ///
    /// # Errors
    /// The reason code: `ENTRY_DIGEST_MISMATCH`, `ENTRY_SIGNATURE_MISMATCH` or `ENTRY_KEY_MISMATCH`.
    pub fn binds(
        &self,
        message: &Digest,
        payload: Option<&Digest>,
        signature: &[u8],
        spki: &[u8],
    ) -> Result<(), &'static str> {
        if !self.is_over(message, payload) {
            return Err("ENTRY_DIGEST_MISMATCH");
        }
        let mut of_signature = self
            .signatures
            .iter()
            .filter(|bound| bound.signature == signature)
            .peekable();
        if of_signature.peek().is_none() {
            return Err("ENTRY_SIGNATURE_MISMATCH");
        }
        if of_signature.all(|bound| bound.spki != spki) {
            return Err("ENTRY_KEY_MISMATCH");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_binds_digest_signature_and_key_together() {
        let bound = |signature: u8, spki: u8| Bound {
            signature: vec![signature],
            spki: vec![spki],
        };
        let (message, payload) = (Digest::of(b"pae"), Digest::of(b"payload"));
        let of = |signed| Entry {
            signed,
            signatures: vec![bound(1, 11), bound(2, 12)],
        };
        for (case, signed, payload, signature, spki, want) in [
            ("message", Signed::Message(message), None, 1, 11, Ok(())),
            ("payload", Signed::Payload(payload), Some(&payload), 2, 12, Ok(())),
            (
                "another message",
                Signed::Message(payload),
                Some(&payload),
                1,
                11,
                Err("ENTRY_DIGEST_MISMATCH"),
            ),
            (
                "another payload",
                Signed::Payload(message),
                Some(&payload),
                1,
                11,
                Err("ENTRY_DIGEST_MISMATCH"),
            ),
            (
                "no payload",
                Signed::Payload(payload),
                None,
                1,
                11,
                Err("ENTRY_DIGEST_MISMATCH"),
            ),
            (
                "another signature",
                Signed::Message(message),
                None,
                3,
                11,
                Err("ENTRY_SIGNATURE_MISMATCH"),
            ),
            (
                "the key of the other signature",
                Signed::Message(message),
                None,
                1,
                12,
                Err("ENTRY_KEY_MISMATCH"),
            ),
        ] {
            assert_eq!(
                of(signed).binds(&message, payload, &[signature], &[spki]),
                want,
                "{case}"
            );
        }
    }

    #[test]
    fn only_known_kinds_are_read() {
        for (kind, version) in [
            ("dsse", "0.0.2"),
            ("intoto", "0.0.2"),
            ("rekord", "0.0.1"),
            ("", ""),
        ] {
            assert_eq!(
                parse(kind, version, b"{}"),
                Err(EntryError::KindUnknown),
                "{kind}/{version}"
            );
        }
    }
}
