//! A Verifier in this process, with a log, a Signer that tells a key history, and evidence.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt as _, stream};
use prost::bytes::Bytes;
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::evidence::{Evidence, InclusionProof, LogEntry};
use stella_attest::hashedrekord;
use stella_attest::history::{HistoryKey, KeyHistory, KeyState};
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::merkle::{self, MemoryTree};
use stella_attest::note::{Note, NoteKey, NoteSigner};
use stella_attest::statement;
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::{ConfiguredKey, Purpose, TrustRoots, TrustedLog, Validity};
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::signer_service_server::{SignerService, SignerServiceServer};
use stella_proto::status::{field, reason};
use stella_proto::verifier::v1 as pb;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_proto::verifier::v1::verifier_service_server::VerifierServiceServer;
use stella_serve::access::Caller;
use stella_serve::config::{AccessConfig, ConfigPath, ServerConfig, TelemetryConfig, UpstreamConfig};
use stella_serve::fs::{Access, write_atomic};
use stella_verifier::config::{ReceiptConfig, TrustConfig, WitnessConfig};
use stella_verifier::{Config, Opened, Signer, Transport, TransportError};
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

pub(crate) const ORIGIN: &str = "127.0.0.1";
pub(crate) const WITNESS: &str = "stella.local/witness";
pub(crate) const FEEDSER: &str = "spiffe://stella.local/feedser";
pub(crate) const SIGNER: &str = "spiffe://stella.local/signer";
pub(crate) const OPERATOR: &str = "spiffe://stella.local/operator";
pub(crate) const TENANT: &str = "dev";
pub(crate) const SBOM: &str = "https://cyclonedx.org/bom/v1.6";
pub(crate) const VEX: &str = "https://openvex.dev/ns/v0.2.0";
pub(crate) const BUILD: &str = "https://slsa.dev/provenance/v1";

/// The Verifier's clock stands still.
pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix(NOW)
}

pub(crate) type Client =
    VerifierServiceClient<BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>>;

/// Reason and field of a refusal.
pub(crate) fn refusal(status: &Status) -> (String, String) {
    (
        reason(status).unwrap_or_default(),
        field(status).unwrap_or_default(),
    )
}

pub(crate) fn key(algorithm: Algorithm) -> SigningKey {
    SigningKey::generate(algorithm).expect("a key")
}

pub(crate) fn copy(key: &SigningKey) -> SigningKey {
    SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem()).expect("the same key")
}

/// The log's tree and what the witness cosigned of it.
pub(crate) struct Log {
    pub(crate) key: SigningKey,
    pub(crate) tree: MemoryTree,
    cosigned: u64,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            key: key(Algorithm::Ed25519),
            tree: MemoryTree::new(),
            cosigned: 0,
        }
    }

    /// Another, empty tree of the same key.
    pub(crate) fn fork(&self) -> Self {
        Self {
            key: copy(&self.key),
            tree: MemoryTree::new(),
            cosigned: 0,
        }
    }

    pub(crate) fn note(&self) -> Note {
        let (size, root) = (self.tree.size(), self.tree.root());
        let checkpoint = Checkpoint {
            origin: ORIGIN.into(),
            size,
            root,
            extensions: Vec::new(),
        };
        let signer = NoteSigner::new(ORIGIN, &self.key).expect("a signer");
        Note::sign(&checkpoint.to_text(), &signer).expect("signs")
    }

    pub(crate) fn order(&self, old_size: u64) -> pb::CosignCheckpointRequest {
        let proof = match old_size {
            0 => Vec::new(),
            old => merkle::consistency_proof(&self.tree, old, self.tree.size()).expect("the nodes are there"),
        };
        pb::CosignCheckpointRequest {
            old_size,
            consistency_proof: proof.iter().map(|node| Bytes::copy_from_slice(node)).collect(),
            checkpoint: self.note().to_string().into(),
        }
    }
}

