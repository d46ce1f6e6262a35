//! Timestamps of authorities (RFC 3161): an authority of the trust roots says that a signature existed by a time.
//!
//! A token's imprint is of the signature's bytes. Its signer must be the authority's own certificate, and the chain is
//! judged at the token's time, not now. The parsing of CMS and the chain are the `sigstore-tsa` crate's work, wrapped
//! here alone; which authority is meant, for how long it counts and which reason is given are ours.

use p256::pkcs8::der::pem;
use serde_json::{Value, json};
use sigstore_tsa::{Error, TsaAuthority, verify_timestamp_for_authority};
use sigstore_types::{DerCertificate, SignatureBytes, TimestampToken};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::timestamp::Timestamp;

/// Largest token that is read, in bytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// Most certificates of an authority's chain.
const MAX_CERTIFICATES: usize = 8;
/// Largest certificate, in bytes.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// A timestamp authority that is believed.
#[derive(Clone, Debug)]
pub struct Authority {
    /// What reports call it.
    pub name: String,
    /// Its certificates, DER: the one that signs first, the root last.
    pub certificates: Vec<Vec<u8>>,
    /// Times before this one do not count.
    pub valid_from: Option<Timestamp>,
    /// Times after this one do not count.
    pub valid_until: Option<Timestamp>,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsaError {
    /// No authority of the trust roots made it.
    #[error("the timestamp is of no trusted authority")]
    Unknown,
    /// It is not a granted RFC 3161 response.
    #[error("the timestamp is not a granted RFC 3161 response")]
    Malformed,
    /// It is of something else than this signature.
    #[error("the timestamp is of something else than this signature")]
    Imprint,
    /// It is of a time at which its authority does not count.
    #[error("the timestamp is of a time at which its authority does not count")]
    OutsideValidity,
}

impl TsaError {
    /// The reason code; a contract.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "TSA_UNKNOWN",
            Self::Malformed => "TIMESTAMP_MALFORMED",
            Self::Imprint => "TIMESTAMP_MISMATCH",
            Self::OutsideValidity => "TSA_OUTSIDE_VALIDITY",
        }
    }
}

impl Authority {
    /// The authority `name` with the certificates of a PEM file: its own first, then those between, the root last.
    /// `None` if it holds no such chain.
    pub fn from_pem(name: &str, text: &str) -> Option<Self> {
        let mut certificates = Vec::new();
        for part in text.split_inclusive("-----END CERTIFICATE-----") {
            let Some(begin) = part.find("-----BEGIN") else {
                continue;
            };
            let (label, der) = pem::decode_vec(&part.as_bytes()[begin..]).ok()?;
            if label != "CERTIFICATE" {
                return None;
            }
            certificates.push(der);
        }
        let authority = Self {
            name: name.to_owned(),
            certificates,
            valid_from: None,
            valid_until: None,
        };
        authority.is_well_formed().then_some(authority)
    }

    /// Whether this could be an authority: two to eight certificates of a sane size.
    pub fn is_well_formed(&self) -> bool {
        (2..=MAX_CERTIFICATES).contains(&self.certificates.len())
            && self
                .certificates
                .iter()
                .all(|certificate| certificate.len() <= MAX_CERTIFICATE_BYTES)
    }

    /// The authority as it stands in trust roots of the format `stella`.
    pub(crate) fn to_value(&self) -> Value {
        let certificates: Vec<String> = self
            .certificates
            .iter()
            .map(|certificate| BASE64_STANDARD.encode(certificate))
            .collect();
        let mut value = json!({"certificates": certificates, "name": self.name});
        for (member, time) in [("validFrom", self.valid_from), ("validUntil", self.valid_until)] {
            if let Some(time) = time {
                value[member] = time.to_string().into();
            }
        }
        value
    }

    fn time_of(&self, token: &[u8], signature: &[u8]) -> Result<Timestamp, TsaError> {
        let [leaf, between @ .., root] = &self.certificates[..] else {
            return Err(TsaError::Unknown);
        };
        let certificate = |der: &Vec<u8>| DerCertificate::from_bytes(der);
        let authority = TsaAuthority::new(
            certificate(leaf),
            between.iter().map(certificate).collect(),
            certificate(root),
            None,
        );
        let token = TimestampToken::from_bytes(token);
        let signature = SignatureBytes::from_bytes(signature);
        let time = match verify_timestamp_for_authority(&token, &signature, &authority) {
            Ok(time) => Timestamp::from_unix(time.as_second()),
            Err(Error::HashMismatch { .. }) => return Err(TsaError::Imprint),
            Err(Error::Parse(_) | Error::NoTstInfo | Error::NoToken | Error::ResponseFailure) => {
                return Err(TsaError::Malformed);
            }
            Err(_) => return Err(TsaError::Unknown),
        };
        let is_early = self.valid_from.is_some_and(|from| time < from);
        let is_late = self.valid_until.is_some_and(|until| time > until);
        if is_early || is_late {
            return Err(TsaError::OutsideValidity);
        }
        Ok(time)
    }
}

/// The time at which one of `authorities` saw `signature`, and the name of that one.
///
/// # Errors
/// [`TsaError`]; of several authorities the reason that says most counts.
pub fn verify<'a>(
    token: &[u8],
    signature: &[u8],
    authorities: &'a [Authority],
) -> Result<(Timestamp, &'a str), TsaError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TsaError::Malformed);
    }
    let mut refused = TsaError::Unknown;
    for authority in authorities {
        match authority.time_of(token, signature) {
            Ok(time) => return Ok((time, &authority.name)),
            Err(TsaError::Unknown) => {}
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
