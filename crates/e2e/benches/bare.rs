//! The floor of the signing rows: a bare tonic server with the same messages, the same mTLS and the same signature,
//! and nothing else: it reads no statement, asks no policy, keeps no audit log, and does not care who calls.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::evidence::Evidence;
use stella_attest::key::SigningKey;
use stella_attest::statement::PAYLOAD_TYPE;
use stella_proto::signer::v1 as pb;
use stella_proto::signer::v1::signer_service_server::{SignerService, SignerServiceServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// The hidden argument that makes this program the bare server.
pub const FLAG: &str = "--bare";

struct Bare {
    key: Arc<SigningKey>,
}

fn sign(key: &SigningKey, request: &pb::SignRequest) -> Result<pb::SignResponse, Status> {
    let signed = Envelope::sign(PAYLOAD_TYPE, &request.payload, key);
    let envelope = signed
        .map_err(|error| Status::internal(error.to_string()))?
        .canonical_bytes();
    let key_id = key.verifying_key().key_id();
    Ok(pb::SignResponse {
        envelope_digest: Digest::of(&envelope).to_string(),
        bundle: Evidence::bundle_of(&envelope, key_id, &[], &[]).into(),
        key_id: key_id.to_string(),
        envelope: envelope.into(),
        log: None,
    })
}

#[tonic::async_trait]
impl SignerService for Bare {
    async fn sign(&self, request: Request<pb::SignRequest>) -> Result<Response<pb::SignResponse>, Status> {
        Ok(Response::new(sign(&self.key, request.get_ref())?))
    }

    type SignBatchStream = ReceiverStream<Result<pb::SignBatchResponse, Status>>;

    async fn sign_batch(
        &self,
        request: Request<Streaming<pb::SignBatchRequest>>,
    ) -> Result<Response<Self::SignBatchStream>, Status> {
        let key = Arc::clone(&self.key);
        let mut messages = request.into_inner();
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                let mut results = Vec::with_capacity(message.items.len());
                for item in &message.items {
                    let request = item.request.clone().unwrap_or_default();
                    let Ok(signed) = sign(&key, &request) else { return };
                    results.push(pb::SignBatchResult {
                        reference: item.reference.clone(),
                        outcome: Some(pb::sign_batch_result::Outcome::Signed(signed)),
                    });
                }
                if answers.send(Ok(pb::SignBatchResponse { results })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type WatchKeysStream = ReceiverStream<Result<pb::WatchKeysResponse, Status>>;

    async fn sign_manifest(
        &self,
        _: Request<pb::SignManifestRequest>,
    ) -> Result<Response<pb::SignManifestResponse>, Status> {
        Err(Status::unimplemented("not part of the floor"))
    }

    async fn list_keys(
        &self,
        _: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        Err(Status::unimplemented("not part of the floor"))
    }

    async fn get_key(&self, _: Request<pb::GetKeyRequest>) -> Result<Response<pb::GetKeyResponse>, Status> {
        Err(Status::unimplemented("not part of the floor"))
    }

    async fn rotate_key(
        &self,
        _: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::RotateKeyResponse>, Status> {
        Err(Status::unimplemented("not part of the floor"))
    }

    async fn watch_keys(
        &self,
        _: Request<pb::WatchKeysRequest>,
    ) -> Result<Response<Self::WatchKeysStream>, Status> {
        Err(Status::unimplemented("not part of the floor"))
    }
}

/// The bare server's identity, its callers' authority, and the key that it signs with.
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub signing_key: PathBuf,
}

/// The server as a process of its own: this program, started with [`FLAG`].
pub struct BareServer {
    process: Child,
    port: u16,
}

impl BareServer {
    pub fn start(files: &Files) -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(FLAG)
            .args([&files.ca, &files.cert, &files.key, &files.signing_key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = process.stdout.take().context("it is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line
            .trim()
            .parse()
            .context("the bare server did not say its port")?;
        Ok(Self { process, port })
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the process of the bare server does; it ends with the one that started it.
pub fn main(arguments: &[String]) -> anyhow::Result<()> {
    let [ca, cert, key, signing_key] = arguments else {
        anyhow::bail!("{FLAG} takes four files")
    };
    let files = Files {
        ca: ca.into(),
        cert: cert.into(),
        key: key.into(),
        signing_key: signing_key.into(),
    };
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(&files))
}

/// Serves until the process is ended; prints its port first.
async fn serve(files: &Files) -> anyhow::Result<()> {
    let key = SigningKey::from_pkcs8_pem(&std::fs::read_to_string(&files.signing_key)?)?;
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(
            std::fs::read(&files.cert)?,
            std::fs::read(&files.key)?,
        ))
        .client_ca_root(Certificate::from_pem(std::fs::read(&files.ca)?));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = SignerServiceServer::new(Bare { key: Arc::new(key) });
    Server::builder()
        .tls_config(tls)?
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
