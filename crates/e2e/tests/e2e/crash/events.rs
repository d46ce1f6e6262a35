//! Feedser dies under its writers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use stella_attest::digest::Digest;
use stella_proto::feedser::v1 as pb;
use stella_proto::feedser::v1::append_events_result::Outcome;
use stella_testkit::stack::Stack;

use super::{Caller, Dice, until_answered};

const EVENTS: usize = 4_000;
const BATCH: usize = 25;
const WRITERS: usize = 4;
/// The pauses of the supervisor grow with every death.
const KILLS: usize = 6;

fn item(number: usize) -> pb::AppendEventsItem {
    let subject = Digest::of(&number.to_be_bytes());
    let event = json!({
        "_id": format!("evt_crash_{number:05}"), "kind": "SCAN", "subject": {"digest": {"sha256": subject.hex()}},
        "ts": "2025-01-01T08:00:00Z",
    });
    pb::AppendEventsItem {
        reference: number.to_string(),
        event: event.to_string().into_bytes().into(),
        ..pb::AppendEventsItem::default()
    }
}

/// Appends until the stream ends or breaks; returns what was acknowledged: number, and whether it was there already.
async fn append(caller: &Caller, numbers: Vec<usize>) -> Vec<(usize, bool)> {
    let messages = numbers.chunks(BATCH).map(|part| pb::AppendEventsRequest {
        items: part.iter().map(|number| item(*number)).collect(),
    });
    let request = caller.request(tokio_stream::iter(messages.collect::<Vec<_>>()));
    let mut acknowledged = Vec::new();
    let Ok(answers) = caller.feedser.clone().append_events(request).await else {
        return acknowledged;
    };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        for result in answer.results {
            match result.outcome {
                Some(Outcome::Appended(event)) => {
                    acknowledged.push((result.reference.parse().expect("ours"), event.existed));
                }
                // The service that ends may say so for an item.
                Some(Outcome::Error(error)) => assert_eq!(error.code, 14, "{error:?}"),
                None => panic!("an item without an outcome"),
            }
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn what_feedser_acknowledged_is_there_after_it_died_and_nothing_is_there_twice() {
    let stack = Arc::new(Stack::start());
    let caller = Caller::of(&stack).await;
    let done = Arc::new(AtomicBool::new(false));
    let killer = {
        let (stack, done, mut dice) = (Arc::clone(&stack), Arc::clone(&done), Dice::new());
        tokio::spawn(async move {
            let mut kills = 0;
            while kills < KILLS && !done.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(dice.between(20, 200))).await;
                kills += usize::from(stack.kill("feedser"));
            }
            kills
        })
    };
    let writers = (0..WRITERS).map(|writer| {
        let caller = caller.clone();
        tokio::spawn(async move {
            let mut missing: BTreeSet<usize> =
                (0..EVENTS).filter(|number| number % WRITERS == writer).collect();
            let mut acknowledged = Vec::new();
            while !missing.is_empty() {
                let answered = append(&caller, missing.iter().copied().collect()).await;
                if answered.is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                for (number, _) in &answered {
                    assert!(missing.remove(number), "{number} was acknowledged twice");
                }
                acknowledged.extend(answered);
            }
            acknowledged.len()
        })
    });
    let mut acknowledged = 0;
    for writer in writers.collect::<Vec<_>>() {
        acknowledged += writer.await.expect("a writer ends");
    }
    done.store(true, Ordering::Relaxed);
    assert!(killer.await.expect("ends") > 0, "Feedser never died");
    assert_eq!(acknowledged, EVENTS);

    let again = until_answered(|| async {
        let answered = append(&caller, (0..EVENTS).collect()).await;
        match answered.len() == EVENTS {
            true => Ok(answered),
            false => Err(tonic::Status::unavailable("Feedser is not back yet")),
        }
    })
    .await;
    assert!(
        again.iter().all(|(_, existed)| *existed),
        "an acknowledged event was lost"
    );
    let count = until_answered(|| {
        let request = caller.request(pb::CountUnprovenRequest { kinds: Vec::new() });
        let mut feedser = caller.feedser.clone();
        async move { feedser.count_unproven(request).await }
    })
    .await;
    assert_eq!(count.into_inner().total, EVENTS as u64);
}
