//! The event graph and the attestation repository.
//!
//! A request goes one way: `api` or `rest` parses it, `append`, `attach`, `repository` or `audit` decides, `remote`
//! asks the Verifier or the Signer, `logs` the transparency logs, `store` keeps, and the answer goes back. What an event's proof is worth is
//! decided in `record` (when it is read) and `seal` (before it is written), and nowhere else.
//!
//! Feedser alone writes events. It cannot make a verdict: each one bears a receipt of the Verifier over exactly what
//! is stored.

pub mod api;
pub mod append;
pub mod attach;
pub mod audit;
pub mod claims;
pub mod config;
mod error;
pub mod feedser;
pub mod logs;
mod page_token;
pub mod record;
pub mod remote;
pub mod repository;
pub mod rest;
mod seal;
pub mod store;

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Context as _;
use stella_attest::key::VerifyingKey;
use stella_proto::feedser::v1::feedser_service_server::FeedserServiceServer;
use stella_serve::forks::report;
use stella_serve::shell::{ServiceSet, Shell};
use stella_tlog::forks::show_all;
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;

use crate::api::FeedserApi;
use crate::config::StoreConfig;
use crate::feedser::Feedser;
use crate::logs::Logs;
use crate::remote::{Signer, Verifier};
use crate::store::Store;
use crate::store::mongo::{self, MongoStore};
use crate::store::sqlite::SqliteStore;

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting: a store that is not ours, keys that cannot be read, doors that cannot be opened.
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    let shell = Shell::start("feedser", &config.server, &config.access, &config.telemetry)?;
    let receipt_keys = receipt_keys(&config)?;
    let store = open(&mut config).await?;
    let timeout = config.limits.upstream_timeout();
    let judge = shell.upstream("verifier", &config.verifier);
    let verifier = Verifier::of(judge.clone(), timeout);
    let signer = Signer::of(shell.upstream("signer", &config.signer), timeout);
    let logs = tokio::task::spawn_blocking(move || Logs::open(&config.logs)).await??;
    for (log_id, forks) in logs.forks() {
        let judge = judge.clone();
        tokio::spawn(show_all(log_id, forks, move |fork| {
            let judge = judge.clone();
            async move { report(&judge, &fork).await }
        }));
    }
    let feedser = Feedser::new(store, verifier, signer, receipt_keys, logs, config.limits);
    let feedser = Arc::new(feedser);
    let server = FeedserServiceServer::new(FeedserApi::new(Arc::clone(&feedser)))
        .max_decoding_message_size(shell.max_message_bytes())
        .max_encoding_message_size(usize::MAX);
    let names = &["stella.feedser.v1.FeedserService"];
    let rest = Some(rest::routes(feedser));
    shell
        .serve(ServiceSet {
            grpc: Routes::new(server),
            names,
            rest,
            working: None,
        })
        .await?;
    Ok(())
}

/// Opens the store that the configuration names, and lowers the limits to what it can hold.
async fn open(config: &mut Config) -> anyhow::Result<Arc<dyn Store>> {
    let (uri_file, options) = match config.store.clone() {
        StoreConfig::Sqlite { path, readers } => {
            let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&path, readers.get()));
            return Ok(Arc::new(opened.await??));
        }
        StoreConfig::Mongo { uri_file, options } => (uri_file, options),
    };
    let store = match uri_file {
        Some(file) => MongoStore::open(&file, options).await?,
        None => {
            let uri = std::env::var("STELLA_MONGODB_URI");
            let uri = uri.context(
                "`store` names neither `path` nor `mongodb_uri_file`, and STELLA_MONGODB_URI is not set",
            )?;
            MongoStore::connect(&uri, options).await?
        }
    };
    let store = Arc::new(store);
    let checked = Arc::clone(&store);
    // The service starts whether the database is there or not.
    tokio::spawn(async move {
        match checked.missing().await {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => tracing::warn!(
                ?missing,
                "indexes are missing; make them with `stella feedser migrate`"
            ),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the database does not answer"
            ),
        }
    });
    let fits = NonZeroUsize::new(mongo::MAX_EVIDENCE).unwrap_or(NonZeroUsize::MIN);
    config.limits.max_evidence_bytes = config.limits.max_evidence_bytes.min(fits);
    Ok(store)
}

fn receipt_keys(config: &Config) -> anyhow::Result<Vec<VerifyingKey>> {
    anyhow::ensure!(
        !config.trust.receipt_keys.is_empty(),
        "`trust.receipt_keys` names no key"
    );
    let mut keys = Vec::new();
    for path in &config.trust.receipt_keys {
        let name = || format!("receipt key `{}`", path.display());
        let pem = std::fs::read_to_string(path).with_context(name)?;
        keys.push(VerifyingKey::from_spki_pem(&pem).with_context(name)?);
    }
    Ok(keys)
}
