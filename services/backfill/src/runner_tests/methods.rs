//! What the methods take, refuse and show.

use futures_util::StreamExt as _;
use stella_proto::backfill::v1 as pb;
use stella_proto::backfill::v1::backfill_service_server::BackfillService as _;
use stella_proto::status::{field, reason};
use tonic::Code;

use super::{Place, all_proven, asked, asked_for, assert_done, done, numbered, refusal};
use crate::fake::event;

#[tokio::test]
async fn a_start_with_a_known_key_gives_the_same_job_or_is_refused() {
    let place = Place::new();
    place.feedser.add(numbered(3));
    let service = place.start().await;
    let request = pb::StartBackfillRequest {
        limit: 2,
        idempotency_key: "k".into(),
        ..Default::default()
    };
    let first = service.begin(request.clone()).await.unwrap();
    let last = service.wait(&first.id).await;
    assert_eq!(
        service.begin(request.clone()).await.unwrap(),
        last,
        "the same again"
    );
    service.kill().await;
    let service = place.start().await;
    let defaults = vec!["VEX".to_owned(), "SCAN".to_owned(), "SBOM".to_owned()];
    let named = pb::StartBackfillRequest {
        kinds: defaults,
        ..request.clone()
    };
    assert_eq!(
        service.begin(named).await.unwrap(),
        last,
        "the default kinds by name, after a restart"
    );
    for (case, other) in [
        (
            "another limit",
            pb::StartBackfillRequest {
                limit: 1,
                ..request.clone()
            },
        ),
        (
            "other kinds",
            pb::StartBackfillRequest {
                kinds: vec!["VEX".into()],
                ..request.clone()
            },
        ),
    ] {
        let refused = service.begin(other).await.unwrap_err();
        let got = refusal(&refused);
        let want = (
            Code::AlreadyExists,
            "IDEMPOTENCY_KEY_REUSED".into(),
            "idempotency_key".into(),
        );
        assert_eq!(got, want, "{case}");
    }
    let theirs = service
        .api
        .start_backfill(asked_for("umbrella", request))
        .await
        .unwrap()
        .into_inner();
    assert_ne!(theirs.backfill.unwrap().id, first.id, "another tenant");
    let one = service.begin_all().await;
    let two = service.begin_all().await;
    assert_ne!(one.id, two.id, "no key");
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_by_name() {
    let place = Place::new();
    let service = place.start().await;
    for (case, kinds, key, want) in [
        ("no kind", vec!["sbom".to_owned()], "", ("BAD_KIND", "kinds")),
        ("an empty kind", vec![String::new()], "", ("BAD_KIND", "kinds")),
        (
            "many kinds",
            vec!["SBOM".to_owned(); 17],
            "",
            ("TOO_MANY_ITEMS", "kinds"),
        ),
        (
            "a bad key",
            vec![],
            "a b",
            ("BAD_IDEMPOTENCY_KEY", "idempotency_key"),
        ),
    ] {
        let request = pb::StartBackfillRequest {
            kinds,
            limit: 0,
            idempotency_key: key.into(),
        };
        let refused = service.begin(request).await.unwrap_err();
        let got = refusal(&refused);
        assert_eq!(
            got,
            (Code::InvalidArgument, want.0.to_owned(), want.1.to_owned()),
            "{case}"
        );
    }
    let request = pb::CountUnprovenRequest {
        kinds: vec!["EVENT".into()],
    };
    let refused = service.api.count_unproven(asked(request)).await.unwrap_err();
    assert_eq!(reason(&refused).unwrap(), "BAD_KIND");
}

#[tokio::test]
async fn one_tenant_runs_so_many_jobs_and_does_not_keep_others_from_theirs() {
    let place = Place::new();
    place.feedser.add(numbered(3));
    place.feedser.world().attaches_left = Some(0);
    let service = place.start().await;
    let request = pb::StartBackfillRequest::default;
    for _ in 0..2 {
        service.begin(request()).await.unwrap();
    }
    let refused = service.begin(request()).await.unwrap_err();
    let got = (refused.code(), reason(&refused).unwrap());
    assert_eq!(got, (Code::ResourceExhausted, "TOO_MANY_BACKFILLS".into()));
    assert!(
        service
            .api
            .start_backfill(asked_for("umbrella", request()))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_job_is_seen_by_its_tenant_alone() {
    let place = Place::new();
    place.feedser.world().attaches_left = Some(0);
    let service = place.start().await;
    let running = service.begin_all().await.id;
    for (case, tenant, id) in [
        ("another tenant", "umbrella", running.clone()),
        ("no such job", "acme", "bf_none".to_owned()),
        ("no id", "acme", String::new()),
        ("an endless id", "acme", "x".repeat(1 << 20)),
    ] {
        let get = pb::GetBackfillRequest {
            id: id.clone(),
            ..pb::GetBackfillRequest::default()
        };
        let get = service
            .api
            .get_backfill(asked_for(tenant, get))
            .await
            .unwrap_err();
        let watch = service
            .api
            .watch_backfill(asked_for(tenant, pb::WatchBackfillRequest { id }))
            .await;
        let watch = watch.err().unwrap();
        for refused in [get, watch] {
            let got = refusal(&refused);
            assert_eq!(
                got,
                (Code::NotFound, "BACKFILL_NOT_FOUND".into(), "id".into()),
                "{case}"
            );
        }
    }
}

#[tokio::test]
async fn the_list_of_what_is_unproven_comes_in_pages() {
    let place = Place::new();
    let ids: Vec<String> = (0..205).map(|number| format!("evt_{number}")).collect();
    let events = ids.iter().map(|id| event(id, "SBOM", id));
    place.feedser.world().events = events.collect();
    let service = place.start().await;
    let (job, _) = service.run().await;
    for (page_size, pages) in [(0, vec![100, 100, 5]), (41, vec![41; 5]), (1_000, vec![205])] {
        let (mut seen, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = pb::GetBackfillRequest {
                id: job.id.clone(),
                page_size,
                page_token,
            };
            let answer = service
                .api
                .get_backfill(asked(request))
                .await
                .unwrap()
                .into_inner();
            sizes.push(answer.unproven.len());
            seen.extend(answer.unproven.into_iter().map(|event| event.event_id));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!((seen, sizes), (ids.clone(), pages), "pages of {page_size}");
    }
    for (case, page_size, page_token, want) in [
        ("too large", 1_001, "", ("BAD_VALUE", "page_size")),
        ("no token of ours", 1, "token", ("BAD_PAGE_TOKEN", "page_token")),
    ] {
        let request = pb::GetBackfillRequest {
            id: job.id.clone(),
            page_size,
            page_token: page_token.into(),
        };
        let refused = service.api.get_backfill(asked(request)).await.unwrap_err();
        assert_eq!(
            (reason(&refused).unwrap(), field(&refused).unwrap()),
            (want.0.into(), want.1.into()),
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_watcher_sees_the_state_now_and_the_end_and_costs_nothing_once_it_left() {
    let place = Place::new();
    place.feedser.add(numbered(6));
    place.feedser.world().attaches_left = Some(5);
    let service = place.start().await;
    let id = service.begin_all().await.id;
    let watch = || asked(pb::WatchBackfillRequest { id: id.clone() });
    let mut states = service.api.watch_backfill(watch()).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.last() != Some(&4) {
        seen.push(states.next().await.unwrap().unwrap().backfill.unwrap().processed);
    }
    let followed = service
        .backfill
        .watch(&"acme".parse().unwrap(), &id)
        .await
        .unwrap();
    drop(states);
    assert_eq!(followed.borrow().tally.proven, 4);
    drop(followed);

    let mut states = service.api.watch_backfill(watch()).await.unwrap().into_inner();
    assert_eq!(
        states.next().await.unwrap().unwrap().backfill.unwrap().processed,
        4,
        "the state now"
    );
    service.kill().await;
    let cut = states.next().await.unwrap().unwrap_err();
    assert_eq!(
        (cut.code(), reason(&cut).unwrap()),
        (Code::Unavailable, "CUT_OFF".into()),
        "no end of the job"
    );
    assert!(states.next().await.is_none());
    drop(states);

    place.feedser.world().attaches_left = None;
    let service = place.start().await;
    let want = all_proven(6);
    assert_done(&service.wait(&id).await, want);
    let states = service.api.watch_backfill(watch()).await.unwrap().into_inner();
    let ended: Vec<_> = states
        .map(|state| state.unwrap().backfill.unwrap())
        .collect()
        .await;
    assert_eq!(
        ended,
        [pb::Backfill { id, ..done(want) }],
        "one state of a job that has ended"
    );
}

#[tokio::test]
async fn counting_asks_feedser_for_the_kinds_that_decisions_rest_on() {
    let place = Place::new();
    place.feedser.add(numbered(3));
    place
        .feedser
        .world()
        .events
        .push(event("ingest", "INGEST", "ingest"));
    let service = place.start().await;
    for (case, kinds, want) in [
        ("by default", vec![], vec![("SBOM", 1), ("VEX", 1), ("SCAN", 1)]),
        (
            "as asked",
            vec!["INGEST".to_owned(), "VEX".to_owned()],
            vec![("VEX", 1), ("INGEST", 1)],
        ),
    ] {
        let answer = service
            .api
            .count_unproven(asked(pb::CountUnprovenRequest { kinds }))
            .await
            .unwrap();
        let counts = want.iter().map(|(kind, unproven)| pb::KindCount {
            kind: (*kind).into(),
            unproven: *unproven,
        });
        let counts: Vec<_> = counts.collect();
        let total = counts.len() as u64;
        assert_eq!(
            answer.into_inner(),
            pb::CountUnprovenResponse { total, counts },
            "{case}"
        );
    }
}
