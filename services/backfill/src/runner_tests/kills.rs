//! The process ends somewhere, and the next one goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use stella_attest::timestamp::Timestamp;
use stella_proto::backfill::v1 as pb;
use stella_serve::access::Tenant;

use super::{Place, Service, done, numbered, unproven};
use crate::fake::{VEX, World, attestation, event};
use crate::job::{Job, Listed, Page, State, Tally, Unproven};
use crate::store::sqlite::SqliteStore;
use crate::store::{KeyUse, NewJob, Progress, Report, Started, Store, StoreError};

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
        let job = service.begin_all().await;
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
    world.hold("second", of_subject);
    world.fail("refused", "SIGNATURE:KEY_UNKNOWN");
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
            let job = service.begin_all().await;
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
