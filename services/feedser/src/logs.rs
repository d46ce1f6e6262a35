//! The logs from which evidence without a log entry is completed: a CI that logs by itself has the envelope and the
//! place of its entry, not the entry's proof.
//!
//! An entry is read from the log that has it, verified there as far as the log goes, and must be of this envelope. What
//! comes of it is evidence like any other: the Verifier judges it, by its own trust roots.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stella_attest::digest::Digest;
use stella_attest::entry;
use stella_attest::evidence::{Evidence, LogEntry};
use stella_attest::key::VerifyingKey;
use stella_tlog::rekor::tiles::TileReader;
use stella_tlog::rekor::v1::RekorV1;
use stella_tlog::rekor::{Generation, LogReader, RekorConfig};
use stella_tlog::{Forks, LogError};
use tokio::sync::Semaphore;

use crate::config::{LogConfig, LogKind};
use crate::error::Error;
use crate::feedser::blocking;
use crate::repository::read_evidence;
use crate::store::Attestation;

/// Entries that are read from one log at the same time.
const AT_ONCE: usize = 64;

/// Where a log entry is, as a caller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The field of the request that says so, for refusals.
    pub field: &'static str,
    /// The log's id, in hex.
    pub log_id: Option<String>,
    /// Index in the log.
    pub index: Option<u64>,
    /// Rekor v1's id of the entry.
    pub uuid: Option<String>,
}

/// The configured logs.
pub struct Logs(Vec<Log>);

/// One log; one that is slow keeps nobody from another.
struct Log {
    reader: Arc<dyn LogReader>,
    places: Semaphore,
}

impl Logs {
    /// The logs in the order in which they are asked.
    pub fn new(readers: Vec<Arc<dyn LogReader>>) -> Self {
        let log = |reader| Log {
            reader,
            places: Semaphore::new(AT_ONCE),
        };
        Self(readers.into_iter().map(log).collect())
    }

    /// Opens what the configuration names. Blocks.
    ///
    /// # Errors
    /// A key that cannot be read, or a client that cannot be made.
    pub(crate) fn open(configs: &[LogConfig]) -> anyhow::Result<Self> {
        let mut readers: Vec<Arc<dyn LogReader>> = Vec::new();
        for (number, config) in configs.iter().enumerate() {
            let reader = open(config).with_context(|| format!("`log[{number}]`"))?;
            let is_known = readers.iter().any(|known| known.log_id() == reader.log_id());
            ensure!(!is_known, "`log[{number}]` is a log that is configured already");
            readers.push(reader);
        }
        Ok(Self::new(readers))
    }

