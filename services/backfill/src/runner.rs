//! Runs a job from wherever it is to its end.
//!
//! [`Running::work`] begins with what the store has: pages that were taken and not settled, then new ones behind the
//! cursor. Some pages are worked on at a time and settled in their order, so that the next one is being attached while
//! one is counted. Whatever fails for a while, Feedser or the store, ends `work`; after a pause it begins again in the
//! same way as after a crash.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use stella_serve::access::Tenant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, debug, info, warn};

use crate::backfill::{Backfill, Running};
use crate::error::Error;
use crate::job::{Job, Outcome, Page, State, Tally, sum_up};
use crate::prove::{is_too_large, prove};
use crate::remote::Feedser;
use crate::store::Progress;

/// How long a job waits before it tries again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// After the first failure; doubled with each further one.
    pub(crate) first: Duration,
    /// Never longer.
    pub(crate) longest: Duration,
}

/// The pauses of one job. Half of each is random, so that jobs do not come back together.
struct Pauses {
    pace: Pace,
    failures: u32,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let doubled = self.pace.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let pause = doubled.min(self.pace.longest);
        let mut random = [0; 1];
        // Without randomness there is no jitter, which only costs fairness.
        let _ = aws_lc_rs::rand::fill(&mut random);
        pause / 2 + (pause / 2).mul_f64(f64::from(random[0]) / 255.0)
    }
}

impl Running {
    /// Runs until the job has ended or has to stop.
    pub(crate) async fn run(self) {
        let mut pauses = Pauses {
            pace: self.backfill.pace,
            failures: 0,
        };
        loop {
            let worked = tokio::select! {
                () = self.backfill.stop.cancelled() => return,
                worked = self.work_and_end(&mut pauses) => worked,
            };
            let Err(error) = worked else { return };
            let pause = pauses.next();
            let (reason, failures) = (error.reason(), pauses.failures);
            if failures == 1 {
                warn!(reason, cause = %error, "backfill waits");
            } else {
                debug!(reason, cause = %error, failures, "backfill still waits");
            }
            metrics::counter!("backfill_waits_total", "reason" => reason).increment(1);
            self.say(format!("waiting: {}", error.explanation()));
            tokio::select! {
                () = self.backfill.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Works until there is nothing left or the job fails, and ends it; an error is transient.
    async fn work_and_end(&self, pauses: &mut Pauses) -> Result<(), Error> {
        let (state, message) = match self.work(pauses).await {
            Ok(()) => (State::Done, String::new()),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => (State::Failed, error.explanation()),
        };
        let ended = self
            .backfill
            .store
            .end(&self.id, state, message, (self.backfill.clock)())
            .await?;
        let Tally {
            proven,
            not_found,
            errors,
            already_proven,
            ..
        } = ended.tally;
        let label = match state {
            State::Done | State::Running => "done",
            State::Failed => "failed",
        };
        info!(
            state = label,
            proven,
            not_found,
            errors,
            already_proven,
            message = ended.message,
            "backfill ended"
        );
        metrics::counter!("backfill_jobs_ended_total", "state" => label).increment(1);
        self.show(ended);
        Ok(())
    }

    /// Goes through what is left of the job.
    async fn work(&self, pauses: &mut Pauses) -> Result<(), Error> {
        let Progress {
            mut job,
            cursor,
            pages,
        } = self.backfill.store.progress(&self.id).await?;
        let total = match job.total {
            Some(total) => total,
            None => {
                let total = self.count(&job).await?;
                job = self.backfill.store.set_total(&self.id, total).await?;
                self.show(job.clone());
                total
            }
        };
        let taken = pages.iter().map(|page| page.events.len() as u64).sum::<u64>();
        let left = total.saturating_sub(job.tally.processed() + taken);
        let taking = Taking {
            backfill: Arc::clone(&self.backfill),
            job,
            cursor,
            left,
        };
        let pages = stream::iter(pages.into_iter().map(Ok)).chain(stream::try_unfold(taking, Taking::next));
        let (feedser, tenant, id) = (&self.backfill.feedser, &self.tenant, &self.id);
        let proving = pages.map(|page| {
            // Its attaches end when the job stops.
            let proving = page.map(|page| {
                let proving = prove_page(feedser.clone(), tenant.clone(), id.clone(), page);
                AbortOnDropHandle::new(tokio::spawn(proving.in_current_span()))
            });
            async move { proving?.await.unwrap_or(Err(Error::CutOff)) }
        });
        let mut proving = std::pin::pin!(proving.buffered(self.backfill.limits.pages_in_flight.get()));
        while let Some(settled) = proving.next().await {
            let (page, outcomes) = settled?;
            let (tally, unproven) = sum_up(page.events, outcomes);
            let job = self
                .backfill
                .store
                .settle(&self.id, page.number, tally, unproven)
                .await?;
            pauses.failures = 0;
            record(&tally);
            self.show(job);
        }
        Ok(())
    }

    /// How many events the job is about.
    async fn count(&self, job: &Job) -> Result<u64, Error> {
        let counts = self.backfill.feedser.count(&self.tenant, &job.kinds).await?;
        let unproven = counts
            .iter()
            .fold(0_u64, |sum, count| sum.saturating_add(count.unproven));
        Ok(if job.limit == 0 {
            unproven
        } else {
            unproven.min(job.limit)
        })
    }
}

/// The pages that are still to be taken.
struct Taking {
    backfill: Arc<Backfill>,
    job: Job,
    cursor: String,
    /// Events that may still be taken.
    left: u64,
}

impl Taking {
    /// Takes the next page; none at the end.
    async fn next(mut self) -> Result<Option<(Page, Self)>, Error> {
        let (feedser, job) = (&self.backfill.feedser, &self.job);
        let mut rows = self.left.min(u64::from(self.backfill.limits.page_events.get()));
        let (events, cursor) = loop {
            if rows == 0 {
                return Ok(None);
            }
            match feedser
                .unproven(&job.tenant, &job.kinds, &self.cursor, rows)
                .await
            {
                Ok(listed) => break listed,
                Err(Error::Upstream(status)) if is_too_large(&status) && rows > 1 => rows /= 2,
                Err(error) => return Err(error),
            }
        };
        if events.is_empty() {
            return Ok(None);
        }
        self.left -= events.len() as u64;
        self.cursor = cursor;
        let page = self
            .backfill
            .store
            .take(&self.job.id, events, self.cursor.clone())
            .await?;
        Ok(Some((page, self)))
    }
}

async fn prove_page(
    feedser: Feedser,
    tenant: Tenant,
    job: String,
    page: Page,
) -> Result<(Page, Vec<Outcome>), Error> {
    let outcomes = prove(&feedser, &tenant, &job, &page.events).await?;
    Ok((page, outcomes))
}

fn record(tally: &Tally) {
    for (outcome, events) in [
        ("proven", tally.proven),
        ("not_found", tally.not_found),
        ("error", tally.errors),
        ("already_proven", tally.already_proven),
    ] {
        metrics::counter!("backfill_events_total", "outcome" => outcome).increment(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_never_vanish() {
        let pace = Pace {
            first: Duration::from_millis(100),
            longest: Duration::from_millis(1_000),
        };
        let mut pauses = Pauses { pace, failures: 0 };
        for want in [100, 200, 400, 800, 1_000, 1_000, 1_000] {
            let pause = pauses.next().as_millis();
            assert!((want / 2..=want).contains(&pause), "{pause} of {want}");
        }
        pauses.failures = u32::MAX;
        assert!(pauses.next() <= pace.longest);
    }
}
