//! What is proven, what is not, and what is said about it.

use std::time::Duration;

use stella_proto::backfill::v1 as pb;
use stella_proto::status::{item_error, refuse};
use tonic::Code;

use super::{Place, all_proven, assert_done, numbered, unproven};
use crate::fake::{SBOM, SCAN, VEX, attestation, envelope, event};
use crate::job::Tally;

#[tokio::test]
async fn history_is_proven_and_what_is_not_is_named_with_its_reasons() {
    let place = Place::new();
    place.feedser.add(numbered(9));
    {
        let mut world = place.feedser.world();
        world.events.insert(2, event("none", "VEX", "none"));
        world.events.insert(4, event("other", "VEX", "other"));
        world.hold("other", vec![attestation("other", SBOM, 1)]);
        world.events.insert(6, event("bad", "SCAN", "bad"));
        world.hold("bad", vec![attestation("bad", SCAN, 1)]);
        let checks = "SIGNATURE:KEY_UNKNOWN, LOG_ENTRY:NOT_LOGGED";
        world.fail("bad", checks);
        world.events.insert(8, event("late", "SBOM", "late"));
        world.hold("late", vec![attestation("late", SBOM, 59)]);
        world.events.insert(9, event("early", "SBOM", "early"));
        let early = attestation("early", SBOM, 0);
        world.hold("early", vec![early]);
        world.events[9].ts = "2025-12-01T00:00:00Z".to_owned();
        world.events.push(event("ingest", "INGEST", "ingest"));
        world.events.insert(0, event("gone", "SBOM", "gone"));
        world.hold("gone", vec![attestation("gone", SBOM, 1)]);
        let altered = item_error(&refuse(
            Code::FailedPrecondition,
            "NO_RECEIPT",
            "a trust block without receipt",
        ));
        world.broken.insert("gone".into(), altered);
    }
    let service = place.start().await;
    let (job, list) = service.run().await;
    assert_done(
        &job,
        Tally {
            proven: 11,
            not_found: 2,
            errors: 2,
            already_proven: 0,
            latest_proof_seconds: 59,
        },
    );
    assert_eq!(
        list,
        [
            unproven("gone", "SBOM", "gone", "NO_RECEIPT", &[]),
            unproven("none", "VEX", "none", "NOT_FOUND", &[]),
            unproven("other", "VEX", "other", "NOT_FOUND", &[]),
            unproven(
                "bad",
                "SCAN",
                "bad",
                "VERIFICATION_FAILED",
                &["SIGNATURE:KEY_UNKNOWN", "LOG_ENTRY:NOT_LOGGED"]
            ),
        ]
    );
    let world = place.feedser.world();
    assert_eq!(
        world.tenants.iter().map(String::as_str).collect::<Vec<_>>(),
        ["acme"]
    );
    let late = world.events.iter().find(|event| event.id == "late").unwrap();
    assert_eq!(late.attached, Some((envelope("late"), job.id)));
}

#[tokio::test]
async fn the_first_candidate_in_order_that_verifies_wins() {
    let place = Place::new();
    {
        let mut world = place.feedser.world();
        world.events.push(event("e", "VEX", "s"));
        let bare = stella_proto::feedser::v1::AttestationInfo {
            logged: false,
            log_id: String::new(),
            time: String::new(),
            ..attestation("bare", VEX, 0)
        };
        let of_subject = vec![
            bare,
            attestation("third", VEX, 3),
            attestation("scan", SCAN, 1),
            attestation("first", VEX, 1),
            attestation("second", VEX, 2),
        ];
        world.hold("s", of_subject);
        world.fail("first", "SIGNATURE:KEY_UNKNOWN");
        let lost = refuse(Code::FailedPrecondition, "EVIDENCE_NOT_FOUND", "no attestation");
        world.refused.insert(envelope("second"), item_error(&lost));
    }
    let service = place.start().await;
    let (job, list) = service.run().await;
    assert_done(&job, all_proven(1));
    assert_eq!(list, []);
    let tried = ["first", "second", "third"].map(|name| ("e".to_owned(), envelope(name)));
    assert_eq!(place.feedser.world().tried, tried);
}

