//! Signs attestations with keys that never leave their backend.
//!
//! A request goes one way: `api` parses it into an `order`, `signer` decides, `keys` signs, `audit` records, the log
//! takes it in, `api` answers. Who may sign what is decided by `policy` and nowhere else.
//!
//! A key is prepared, then active, then retired; the `ledger` keeps that history, signed. The `audit` log is the
//! service's memory: after a crash `recovery` reads from it what was begun and not finished, and the `spool` has the
//! envelopes that some logs want for that.

pub mod api;
mod audit;
pub mod config;
mod error;
mod idempotency;
pub mod keys;
pub mod ledger;
pub mod logs;
mod opening;
pub mod order;
pub mod policy;
mod recovery;
pub mod signer;
mod spool;
pub mod witness;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use stella_attest::checkpoint;
use stella_attest::history::{HistoryKey, KeyState};
use stella_attest::timestamp::Timestamp;
use stella_proto::signer::v1::signer_service_server::SignerServiceServer;
use stella_serve::forks::report;
use stella_serve::shell::{ServiceSet, Shell};
use stella_serve::upstream::Upstream;
use stella_tlog::embedded::EmbeddedLog;
use stella_tlog::face::Face;
use stella_tlog::forks::show_all;
use tonic::service::Routes;

pub use config::Config;
pub use error::Error;

use crate::api::SignerApi;
use crate::audit::{Audit, AuditOptions};
use crate::idempotency::Idempotency;
use crate::keys::KeyBackend as _;
use crate::keys::file::{FileBackend, read_key};
use crate::ledger::Ledger;
use crate::policy::SigningPolicy;
use crate::recovery::Recovery;
use crate::signer::{Parts, Signer, Unfinished};
use crate::spool::Spool;

/// Idempotency keys that are remembered at a time.
const IDEMPOTENCY_KEYS: usize = 1_000_000;

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting: keys that cannot be read, an audit log or a log that does not hold, doors that cannot be
/// opened.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut shell = Shell::start("signer", &config.server, &config.access, &config.telemetry)?;
    let face = open_face(&mut shell, &config)?;
    let upstream = shell.upstream("verifier", &config.verifier);
    let verifier = upstream.clone();
    let opened = tokio::task::spawn_blocking(move || open(&config, &upstream)).await??;
    let (signer, log, unfinished) = opened;
    for (log_id, forks) in signer.forks() {
        let verifier = verifier.clone();
        tokio::spawn(show_all(log_id, forks, move |fork| {
            let verifier = verifier.clone();
            async move { report(&verifier, &fork).await }
        }));
    }
    let face = face
        .zip(log.clone())
        .map(|(face, log)| tokio::spawn(face.serve(log, shell.shutdown())));
    let recovering = Arc::clone(&signer);
    tokio::spawn(async move { recovering.log_unfinished(unfinished).await });
    let server = SignerServiceServer::new(SignerApi::new(Arc::clone(&signer)))
        .max_decoding_message_size(shell.max_message_bytes())
        .max_encoding_message_size(usize::MAX);
    let names = &["stella.signer.v1.SignerService"];
    let working = log.as_ref().map(|log| log.watch_health());
    shell
        .serve(ServiceSet {
            grpc: Routes::new(server),
            names,
            rest: None,
            working,
        })
        .await?;
    if let Some(face) = face {
        face.await?;
    }
    tokio::task::spawn_blocking(move || {
        if let Some(log) = log {
            log.close();
        }
        signer.close();
    })
    .await?;
    Ok(())
}