/// A Signer that tells nothing but a key history.
#[derive(Clone, Default)]
pub(crate) struct KeyTeller {
    pub(crate) versions: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// The world that a test acts in.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) signing: SigningKey,
    pub(crate) history_key: SigningKey,
    pub(crate) receipt_key: SigningKey,
    pub(crate) log: Log,
    pub(crate) signer: KeyTeller,
    opened: Option<Opened>,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (signing, log) = (key(Algorithm::EcdsaP256), Log::new());
        let (history_key, receipt_key, witness_key) = (
            key(Algorithm::Ed25519),
            key(Algorithm::EcdsaP256),
            key(Algorithm::Ed25519),
        );
        let secret = |name: &str, key: &SigningKey| {
            write_atomic(
                &dir.path().join(name),
                key.to_pkcs8_pem().as_bytes(),
                Access::Owner,
            )
            .expect("writes");
        };
        secret("receipt.pem", &receipt_key);
        secret("witness.pem", &witness_key);
        let mut world = Self {
            config: config(dir.path()),
            signing,
            history_key,
            receipt_key,
            log,
            signer: KeyTeller::default(),
            opened: None,
            dir,
        };
        let history = world.history(None, &[listed(&world.signing, KeyState::Active)]);
        let log_key = LogKey::new(ORIGIN, world.log.key.verifying_key().clone()).expect("a log key");
        let log = TrustedLog {
            key: log_key,
            base_url: "https://127.0.0.1".into(),
            distrusted: false,
            validity: Validity::default(),
        };
        let witness = NoteKey::cosignature(WITNESS, witness_key.verifying_key()).expect("a witness");
        let key_history = ConfiguredKey {
            key: world.history_key.verifying_key().clone(),
            purpose: Purpose::KeyHistory,
            issuer: "stella".into(),
            tenants: Vec::new(),
            predicate_types: Vec::new(),
        };
        let receipt_keys = vec![world.receipt_key.verifying_key().clone()];
        let roots = TrustRoots::new(
            vec![key_history],
            Some(history),
            vec![log],
            vec![witness],
            receipt_keys,
        );
        std::fs::write(&*world.config.trust.roots, roots.to_canonical()).expect("writes");
        world.open();
        world
    }

    /// The history that follows `previous` and lists `keys`; the Signer tells it from now on.
    pub(crate) fn history(&mut self, previous: Option<&KeyHistory>, keys: &[HistoryKey]) -> KeyHistory {
        let next = KeyHistory::sign_next(previous, keys, &self.history_key).expect("signs");
        let mut versions: Vec<Vec<u8>> = previous
            .into_iter()
            .flat_map(KeyHistory::envelopes)
            .map(<[u8]>::to_vec)
            .collect();
        versions.push(next);
        *self.signer.versions.lock().expect("a lock") = versions.clone();
        KeyHistory::parse(&versions, &[self.history_key.verifying_key()]).expect("a history")
    }

    /// Starts the service again with what it kept.
    pub(crate) fn open(&mut self) {
        self.opened = None;
        let signer = Signer::in_process(self.signer.transport());
        self.opened = Some(Opened::open(&self.config, signer, now).expect("opens"));
    }

    pub(crate) fn signer_transport(&self) -> Transport {
        self.signer.transport()
    }

    pub(crate) fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("it is open")
    }

    pub(crate) fn client(&self, identity: &str) -> Client {
        self.client_for(identity, Some(TENANT))
    }

    pub(crate) fn client_for(&self, identity: &str, tenant: Option<&str>) -> Client {
        let identity = identity.parse().expect("an identity");
        let caller = Caller::new(identity, tenant.map(|tenant| tenant.parse().expect("a tenant")));
        let server = VerifierServiceServer::new(self.opened().api());
        let server = server.map_request(move |mut request: http::Request<Body>| {
            request.extensions_mut().insert(caller.clone());
            request
        });
        VerifierServiceClient::new(BoxCloneSyncService::new(server))
    }

    pub(crate) async fn roots(&self) -> TrustRoots {
        let answer = self
            .client_for(SIGNER, None)
            .get_trust_roots(pb::GetTrustRootsRequest {})
            .await;
        let answer = answer.expect("trust roots").into_inner();
        let roots = TrustRoots::parse(&answer.trust_roots).expect("trust roots");
        assert_eq!(answer.digest, roots.digest().to_string());
        roots
    }

    /// Signs, logs and has witnessed a statement.
    pub(crate) async fn attest(&mut self, predicate_type: &str, subject: &Digest) -> Attested {
        let key = copy(&self.signing);
        self.attest_with(&key, predicate_type, subject).await
    }

    pub(crate) async fn attest_with(
        &mut self,
        key: &SigningKey,
        predicate_type: &str,
        subject: &Digest,
    ) -> Attested {
        let predicate = json!({"n": self.log.tree.size()});
        let payload = statement::build("subject", subject, predicate_type, predicate);
        let envelope = Envelope::sign(statement::PAYLOAD_TYPE, &payload, key).expect("signs");
        let pae = Digest::of(&envelope.pae());
        let body = hashedrekord::entry_body(&pae, &envelope.signatures[0].sig, key.verifying_key());
        let body = body.expect("a loggable key");
        let index = self.log.tree.size();
        self.log.tree.push(merkle::leaf_hash(&body));
        let order = self.log.order(self.log.cosigned);
        let cosigned = self
            .client_for(SIGNER, None)
            .cosign_checkpoint(order)
            .await
            .expect("cosigns");
        self.log.cosigned = self.log.tree.size();
        let size = self.log.tree.size();
        let proof = InclusionProof {
            log_index: index,
            tree_size: size,
            root: self.log.tree.root(),
            hashes: merkle::inclusion_proof(&self.log.tree, index, size).expect("the nodes are there"),
            checkpoint: String::new(),
        };
        let entry = LogEntry {
            log_id: LogKey::new(ORIGIN, self.log.key.verifying_key().clone())
                .expect("a log key")
                .log_id,
            kind: hashedrekord::KIND.into(),
            version: hashedrekord::VERSION.into(),
            log_index: index,
            integrated_time: None,
            promise: None,
            proof: Some(proof),
            body,
        };
        let note = self.log.note();
        let with_time = note
            .clone()
            .with_lines(&cosigned.into_inner().cosignatures)
            .expect("lines");
        Attested {
            envelope,
            key: copy(key),
            entry,
            note,
            with_time,
        }
    }
}

