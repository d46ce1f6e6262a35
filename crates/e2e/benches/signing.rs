//! The Signer against a bare server: the same client, messages, TLS and signatures; policy and audit on top are ours.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use stella_attest::dsse;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::statement::PAYLOAD_TYPE;
use stella_proto::signer::v1 as pb;
use stella_proto::signer::v1::sign_batch_result::Outcome;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_serve::access::Tenant;
use stella_serve::upstream::{UpstreamChannel, select_tenant};
use stella_testkit::stack::Stack;
use tonic::Request;

use super::bare::{BareServer, Files};
use super::domain::payload;
use super::row::{Goal, Row, median};
use super::{Lab, cores};

pub const NAMES: [&str; 4] = [
    "Sign, 64 in flight / a bare tonic server with the same mTLS and signature",
    "Sign, one at a time, p50 / the bare server's p50 + fdatasync p50",
    "SignBatch, 64 a message / the bare server with the same messages, mTLS and signatures",
    "SignBatch, 64 a message / raw signatures on all cores",
];

const ROUNDS: usize = 12;
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;
/// How long each side is called in a round.
const WINDOW: Duration = Duration::from_millis(500);
/// Calls, one after the other, in a round.
const ALONE: usize = 100;
/// Items of one message.
const BATCH: usize = 64;
/// Messages of a round, over all connections.
const MESSAGES: usize = 160;
/// About what the audit log writes for one signature.
const RECORD: [u8; 1100] = [b'x'; 1100];

/// A server that signs, as its client sees it.
#[derive(Clone)]
pub struct Target {
    channel: UpstreamChannel,
    tenant: Tenant,
}

impl Target {
    /// Connects as the operator.
    pub async fn connect(stack: &Stack, url: &str) -> anyhow::Result<Self> {
        let (ca, operator) = (Path::new(stack.env("STELLA_CA")), stack.operator());
        let url = url.parse()?;
        let channel =
            stella_serve::client::connect_many(ca, &operator.cert, &operator.key, &url, None, CONNECTIONS)
                .await?;
        Ok(Self {
            channel,
            tenant: stack.env("STELLA_TENANT").parse()?,
        })
    }

    /// The next of the connections.
    pub fn channel(&self) -> UpstreamChannel {
        self.channel.turn()
    }

    /// A request for the development tenant.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        select_tenant(&mut request, &self.tenant);
        request
    }

    fn signer(&self) -> SignerServiceClient<UpstreamChannel> {
        SignerServiceClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }
}

pub fn rows(lab: &mut Lab) -> anyhow::Result<Vec<Row>> {
    let (runtime, stack) = lab.stack();
    let bare = BareServer::start(&Files {
        ca: stack.env("STELLA_CA").into(),
        cert: stack.stolen("signer").cert,
        key: stack.stolen("signer").key,
        signing_key: attestation_key(stack)?,
    })?;
    let requests: Arc<[pb::SignRequest]> = (0..IN_FLIGHT).map(request).collect();
    let messages = messages(&requests);
    let raw_key = SigningKey::generate(Algorithm::EcdsaP256)?;
    let pae = dsse::pae(PAYLOAD_TYPE, &requests[0].payload);
    let file = File::create(stack.file("fdatasync"))?;
    let (mut rate, mut single, mut batch) = <([Vec<f64>; 2], [Vec<f64>; 3], [Vec<f64>; 3])>::default();
    runtime.block_on(async {
        let ours = Target::connect(stack, stack.env("STELLA_SIGNER")).await?;
        let bare = Target::connect(stack, &bare.url()).await?;
        for target in [&ours, &bare] {
            unary_rate(target, &requests, WINDOW).await?;
            batch_rate(target, &messages[..MESSAGES / 8]).await?;
        }
        for _ in 0..ROUNDS {
            rate[0].push(unary_rate(&ours, &requests, WINDOW).await?);
            rate[1].push(unary_rate(&bare, &requests, WINDOW).await?);
            for (all, micros) in single
                .iter_mut()
                .zip(alone(&ours, &bare, &requests, file.try_clone()?).await?)
            {
                all.push(micros);
            }
            batch[0].push(batch_rate(&ours, &messages).await?);
            batch[1].push(batch_rate(&bare, &messages).await?);
            batch[2].push(cores::rate(MESSAGES * BATCH, |_| {
                drop(raw_key.sign(&pae).expect("signs"))
            }));
        }
        anyhow::Ok(())
    })?;
    let [ours, bare] = rate.map(median);
    let unary = Row {
        name: NAMES[0],
        ours,
        floor: bare,
        goal: Goal::AtLeast(0.8),
        unit: "calls/s",
    };
    let [ours, bare, sync] = single.map(median);
    let single = Row {
        name: NAMES[1],
        ours,
        floor: bare + sync,
        goal: Goal::AtMost(1.25),
        unit: "us",
    };
    let [ours, bare, raw] = batch.map(median);
    let batched = Row {
        name: NAMES[2],
        ours,
        floor: bare,
        goal: Goal::AtLeast(0.8),
        unit: "sigs/s",
    };
    let against_raw = Row {
        name: NAMES[3],
        ours,
        floor: raw,
        goal: Goal::None,
        unit: "sigs/s",
    };
    Ok(vec![unary, single, batched, against_raw])
}

