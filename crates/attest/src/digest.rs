//! SHA-256 digests.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest (FIPS 180-4), written `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It does not begin with `sha256:`.
    #[error("a digest begins with `sha256:`")]
    UnknownAlgorithm,
    /// What follows is not 64 lower-case hex digits.
    #[error("a digest has 64 lower-case hex digits")]
    NotHex,
}

impl DigestError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        "BAD_DIGEST"
    }
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(
            digest(&SHA256, bytes)
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
        )
    }

    /// Takes a digest that was made elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 64 lower-case hex digits without a prefix.
    ///
    /// # Errors
    /// [`DigestError::NotHex`].
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(DigestError::NotHex);
        }
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError::NotHex)?;
        Ok(Self(bytes))
    }

    /// The 64 lower-case hex digits without a prefix.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::from_hex(
            text.strip_prefix("sha256:")
                .ok_or(DigestError::UnknownAlgorithm)?,
        )
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str("sha256:")?;
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Digests what arrives in pieces, such as a file.
#[derive(Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_lower_case_sha256_parses() {
        let hex = "ab".repeat(32);
        for (case, text, want) in [
            ("whole", format!("sha256:{hex}"), Ok(Digest([0xab; 32]))),
            ("no algorithm", hex.clone(), Err(DigestError::UnknownAlgorithm)),
            (
                "weak algorithm",
                format!("sha1:{hex}"),
                Err(DigestError::UnknownAlgorithm),
            ),
            (
                "upper-case algorithm",
                format!("SHA256:{hex}"),
                Err(DigestError::UnknownAlgorithm),
            ),
            (
                "cut short",
                format!("sha256:{}", &hex[2..]),
                Err(DigestError::NotHex),
            ),
            ("too long", format!("sha256:{hex}ab"), Err(DigestError::NotHex)),
            (
                "upper-case digits",
                format!("sha256:{}", hex.to_uppercase()),
                Err(DigestError::NotHex),
            ),
            (
                "no digit",
                format!("sha256:{}zz", &hex[2..]),
                Err(DigestError::NotHex),
            ),
        ] {
            assert_eq!(text.parse::<Digest>(), want, "{case}");
        }
    }

    #[test]
    fn pieces_and_the_whole_give_one_digest() {
        let mut hasher = Hasher::new();
        hasher.update(b"ab");
        hasher.update(b"c");
        let whole = Digest::of(b"abc");
        assert_eq!(hasher.finish(), whole);
        assert_eq!(
            whole.hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
