//! The client of a Rekor v1: entries of kind `dsse`, its promise (the signed entry timestamp), proof and search.
//!
//! The log takes whole envelopes. What it answers must be an entry of the very signature that was submitted, under a
//! valid promise and proof. An envelope that it has already is a 409 that names the entry, which is then read.

use std::time::Duration;

use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::StatusCode;
use reqwest::header::LOCATION;
use serde_json::{Value, json};
use stella_attest::checkpoint::{self, Checkpoint};
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::entry;
use stella_attest::evidence::LogEntry;
use stella_attest::json;
use stella_attest::key::{Algorithm, VerifyingKey};
use stella_attest::merkle::{self, Hash};
use stella_attest::rekor_v1;
use stella_attest::trust::TrustedLog;
use stella_attest::verify;
use tokio::time::{Instant, sleep};

use super::seen::{Beginning, History, Relation, Seen, Signed, invalid};
use super::{LogReader, OpenError, RekorConfig, log_error, open_http, refused};
use crate::http::{Answer, Http, Request, jittered};
use crate::{Forks, LogError, Submission, TransparencyLog};

/// Largest answer: an entry's body holds digests, signatures and keys, never the payload.
const MAX_ANSWER: usize = 4 << 20;
/// Largest answer about the tree as a whole.
const MAX_INFO: usize = 1 << 20;
/// Most ids that a search may list.
const MAX_FOUND: usize = 10_000;
/// How often a consistency proof that does not hold is asked for before it is a fork.
const PROOFS: usize = 3;
/// The pause before an entry that must be there is asked for again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const JSON: &str = "application/json";

/// A Rekor v1. Cheap to share behind an `Arc`; as many requests are in flight as there are callers.
pub struct RekorV1 {
    api: Api,
    seen: Seen,
    budget: Duration,
}

/// The log's REST interface.
struct Api {
    http: Http,
    log: TrustedLog,
}

impl RekorV1 {
    /// The log at `config.url`, whose key must be one of ECDSA: checkpoints by another never verify.
    ///
    /// # Errors
    /// [`OpenError`]: the URL, the HTTP client or the state file.
    pub fn open(config: RekorConfig) -> Result<Self, OpenError> {
        let http = open_http(&config.url, config.attempt_timeout)?;
        let seen = Seen::open(
            config.log.clone(),
            config.state_dir.as_deref(),
            config.stale_timeout,
        )?;
        let log = config.log;
        Ok(Self {
            api: Api { http, log },
            seen,
            budget: config.budget,
        })
    }

    /// The size of the tree that the log shows now, after it was compared with the one before.
    ///
    /// # Errors
    /// As [`LogReader`]'s; this is how a fork is found without reading or writing an entry.
    pub async fn look(&self) -> Result<u64, LogError> {
        let deadline = Instant::now() + self.budget;
        let mark = self.seen.mark()?;
        let signed = self.api.current(deadline).await?;
        self.seen.observe(&signed, &mark, &self.api, deadline).await?;
        Ok(signed.checkpoint.size)
    }

    /// Reads what is at `path`, which must be one entry, verified and observed.
    async fn read(&self, path: &str, deadline: Instant) -> Result<(String, LogEntry), LogError> {
        let mark = self.seen.mark()?;
        let answer = self.api.get(path, MAX_ANSWER, deadline).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(LogError::EntryNotFound);
        }
        if answer.status != StatusCode::OK {
            return Err(refused(&answer));
        }
        let (uuid, entry, signed) = self.api.entry(&answer)?;
        self.seen.observe(&signed, &mark, &self.api, deadline).await?;
        Ok((uuid, entry))
    }

    /// The same by an id that the log has just named, so that it must be there soon.
    async fn read_named(&self, uuid: &str, deadline: Instant) -> Result<LogEntry, LogError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.by_uuid(uuid, deadline).await {
                Err(LogError::EntryNotFound) if Instant::now() + pause < deadline => {}
                Err(LogError::EntryNotFound) => {
                    return Err(LogError::Unavailable(format!("entry {uuid} is not there yet")));
                }
                outcome => return outcome,
            }
            sleep(jittered(pause)).await;
            pause *= 2;
        }
    }

    async fn by_uuid(&self, uuid: &str, deadline: Instant) -> Result<LogEntry, LogError> {
        let path = format!("/api/v1/log/entries/{uuid}");
        let (found, entry) = self.read(&path, deadline).await?;
        if !found.ends_with(uuid) && !uuid.ends_with(&found) {
            return Err(invalid(
                "ENTRY_ID_MISMATCH",
                format!("asked for {uuid}, got {found}"),
            ));
        }
        Ok(entry)
    }
}

/// True for an entry's id: its leaf hash, perhaps with the tree's number before it.
fn is_uuid(text: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    matches!(text.len(), 64 | 80) && text.bytes().all(is_hex)
}

