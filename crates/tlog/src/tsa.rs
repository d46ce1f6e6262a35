//! The client of a timestamp authority (RFC 3161 over HTTP): asks when a signature was there, and believes the answer
//! only if it is one of the authorities that are trusted.

use std::time::Duration;

use reqwest::StatusCode;
use stella_attest::digest::Digest;
use stella_attest::timestamp::Timestamp;
use stella_attest::tsa::{self, Authority};
use tokio::time::Instant;

use crate::http::{BadServer, Http, HttpError, Request};
use crate::rekor::OpenError;

/// Largest answer: what `stella_attest::tsa` reads.
const MAX_ANSWER: usize = 64 * 1024;
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const EXPLICIT_0: u8 = 0xa0;

/// An authority, and how long it may take.
#[derive(Clone, Debug)]
pub struct TsaConfig {
    /// Where it is asked, whole, with its query if it has one: `https://tsa.example.com/api/v1/timestamp`.
    pub url: String,
    /// The authorities whose answers are believed: those of the trust roots.
    pub authorities: Vec<Authority>,
    /// How long one call may take, with all its attempts.
    pub budget: Duration,
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
}

impl TsaConfig {
    /// The authority at `url`, with 20 s for a call and 10 s for an attempt.
    pub fn new(url: impl Into<String>, authorities: Vec<Authority>) -> Self {
        Self {
            url: url.into(),
            authorities,
            budget: Duration::from_secs(20),
            attempt_timeout: Duration::from_secs(10),
        }
    }
}

/// Why there is no timestamp.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsaClientError {
    /// The authority cannot be reached, did not answer in time, or failed itself (5xx, 408, 429, 499); what
    /// was seen last.
    #[error("the timestamp authority does not answer: {0}")]
    Unavailable(String),
    /// It refused, or its answer does not hold.
    #[error("the timestamp authority's answer does not hold ({reason}): {detail}")]
    AnswerInvalid {
        /// The reason code of what does not hold, such as `TSA_UNKNOWN`.
        reason: &'static str,
        /// What was seen.
        detail: String,
    },
}

impl TsaClientError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "TSA_UNAVAILABLE",
            Self::AnswerInvalid { .. } => "TSA_ANSWER_INVALID",
        }
    }
}

impl From<HttpError> for TsaClientError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Unavailable(seen) => Self::Unavailable(seen),
            HttpError::Invalid { reason, detail } => Self::AnswerInvalid { reason, detail },
        }
    }
}

/// A timestamp that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// A granted RFC 3161 response in DER, as bundles hold it.
    pub response: Vec<u8>,
    /// When the authority saw the signature.
    pub time: Timestamp,
}

/// A timestamp authority.
pub struct TimestampAuthority {
    http: Http,
    authorities: Vec<Authority>,
    budget: Duration,
}

impl TimestampAuthority {
    /// The authority of `config`. The process must have installed its TLS provider.
    ///
    /// # Errors
    /// [`OpenError`]: the URL or the HTTP client.
    pub fn open(config: TsaConfig) -> Result<Self, OpenError> {
        let http = Http::at(&config.url, config.attempt_timeout).map_err(|error| match error {
            BadServer::Url => OpenError::Url,
            BadServer::Client(error) => OpenError::Client(error),
        })?;
        Ok(Self {
            http,
            authorities: config.authorities,
            budget: config.budget,
        })
    }

    /// A timestamp of `signature`, the raw bytes as they stand in an envelope, which was verified and bears the nonce of
    /// this request.
    ///
    /// # Errors
    /// [`TsaClientError`].
    pub async fn timestamp(&self, signature: &[u8]) -> Result<Stamped, TsaClientError> {
        let invalid = |reason: &'static str, detail: String| TsaClientError::AnswerInvalid { reason, detail };
        let nonce = new_nonce()?;
        let query = query(&Digest::of(signature), &nonce);
        let request = Request {
            path: "",
            post: Some(("application/timestamp-query", &query)),
            limit: MAX_ANSWER,
        };
        let answer = self.http.send(&request, Instant::now() + self.budget).await?;
        // A 201 is what some authorities answer.
        if !matches!(answer.status, StatusCode::OK | StatusCode::CREATED) {
            let detail = format!("status {}: {}", answer.status.as_u16(), answer.message());
            return Err(invalid("STATUS_UNEXPECTED", detail));
        }
        let (time, _) = tsa::verify(&answer.body, signature, &self.authorities)
            .map_err(|error| invalid(error.reason(), error.to_string()))?;
        if nonce_of(&answer.body) != Some(&nonce[..]) {
            return Err(invalid(
                "TIMESTAMP_NONCE",
                "the timestamp is of another request".into(),
            ));
        }
        Ok(Stamped {
            response: answer.body,
            time,
        })
    }
}

/// A positive integer of eight bytes in DER.
fn new_nonce() -> Result<[u8; 8], TsaClientError> {
    let mut nonce = [0; 8];
    aws_lc_rs::rand::fill(&mut nonce)
        .map_err(|_| TsaClientError::Unavailable("there is no randomness for a nonce".into()))?;
    nonce[0] = nonce[0] & 0x3f | 0x40;
    Ok(nonce)
}

/// A TimeStampReq (RFC 3161 2.4.1) of a SHA-256 digest: version 1, this nonce, certificates wanted. Its parts have fixed
/// lengths, so it is written without a DER library.
fn query(digest: &Digest, nonce: &[u8; 8]) -> Vec<u8> {
    let mut der = vec![SEQUENCE, 67, INTEGER, 1, 1];
    der.extend_from_slice(&[SEQUENCE, 49, SEQUENCE, 13]);
    // The algorithm: the object identifier 2.16.840.1.101.3.4.2.1 and no parameters.
    der.extend_from_slice(&[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0]);
    der.extend_from_slice(&[OCTET_STRING, 32]);
    der.extend_from_slice(digest.as_bytes());
    der.extend_from_slice(&[INTEGER, 8]);
    der.extend_from_slice(nonce);
    der.extend_from_slice(&[1, 1, 0xff]);
    der
}

/// The nonce of a TimeStampResp, whose signature covers it: response, token, signed data, its content, TSTInfo.
fn nonce_of(response: &[u8]) -> Option<&[u8]> {
    let response = content(response, SEQUENCE, 0)?;
    let token = content(response, SEQUENCE, 1)?;
    let signed_data = content(content(token, EXPLICIT_0, 0)?, SEQUENCE, 0)?;
    let content_info = content(signed_data, SEQUENCE, 0)?;
    let octets = content(content(content_info, EXPLICIT_0, 0)?, OCTET_STRING, 0)?;
    // Integers of TSTInfo: version, serial number, nonce.
    content(content(octets, SEQUENCE, 0)?, INTEGER, 2)
}

/// The content of the element number `skip` among those with this tag.
fn content(mut der: &[u8], tag: u8, mut skip: usize) -> Option<&[u8]> {
    loop {
        let (found, inside, rest) = element(der)?;
        if found == tag && skip == 0 {
            return Some(inside);
        }
        skip -= usize::from(found == tag);
        der = rest;
    }
}

/// Tag, content and what follows of the first DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (inside, rest) = rest.split_at_checked(length)?;
    Some((tag, inside, rest))
}
