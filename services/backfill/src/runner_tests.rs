//! Whole jobs through the service's methods, with the real store and a Feedser in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use stella_attest::timestamp::Timestamp;
use stella_proto::backfill::v1 as pb;
use stella_proto::backfill::v1::backfill_service_server::BackfillService as _;
use stella_proto::status::{field, item_error, reason, refuse};
use stella_serve::access::{Caller, Tenant};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::api::BackfillApi;
use crate::backfill::Backfill;
use crate::config::Limits;
use crate::fake::{Fake, SBOM, SCAN, VEX, World, attestation, envelope, event, verification_failed};
use crate::job::{Job, Listed, Page, State, Tally, Unproven};
use crate::runner::Pace;
use crate::store::sqlite::SqliteStore;
use crate::store::{KeyUse, NewJob, Progress, Report, Started, Store, StoreError};

const NOW: &str = "2025-11-12T08:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A folder for the store, and the Feedser.
struct Place {
    dir: tempfile::TempDir,
    feedser: Fake,
}

/// The service, as long as its process lives.
struct Service {
    api: BackfillApi,
    backfill: Arc<Backfill>,
    stop: CancellationToken,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            feedser: Fake::default(),
        }
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.dir.path().join("backfill.db")).unwrap()
    }

    async fn start(&self) -> Service {
        self.start_with(Arc::new(self.store())).await
    }

    async fn start_with(&self, store: Arc<dyn Store>) -> Service {
        let limits = Limits {
            page_events: 4.try_into().unwrap(),
            jobs_per_tenant: 2.try_into().unwrap(),
            ..Limits::default()
        };
        let pace = Pace {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(4),
        };
        let stop = CancellationToken::new();
        let backfill = Backfill::paced(store, self.feedser.remote(), limits, pace, now, stop.clone());
        // A store that died at once has nothing to go on with.
        let _ = backfill.resume().await;
        Service {
            api: BackfillApi::new(Arc::clone(&backfill)),
            backfill,
            stop,
        }
    }
}

impl Service {
    /// Ends the process wherever it is.
    async fn kill(self) {
        self.stop.cancel();
        self.backfill.stopped().await;
        assert_eq!(Arc::strong_count(&self.backfill), 2, "somebody still works");
    }

    async fn begin(&self, request: pb::StartBackfillRequest) -> Result<pb::Backfill, Status> {
        let started = self.api.start_backfill(asked(request)).await?;
        Ok(started.into_inner().backfill.unwrap())
    }

    async fn get(&self, id: &str) -> (pb::Backfill, Vec<pb::Unproven>) {
        let request = pb::GetBackfillRequest {
            id: id.to_owned(),
            page_size: 1_000,
            page_token: String::new(),
        };
        let answer = self.api.get_backfill(asked(request)).await.unwrap().into_inner();
        assert_eq!(answer.next_page_token, "");
        (answer.backfill.unwrap(), answer.unproven)
    }

    /// The last state that a watcher sees.
    async fn wait(&self, id: &str) -> pb::Backfill {
        let request = pb::WatchBackfillRequest { id: id.to_owned() };
        let mut states = self
            .api
            .watch_backfill(asked(request))
            .await
            .unwrap()
            .into_inner();
        let mut last = None;
        while let Some(state) = states.next().await {
            last = state.unwrap().backfill;
        }
        last.unwrap()
    }

    async fn run(&self) -> (pb::Backfill, Vec<pb::Unproven>) {
        let job = self.begin(pb::StartBackfillRequest::default()).await.unwrap();
        let last = self.wait(&job.id).await;
        let (job, unproven) = self.get(&job.id).await;
        assert_eq!(job, last, "who waits and who asks see the same");
        (job, unproven)
    }
}

fn asked<T>(message: T) -> Request<T> {
    asked_for("acme", message)
}