/// The log's HTTP face, if it is configured: on the listener that a supervisor handed down, else on its own.
fn open_face(shell: &mut Shell, config: &Config) -> anyhow::Result<Option<Face>> {
    let Some(http) = config.log.as_ref().and_then(|log| log.http.as_ref()) else {
        return Ok(None);
    };
    let inherited = shell.take_third_listener()?;
    let face = Face::bind(http.face(&config.server), inherited)
        .map_err(|error| anyhow::anyhow!("{error} [{}]", error.reason()))?;
    Ok(Some(face))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

type Opened = (Arc<Signer>, Option<Arc<EmbeddedLog>>, Vec<Unfinished>);

fn open(config: &Config, upstream: &Upstream) -> anyhow::Result<Opened> {
    let backend = FileBackend::open(&config.keys.dir, config.keys.cosign_password_file.as_deref())?;
    let first = first_version(&backend, config);
    let policy = SigningPolicy::new(config.policy.allow.clone());
    let log_key = config.log.as_ref().map(|log| read_key(&log.key)).transpose()?;
    let log_id = config.log.as_ref().zip(log_key.as_ref());
    let log_id = log_id.map(|(log, key)| checkpoint::log_id(&log.origin, key.verifying_key()));
    let mut recovery = Recovery::default();
    let audit = Audit::open(
        &AuditOptions {
            dir: &config.audit.dir,
            segment_bytes: config.audit.segment_bytes,
            key: &read_key(&config.audit.key)?,
            policy: *policy.digest(),
            log_id: log_id.map(hex::encode).as_deref(),
            now: now(),
        },
        &mut |at, fields| recovery.visit(at, fields),
    )
    .map_err(|error| anyhow::anyhow!("{error} [{}]", error.reason()))?;
    let ledger = Ledger::open(
        &config.keys.history_dir,
        read_key(&config.keys.history_key)?,
        &first,
        recovery.history_version(),
    )?;
    let opened = opening::open(config, log_key, recovery.floor(), upstream)?;
    let idempotency = Idempotency::new(IDEMPOTENCY_KEYS);
    let (abandoned, unfinished, latest) = recovery.take_up(&idempotency, now());
    if !abandoned.is_empty() {
        audit.append_blocking(abandoned)?;
    }
    let spool = match &config.audit.spool_dir {
        Some(dir) => Some(
            Spool::open(dir, unfinished.iter().map(|left| left.call))
                .with_context(|| format!("`audit.spool_dir`: `{}`", dir.display()))?,
        ),
        None => None,
    };
    if spool.is_none() && opened.logs.take_envelopes() {
        bail!("`audit.spool_dir` is missing: a Rekor of version 1 needs it");
    }
    let parts = Parts {
        backend: Arc::new(backend),
        manifest_key: read_key(&config.keys.manifest_key)?,
        manifest_caller: config.keys.manifest_caller.to_string(),
        ledger,
        policy,
        slots: config.keys.slots.clone(),
        spool: spool.filter(|_| opened.logs.take_envelopes()),
        logs: opened.logs,
        witnesses: opened.witnesses,
        clock: now,
    };
    let signer = Signer::new(parts, audit, idempotency, latest)?;
    Ok((Arc::new(signer), opened.embedded, unfinished))
}

/// The first version of the key history: the one key of each slot is active.
fn first_version(backend: &FileBackend, config: &Config) -> Vec<HistoryKey> {
    let scope = |name: &str| {
        let named = config.keys.slots.iter().find(|slot| slot.name == name).cloned();
        named.unwrap_or_else(|| config::SlotConfig::unnamed(name))
    };
    let mut keys: Vec<HistoryKey> = Vec::new();
    for held in backend.keys() {
        let is_first = !keys.iter().any(|key| key.slot == held.slot);
        let slot = scope(&held.slot);
        keys.push(HistoryKey {
            key: held.key,
            slot: held.slot,
            issuer: slot.issuer,
            tenants: slot.tenants,
            predicate_types: slot.predicate_types,
            state: if is_first {
                KeyState::Active
            } else {
                KeyState::Prepared
            },
            activated_at: is_first.then(now),
            retired_at: None,
            revoked_at: None,
            revocation_reason: None,
        });
    }
    keys
}