/// A logged statement.
pub(crate) struct Attested {
    pub(crate) envelope: Envelope,
    key: SigningKey,
    entry: LogEntry,
    note: Note,
    with_time: Note,
}

impl Attested {
    /// The bundle.
    pub(crate) fn bundle(&self) -> Bytes {
        self.with_checkpoint(&self.with_time)
    }

    /// The bundle without the witness's line.
    pub(crate) fn bundle_without_time(&self) -> Bytes {
        self.with_checkpoint(&self.note)
    }

    fn with_checkpoint(&self, note: &Note) -> Bytes {
        let mut entry = self.entry.clone();
        if let Some(proof) = &mut entry.proof {
            proof.checkpoint = note.to_string();
        }
        Evidence::bundle(&self.envelope, self.key.verifying_key().key_id(), &[entry]).into()
    }
}

pub(crate) fn listed(key: &SigningKey, state: KeyState) -> HistoryKey {
    HistoryKey {
        key: key.verifying_key().clone(),
        slot: "default".into(),
        issuer: "stella".into(),
        tenants: vec![TENANT.into()],
        predicate_types: vec!["*".into()],
        state,
        activated_at: None,
        retired_at: (state == KeyState::Retired).then(now),
        revoked_at: None,
        revocation_reason: None,
    }
}

/// An event as Feedser stores it.
pub(crate) fn event(kind: &str, subject: &Digest, rev: u64) -> Value {
    json!({
        "_id": "evt_1", "kind": kind, "ts": "2025-11-11T12:00:00Z", "tenant": TENANT, "rev": rev,
        "subject": {"digest": {"sha256": subject.hex()}},
    })
}

pub(crate) fn bytes(document: &Value) -> Bytes {
    canonical::to_vec(document).into()
}

pub(crate) fn to_verify(evidence: Bytes) -> pb::VerifyRequest {
    pb::VerifyRequest {
        evidence,
        ..pb::VerifyRequest::default()
    }
}

