//! The embedded log by itself: durable, checkpointed, without a witness.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use stella_attest::digest::Digest;
use stella_attest::hashedrekord;
use stella_attest::key::{Algorithm, SigningKey};
use stella_tlog::embedded::{EmbeddedConfig, EmbeddedLog};
use stella_tlog::{Submission, TransparencyLog as _};
use tokio::runtime::Runtime;

use super::cores;
use super::row::{Goal, Row, in_turn, median};

pub const NAMES: [&str; 1] = [
    "log append, 64 in flight / 1/(1/V + 1/G): V raw signature checks on all cores, G raw group commit (64) of the bytes",
];

const ROUNDS: usize = 15;
/// Entries of one round.
const ENTRIES: usize = 2048;
const IN_FLIGHT: usize = 64;
/// Entries of one raw commit.
const BATCH: usize = 64;

pub fn rows(runtime: &Runtime) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let config = EmbeddedConfig::new(dir.path().join("log"), "127.0.0.1");
    let log_key = SigningKey::generate(Algorithm::Ed25519)?;
    let log = Arc::new(EmbeddedLog::open(config, log_key, None, Vec::new())?);
    let key = SigningKey::generate(Algorithm::EcdsaP256)?;
    let mut raw = File::create(dir.path().join("raw"))?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let submissions: Arc<[Submission]> = (0..ENTRIES)
            .map(|number| submission(&key, round * ENTRIES + number))
            .collect::<Result<_, _>>()?;
        ours.push(runtime.block_on(append(&log, &submissions))?);
        let checks = cores::rate(ENTRIES, |number| {
            let Submission {
                pae_digest,
                signature,
                key,
                ..
            } = &submissions[number];
            assert!(key.verify_digest(pae_digest, signature));
        });
        floors.push(in_turn(checks, group_commit(&mut raw, &submissions)?));
    }
    log.close();
    let (ours, floor) = (median(ours), median(floors));
    Ok(vec![Row {
        name: NAMES[0],
        ours,
        floor,
        goal: Goal::AtLeast(0.5),
        unit: "entries/s",
    }])
}

fn submission(key: &SigningKey, number: usize) -> anyhow::Result<Submission> {
    let message = format!("statement {number}");
    Ok(Submission {
        pae_digest: Digest::of(message.as_bytes()),
        signature: key.sign(message.as_bytes())?,
        key: key.verifying_key().clone(),
        envelope: Arc::from(&b"{}"[..]),
    })
}

/// Entries a second, as many as [`IN_FLIGHT`] waiting at a time.
async fn append(log: &Arc<EmbeddedLog>, submissions: &Arc<[Submission]>) -> anyhow::Result<f64> {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut callers = Vec::new();
    for _ in 0..IN_FLIGHT {
        let (log, submissions, next) = (log.clone(), submissions.clone(), next.clone());
        callers.push(tokio::spawn(async move {
            while let Some(submission) = submissions.get(next.fetch_add(1, Ordering::Relaxed)) {
                log.submit(submission.clone()).await?;
            }
            anyhow::Ok(())
        }));
    }
    for caller in callers {
        caller.await??;
    }
    Ok(submissions.len() as f64 / start.elapsed().as_secs_f64())
}

/// Entries a second, written and flushed in batches.
fn group_commit(file: &mut File, submissions: &[Submission]) -> anyhow::Result<f64> {
    let mut bodies = Vec::with_capacity(submissions.len());
    for Submission {
        pae_digest,
        signature,
        key,
        ..
    } in submissions
    {
        bodies.push(hashedrekord::entry_body(pae_digest, signature, key)?);
    }
    let start = Instant::now();
    for batch in bodies.chunks(BATCH) {
        file.write_all(&batch.concat())?;
        file.sync_data()?;
    }
    Ok(bodies.len() as f64 / start.elapsed().as_secs_f64())
}
