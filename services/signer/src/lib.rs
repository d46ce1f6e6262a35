//! Signs attestations with keys that never leave their backend.
//!
//! A request goes one way: `api` parses it into an `order`, `signer` decides, `keys` signs, `audit` records, the log
//! takes it in, `api` answers. Who may sign what is decided by `policy` and nowhere else.
//!
//! A key is prepared, then active, then retired; the `ledger` keeps that history, signed. The `audit` log is the
//! service's memory: after a crash `recovery` reads from it what was begun and not finished.

pub mod api;
mod audit;
pub mod config;
mod error;
mod idempotency;
pub mod keys;
pub mod ledger;
pub mod order;
pub mod policy;
mod recovery;
pub mod signer;
pub mod witness;

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use stella_attest::history::{HistoryKey, KeyState};
use stella_attest::note::NoteKey;
use stella_attest::timestamp::Timestamp;
use stella_proto::signer::v1::signer_service_server::SignerServiceServer;
use stella_serve::shell::{ServiceSet, Shell};
use stella_tlog::Witness;
use stella_tlog::embedded::{EmbeddedConfig, EmbeddedLog};
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
use crate::witness::VerifierWitness;

/// Idempotency keys that are remembered at a time.
const IDEMPOTENCY_KEYS: usize = 1_000_000;

/// Runs the service until it is told to end.
///
/// # Errors
/// What kept it from starting: keys that cannot be read, an audit log or a log that does not hold, doors that cannot be
/// opened.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shell = Shell::start("signer", &config.server, &config.access, &config.telemetry)?;
    let keys = config
        .log
        .required_witnesses
        .iter()
        .map(|text| NoteKey::parse(text));
    let keys = keys
        .collect::<Result<Vec<_>, _>>()
        .context("`log.required_witnesses` names no C2SP verifier key")?;
    let upstream = shell.upstream("verifier", &config.verifier);
    let witnesses = keys.iter().map(|key| {
        let witness: Arc<dyn Witness> = Arc::new(VerifierWitness::new(upstream.clone(), key.clone()));
        witness
    });
    let witnesses: Vec<Arc<dyn Witness>> = witnesses.collect();
    let opened = tokio::task::spawn_blocking(move || open(&config, witnesses, keys)).await??;
    let (signer, log, unfinished) = opened;
    let recovering = Arc::clone(&signer);
    tokio::spawn(async move { recovering.log_unfinished(unfinished).await });
    let server = SignerServiceServer::new(SignerApi::new(Arc::clone(&signer)))
        .max_decoding_message_size(shell.max_message_bytes())
        .max_encoding_message_size(usize::MAX);
    let names = &["stella.signer.v1.SignerService"];
    let working = log.watch_health();
    shell
        .serve(ServiceSet {
            grpc: Routes::new(server),
            names,
            rest: None,
            working: Some(working),
        })
        .await?;
    tokio::task::spawn_blocking(move || {
        log.close();
        signer.close();
    })
    .await?;
    Ok(())
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn open(
    config: &Config,
    witnesses: Vec<Arc<dyn Witness>>,
    witness_keys: Vec<NoteKey>,
) -> anyhow::Result<(Arc<Signer>, Arc<EmbeddedLog>, Vec<Unfinished>)> {
    let backend = FileBackend::open(&config.keys.dir)?;
    let first = first_version(&backend, config);
    let policy = SigningPolicy::new(config.policy.allow.clone());
    let log_key = read_key(&config.log.key)?;
    let log_id = hex::encode(stella_attest::checkpoint::log_id(
        &config.log.origin,
        log_key.verifying_key(),
    ));
    let mut recovery = Recovery::default();
    let audit = Audit::open(
        &AuditOptions {
            dir: &config.audit.dir,
            segment_bytes: config.audit.segment_bytes,
            key: &read_key(&config.audit.key)?,
            policy: *policy.digest(),
            log_id: Some(&log_id),
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
    let log_dir: &Path = &config.log.dir;
    let embedded = EmbeddedConfig::new(log_dir, config.log.origin.clone());
    let log = EmbeddedLog::open(embedded, log_key, recovery.floor(), witnesses)
        .map_err(|error| anyhow::anyhow!("{error} [{}]", error.reason()))?;
    let log = Arc::new(log);
    let idempotency = Idempotency::new(IDEMPOTENCY_KEYS);
    let (abandoned, unfinished, latest) = recovery.take_up(&idempotency, now());
    if !abandoned.is_empty() {
        audit.append_blocking(abandoned)?;
    }
    let parts = Parts {
        backend: Arc::new(backend),
        manifest_key: read_key(&config.keys.manifest_key)?,
        manifest_caller: config.keys.manifest_caller.to_string(),
        ledger,
        policy,
        slots: config.keys.slots.clone(),
        log: Arc::clone(&log) as Arc<dyn stella_tlog::TransparencyLog>,
        witnesses: witness_keys,
        clock: now,
    };
    Ok((
        Arc::new(Signer::new(parts, audit, idempotency, latest)?),
        log,
        unfinished,
    ))
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
