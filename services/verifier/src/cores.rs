//! Computation away from the threads that serve connections: as many pieces at a time as there are cores.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;

use crate::error::Error;

/// Items that are worth a thread of their own.
const ITEMS_PER_THREAD: usize = 4;

/// The cores, shared by all calls.
pub(crate) struct Cores {
    number: usize,
    free: Arc<Semaphore>,
}

impl Cores {
    /// All cores of the machine.
    pub(crate) fn all() -> Self {
        let number = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            number,
            free: Arc::new(Semaphore::new(number)),
        }
    }

    /// Does `work` for each of `items` and returns the results in their order.
    ///
    /// # Errors
    /// [`Error::CutOff`] if a piece of work panicked or the process ends.
    pub(crate) async fn each<I, T, F>(&self, items: Vec<I>, work: F) -> Result<Vec<T>, Error>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&I) -> T + Send + Sync + 'static,
    {
        let count = items.len();
        let shared = Arc::new((items, work, AtomicUsize::new(0)));
        let threads = count.div_ceil(ITEMS_PER_THREAD).min(self.number);
        let parts = try_join_all((0..threads).map(|_| {
            let shared = Arc::clone(&shared);
            self.run(move || {
                let (items, work, next) = &*shared;
                let mut done = Vec::with_capacity(items.len());
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return done };
                    done.push((index, work(item)));
                }
            })
        }))
        .await?;
        let mut results: Vec<(usize, T)> = parts.into_iter().flatten().collect();
        results.sort_unstable_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let core = Arc::clone(&self.free).acquire_owned().await;
        let core = core.map_err(|_| Error::CutOff)?;
        let running = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(core);
            result
        });
        running.await.map_err(|_| Error::CutOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_stand_in_the_order_of_the_items() {
        let cores = Cores::all();
        for count in [0, 1, 3, 4, 5, 1_000] {
            let doubled = cores.each((0..count).collect(), |number: &u32| number * 2).await;
            let want: Vec<u32> = (0..count).map(|number| number * 2).collect();
            assert_eq!(doubled.expect("nothing panics"), want, "{count} items");
        }
    }

    #[tokio::test]
    async fn a_panic_cuts_off_its_call_and_gives_the_core_back() {
        let cores = Cores::all();
        for _ in 0..2 * cores.number {
            let panicked = cores.each(vec![1], |_: &u32| panic!("on purpose")).await;
            let panicked: Result<Vec<()>, Error> = panicked;
            assert!(matches!(panicked, Err(Error::CutOff)), "{panicked:?}");
        }
        assert_eq!(
            cores
                .each(vec![1], |number: &u32| *number)
                .await
                .expect("a core is free"),
            [1]
        );
    }
}