fn asked_for<T>(tenant: &str, message: T) -> Request<T> {
    let caller = Caller::new(
        "spiffe://stella.local/operator".parse().unwrap(),
        Some(tenant.parse().unwrap()),
    );
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

/// What a finished job of all kinds says, but for its id.
fn done(tally: Tally) -> pb::Backfill {
    pb::Backfill {
        state: pb::BackfillState::Done.into(),
        kinds: vec!["SBOM".into(), "VEX".into(), "SCAN".into()],
        total: tally.processed(),
        processed: tally.processed(),
        proven: tally.proven,
        not_found: tally.not_found,
        errors: tally.errors,
        already_proven: tally.already_proven,
        started_at: NOW.into(),
        ended_at: NOW.into(),
        latest_proof_seconds: tally.latest_proof_seconds,
        ..pb::Backfill::default()
    }
}

#[track_caller]
fn assert_done(job: &pb::Backfill, tally: Tally) {
    assert_eq!(
        *job,
        pb::Backfill {
            id: job.id.clone(),
            ..done(tally)
        }
    );
}

fn unproven(id: &str, kind: &str, subject: &str, reason: &str, checks: &[&str]) -> pb::Unproven {
    pb::Unproven {
        event_id: id.to_owned(),
        kind: kind.to_owned(),
        subject_digest: envelope(subject),
        reason: reason.to_owned(),
        failed_checks: checks.iter().map(|check| (*check).to_owned()).collect(),
    }
}

fn numbered(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("evt_{number}{}", "x".repeat(number % 3)))
}

#[tokio::test]
async fn history_is_proven_and_what_is_not_is_named_with_its_reasons() {
    let place = Place::new();
    place.feedser.add(numbered(9));
    {
        let mut world = place.feedser.world();
        world.events.insert(2, event("none", "VEX", "none"));
        world.events.insert(4, event("other", "VEX", "other"));
        world
            .attestations
            .insert(envelope("other"), vec![attestation("other", SBOM, 1)]);
        world.events.insert(6, event("bad", "SCAN", "bad"));
        world
            .attestations
            .insert(envelope("bad"), vec![attestation("bad", SCAN, 1)]);
        let checks = "SIGNATURE:KEY_UNKNOWN, LOG_ENTRY:NOT_LOGGED";
        world.refused.insert(envelope("bad"), verification_failed(checks));
        world.events.insert(8, event("late", "SBOM", "late"));
        world
            .attestations
            .insert(envelope("late"), vec![attestation("late", SBOM, 59)]);
        world.events.insert(9, event("early", "SBOM", "early"));
        let early = attestation("early", SBOM, 0);
        world.attestations.insert(envelope("early"), vec![early]);
        world.events[9].ts = "2025-12-01T00:00:00Z".to_owned();
        world.events.push(event("ingest", "INGEST", "ingest"));
        world.events.insert(0, event("gone", "SBOM", "gone"));
        world
            .attestations
            .insert(envelope("gone"), vec![attestation("gone", SBOM, 1)]);
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
        world.attestations.insert(envelope("s"), of_subject);
        world
            .refused
            .insert(envelope("first"), verification_failed("SIGNATURE:KEY_UNKNOWN"));
        let lost = refuse(Code::FailedPrecondition, "EVIDENCE_NOT_FOUND", "no attestation");
        world.refused.insert(envelope("second"), item_error(&lost));
    }
    let service = place.start().await;
    let (job, list) = service.run().await;
    assert_done(
        &job,
        Tally {
            proven: 1,
            latest_proof_seconds: 3,
            ..Tally::default()
        },
    );
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
        world.attestations.insert(envelope("s"), of_subject);
        world
            .refused
            .insert(envelope("a"), verification_failed("KEY_SCOPE:TENANT"));
        world
            .refused
            .insert(envelope("b"), verification_failed("SIGNATURE:KEY_UNKNOWN"));
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
            world.attestations.insert(envelope(subject), junk.collect());
            for number in 0..most {
                let failed = verification_failed("SIGNATURE:KEY_UNKNOWN");
                world
                    .refused
                    .insert(envelope(&format!("{subject}{number}")), failed);
            }
        }
        world.events.push(event("flood", "VEX", "flood"));
        let junk = (0..300).map(|number| attestation(&format!("flood{number}"), VEX, 1));
        world.attestations.insert(envelope("flood"), junk.collect());
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
            world
                .attestations
                .insert(envelope(listed), vec![attestation(listed, SBOM, 1)]);
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
    assert_done(
        &job,
        Tally {
            proven: 10,
            latest_proof_seconds: 3,
            ..Tally::default()
        },
    );
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
    let job = service.begin(pb::StartBackfillRequest::default()).await.unwrap();
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
    assert_done(
        &last,
        Tally {
            proven: 1,
            latest_proof_seconds: 3,
            ..Tally::default()
        },
    );
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