/// The key that the Signer signs with.
fn attestation_key(stack: &Stack) -> anyhow::Result<std::path::PathBuf> {
    let mut keys = std::fs::read_dir(stack.dir().join("signer/keys/default"))?;
    Ok(keys
        .next()
        .ok_or_else(|| anyhow::anyhow!("the Signer has no key"))??
        .path())
}

fn request(number: usize) -> pb::SignRequest {
    let transparency = pb::Transparency::None.into();
    pb::SignRequest {
        payload: payload(number).into(),
        transparency,
        ..pb::SignRequest::default()
    }
}

fn messages(requests: &[pb::SignRequest]) -> Vec<pb::SignBatchRequest> {
    let items = requests
        .iter()
        .cycle()
        .take(BATCH)
        .enumerate()
        .map(|(number, request)| pb::SignBatchItem {
            reference: number.to_string(),
            request: Some(request.clone()),
        });
    vec![
        pb::SignBatchRequest {
            items: items.collect()
        };
        MESSAGES
    ]
}

/// Calls a second, with [`IN_FLIGHT`] waiting at any time.
async fn unary_rate(
    target: &Target,
    requests: &Arc<[pb::SignRequest]>,
    window: Duration,
) -> anyhow::Result<f64> {
    let calls = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let callers = (0..IN_FLIGHT).map(|number| {
        let (target, requests, calls) = (target.clone(), requests.clone(), calls.clone());
        let mut signer = target.signer();
        tokio::spawn(async move {
            while start.elapsed() < window {
                signer.sign(target.request(requests[number].clone())).await?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })
    });
    for ended in try_join_all(callers).await? {
        ended?;
    }
    Ok(calls.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

/// Microseconds of calls that are made one after the other: ours, the bare server's, and a write that is flushed, in
/// turns, so that each of the three meets the disk and the processor in the same state.
async fn alone(
    ours: &Target,
    bare: &Target,
    requests: &Arc<[pb::SignRequest]>,
    mut file: File,
) -> anyhow::Result<[f64; 3]> {
    let (ours, bare, requests) = (ours.clone(), bare.clone(), requests.clone());
    let caller = tokio::spawn(async move {
        let mut signers = [ours.signer(), bare.signer()];
        let mut micros = <[Vec<f64>; 3]>::default();
        for number in 0..ALONE {
            for (signer, micros) in signers.iter_mut().zip(&mut micros) {
                let request = ours.request(requests[number % requests.len()].clone());
                let start = Instant::now();
                signer.sign(request).await?;
                micros.push(start.elapsed().as_secs_f64() * 1e6);
            }
            let start = Instant::now();
            file.write_all(&RECORD)?;
            file.sync_data()?;
            micros[2].push(start.elapsed().as_secs_f64() * 1e6);
        }
        anyhow::Ok(micros.map(median))
    });
    caller.await?
}

/// Signatures a second, over one stream on each connection.
async fn batch_rate(target: &Target, messages: &[pb::SignBatchRequest]) -> anyhow::Result<f64> {
    let start = Instant::now();
    let signed = sign_all(target, messages.to_vec()).await?;
    Ok(signed.len() as f64 / start.elapsed().as_secs_f64())
}

/// Has every item of the messages signed, over one stream on each connection; the answers in no order.
///
/// # Errors
/// One was refused.
pub async fn sign_all(
    target: &Target,
    messages: Vec<pb::SignBatchRequest>,
) -> anyhow::Result<Vec<(String, pb::SignResponse)>> {
    let share = messages.len().div_ceil(CONNECTIONS);
    let streams = messages.chunks(share).map(|part| {
        let (target, part) = (target.clone(), part.to_vec());
        let mut signer = target.signer();
        tokio::spawn(async move {
            let answers = signer
                .sign_batch(target.request(tokio_stream::iter(part)))
                .await?;
            let mut answers = answers.into_inner();
            let mut signed = Vec::new();
            while let Some(answer) = answers.message().await? {
                for result in answer.results {
                    match result.outcome {
                        Some(Outcome::Signed(response)) => signed.push((result.reference, response)),
                        other => anyhow::bail!("an item was refused: {other:?}"),
                    }
                }
            }
            Ok(signed)
        })
    });
    let mut all = Vec::new();
    for signed in try_join_all(streams).await? {
        all.extend(signed?);
    }
    anyhow::ensure!(!all.is_empty(), "nothing was signed");
    Ok(all)
}