#[async_trait]
impl TransparencyLog for RekorV1 {
    async fn submit(&self, submission: Submission) -> Result<LogEntry, LogError> {
        let deadline = Instant::now() + self.budget;
        self.accepts(&submission.key)?;
        let envelope = Envelope::parse(&submission.envelope).map_err(|_| LogError::SignatureInvalid)?;
        let (pae, signature) = (envelope.pae(), &submission.signature);
        let is_borne = envelope.signatures.iter().any(|borne| borne.sig == *signature);
        if Digest::of(&pae) != submission.pae_digest || !is_borne || !submission.key.verify(&pae, signature) {
            return Err(LogError::SignatureInvalid);
        }
        let payload = Digest::of(&envelope.payload);
        let mark = self.seen.mark()?;
        let proposed = proposal(&submission).to_string();
        let request = Request {
            path: "/api/v1/log/entries",
            post: Some((JSON, proposed.as_bytes())),
            limit: MAX_ANSWER,
        };
        let answer = self.api.http.send(&request, deadline).await.map_err(log_error)?;
        let entry = match answer.status {
            StatusCode::CREATED => {
                let (_, entry, signed) = self.api.entry(&answer)?;
                is_ours(&entry, &submission, &payload)?;
                self.seen.observe(&signed, &mark, &self.api, deadline).await?;
                return Ok(entry);
            }
            StatusCode::CONFLICT => {
                let location = answer.header(LOCATION.as_str()).unwrap_or_default();
                let uuid = location.rsplit('/').next().unwrap_or_default();
                if !is_uuid(uuid) {
                    return Err(invalid("LOCATION_MISSING", "the duplicate's entry is not named"));
                }
                self.read_named(uuid, deadline).await?
            }
            _ => return Err(refused(&answer)),
        };
        is_ours(&entry, &submission, &payload)?;
        Ok(entry)
    }

    fn log_id(&self) -> [u8; 32] {
        self.api.log.key.log_id
    }

    /// Takes P-256, RSA and Ed25519: the log verifies envelopes by SHA-256 whatever the curve.
    fn accepts(&self, key: &VerifyingKey) -> Result<(), LogError> {
        match key.algorithm() {
            Algorithm::EcdsaP256 | Algorithm::Rsa | Algorithm::Ed25519 => Ok(()),
            Algorithm::EcdsaP384 | Algorithm::EcdsaP521 => Err(LogError::KeyNotLoggable),
        }
    }

    fn forks(&self) -> Option<Forks> {
        Some(self.seen.forks())
    }

    fn takes_envelopes(&self) -> bool {
        true
    }
}

fn proposal(submission: &Submission) -> Value {
    json!({
        "apiVersion": rekor_v1::VERSION,
        "kind": rekor_v1::DSSE,
        "spec": {"proposedContent": {
            "envelope": String::from_utf8_lossy(&submission.envelope),
            "verifiers": [BASE64_STANDARD.encode(submission.key.to_pem())],
        }},
    })
}

/// The entry is of this signature by this key over this payload.
fn is_ours(entry: &LogEntry, submission: &Submission, payload: &Digest) -> Result<(), LogError> {
    let body = entry::parse(&entry.kind, &entry.version, &entry.body)
        .map_err(|error| invalid(error.reason(), error.to_string()))?;
    body.binds(
        &submission.pae_digest,
        Some(payload),
        &submission.signature,
        submission.key.spki(),
    )
    .map_err(|reason| invalid(reason, format!("entry {} is of something else", entry.log_index)))
}

#[async_trait]
impl LogReader for RekorV1 {
    fn log_id(&self) -> [u8; 32] {
        self.api.log.key.log_id
    }

    fn forks(&self) -> Option<Forks> {
        Some(self.seen.forks())
    }

    async fn entry_by_index(&self, index: u64) -> Result<LogEntry, LogError> {
        let deadline = Instant::now() + self.budget;
        let path = format!("/api/v1/log/entries?logIndex={index}");
        let (_, entry) = self.read(&path, deadline).await?;
        if entry.log_index != index {
            let detail = format!("asked for {index}, got {}", entry.log_index);
            return Err(invalid("INDEX_MISMATCH", detail));
        }
        Ok(entry)
    }

    async fn entry_by_uuid(&self, uuid: &str) -> Result<LogEntry, LogError> {
        if !is_uuid(uuid) {
            return Err(LogError::EntryNotFound);
        }
        self.by_uuid(uuid, Instant::now() + self.budget).await
    }

    async fn find(&self, digest: &Digest) -> Result<Vec<String>, LogError> {
        let deadline = Instant::now() + self.budget;
        self.seen.mark()?;
        let query = json!({"hash": digest.to_string()}).to_string();
        let request = Request {
            path: "/api/v1/index/retrieve",
            post: Some((JSON, query.as_bytes())),
            limit: MAX_INFO,
        };
        let answer = self.api.http.send(&request, deadline).await.map_err(log_error)?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND => {
                return Err(LogError::NotSearchable("digest"));
            }
            _ => return Err(refused(&answer)),
        }
        let listed = parse(&answer.body)?;
        let malformed = || invalid("ANSWER_MALFORMED", "the search does not list ids");
        let listed = listed.as_array().filter(|listed| listed.len() <= MAX_FOUND);
        let mut found: Vec<String> = Vec::new();
        for id in listed.ok_or_else(malformed)? {
            let id = id.as_str().filter(|id| is_uuid(id)).ok_or_else(malformed)?;
            if !found.iter().any(|known| known == id) {
                found.push(id.to_owned());
            }
        }
        Ok(found)
    }
}