#[tokio::test]
async fn answers_that_would_be_too_large_are_asked_for_in_parts() {
    let place = Place::new();
    place.feedser.add(numbered(11));
    place.feedser.world().most_found = 1;
    place.feedser.world().most_listed = 1;
    let (job, list) = place.start().await.run().await;
    assert_done(
        &job,
        Tally {
            proven: 11,
            latest_proof_seconds: 3,
            ..Tally::default()
        },
    );
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
        assert_done(
            &job,
            Tally {
                proven: want,
                latest_proof_seconds: 3,
                ..Tally::default()
            },
        );
    }
}

#[tokio::test]
async fn a_kill_between_any_two_attaches_loses_nothing_and_counts_nothing_twice() {
    for attaches in 0..14 {
        let place = Place::new();
        place.feedser.add(numbered(11));
        {
            let mut world = place.feedser.world();
            world.events.insert(3, event("none", "VEX", "none"));
            add_second_choice(&mut world, 7);
            world.attaches_left = Some(attaches);
        }
        let service = place.start().await;
        let job = service.begin(pb::StartBackfillRequest::default()).await.unwrap();
        while place.feedser.world().attaches_left != Some(0)
            && service.get(&job.id).await.0.state() == pb::BackfillState::Running
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        kill_among_live_traffic(&place, service, &job.id).await;
        place.feedser.world().attaches_left = None;

        let service = place.start().await;
        let last = service.wait(&job.id).await;
        let want = Tally {
            proven: 12,
            not_found: 1,
            latest_proof_seconds: 9,
            ..Tally::default()
        };
        assert_eq!(
            last,
            pb::Backfill {
                id: job.id.clone(),
                ..done(want)
            },
            "after {attaches} attaches"
        );
        let list = service.get(&job.id).await.1;
        assert_eq!(
            list,
            [unproven("none", "VEX", "none", "NOT_FOUND", &[])],
            "after {attaches} attaches"
        );
    }
}

/// Adds an event that its second candidate proves.
fn add_second_choice(world: &mut World, place: usize) {
    world.events.insert(place, event("second", "VEX", "second"));
    let of_subject = vec![attestation("refused", VEX, 1), attestation("second", VEX, 9)];
    world.attestations.insert(envelope("second"), of_subject);
    let failed = verification_failed("SIGNATURE:KEY_UNKNOWN");
    world.refused.insert(envelope("refused"), failed);
}

/// Ends the process, and lets events come in that the job is not about, if it has counted its own.
async fn kill_among_live_traffic(place: &Place, service: Service, job: &str) {
    let has_counted = service.get(job).await.0.total > 0;
    service.kill().await;
    if has_counted {
        place.feedser.add((0..9).map(|number| format!("live_{number}")));
    }
}

/// A store whose process dies at one of its verbs.
struct Dying {
    inner: SqliteStore,
    /// Verbs that are still carried out.
    left: AtomicUsize,
    /// Whether the last verb is carried out, and only its answer lost.
    carries_out: bool,
}

impl Dying {
    async fn verb<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let take = |left: usize| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(1) if self.carries_out => {
                work.await?;
                Err(StoreError::Closed)
            }
            Ok(1) | Err(_) => Err(StoreError::Closed),
            Ok(_) => work.await,
        }
    }

    fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
}

#[async_trait]
impl Store for Dying {
    async fn start(
        &self,
        job: NewJob,
        key: Option<KeyUse>,
        most: u64,
        now: Timestamp,
    ) -> Result<Started, StoreError> {
        self.inner.start(job, key, most, now).await
    }

