//! The way of an event into the graph: appended with its evidence, or proven afterwards by a backfill.
//!
//! Every event has an attestation of its own, so nothing that was verified for one serves another.

use std::collections::HashMap;
use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use stella_attest::digest::Digest;
use stella_proto::backfill::v1 as backfill;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::feedser::v1 as feedser;
use stella_proto::feedser::v1::append_events_result::Outcome;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer;
use stella_serve::upstream::UpstreamChannel;
use stella_testkit::stack::Stack;

use super::Lab;
use super::domain::payload;
use super::row::{Goal, Row, median};
use super::signing::{Target, sign_all};
use super::stored::Stored;

pub const NAMES: [&str; 2] = [
    "append with verification and receipt / 1/(1/V + 1/S): V raw checks and receipts on all cores, S raw SQLite rows",
    "backfill / append with verification and receipt",
];

const ROUNDS: usize = 7;
/// Events of one round.
const EVENTS: usize = 1024;
/// Events of one message, and rows of one raw commit.
const BATCH: usize = 64;
const STREAMS: usize = 4;

/// An event and the bundle that proves it.
struct Pair {
    id: String,
    event: String,
    bundle: Vec<u8>,
}

/// The services that take part.
struct Services {
    signer: Target,
    feedser: Target,
    backfill: Target,
}

impl Services {
    async fn connect(stack: &Stack) -> anyhow::Result<Self> {
        Ok(Self {
            signer: Target::connect(stack, stack.env("STELLA_SIGNER")).await?,
            feedser: Target::connect(stack, stack.env("STELLA_FEEDSER")).await?,
            backfill: Target::connect(stack, stack.env("STELLA_BACKFILL")).await?,
        })
    }

    fn feedser(&self) -> FeedserServiceClient<UpstreamChannel> {
        FeedserServiceClient::new(self.feedser.channel())
    }
}

pub fn rows(lab: &mut Lab) -> anyhow::Result<Vec<Row>> {
    let (runtime, stack) = lab.stack();
    let services = runtime.block_on(Services::connect(stack))?;
    let mut stored = Stored::open(&stack.dir())?;
    let (mut appended, mut floors, mut backfilled) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let pairs = runtime.block_on(attested(&services.signer, 2 * round * EVENTS))?;
        stored.skip()?;
        appended.push(runtime.block_on(append(&services, &pairs, true))?);
        floors.push(stored.raw_rate(BATCH)?);
        let pairs = runtime.block_on(attested(&services.signer, (2 * round + 1) * EVENTS))?;
        runtime.block_on(async {
            append(&services, &pairs, false).await?;
            put(&services, &pairs).await
        })?;
        backfilled.push(runtime.block_on(prove(&services))?);
    }
    let (appended, floor, backfilled) = (median(appended), median(floors), median(backfilled));
    Ok(vec![
        Row {
            name: NAMES[0],
            ours: appended,
            floor,
            goal: Goal::AtLeast(0.7),
            unit: "events/s",
        },
        Row {
            name: NAMES[1],
            ours: backfilled,
            floor: appended,
            goal: Goal::AtLeast(0.7),
            unit: "events/s",
        },
    ])
}

/// Events a second that are appended with their evidence to this stack, [`EVENTS`] of them in each round.
pub async fn append_rate(stack: &Stack, round: usize) -> anyhow::Result<f64> {
    let services = Services::connect(stack).await?;
    let pairs = attested(&services.signer, round * EVENTS).await?;
    append(&services, &pairs, true).await
}