pub(crate) fn to_seal(evidence: Bytes, event: &Value) -> pb::VerifyRequest {
    let seal = pb::Seal {
        event: bytes(event),
        next_rev: event["rev"].as_u64().unwrap_or_default(),
        ..pb::Seal::default()
    };
    pb::VerifyRequest {
        evidence,
        seal: Some(seal),
        ..pb::VerifyRequest::default()
    }
}

/// The failed checks, as `NAME:REASON`.
pub(crate) fn failures(verdict: &pb::VerifyResponse) -> Vec<String> {
    let failed = verdict.checks.iter().filter(|check| check.status == 2);
    failed
        .map(|check| format!("{}:{}", check.name, check.reason))
        .collect()
}

fn config(dir: &Path) -> Config {
    let file = |name: &str| ConfigPath::new(dir.join(name));
    let listen = "127.0.0.1:0".parse().expect("an address");
    let url = "https://127.0.0.1:1".parse().expect("a URL");
    Config {
        server: ServerConfig::new(listen, &file("cert.pem"), &file("key.pem"), &file("ca.pem")),
        access: AccessConfig {
            table: file("access.toml"),
        },
        telemetry: TelemetryConfig::default(),
        trust: TrustConfig {
            sigstore_roots: None,
            roots: file("trust-roots.json"),
            state_dir: file("state"),
            ingest_predicate_types: Vec::new(),
        },
        receipt: ReceiptConfig {
            key: file("receipt.pem"),
            verifier: "Authority@stella".into(),
            sealer: FEEDSER.parse().expect("an identity"),
        },
        witness: WitnessConfig {
            key: file("witness.pem"),
            name: WITNESS.into(),
            caller: SIGNER.parse().expect("an identity"),
        },
        signer: UpstreamConfig::new(url, SIGNER.parse().expect("an identity")),
    }
}

impl KeyTeller {
    fn transport(&self) -> Transport {
        let server = SignerServiceServer::new(self.clone());
        let carried = tower::util::MapErr::new(server, |never: Infallible| TransportError(never.into()));
        BoxCloneSyncService::new(carried)
    }
}

type Batches = Pin<Box<dyn Stream<Item = Result<signer_pb::SignBatchResponse, Status>> + Send>>;
type Versions = Pin<Box<dyn Stream<Item = Result<signer_pb::WatchKeysResponse, Status>> + Send>>;

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this Signer tells its keys alone"))
}

#[tonic::async_trait]
impl SignerService for KeyTeller {
    async fn sign(
        &self,
        _: Request<signer_pb::SignRequest>,
    ) -> Result<Response<signer_pb::SignResponse>, Status> {
        not_here()
    }

    type SignBatchStream = Batches;

    async fn sign_batch(
        &self,
        _: Request<Streaming<signer_pb::SignBatchRequest>>,
    ) -> Result<Response<Self::SignBatchStream>, Status> {
        not_here()
    }

    async fn sign_manifest(
        &self,
        _: Request<signer_pb::SignManifestRequest>,
    ) -> Result<Response<signer_pb::SignManifestResponse>, Status> {
        not_here()
    }

    async fn list_keys(
        &self,
        _: Request<signer_pb::ListKeysRequest>,
    ) -> Result<Response<signer_pb::ListKeysResponse>, Status> {
        not_here()
    }

    async fn get_key(
        &self,
        _: Request<signer_pb::GetKeyRequest>,
    ) -> Result<Response<signer_pb::GetKeyResponse>, Status> {
        not_here()
    }

    async fn rotate_key(
        &self,
        _: Request<signer_pb::RotateKeyRequest>,
    ) -> Result<Response<signer_pb::RotateKeyResponse>, Status> {
        not_here()
    }

    type WatchKeysStream = Versions;

    async fn watch_keys(
        &self,
        request: Request<signer_pb::WatchKeysRequest>,
    ) -> Result<Response<Self::WatchKeysStream>, Status> {
        let known = usize::try_from(request.get_ref().known_version).unwrap_or(usize::MAX);
        let versions = self
            .versions
            .lock()
            .expect("a lock")
            .iter()
            .skip(known)
            .cloned()
            .map(Bytes::from)
            .collect();
        let first = stream::iter([Ok(signer_pb::WatchKeysResponse { versions })]);
        Ok(Response::new(Box::pin(first.chain(stream::pending()))))
    }
}