    async fn running(&self) -> Result<Vec<Job>, StoreError> {
        self.verb(self.inner.running()).await
    }

    async fn job(&self, tenant: &Tenant, id: &str) -> Result<Option<Job>, StoreError> {
        self.inner.job(tenant, id).await
    }

    async fn report(
        &self,
        tenant: &Tenant,
        id: &str,
        after: u64,
        rows: usize,
    ) -> Result<Option<Report>, StoreError> {
        self.inner.report(tenant, id, after, rows).await
    }

    async fn progress(&self, id: &str) -> Result<Progress, StoreError> {
        self.verb(self.inner.progress(id)).await
    }

    async fn set_total(&self, id: &str, total: u64) -> Result<Job, StoreError> {
        self.verb(self.inner.set_total(id, total)).await
    }

    async fn take(&self, id: &str, events: Vec<Listed>, cursor: String) -> Result<Page, StoreError> {
        self.verb(self.inner.take(id, events, cursor)).await
    }

    async fn settle(
        &self,
        id: &str,
        page: u64,
        tally: Tally,
        unproven: Vec<Unproven>,
    ) -> Result<Job, StoreError> {
        self.verb(self.inner.settle(id, page, tally, unproven)).await
    }

    async fn end(&self, id: &str, state: State, message: String, now: Timestamp) -> Result<Job, StoreError> {
        self.verb(self.inner.end(id, state, message, now)).await
    }
}

#[tokio::test]
async fn a_kill_before_or_after_any_commit_loses_nothing_and_counts_nothing_twice() {
    for carries_out in [false, true] {
        let mut verbs = 1;
        loop {
            let place = Place::new();
            place.feedser.add(numbered(10));
            {
                let mut world = place.feedser.world();
                world.events.insert(5, event("none", "VEX", "none"));
                add_second_choice(&mut world, 6);
            }
            let store = Dying {
                inner: place.store(),
                left: AtomicUsize::new(verbs),
                carries_out,
            };
            let store = Arc::new(store);
            let service = place.start_with(Arc::clone(&store) as Arc<dyn Store>).await;
            let job = service.begin(pb::StartBackfillRequest::default()).await.unwrap();
            while !store.is_dead() && service.get(&job.id).await.0.state() == pb::BackfillState::Running {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let was_killed = store.is_dead();
            kill_among_live_traffic(&place, service, &job.id).await;
            drop(store);

            let service = place.start().await;
            let last = service.wait(&job.id).await;
            let case = format!("verb {verbs}, carried out: {carries_out}");
            let want = Tally {
                proven: 11,
                not_found: 1,
                latest_proof_seconds: 9,
                ..Tally::default()
            };
            assert_eq!(
                last,
                pb::Backfill {
                    id: job.id.clone(),
                    ..done(want)
                },
                "{case}"
            );
            let list = service.get(&job.id).await.1;
            assert_eq!(
                list,
                [unproven("none", "VEX", "none", "NOT_FOUND", &[])],
                "{case}"
            );
            if !was_killed {
                assert!(verbs > 8, "it takes several verbs to get through");
                break;
            }
            verbs += 1;
        }
    }
}

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
        let got = (
            refused.code(),
            reason(&refused).unwrap(),
            field(&refused).unwrap(),
        );
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
    let one = service.begin(pb::StartBackfillRequest::default()).await.unwrap();
    let two = service.begin(pb::StartBackfillRequest::default()).await.unwrap();
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
        let got = (
            refused.code(),
            reason(&refused).unwrap(),
            field(&refused).unwrap(),
        );
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
    let running = service
        .begin(pb::StartBackfillRequest::default())
        .await
        .unwrap()
        .id;
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
            let got = (
                refused.code(),
                reason(&refused).unwrap(),
                field(&refused).unwrap(),
            );
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
    let id = service
        .begin(pb::StartBackfillRequest::default())
        .await
        .unwrap()
        .id;
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
    let want = Tally {
        proven: 6,
        latest_proof_seconds: 3,
        ..Tally::default()
    };
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
