//! Clients of transparency logs elsewhere: [`RekorV1`](v1::RekorV1), [`RekorV2`](v2::RekorV2), and the
//! [`TileReader`](tiles::TileReader) of any log that lies in C2SP tiles, ours included.
//!
//! A request goes through `http`, which bounds it in time, repeats it and bounds the answer. What comes back is hostile:
//! the entry must be of what was submitted, promise, proof and checkpoint must hold, and `seen` holds the checkpoint
//! against the last one of this log, which is kept on disk. A log that forks or shrinks is an alarm, and nothing of it
//! is believed until an operator has looked.
//!
//! Nothing is written twice: a submission again finds the entry that is there.

mod cosigner;
mod seen;
pub mod tiles;
pub mod v1;
pub mod v2;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{StatusCode, Url};
use stella_attest::checkpoint::LogKey;
use stella_attest::digest::Digest;
use stella_attest::evidence::LogEntry;
use stella_attest::key::VerifyingKey;
use stella_attest::trust::{TrustedLog, Validity};

use crate::http::{Answer, BadServer, Http, HttpError};
use crate::{Forks, LogError};

/// A log elsewhere, and how long it may take.
///
/// The process must have installed its TLS provider
/// (`rustls::crypto::aws_lc_rs::default_provider().install_default()`) before a client is opened; certificates are
/// judged by the system's roots (`SSL_CERT_FILE` names others).
#[derive(Clone, Debug)]
pub struct RekorConfig {
    /// Base URL, `http` or `https`, such as `https://rekor.example.com`.
    pub url: String,
    /// The log's origin and key, which its answers must be signed with.
    pub log: TrustedLog,
    /// Directory in which the last checkpoint seen is kept, as `<log id in hex>.json`; made if it is missing. Clients
    /// of several logs may share it, processes may not. Without one it is kept in memory only.
    pub state_dir: Option<PathBuf>,
    /// How long one call may take, with all its attempts and all that is read to verify the answer.
    pub budget: Duration,
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
    /// How long a tree that is smaller than before may be an old copy, read from a cache or a replica, before it is an
    /// alarm. Ends with the budget at the latest.
    pub stale_timeout: Duration,
}

/// How the trust in a log is named where no origin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// A Rekor v1: known by its key alone, whatever name its checkpoints bear.
    V1,
    /// A Rekor v2, or another log in tiles: named as the host of its URL.
    V2,
}

impl RekorConfig {
    /// The log at `url` with the public key `key` (PEM, SubjectPublicKeyInfo), whose checkpoints bear the name `origin`, or
    /// what its generation says.
    ///
    /// # Errors
    /// [`OpenError`]: the URL, or a key that no such log has.
    pub fn named(
        url: &str,
        key: &str,
        origin: Option<&str>,
        generation: Generation,
    ) -> Result<Self, OpenError> {
        let host = Url::parse(url)
            .ok()
            .filter(|url| url.username().is_empty() && url.password().is_none())
            .and_then(|url| url.host_str().map(str::to_owned))
            .ok_or_else(|| OpenError::Url)?;
        let refused = |detail: String| OpenError::Key(detail);
        let key = VerifyingKey::from_spki_pem(key).map_err(|error| refused(error.to_string()))?;
        let key = match (origin, generation) {
            (Some(origin), _) => LogKey::new(origin, key),
            (None, Generation::V1) => LogKey::any_origin(key),
            (None, Generation::V2) => LogKey::new(&host, key),
        };
        let log = TrustedLog {
            key: key.map_err(|error| refused(error.to_string()))?,
            base_url: url.to_owned(),
            distrusted: false,
            validity: Validity::default(),
        };
        Ok(Self::new(url, log))
    }