/// Attested events with the numbers from `first` on.
async fn attested(target: &Target, first: usize) -> anyhow::Result<Vec<Pair>> {
    let items = (first..first + EVENTS).map(|number| signer::SignBatchItem {
        reference: number.to_string(),
        request: Some(signer::SignRequest {
            payload: payload(number).into(),
            ..Default::default()
        }),
    });
    let items: Vec<_> = items.collect();
    let messages = items.chunks(BATCH).map(|items| signer::SignBatchRequest {
        items: items.to_vec(),
    });
    let mut signed: HashMap<String, _> = sign_all(target, messages.collect()).await?.into_iter().collect();
    let mut pairs = Vec::with_capacity(EVENTS);
    for number in first..first + EVENTS {
        let response = signed.remove(&number.to_string());
        let bundle = response
            .ok_or_else(|| anyhow::anyhow!("statement {number} is not signed"))?
            .bundle;
        let (id, subject) = (
            format!("evt_bench_{number:08}"),
            Digest::of(&number.to_be_bytes()),
        );
        let event = json!({
            "_id": id, "kind": "SBOM",
            "subject": {"digest": {"sha256": subject.hex()}, "purl": format!("pkg:generic/bench@{number}")},
            "ts": "2025-01-02T08:00:00Z",
        });
        pairs.push(Pair {
            id,
            event: event.to_string(),
            bundle: bundle.into(),
        });
    }
    Ok(pairs)
}

/// Events a second, in messages of [`BATCH`] over several streams.
async fn append(services: &Services, pairs: &[Pair], with_evidence: bool) -> anyhow::Result<f64> {
    let item = |pair: &Pair| feedser::AppendEventsItem {
        reference: pair.id.clone(),
        event: pair.event.clone().into(),
        evidence: if with_evidence {
            pair.bundle.clone().into()
        } else {
            Vec::new().into()
        },
        ..feedser::AppendEventsItem::default()
    };
    let message = |part: &[Pair]| feedser::AppendEventsRequest {
        items: part.iter().map(item).collect(),
    };
    let messages: Vec<_> = pairs.chunks(BATCH).map(message).collect();
    let start = Instant::now();
    let streams = messages.chunks(messages.len().div_ceil(STREAMS)).map(|part| {
        let request = services.feedser.request(tokio_stream::iter(part.to_vec()));
        let mut feedser = services.feedser();
        tokio::spawn(async move {
            let mut answers = feedser.append_events(request).await?.into_inner();
            let mut count = 0;
            while let Some(answer) = answers.message().await? {
                for result in answer.results {
                    match result.outcome {
                        Some(Outcome::Appended(done)) if done.proven == with_evidence && !done.existed => {}
                        other => anyhow::bail!("an event was not appended: {other:?}"),
                    }
                    count += 1;
                }
            }
            Ok(count)
        })
    });
    let mut count = 0;
    for stream in streams.collect::<Vec<_>>() {
        count += stream.await??;
    }
    anyhow::ensure!(
        count == pairs.len(),
        "{count} of {} events were answered",
        pairs.len()
    );
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Stores the bundles.
async fn put(services: &Services, pairs: &[Pair]) -> anyhow::Result<()> {
    let calls = pairs.iter().map(|pair| {
        let request = services.feedser.request(feedser::PutAttestationRequest {
            evidence: pair.bundle.clone().into(),
        });
        let mut feedser = services.feedser();
        async move { feedser.put_attestation(request).await }
    });
    stream::iter(calls)
        .buffer_unordered(BATCH)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(())
}

/// Events a second that a backfill proves, from its start to its end.
async fn prove(services: &Services) -> anyhow::Result<f64> {
    let mut client = BackfillServiceClient::new(services.backfill.channel());
    let start = Instant::now();
    let request = backfill::StartBackfillRequest::default();
    let started = client
        .start_backfill(services.backfill.request(request))
        .await?
        .into_inner();
    let id = started.backfill.unwrap_or_default().id;
    let request = services.backfill.request(backfill::WatchBackfillRequest { id });
    let mut states = client.watch_backfill(request).await?.into_inner();
    let mut last = backfill::Backfill::default();
    while let Some(state) = states.message().await? {
        last = state.backfill.unwrap_or_default();
    }
    let elapsed = start.elapsed();
    let proven = usize::try_from(last.proven)?;
    anyhow::ensure!(
        last.state() == backfill::BackfillState::Done && proven == EVENTS,
        "the backfill did not prove all: {last:?}"
    );
    Ok(proven as f64 / elapsed.as_secs_f64())
}
