//! What stands after a process was killed in the middle of its work: nothing acknowledged is lost, nothing is there
//! twice, and the audit log and the transparency log agree.
//!
//! Where a process dies is chosen, not hoped for: `strace` kills it as one of its threads is about to make a given
//! system call, so every disk write of a call is a place to die at ([`trap`]). The supervisor is held meanwhile, so
//! that what the death left can be looked at before anything is taken up again.

mod events;
mod history;
mod signing;
mod trap;
mod up;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use stella_attest::digest::Digest;
use stella_attest::evidence::Evidence;
use stella_attest::statement;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_serve::access::Tenant;
use stella_serve::upstream::{UpstreamChannel, explain, is_transient, select_tenant};
use stella_testkit::stack::Stack;
use tonic::{Request, Response, Status};

use crate::audit_log::{Books, Records};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Largest answer that is taken.
const MAX_ANSWER: usize = 64 << 20;

/// The operator's connections, which are made again when they break.
#[derive(Clone)]
struct Caller {
    signer: SignerServiceClient<UpstreamChannel>,
    feedser: FeedserServiceClient<UpstreamChannel>,
    backfill: BackfillServiceClient<UpstreamChannel>,
    tenant: Tenant,
}

impl Caller {
    async fn of(stack: &Stack) -> Self {
        Self {
            signer: SignerServiceClient::new(stack.channel("signer").await)
                .max_decoding_message_size(MAX_ANSWER),
            feedser: FeedserServiceClient::new(stack.channel("feedser").await)
                .max_decoding_message_size(MAX_ANSWER),
            backfill: BackfillServiceClient::new(stack.channel("backfill").await),
            tenant: stack.env("STELLA_TENANT").parse().expect("a tenant"),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        select_tenant(&mut request, &self.tenant);
        request
    }

    /// Has an order signed, once.
    async fn sign(&self, order: &signer_pb::SignRequest) -> Result<Signed, Status> {
        let mut request = self.request(order.clone());
        request.set_timeout(PATIENCE / 2);
        let signed = self.signer.clone().sign(request).await.map(Response::into_inner);
        signed.map(|signed| Signed::of(&signed))
    }

    /// Has an order signed, as a caller does who does not give up.
    async fn sign_until_answered(&self, order: &signer_pb::SignRequest) -> Signed {
        until_answered(|| self.sign(order)).await
    }
}

/// What a caller holds in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signed {
    envelope_digest: String,
    signature: Vec<u8>,
    log_index: Option<u64>,
}

impl Signed {
    fn of(signed: &signer_pb::SignResponse) -> Self {
        let evidence = Evidence::parse(&signed.bundle).expect("a bundle");
        assert_eq!(evidence.envelope_digest.to_string(), signed.envelope_digest);
        Self {
            envelope_digest: signed.envelope_digest.clone(),
            signature: evidence.envelope.signatures[0].sig.clone(),
            log_index: signed.log.as_ref().map(|log| log.log_index),
        }
    }
}

/// An order for a VEX statement about what is called `name`, under an idempotency key of this name.
fn order(name: &str) -> signer_pb::SignRequest {
    let subject = Digest::of(name.as_bytes());
    signer_pb::SignRequest {
        payload: statement::build(name, &subject, statement::OPENVEX, json!({"statements": []})).into(),
        idempotency_key: name.to_owned(),
        transparency: signer_pb::Transparency::Required.into(),
        ..signer_pb::SignRequest::default()
    }
}

/// Repeats a call while its refusal says that it may be made again.
async fn until_answered<T, F: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call().await.map_err(explain) {
            Ok(answer) => return answer,
            Err(status) if is_transient(&status) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(status) => panic!("it is refused for good: {status:?}"),
        }
    }
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until every call has an end in the books, and holds the two logs against each other.
async fn settled(stack: &Stack) -> Books {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let problem = match Books::read(&stack.dir()) {
            Ok(books) if books.records.open() == 0 => {
                let problems = books.problems();
                assert!(problems.is_empty(), "{} problems: {problems:#?}", problems.len());
                return books;
            }
            Ok(books) => format!("{} calls have no end", books.records.open()),
            Err(problem) => problem,
        };
        assert!(Instant::now() < deadline, "{problem}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is recorded, whatever still runs.
fn records(stack: &Stack) -> Records {
    Records::read(&stack.dir()).expect("the audit log is whole")
}

fn signal(pid: i32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(sent.expect("kill runs").success(), "{name} to {pid}");
}

fn status_of(pid: i32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// Whether a process has ended, even if nobody has asked how.
fn is_dead(pid: i32) -> bool {
    status_of(pid, "State").is_none_or(|state| state.starts_with('Z'))
}

/// `stella up`, which starts again what dies.
fn supervisor(stack: &Stack) -> i32 {
    let parent = status_of(stack.pid("signer"), "PPid");
    parent
        .and_then(|parent| parent.parse().ok())
        .expect("the supervisor runs")
}

/// A process that stands still until this is dropped.
struct Held(i32);

impl Held {
    fn hold(pid: i32) -> Self {
        signal(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = Command::new("kill").args(["-CONT", &self.0.to_string()]).status();
    }
}

/// Numbers that only look random (SplitMix64); the seed is said, so that a run can be had again with `STELLA_SEED`.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = match std::env::var("STELLA_SEED") {
            Ok(seed) => seed.parse().expect("a number"),
            Err(_) => {
                let mut bytes = [0; 8];
                aws_lc_rs::rand::fill(&mut bytes).expect("randomness");
                u64::from_le_bytes(bytes)
            }
        };
        println!("STELLA_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `least` to before `end`.
    fn between(&mut self, least: u64, end: u64) -> u64 {
        least + self.next() % (end - least)
    }
}