#[tokio::test]
async fn an_event_that_nothing_proves_is_named_with_what_spoke_against_its_first_candidate() {
    let place = Place::new();
    {
        let mut world = place.feedser.world();
        world.events.push(event("e", "VEX", "s"));
        let of_subject = vec![attestation("b", VEX, 2), attestation("a", VEX, 1)];
        world.hold("s", of_subject);
        world.fail("a", "KEY_SCOPE:TENANT");
        world.fail("b", "SIGNATURE:KEY_UNKNOWN");
    }
    let (job, list) = place.start().await.run().await;
    assert_done(
        &job,
        Tally {
            errors: 1,
            ..Tally::default()
        },
    );
    assert_eq!(
        list,
        [unproven(
            "e",
            "VEX",
            "s",
            "VERIFICATION_FAILED",
            &["KEY_SCOPE:TENANT"]
        )]
    );
}

#[tokio::test]
async fn more_candidates_than_are_tried_are_named_and_not_passed_over() {
    let place = Place::new();
    {
        let mut world = place.feedser.world();
        for (subject, most) in [("many", 101), ("fit", 100)] {
            world.events.push(event(subject, "VEX", subject));
            let junk = (0..most).map(|number| attestation(&format!("{subject}{number}"), VEX, 1));
            world.hold(subject, junk.collect());
            for number in 0..most {
                world.fail(&format!("{subject}{number}"), "SIGNATURE:KEY_UNKNOWN");
            }
        }
        world.events.push(event("flood", "VEX", "flood"));
        let junk = (0..300).map(|number| attestation(&format!("flood{number}"), VEX, 1));
        world.hold("flood", junk.collect());
        world.most_found = 250;
    }
    let (job, list) = place.start().await.run().await;
    assert_done(
        &job,
        Tally {
            errors: 3,
            ..Tally::default()
        },
    );
    let failed = ["SIGNATURE:KEY_UNKNOWN"];
    assert_eq!(
        list,
        [
            unproven("many", "VEX", "many", "TOO_MANY_CANDIDATES", &failed),
            unproven("fit", "VEX", "fit", "VERIFICATION_FAILED", &failed),
            unproven("flood", "VEX", "flood", "TOO_MANY_CANDIDATES", &[]),
        ]
    );
}

#[tokio::test]
async fn what_others_proved_meanwhile_is_counted_as_theirs() {
    let place = Place::new();
    place.feedser.add(numbered(6));
    {
        // They are attached behind the listing's back: listed first, then attached.
        let mut world = place.feedser.world();
        world.mangle_list = Some(|answer| {
            for event in &mut answer.events {
                if event.event_id == "open" {
                    event.event_id = "same".to_owned();
                }
                if event.event_id == "open2" {
                    event.event_id = "another".to_owned();
                }
            }
        });
        for (listed, proven, attached) in [("open", "same", "open"), ("open2", "another", "elsewhere")] {
            world.events.push(event(listed, "SBOM", listed));
            world.hold(listed, vec![attestation(listed, SBOM, 1)]);
            let mut theirs = event(proven, "SBOM", listed);
            theirs.attached = Some((envelope(attached), "bf_other".to_owned()));
            world.events.push(theirs);
        }
    }
    let (job, list) = place.start().await.run().await;
    assert_done(
        &job,
        Tally {
            proven: 6,
            already_proven: 2,
            latest_proof_seconds: 3,
            ..Tally::default()
        },
    );
    assert_eq!(list, []);
}

#[tokio::test]
async fn answers_that_would_be_too_large_are_asked_for_in_parts() {
    let place = Place::new();
    place.feedser.add(numbered(11));
    place.feedser.world().most_found = 1;
    place.feedser.world().most_listed = 1;
    let (job, list) = place.start().await.run().await;
    assert_done(&job, all_proven(11));
    assert_eq!(list, []);
}

#[tokio::test]
async fn a_job_takes_no_more_events_than_its_limit_or_than_there_were() {
    for (limit, want) in [
        (0, 10),
        (1, 1),
        (4, 4),
        (7, 7),
        (10, 10),
        (11, 10),
        (u64::MAX, 10),
    ] {
        let place = Place::new();
        place.feedser.add(numbered(10));
        // Live traffic: the log grows while the job runs.
        place.feedser.world().mangle_attach = Some(|_| std::thread::sleep(Duration::from_millis(1)));
        let service = place.start().await;
        let request = pb::StartBackfillRequest {
            limit,
            ..pb::StartBackfillRequest::default()
        };
        let job = service.begin(request).await.unwrap();
        while service.get(&job.id).await.0.total == 0 {
            tokio::task::yield_now().await;
        }
        place.feedser.add((0..20).map(|number| format!("live_{number}")));
        let job = service.wait(&job.id).await;
        assert_done(&job, all_proven(want));
    }
}
