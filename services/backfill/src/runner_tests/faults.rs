//! A Feedser that is away, busy, or answers what cannot be.

use futures_util::StreamExt as _;
use stella_proto::backfill::v1 as pb;
use stella_proto::backfill::v1::backfill_service_server::BackfillService as _;
use stella_proto::status::{item_error, refuse};
use tonic::{Code, Status};

use super::{NOW, Place, all_proven, asked, assert_done, done, numbered};
use crate::fake::World;
use crate::job::Tally;

#[tokio::test]
async fn a_job_waits_out_what_passes_and_counts_no_error_for_it() {
    let place = Place::new();
    place.feedser.add(numbered(10));
    {
        let mut world = place.feedser.world();
        for call in ["count", "list", "find", "attach", "attach", "list"] {
            world.faults.push((call, Status::unavailable("away")));
        }
        world
            .faults
            .push(("find", refuse(Code::ResourceExhausted, "OVERLOADED", "busy")));
        world.faults.push(("attach", Status::deadline_exceeded("slow")));
        let conflict = item_error(&refuse(
            Code::Aborted,
            "WRITE_CONFLICT",
            "being changed by others",
        ));
        world.broken_once.insert("evt_5xx".into(), conflict);
        world.broken_once.insert(
            "evt_9".into(),
            item_error(&refuse(
                Code::Unavailable,
                "UPSTREAM_UNAVAILABLE",
                "the verifier is not available",
            )),
        );
    }
    let (job, list) = place.start().await.run().await;
    assert_done(&job, all_proven(10));
    assert_eq!(list, []);
    assert!(place.feedser.world().faults.is_empty(), "all of them happened");
    assert!(
        place.feedser.world().broken_once.is_empty(),
        "all of them happened"
    );
}

#[tokio::test]
async fn a_job_that_waits_says_why() {
    let place = Place::new();
    place.feedser.add(numbered(1));
    let away = refuse(
        Code::Unavailable,
        "UPSTREAM_UNAVAILABLE",
        "feedser is not available",
    );
    place.feedser.world().faults = vec![("count", away); 1_000];
    let service = place.start().await;
    let job = service.begin_all().await;
    let watch = pb::WatchBackfillRequest { id: job.id.clone() };
    let mut states = service
        .api
        .watch_backfill(asked(watch))
        .await
        .unwrap()
        .into_inner();
    let waiting = pb::Backfill {
        id: job.id.clone(),
        state: pb::BackfillState::Running.into(),
        ended_at: String::new(),
        message: "waiting: UPSTREAM_UNAVAILABLE: feedser is not available".into(),
        ..done(Tally::default())
    };
    let mut seen = states.next().await.unwrap().unwrap().backfill.unwrap();
    if seen.message.is_empty() {
        seen = states.next().await.unwrap().unwrap().backfill.unwrap();
    }
    assert_eq!(seen, waiting);
    assert_eq!(service.get(&job.id).await.0, waiting);
    place.feedser.world().faults.clear();
    let last = service.wait(&job.id).await;
    assert_done(&last, all_proven(1));
}

#[tokio::test]
async fn what_does_not_pass_fails_the_job_with_its_reason() {
    type Break = fn(&mut World);
    let cases: [(&str, Break, &str); 10] = [
        (
            "no call allowed",
            |world| {
                let refused = refuse(
                    Code::PermissionDenied,
                    "TENANT_NOT_ALLOWED",
                    "not for this tenant",
                );
                world.faults.push(("count", refused));
            },
            "TENANT_NOT_ALLOWED: not for this tenant",
        ),
        (
            "no attach allowed",
            |world| {
                let refused = refuse(Code::PermissionDenied, "METHOD_NOT_ALLOWED", "not this method");
                world.broken.insert("evt_5xx".into(), item_error(&refused));
            },
            "METHOD_NOT_ALLOWED: not this method",
        ),
        (
            "a call that nobody knows",
            |world| world.faults.push(("list", Status::unimplemented("what?"))),
            "Unimplemented: what?",
        ),
        (
            "results of other items",
            |world| world.mangle_attach = Some(|answer| answer.results.reverse()),
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: the results are not those of the items",
        ),
        (
            "results twice",
            |world| {
                world.mangle_attach = Some(|answer| {
                    let mut twice = answer.results.clone();
                    twice
                        .iter_mut()
                        .for_each(|result| result.reference = "4".to_owned());
                    answer.results.extend(twice);
                });
            },
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: more results than items",
        ),
        (
            "a result that says nothing",
            |world| world.mangle_attach = Some(|answer| answer.results[0].outcome = None),
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: a result says nothing",
        ),
        (
            "a subject left out",
            |world| world.mangle_find = Some(|answer| drop(answer.found.pop())),
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: a subject was not looked up",
        ),
        (
            "an endless id",
            |world| world.mangle_list = Some(|answer| answer.events[0].event_id = "x".repeat(1_025)),
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: an event's id is empty or too long",
        ),
        (
            "a kind that was not asked for",
            |world| world.mangle_list = Some(|answer| answer.events[0].kind = "INGEST".to_owned()),
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: an event is of another kind",
        ),
        (
            "more events than asked for",
            |world| {
                world.mangle_list = Some(|answer| {
                    let more = answer.events.clone();
                    answer.events.extend(more);
                });
            },
            "FEEDSER_ANSWER_INVALID: feedser's answer does not hold: more events than were asked for",
        ),
    ];
    for (case, break_it, want) in cases {
        let place = Place::new();
        place.feedser.add(numbered(8));
        break_it(&mut place.feedser.world());
        let (job, _) = place.start().await.run().await;
        let got = (job.state(), job.message.as_str(), job.ended_at.as_str());
        assert_eq!(got, (pb::BackfillState::Failed, want, NOW), "{case}");
    }
}
