//! Turns evidence into verdicts, seals them, and witnesses the logs.
//!
//! A request goes one way: `api` takes it, `wire` parses it, `verifier` judges with the trust roots that `roots` holds, or
//! `witness` compares with the `heads` it keeps, and `api` answers. What makes evidence valid is decided in
//! `stella_attest::verify` and nowhere else.
//!
//! The service starts without any other one; `follow` picks up the Signer's key history as soon as it can.

pub mod api;
pub mod config;
mod cores;
mod error;
mod follow;
mod heads;
mod roots;
mod verifier;
mod wire;
mod witness;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use stella_attest::key::SigningKey;
use stella_attest::timestamp::Timestamp;
use stella_proto::verifier::v1::verifier_service_server::VerifierServiceServer;
use stella_serve::shell::{ServiceSet, Shell};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;
pub use follow::{Signer, Transport, TransportError};
pub use witness::WitnessError;

use crate::api::{Service, VerifierApi};
use crate::cores::Cores;
use crate::follow::Follower;
use crate::heads::Heads;
use crate::roots::{RootFiles, Roots};
use crate::verifier::Verifier;
use crate::witness::Witness;

/// How often the trust-root file is looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting: keys that cannot be read, trust roots or state that do not parse, doors that cannot be
/// opened.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shell = Shell::start("verifier", &config.server, &config.access, &config.telemetry)?;
    let signer = Signer::of(shell.upstream("signer", &config.signer));
    let opening = tokio::task::spawn_blocking(move || Opened::open(&config, signer, now));
    let opened = opening.await??;
    let background = opened.run_background(shell.shutdown());
    let server = VerifierServiceServer::new(opened.api())
        .max_decoding_message_size(shell.max_message_bytes())
        .max_encoding_message_size(usize::MAX);
    let (grpc, names) = (Routes::new(server), &["stella.verifier.v1.VerifierService"]);
    shell
        .serve(ServiceSet {
            grpc,
            names,
            rest: None,
            working: None,
        })
        .await?;
    background.await?;
    Ok(())
}

/// The service without its doors: what [`run`] serves, and what tests and benchmarks call in their own process.
pub struct Opened {
    api: VerifierApi,
    roots: Arc<Roots>,
    follower: Arc<Follower>,
    /// Held for as long as the state is ours.
    _state: File,
}

impl Opened {
    /// Reads keys, trust roots and state; `clock` tells the time. Blocks.
    ///
    /// # Errors
    /// A key that others can read or that the trust roots do not name, state that does not parse or that another process
    /// uses, a key history that contradicts the trust roots.
    pub fn open(config: &Config, signer: Signer, clock: fn() -> Timestamp) -> anyhow::Result<Self> {
        let state_dir: &Path = &config.trust.state_dir;
        let state = claim(state_dir)?;
        let heads = Heads::open(&state_dir.join("heads"))?;
        let witness = Witness::new(&config.witness.name, read_key(&config.witness.key)?, heads)
            .with_context(|| format!("`{}` cannot witness", config.witness.key.display()))?;
        let files = RootFiles {
            stella: config.trust.roots.to_path_buf(),
            sigstore: config
                .trust
                .sigstore_roots
                .as_ref()
                .map(|file| file.to_path_buf()),
        };
        let roots = Roots::open(files, state_dir, witness.forked())?;
        let current = roots.current();
        let receipt_key = read_key(&config.receipt.key)?;
        let own = receipt_key.verifying_key().key_id();
        anyhow::ensure!(
            current.receipt_keys().iter().any(|key| key.key_id() == own),
            "the key `{own}` of `{}` is not among the receiptKeys of `{}`: nobody could check its receipts",
            config.receipt.key.display(),
            config.trust.roots.display(),
        );
        if !current.witnesses().contains(witness.public()) {
            tracing::warn!(witness = %witness.public(), "the trust roots do not name this witness");
        }
        tracing::info!(witness = %witness.public(), trust_roots = %current.digest(), "trust roots read");
        let roots = Arc::new(roots);
        let follower = Arc::new(Follower::new(signer, Arc::clone(&roots)));
        let api = VerifierApi::new(Service {
            verifier: Verifier {
                receipt_key,
                name: config.receipt.verifier.clone(),
                ingest_types: config.trust.ingest_predicate_types.clone(),
            },
            witness,
            roots: Arc::clone(&roots),
            follower: Arc::clone(&follower),
            sealer: config.receipt.sealer.clone(),
            log_caller: config.witness.caller.clone(),
            cores: Cores::all(),
            clock,
        });
        Ok(Self {
            api,
            roots,
            follower,
            _state: state,
        })
    }

    /// The methods.
    pub fn api(&self) -> VerifierApi {
        self.api.clone()
    }

    /// Follows the key history and the trust-root file until `stop`.
    pub fn run_background(&self, stop: CancellationToken) -> tokio::task::JoinHandle<()> {
        let following = Arc::clone(&self.follower).run(stop.clone());
        let reloading = reload(Arc::clone(&self.roots), stop);
        tokio::spawn(async move {
            tokio::join!(following, reloading);
        })
    }
}

async fn reload(roots: Arc<Roots>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(RELOAD_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let roots = Arc::clone(&roots);
        if tokio::task::spawn_blocking(move || roots.reload()).await.is_err() {
            tracing::error!("the trust-root file is no longer looked at");
            return;
        }
    }
}

/// Two witnesses with one memory could cosign a fork, so the folder belongs to one process at a time.
fn claim(state_dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(state_dir).with_context(|| format!("cannot make `{}`", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    file.try_lock()
        .with_context(|| format!("`{}` is used by another process", state_dir.display()))?;
    Ok(file)
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let pem = stella_serve::fs::read_secret_text(path)?;
    SigningKey::from_pkcs8_pem(&pem).with_context(|| format!("`{}` is not a usable key", path.display()))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
