//! Proves the history that was stored before.
//!
//! A request goes one way: `api` parses it, `backfill` decides, `store` keeps the job, and the answer goes back. The job
//! then runs on its own: `runner` takes page after page of unproven events from Feedser, `prove` finds and attaches their
//! attestations, `remote` makes the calls, and `store` keeps what came out.
//!
//! A job survives the process. A page is durable before its first event is attached, and leaves the store in the same
//! transaction that counts it; a page that was begun and not counted is simply done again. So each event is counted
//! once, whenever the process ends.
//!
//! Backfill writes no event: Feedser attaches, and the Verifier decides what verifies.

pub mod api;
pub mod backfill;
pub mod config;
mod error;
#[cfg(test)]
mod fake;
mod idempotency;
mod job;
mod page_token;
mod prove;
pub mod remote;
mod runner;
#[cfg(test)]
mod runner_tests;
pub mod store;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use stella_attest::timestamp::Timestamp;
use stella_proto::backfill::v1::backfill_service_server::BackfillServiceServer;
use stella_serve::shell::{ServiceSet, Shell};
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;
pub use job::{Job, Listed, Page, Refusal, State, Tally, Unproven};

use crate::api::BackfillApi;
use crate::backfill::Backfill;
use crate::remote::Feedser;
use crate::store::sqlite::SqliteStore;

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting: a store that is not ours or in use, doors that cannot be opened.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shell = Shell::start("backfill", &config.server, &config.access, &config.telemetry)?;
    let path = config.store.path.to_path_buf();
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(&path)).await??;
    let feedser = Feedser::of(
        shell.upstream("feedser", &config.feedser),
        config.limits.answer_timeout(),
    );
    let stop = shell.shutdown();
    let backfill = Backfill::new(Arc::new(store), feedser, config.limits, now, stop.clone());
    backfill.resume().await?;
    let server = BackfillServiceServer::new(BackfillApi::new(Arc::clone(&backfill)))
        .max_decoding_message_size(shell.max_message_bytes())
        .max_encoding_message_size(usize::MAX);
    let names = &["stella.backfill.v1.BackfillService"];
    let served = shell
        .serve(ServiceSet {
            grpc: Routes::new(server),
            names,
            rest: None,
            working: None,
        })
        .await;
    stop.cancel();
    backfill.stopped().await;
    Ok(served?)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