    /// The log at `url`, with 20 s for a call or an attempt and 5 s for old copies.
    pub fn new(url: impl Into<String>, log: TrustedLog) -> Self {
        Self {
            url: url.into(),
            log,
            state_dir: None,
            budget: Duration::from_secs(20),
            attempt_timeout: Duration::from_secs(20),
            stale_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not an `http` or `https` URL, or one with user and password, or, but for an authority, with a query.
    #[error(
        "the URL must be http or https, without user, password and query (a timestamp authority's may have one)"
    )]
    Url,
    /// Not a key that a log has.
    #[error("not the key of a log: {0}")]
    Key(String),
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made")]
    Client(#[source] reqwest::Error),
    /// The file with the last checkpoint cannot be read, or is not what this client wrote.
    #[error("the state file `{}` cannot be read: {detail}", .file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// Reads entries of a log, with their proofs.
///
/// Every entry returned is verified as far as the log goes: promise, inclusion, checkpoint, and that the checkpoint is
/// of the same tree as before. Whose signature it is an entry of is for the caller to check
/// ([`Entry::binds`](stella_attest::entry::Entry::binds), as `stella_attest::verify` does).
///
/// All methods fail with `LOG_UNAVAILABLE`, `LOG_REFUSED`, `LOG_ANSWER_INVALID`, `LOG_FORK` and `LOG_ROLLED_BACK`.
#[async_trait]
pub trait LogReader: Send + Sync {
    /// The log's id in Sigstore bundles.
    fn log_id(&self) -> [u8; 32];

    /// The fork that was seen of the log, if it is held against its earlier self here.
    fn forks(&self) -> Option<Forks> {
        None
    }

    /// The entry at `index`, as `LogEntry::log_index` counts.
    ///
    /// # Errors
    /// [`LogError::EntryNotFound`] if there is none.
    async fn entry_by_index(&self, index: u64) -> Result<LogEntry, LogError>;

    /// The entry with this id: in a Rekor v1 80 hex digits, or the last 64 of them.
    ///
    /// # Errors
    /// [`LogError::EntryNotFound`]; [`LogError::NotSearchable`] by logs that lie in tiles, where an id is a leaf hash.
    async fn entry_by_uuid(&self, uuid: &str) -> Result<LogEntry, LogError>;

    /// The ids of the entries whose envelope, payload or in-toto subject has this SHA-256. What a log lists is not
    /// proof of anything: read the entry. An entry is listed some time after it was logged.
    ///
    /// # Errors
    /// [`LogError::NotSearchable`] by logs that lie in tiles, and by a Rekor v1 without its index.
    async fn find(&self, digest: &Digest) -> Result<Vec<String>, LogError>;
}

fn open_http(url: &str, attempt_timeout: Duration) -> Result<Http, OpenError> {
    Http::new(url, attempt_timeout).map_err(|error| match error {
        BadServer::Url => OpenError::Url,
        BadServer::Client(error) => OpenError::Client(error),
    })
}

fn log_error(error: HttpError) -> LogError {
    match error {
        HttpError::Unavailable(seen) => LogError::Unavailable(seen),
        HttpError::Invalid { reason, detail } => LogError::AnswerInvalid { reason, detail },
    }
}

/// What an answer with an unwelcome status means.
fn refused(answer: &Answer) -> LogError {
    let (status, message) = (answer.status.as_u16(), answer.message());
    if answer.status.is_client_error() || answer.status == StatusCode::NOT_IMPLEMENTED {
        LogError::Refused { status, message }
    } else {
        LogError::AnswerInvalid {
            reason: "STATUS_UNEXPECTED",
            detail: format!("status {status}: {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use stella_attest::key::{Algorithm, SigningKey};

    use super::*;

    #[test]
    fn a_log_is_named_by_a_url_without_a_password_and_by_a_key_that_it_can_have() {
        let key = |algorithm| {
            let key = SigningKey::generate(algorithm).expect("a key");
            key.verifying_key().to_pem()
        };
        let (ed25519, ecdsa) = (key(Algorithm::Ed25519), key(Algorithm::EcdsaP256));
        let named = |url: &str, key: &str, generation| {
            RekorConfig::named(url, key, None, generation).map(|config| config.log.key.origin)
        };
        for (url, key, generation, want) in [
            (
                "https://log.example:8443/x",
                &ed25519,
                Generation::V2,
                Some("log.example"),
            ),
            ("https://log.example", &ecdsa, Generation::V1, Some("")),
            ("https://user:secret@log.example", &ed25519, Generation::V2, None),
            ("https://user@log.example", &ed25519, Generation::V2, None),
            ("log.example", &ed25519, Generation::V2, None),
        ] {
            match (named(url, key, generation), want) {
                (Ok(origin), Some(want)) => assert_eq!(origin, want, "{url}"),
                (Err(error @ OpenError::Url), None) => assert!(!error.to_string().contains("secret")),
                (outcome, _) => panic!("{url}: {outcome:?}"),
            }
        }
        let refused = named("https://log.example", &ed25519, Generation::V1);
        assert!(matches!(refused, Err(OpenError::Key(_))), "{refused:?}");
        let refused = named("https://log.example", "no key", Generation::V2);
        assert!(matches!(refused, Err(OpenError::Key(_))), "{refused:?}");
    }
}
