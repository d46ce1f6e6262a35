//! Every service dies, again and again, while twenty thousand events of the past are proven.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::statement;
use stella_proto::backfill::v1 as backfill_pb;
use stella_proto::feedser::v1 as feedser_pb;
use stella_proto::feedser::v1::append_events_result::Outcome as Appended;
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::sign_batch_result::Outcome as Signed;
use stella_testkit::stack::Stack;

use super::{Caller, Dice, order, settled, until_answered};

const EVENTS: usize = 20_000;
/// How many of them nothing attests.
const UNATTESTED: usize = 10;
const KILLS: usize = 32;
const SERVICES: [&str; 4] = ["backfill", "feedser", "signer", "verifier"];
const BATCH: usize = 250;
/// Longest wait for the end of the job.
const JOB_WITHIN: Duration = Duration::from_secs(300);

fn id(number: usize) -> String {
    format!("evt_past_{number:05}")
}

fn subject(number: usize) -> Digest {
    Digest::of(format!("past {number}").as_bytes())
}

async fn append(caller: &Caller) {
    let messages = (0..EVENTS).collect::<Vec<_>>();
    let messages = messages.chunks(BATCH).map(|part| feedser_pb::AppendEventsRequest {
        items: part
            .iter()
            .map(|number| {
                let event = json!({
                    "_id": id(*number), "kind": "VEX", "subject": {"digest": {"sha256": subject(*number).hex()}},
                    "ts": "2025-01-01T08:00:00Z",
                });
                feedser_pb::AppendEventsItem {
                    event: event.to_string().into_bytes().into(),
                    ..feedser_pb::AppendEventsItem::default()
                }
            })
            .collect(),
    });
    let request = caller.request(stream::iter(messages.collect::<Vec<_>>()));
    let mut answers = caller
        .feedser
        .clone()
        .append_events(request)
        .await
        .expect("appends")
        .into_inner();
    let mut appended = 0;
    while let Some(answer) = answers.message().await.expect("appends") {
        let results = answer.results.iter();
        appended += results
            .filter(|result| matches!(result.outcome, Some(Appended::Appended(_))))
            .count();
    }
    assert_eq!(appended, EVENTS);
}

/// Signs what attests the events, and puts it into the repository.
async fn attest(caller: &Caller) {
    let numbers = (0..EVENTS - UNATTESTED).collect::<Vec<_>>();
    let messages = numbers.chunks(BATCH).map(|part| signer_pb::SignBatchRequest {
        items: part
            .iter()
            .map(|number| {
                let (predicate, name) = (json!({"statements": []}), id(*number));
                let payload = statement::build(&name, &subject(*number), statement::OPENVEX, predicate);
                let request = signer_pb::SignRequest {
                    payload: payload.into(),
                    ..Default::default()
                };
                signer_pb::SignBatchItem {
                    reference: name,
                    request: Some(request),
                }
            })
            .collect(),
    });
    let request = caller.request(stream::iter(messages.collect::<Vec<_>>()));
    let mut answers = caller
        .signer
        .clone()
        .sign_batch(request)
        .await
        .expect("signs")
        .into_inner();
    let mut bundles = Vec::new();
    while let Some(answer) = answers.message().await.expect("signs") {
        for result in answer.results {
            match result.outcome {
                Some(Signed::Signed(signed)) => bundles.push(signed.bundle),
                other => panic!("{other:?}"),
            }
        }
    }
    let puts = stream::iter(bundles).map(|evidence| {
        let (mut feedser, request) = (
            caller.feedser.clone(),
            caller.request(feedser_pb::PutAttestationRequest { evidence }),
        );
        async move { feedser.put_attestation(request).await }
    });
    puts.buffer_unordered(64)
        .try_for_each(|_| async { Ok(()) })
        .await
        .expect("stores");
}

async fn job(caller: &Caller, id: &str, page_size: u32) -> backfill_pb::GetBackfillResponse {
    let answer = until_answered(|| {
        let request = backfill_pb::GetBackfillRequest {
            id: id.to_owned(),
            page_size,
            page_token: String::new(),
        };
        let (mut backfill, request) = (caller.backfill.clone(), caller.request(request));
        async move { backfill.get_backfill(request).await }
    });
    answer.await.into_inner()
}

