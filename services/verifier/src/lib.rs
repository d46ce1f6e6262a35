//! Turns evidence into verdicts, seals them, and witnesses the logs.
//!
//! A request goes one way: `api` parses it, `verifier` judges with the trust roots that `roots` holds, or `witness`
//! compares with the `heads` it keeps, and `api` answers. What makes evidence valid is decided in `stella_attest::verify`
//! and nowhere else.
//!
//! The service starts without any other one; `follow` picks up the Signer's key history as soon as it can.

pub mod api;
pub mod config;
mod error;
mod follow;
mod heads;
mod roots;
mod verifier;
mod witness;

use std::sync::Arc;
use std::time::Duration;

use stella_proto::verifier::v1::verifier_service_server::VerifierServiceServer;
use stella_serve::shell::{ServiceSet, Shell};
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;

use crate::api::{Inner, VerifierApi};
use crate::follow::Follower;
use crate::heads::Heads;
use crate::roots::Roots;
use crate::verifier::Verifier;
use crate::witness::{Witness, read_key};

/// How often the trust-root file is looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting: keys that cannot be read, trust roots or state that do not parse, doors that cannot be
/// opened.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shell = Shell::start("verifier", &config.server, &config.access, &config.telemetry)?;
    let opened = config.clone();
    let (witness, roots, receipt_key) = tokio::task::spawn_blocking(move || open(&opened)).await??;
    let roots = Arc::new(roots);
    let follower = Arc::new(Follower::new(
        shell.upstream("signer", &config.signer),
        Arc::clone(&roots),
    ));
    tokio::spawn(Arc::clone(&follower).run(shell.shutdown()));
    tokio::spawn(reload(Arc::clone(&roots)));
    let api = VerifierApi::new(Inner {
        verifier: Verifier {
            receipt_key,
            name: config.receipt.verifier,
            ingest_types: config.trust.ingest_predicate_types,
        },
        witness,
        roots,
        follower,
        sealer: config.receipt.sealer,
        log_caller: config.witness.caller,
    });
    let server = VerifierServiceServer::new(api)
        .max_decoding_message_size(shell.max_message_bytes())
        .max_encoding_message_size(usize::MAX);
    let names = &["stella.verifier.v1.VerifierService"];
    shell
        .serve(ServiceSet {
            grpc: Routes::new(server),
            names,
            rest: None,
        })
        .await?;
    Ok(())
}

fn open(config: &Config) -> anyhow::Result<(Witness, Roots, stella_attest::key::SigningKey)> {
    let state: &std::path::Path = &config.trust.state_dir;
    let heads = Heads::open(&state.join("heads"))?;
    let witness = Witness::new(&config.witness.name, read_key(&config.witness.key)?, heads)?;
    let roots = Roots::open(&config.trust.roots, state, witness.forked())?;
    let receipt_key = read_key(&config.receipt.key)?;
    tracing::info!(witness = %witness.public(), trust_roots = %roots.current().digest(), "trust roots read");
    Ok((witness, roots, receipt_key))
}

async fn reload(roots: Arc<Roots>) {
    let mut ticks = tokio::time::interval(RELOAD_EVERY);
    loop {
        ticks.tick().await;
        let roots = Arc::clone(&roots);
        if tokio::task::spawn_blocking(move || roots.reload()).await.is_err() {
            return;
        }
    }
}