fn parse(body: &[u8]) -> Result<Value, LogError> {
    json::parse(body, &json::Limits::default()).map_err(|error| invalid(error.reason(), error.to_string()))
}

impl Api {
    async fn get(&self, path: &str, limit: usize, deadline: Instant) -> Result<Answer, LogError> {
        let answer = self.http.send(&Request::get(path, limit), deadline).await;
        answer.map_err(log_error)
    }

    /// What is at `path`, which must be there.
    async fn get_json(&self, path: &str, deadline: Instant) -> Result<Value, LogError> {
        let answer = self.get(path, MAX_INFO, deadline).await?;
        if answer.status != StatusCode::OK {
            return Err(refused(&answer));
        }
        parse(&answer.body)
    }

    /// The one entry of an answer: verified, under the id that its leaf has.
    fn entry(&self, answer: &Answer) -> Result<(String, LogEntry, Signed), LogError> {
        let document = parse(&answer.body)?;
        let mut listed = document.as_object().into_iter().flatten();
        let (Some((uuid, value)), None) = (listed.next(), listed.next()) else {
            return Err(invalid("ANSWER_MALFORMED", "the answer is not one entry"));
        };
        let entry =
            rekor_v1::read_entry(value).map_err(|error| invalid(error.reason(), error.to_string()))?;
        if entry.promise.is_none() {
            return Err(invalid(
                "SET_MISSING",
                format!("entry {} has no promise", entry.log_index),
            ));
        }
        let (note, checkpoint) =
            verify::check_entry(&entry, &self.log).map_err(|(reason, detail)| invalid(reason, detail))?;
        // The id is the leaf, in logs with several trees with the tree's number before it.
        if !is_uuid(uuid) || !verify::uuid(&entry).ends_with(uuid.as_str()) {
            return Err(invalid("ENTRY_ID_MISMATCH", format!("the entry is not {uuid}")));
        }
        let signed = Signed {
            checkpoint,
            note: note.to_string(),
        };
        Ok((uuid.clone(), entry, signed))
    }

    async fn info(&self, deadline: Instant) -> Result<Value, LogError> {
        self.get_json("/api/v1/log", deadline).await
    }

    async fn consistency(
        &self,
        old: u64,
        new: &Checkpoint,
        deadline: Instant,
    ) -> Result<Vec<Hash>, LogError> {
        let size = new.size;
        let mut path = format!("/api/v1/log/proof?firstSize={old}&lastSize={size}");
        if let Some(tree) = checkpoint::rekor_v1_tree(&new.origin) {
            path = format!("{path}&treeID={tree}");
        }
        let document = self.get_json(&path, deadline).await?;
        // What is no proof proves nothing, a fork least of all.
        let malformed = || invalid("ANSWER_MALFORMED", "the consistency proof is not of hashes");
        let mut hashes = Vec::new();
        for text in document["hashes"]
            .as_array()
            .ok_or_else(malformed)?
            .iter()
            .take(merkle::MAX_PROOF + 1)
        {
            let mut hash = [0; 32];
            hex::decode_to_slice(text.as_str().unwrap_or_default(), &mut hash).map_err(|_| malformed())?;
            hashes.push(hash);
        }
        Ok(hashes)
    }
}

#[async_trait]
impl History for Api {
    /// A proof that fails may have been spoilt on its way; one that fails each time is a fork.
    async fn relation(
        &self,
        old: &Checkpoint,
        new: &Checkpoint,
        deadline: Instant,
    ) -> Result<Relation, LogError> {
        let mut beginning = None;
        for _ in 0..PROOFS {
            let proof = self.consistency(old.size, new, deadline).await?;
            let held = merkle::verify_consistency(old.size, new.size, &proof, &old.root, &new.root);
            let Err(error) = held else {
                return Ok(Relation::Extends);
            };
            tracing::warn!(log = self.log.name(), %error, "a consistency proof does not hold");
            let stated = merkle::stated_old_root(old.size, new.size, &proof);
            let is_shown =
                |root: &Hash| merkle::verify_consistency(old.size, new.size, &proof, root, &new.root).is_ok();
            if let Some(root) = stated.filter(is_shown) {
                beginning = Some(Beginning { root, proof });
            }
        }
        Ok(Relation::Differs(beginning))
    }

    async fn current(&self, deadline: Instant) -> Result<Signed, LogError> {
        let info = self.info(deadline).await?;
        Signed::read(info["signedTreeHead"].as_str().unwrap_or_default(), &self.log)
    }

    async fn replaced(&self, origin: &str, deadline: Instant) -> Result<Option<Signed>, LogError> {
        let info = self.info(deadline).await?;
        for shard in info["inactiveShards"].as_array().map_or(&[][..], Vec::as_slice) {
            let signed = Signed::read(shard["signedTreeHead"].as_str().unwrap_or_default(), &self.log)?;
            if signed.checkpoint.origin == origin {
                return Ok(Some(signed));
            }
        }
        Ok(None)
    }
}