/// Every event as it is stored.
async fn stored(caller: &Caller) -> Vec<(bool, Value)> {
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = until_answered(|| {
            let request = feedser_pb::ListEventsRequest {
                page_size: 1_000,
                page_token: page_token.clone(),
                ..Default::default()
            };
            let (mut feedser, request) = (caller.feedser.clone(), caller.request(request));
            async move { feedser.list_events(request).await }
        });
        let page = page.await.into_inner();
        for event in page.events {
            events.push((event.proven, serde_json::from_slice(&event.event).expect("JSON")));
        }
        if page.next_page_token.is_empty() {
            return events;
        }
        page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_among_thirty_deaths_proves_each_event_once_and_names_the_rest() {
    let stack = Arc::new(Stack::start());
    let caller = Caller::of(&stack).await;
    append(&caller).await;
    attest(&caller).await;

    let start = until_answered(|| {
        let request = backfill_pb::StartBackfillRequest {
            idempotency_key: "the-job".to_owned(),
            ..Default::default()
        };
        let (mut backfill, request) = (caller.backfill.clone(), caller.request(request));
        async move { backfill.start_backfill(request).await }
    });
    let id_of_job = start.await.into_inner().backfill.expect("a job").id;

    let over = Arc::new(AtomicBool::new(false));
    let signing = {
        let (caller, over) = (caller.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            let mut signed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let order = order(&format!("meanwhile-{}", signed.len()));
                signed.push((caller.sign_until_answered(&order).await, order));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            signed
        })
    };
    let mut dice = Dice::new();
    let mut kills = 0;
    let deadline = Instant::now() + JOB_WITHIN;
    while kills < KILLS && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(dice.between(30, 300))).await;
        kills += usize::from(stack.kill(SERVICES[kills % SERVICES.len()]));
    }
    let state = job(&caller, &id_of_job, 1).await.backfill.expect("a job");
    assert!(
        kills >= 30 && state.ended_at.is_empty(),
        "{kills} deaths while the job ran: {state:?}"
    );
    let job = loop {
        let found = job(&caller, &id_of_job, 1_000).await;
        if found
            .backfill
            .as_ref()
            .is_some_and(|job| !job.ended_at.is_empty())
        {
            break found;
        }
        assert!(Instant::now() < deadline, "the job does not end: {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    over.store(true, Ordering::Relaxed);

    let counts = job.backfill.expect("a job");
    let found = [
        counts.total,
        counts.proven,
        counts.not_found,
        counts.errors,
        counts.already_proven,
    ];
    let attested = (EVENTS - UNATTESTED) as u64;
    assert_eq!(
        found,
        [EVENTS as u64, attested, UNATTESTED as u64, 0, 0],
        "{}",
        counts.message
    );
    let mut named: Vec<(String, String)> = job
        .unproven
        .into_iter()
        .map(|event| (event.event_id, event.reason))
        .collect();
    named.sort();
    let want: Vec<_> = (EVENTS - UNATTESTED..EVENTS)
        .map(|number| (id(number), "NOT_FOUND".to_owned()))
        .collect();
    assert_eq!(named, want);

    let mut events = stored(&caller).await;
    events.sort_by_key(|(_, event)| event["_id"].to_string());
    assert_eq!(events.len(), EVENTS);
    for (number, (proven, event)) in events.iter().enumerate() {
        let job = event["provenance"]["attachedBy"]["job"].as_str();
        let found = (event["_id"].as_str(), *proven, event["rev"].as_u64(), job);
        let name = id(number);
        let want = match number < EVENTS - UNATTESTED {
            true => (Some(name.as_str()), true, Some(2), Some(id_of_job.as_str())),
            false => (Some(name.as_str()), false, Some(1), None),
        };
        assert_eq!(found, want);
    }
    for (first, order) in signing.await.expect("ends") {
        assert_eq!(
            caller.sign_until_answered(&order).await,
            first,
            "the answer that was kept"
        );
    }
    settled(&stack).await;
}
