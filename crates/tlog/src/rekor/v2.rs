//! The client of a Rekor v2: entries of kind `hashedrekord`, proven by tiles, dated by witnesses.
//!
//! The log answers a new entry with its proof, which must hold, and a known one with nothing but its index; entry and
//! proof are then built from the tiles. With witnesses the answer is a proof that leads to a checkpoint that all of
//! them cosigned; without them it is the log's own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use stella_attest::digest::Digest;
use stella_attest::entry;
use stella_attest::evidence::LogEntry;
use stella_attest::hashedrekord;
use stella_attest::json;
use stella_attest::key::{Algorithm, VerifyingKey};
use stella_attest::verify;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::cosigner::{Cosigner, Waiting};
use super::seen::{Signed, invalid};
use super::tiles::TileReader;
use super::{LogReader, OpenError, RekorConfig, log_error, open_http, refused};
use crate::http::{Http, Request};
use crate::{Forks, LogError, Submission, TransparencyLog, Witness};

/// Largest answer: one entry with its proof.
const MAX_ANSWER: usize = 1 << 20;

/// A Rekor v2, where it is read, and who must have seen it.
#[derive(Clone)]
pub struct RekorV2Config {
    /// The log; `url` is where entries are written (`<url>/api/v2/log/entries`).
    pub rekor: RekorConfig,
    /// Where `checkpoint` and `tile/…` lie; without it, below `<url>/api/v2`.
    pub tiles_url: Option<String>,
    /// All of them must cosign before anyone is answered.
    pub witnesses: Vec<Arc<dyn Witness>>,
    /// How long a witness may take.
    pub witness_timeout: Duration,
}

impl RekorV2Config {
    /// The log of `rekor`, read where it is written, without witnesses.
    pub fn new(rekor: RekorConfig) -> Self {
        Self {
            rekor,
            tiles_url: None,
            witnesses: Vec::new(),
            witness_timeout: Duration::from_secs(10),
        }
    }
}

/// A Rekor v2. Cheap to share behind an `Arc`; as many requests are in flight as there are callers.
pub struct RekorV2 {
    http: Http,
    reader: Arc<TileReader>,
    to_cosigner: Option<UnboundedSender<Waiting>>,
    budget: Duration,
}

impl RekorV2 {
    /// The log of `config`. With witnesses, this starts their task, so it must be called within a Tokio runtime; the
    /// task ends with the value.
    ///
    /// # Errors
    /// [`OpenError`]: a URL, an HTTP client or the state file.
    pub fn open(config: RekorV2Config) -> Result<Self, OpenError> {
        let rekor = config.rekor;
        let (url, budget) = (rekor.url.clone(), rekor.budget);
        let http = open_http(&url, rekor.attempt_timeout)?;
        let tiles_url = config
            .tiles_url
            .unwrap_or_else(|| format!("{}/api/v2", url.trim_end_matches('/')));
        let reader = Arc::new(TileReader::open(RekorConfig {
            url: tiles_url,
            ..rekor
        })?);
        let mut to_cosigner = None;
        if !config.witnesses.is_empty() {
            let (sender, receiver) = mpsc::unbounded_channel();
            let cosigner = Cosigner::new(reader.clone(), config.witnesses, config.witness_timeout);
            tokio::spawn(cosigner.run(receiver));
            to_cosigner = Some(sender);
        }
        Ok(Self {
            http,
            reader,
            to_cosigner,
            budget,
        })
    }

    /// The reader of the log's tiles; what it sees and what is seen here is held together.
    pub fn reader(&self) -> &Arc<TileReader> {
        &self.reader
    }

    /// The entry as the log proves it, and the checkpoint that it does so with, both verified and observed.
    async fn log(&self, submission: &Submission, deadline: Instant) -> Result<(LogEntry, Signed), LogError> {
        let mark = self.reader.seen.mark()?;
        let proposed = proposal(submission)?;
        let request = Request {
            path: "/api/v2/log/entries",
            post: Some(("application/json", proposed.as_bytes())),
            limit: MAX_ANSWER,
        };
        let answer = self.http.send(&request, deadline).await.map_err(log_error)?;
        let (entry, signed) = match answer.status {
            StatusCode::CREATED => {
                let document = json::parse(&answer.body, &json::Limits::default())
                    .map_err(|error| invalid(error.reason(), error.to_string()))?;
                let entry = LogEntry::from_value(&document)
                    .map_err(|error| invalid("ANSWER_MALFORMED", error.to_string()))?;
                is_ours(&entry, submission)?;
                let (note, checkpoint) = verify::check_entry(&entry, &self.reader.tiles.log)
                    .map_err(|(reason, detail)| invalid(reason, detail))?;
                let note = note.to_string();
                (entry, Signed { checkpoint, note })
            }
            StatusCode::CONFLICT => {
                let index = answer.header("x-log-index").and_then(|text| text.parse().ok());
                let index =
                    index.ok_or_else(|| invalid("INDEX_MISSING", "the duplicate's index is not named"))?;
                let signed = self.reader.covering(index, deadline).await?;
                let entry = self.reader.read(index, deadline).await?;
                is_ours(&entry, submission)?;
                return Ok((entry, signed));
            }
            _ => return Err(refused(&answer)),
        };
        self.reader
            .seen
            .observe(&signed, &mark, &self.reader.tiles, deadline)
            .await?;
        Ok((entry, signed))
    }
}