    /// The logs whose history is watched, by their ids.
    pub(crate) fn forks(&self) -> Vec<([u8; 32], Forks)> {
        let watched = self.0.iter().map(|log| &log.reader);
        watched
            .filter_map(|log| Some((log.log_id(), log.forks()?)))
            .collect()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `attestation` with the entry that `place` names: a bundle with envelope, entry, and what the evidence had besides.
    ///
    /// # Errors
    /// [`Error::Log`] if a log could not be read, or none has such an entry; [`Error::EntryForeign`] if the entry there is
    /// of something else.
    pub(crate) async fn complete(
        &self,
        attestation: &Attestation,
        place: &Place,
        max: usize,
    ) -> Result<Attestation, Error> {
        // A log that could not be asked may have the entry, whatever the others say.
        let (mut foreign, mut unread, field) = (None, None, place.field);
        for Log { reader, places } in &self.0 {
            let is_named = |named: &String| *named == hex::encode(reader.log_id());
            if !place.log_id.as_ref().is_none_or(is_named) {
                continue;
            }
            let _place = places.acquire().await.map_err(|_| Error::Cancelled)?;
            let entry = match read(reader.as_ref(), place).await {
                Ok(entry) => entry,
                Err(LogError::EntryNotFound | LogError::NotSearchable(_)) => continue,
                Err(source) => {
                    unread = Some(Error::Log { field, source });
                    continue;
                }
            };
            let evidence = attestation.evidence.clone();
            match blocking(move || completed(&evidence, &entry, field)).await? {
                Ok(bundle) => return blocking(move || read_evidence(bundle.into(), max)).await?,
                Err(error) => foreign = Some(error),
            }
        }
        let refused = unread.or(foreign);
        let source = LogError::EntryNotFound;
        Err(refused.unwrap_or(Error::Log { field, source }))
    }
}

fn open(config: &LogConfig) -> anyhow::Result<Arc<dyn LogReader>> {
    let file = &config.public_key;
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let generation = match config.kind {
        LogKind::RekorV1 => Generation::V1,
        LogKind::Tiles => Generation::V2,
    };
    let mut rekor = RekorConfig::named(&config.url, &text, config.origin.as_deref(), generation)?;
    rekor.state_dir = Some(config.state_dir.to_path_buf());
    rekor.budget = Duration::from_millis(config.timeout_ms.get());
    Ok(match config.kind {
        LogKind::RekorV1 => Arc::new(RekorV1::open(rekor)?),
        LogKind::Tiles => Arc::new(TileReader::open(rekor)?),
    })
}

/// By id where the log can, else by index.
async fn read(reader: &dyn LogReader, place: &Place) -> Result<LogEntry, LogError> {
    if let Some(uuid) = &place.uuid {
        match reader.entry_by_uuid(uuid).await {
            Err(LogError::NotSearchable(_)) => {}
            outcome => return outcome,
        }
    }
    match place.index {
        Some(index) => reader.entry_by_index(index).await,
        None => Err(LogError::NotSearchable("id")),
    }
}

/// The bundle of `evidence` and `entry`, which must be of its envelope.
fn completed(evidence: &[u8], entry: &LogEntry, field: &'static str) -> Result<Vec<u8>, Error> {
    let foreign = |reason: &'static str| Error::EntryForeign {
        field,
        index: entry.log_index,
        reason,
    };
    let evidence = Evidence::parse(evidence).map_err(Error::BadEvidence)?;
    let body =
        entry::parse(&entry.kind, &entry.version, &entry.body).map_err(|error| foreign(error.reason()))?;
    let envelope = &evidence.envelope;
    let (pae, payload) = (Digest::of(&envelope.pae()), Digest::of(&envelope.payload));
    if !body.is_over(&pae, Some(&payload)) {
        return Err(foreign("ENTRY_DIGEST_MISMATCH"));
    }
    let mut bound = body.signatures.iter();
    let bound = bound.find(|bound| {
        envelope
            .signatures
            .iter()
            .any(|known| known.sig == bound.signature)
    });
    let bound = bound.ok_or_else(|| foreign("ENTRY_SIGNATURE_MISMATCH"))?;
    let key = VerifyingKey::from_spki_der(&bound.spki).map_err(|_| foreign("ENTRY_KEY_MISMATCH"))?;
    // The key is a hint: the Verifier believes only those of its trust roots.
    Ok(Evidence::bundle_of(
        &envelope.canonical_bytes(),
        key.key_id(),
        std::slice::from_ref(entry),
        &evidence.material.timestamps,
    ))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use async_trait::async_trait;
    use stella_attest::digest::Digest;
    use stella_attest::dsse::Envelope;
    use stella_attest::key::{Algorithm, SigningKey};
    use stella_attest::statement;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// A log without entries, or one that never answers.
    struct Named {
        log_id: [u8; 32],
        answers: bool,
    }

    #[async_trait]
    impl LogReader for Named {
        fn log_id(&self) -> [u8; 32] {
            self.log_id
        }

        async fn entry_by_index(&self, _index: u64) -> Result<LogEntry, LogError> {
            if self.answers {
                Err(LogError::EntryNotFound)
            } else {
                pending().await
            }
        }

        async fn entry_by_uuid(&self, _uuid: &str) -> Result<LogEntry, LogError> {
            Err(LogError::NotSearchable("id"))
        }

        async fn find(&self, _digest: &Digest) -> Result<Vec<String>, LogError> {
            Err(LogError::NotSearchable("digest"))
        }
    }

    #[tokio::test]
    async fn a_log_that_never_answers_keeps_nobody_from_another() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let payload = statement::build(
            "app.bin",
            &Digest::of(b"app"),
            statement::OPENVEX,
            serde_json::json!({}),
        );
        let envelope = Envelope::sign(statement::PAYLOAD_TYPE, &payload, &key).expect("signs");
        let attestation = read_evidence(envelope.canonical_bytes().into(), 1 << 20).expect("evidence");
        let attestation = Arc::new(attestation);
        let log = |id: u8, answers| -> Arc<dyn LogReader> {
            Arc::new(Named {
                log_id: [id; 32],
                answers,
            })
        };
        let logs = Arc::new(Logs::new(vec![log(1, false), log(2, true)]));
        let place = |id: u8| Place {
            field: "log_entry",
            log_id: Some(hex::encode([id; 32])),
            index: Some(0),
            uuid: None,
        };
        let mut waiting = JoinSet::new();
        for _ in 0..3 * AT_ONCE {
            let (logs, attestation, place) = (logs.clone(), attestation.clone(), place(1));
            waiting.spawn(async move { logs.complete(&attestation, &place, 1 << 20).await.is_ok() });
        }
        tokio::task::yield_now().await;
        let other = place(2);
        let answered = logs.complete(&attestation, &other, 1 << 20);
        let answered = timeout(Duration::from_secs(30), answered)
            .await
            .expect("it is not kept waiting");
        let Err(Error::Log { source, .. }) = answered else {
            panic!("{answered:?}");
        };
        assert_eq!(source.reason(), "LOG_ENTRY_NOT_FOUND");
    }
}