#[async_trait]
impl TransparencyLog for RekorV2 {
    async fn submit(&self, submission: Submission) -> Result<LogEntry, LogError> {
        let deadline = Instant::now() + self.budget;
        self.accepts(&submission.key)?;
        if !submission
            .key
            .verify_digest(&submission.pae_digest, &submission.signature)
        {
            return Err(LogError::SignatureInvalid);
        }
        let (entry, signed) = self.log(&submission, deadline).await?;
        let Some(to_cosigner) = &self.to_cosigner else {
            return Ok(entry);
        };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            entry,
            signed,
            deadline,
            answer,
        };
        to_cosigner.send(waiting).map_err(|_| LogError::Closed)?;
        match timeout_at(deadline, answered).await {
            Ok(answered) => answered.unwrap_or(Err(LogError::Closed)),
            Err(_) => Err(LogError::WitnessUnavailable(crate::WitnessError::Unavailable(
                "no cosignature in time".into(),
            ))),
        }
    }

    fn log_id(&self) -> [u8; 32] {
        self.reader.log_id()
    }

    fn forks(&self) -> Option<Forks> {
        Some(self.reader.seen.forks())
    }

    /// Takes P-256 and RSA: their signatures verify over the SHA-256 digest that the entry holds.
    fn accepts(&self, key: &VerifyingKey) -> Result<(), LogError> {
        match key.algorithm() {
            Algorithm::EcdsaP256 | Algorithm::Rsa if key.is_loggable() => Ok(()),
            _ => Err(LogError::KeyNotLoggable),
        }
    }
}

/// The request, canonical.
fn proposal(submission: &Submission) -> Result<String, LogError> {
    let details = submission.key.key_details().ok_or(LogError::KeyNotLoggable)?;
    Ok(format!(
        "{{\"hashedRekordRequestV002\":{{\"digest\":\"{}\",\"signature\":{{\"content\":\"{}\",\
         \"verifier\":{{\"keyDetails\":\"{details}\",\"publicKey\":{{\"rawBytes\":\"{}\"}}}}}}}}}}",
        BASE64_STANDARD.encode(submission.pae_digest.as_bytes()),
        BASE64_STANDARD.encode(&submission.signature),
        BASE64_STANDARD.encode(submission.key.spki()),
    ))
}

/// The entry is of this signature by this key over this digest.
fn is_ours(entry: &LogEntry, submission: &Submission) -> Result<(), LogError> {
    if (entry.kind.as_str(), entry.version.as_str()) != (hashedrekord::KIND, hashedrekord::VERSION) {
        return Err(invalid(
            "ENTRY_KIND_UNKNOWN",
            format!("{}/{}", entry.kind, entry.version),
        ));
    }
    let body = entry::parse(&entry.kind, &entry.version, &entry.body)
        .map_err(|error| invalid(error.reason(), error.to_string()))?;
    body.binds(
        &submission.pae_digest,
        None,
        &submission.signature,
        submission.key.spki(),
    )
    .map_err(|reason| invalid(reason, format!("entry {} is of something else", entry.log_index)))
}

/// Reads by the tiles, as [`TileReader`] does.
#[async_trait]
impl LogReader for RekorV2 {
    fn log_id(&self) -> [u8; 32] {
        self.reader.log_id()
    }

    fn forks(&self) -> Option<Forks> {
        Some(self.reader.seen.forks())
    }

    async fn entry_by_index(&self, index: u64) -> Result<LogEntry, LogError> {
        self.reader.entry_by_index(index).await
    }

    async fn entry_by_uuid(&self, uuid: &str) -> Result<LogEntry, LogError> {
        self.reader.entry_by_uuid(uuid).await
    }

    async fn find(&self, digest: &Digest) -> Result<Vec<String>, LogError> {
        self.reader.find(digest).await
    }
}
