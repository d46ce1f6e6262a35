//! Shows the forks of a log to whoever must stop believing it.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use stella_attest::fork::ForkProof;
use tokio::time::sleep;

use crate::Forks;
use crate::http::jittered;

/// The first pause before a proof that was not taken is shown again; it doubles, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Calls `show` with each fork of the log `log_id`, again and again until it is taken; an error says in words why it was
/// not. Ends when the log's client is gone.
pub async fn show_all<S, F>(log_id: [u8; 32], mut forks: Forks, show: S)
where
    S: Fn(Arc<ForkProof>) -> F,
    F: Future<Output = Result<(), String>>,
{
    let log_id = hex::encode(log_id);
    loop {
        let fork = forks.borrow_and_update().clone();
        let showing = async {
            if let Some(fork) = fork {
                show_one(&log_id, &fork, &show).await;
            }
            pending::<()>().await;
        };
        tokio::select! {
            changed = forks.changed() => if changed.is_err() {
                return;
            },
            () = showing => {}
        }
    }
}

async fn show_one<S, F>(log_id: &str, fork: &Arc<ForkProof>, show: &S)
where
    S: Fn(Arc<ForkProof>) -> F,
    F: Future<Output = Result<(), String>>,
{
    let mut pause = FIRST_PAUSE;
    while let Err(refused) = show(Arc::clone(fork)).await {
        tracing::error!(log_id, refused, "the proof of the log's fork was not taken");
        sleep(jittered(pause)).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    tracing::warn!(log_id, "the proof of the log's fork was taken");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;

    /// Longest wait for what must happen.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn fork(name: &str) -> Option<Arc<ForkProof>> {
        Some(Arc::new(ForkProof {
            first: name.into(),
            second: name.into(),
            root: [0; 32],
            consistency: Vec::new(),
        }))
    }

    /// Takes what it is shown at the third time.
    #[derive(Default)]
    struct Reluctant {
        shown: Mutex<Vec<String>>,
    }

    impl Reluctant {
        async fn run(self: Arc<Self>, forks: Forks) {
            let show = |fork: Arc<ForkProof>| {
                let reluctant = Arc::clone(&self);
                async move {
                    let mut shown = reluctant.shown.lock().expect("nobody panicked");
                    shown.push(fork.first.clone());
                    let times = shown.iter().filter(|name| **name == fork.first).count();
                    if times < 3 { Err("not yet".into()) } else { Ok(()) }
                }
            };
            show_all([0; 32], forks, show).await;
        }

        /// Waits until so many were shown, and a little longer.
        async fn names(&self, count: usize) -> Vec<String> {
            let deadline = Instant::now() + PATIENCE;
            let shown = || self.shown.lock().expect("nobody panicked").clone();
            while shown().len() < count && Instant::now() < deadline {
                sleep(Duration::from_millis(5)).await;
            }
            sleep(Duration::from_millis(20)).await;
            shown()
        }
    }

    #[tokio::test]
    async fn a_fork_is_shown_until_it_is_taken_and_the_next_one_too() {
        let forks = watch::Sender::new(None);
        let reluctant = Arc::new(Reluctant::default());
        let running = tokio::spawn(Arc::clone(&reluctant).run(forks.subscribe()));
        assert_eq!(reluctant.names(0).await, [""; 0], "there is none");
        forks.send_replace(fork("one"));
        assert_eq!(
            reluctant.names(3).await,
            ["one"; 3],
            "at the third time it was taken"
        );
        forks.send_replace(None);
        forks.send_replace(fork("two"));
        assert_eq!(
            reluctant.names(6).await,
            ["one", "one", "one", "two", "two", "two"]
        );
        drop(forks);
        running.await.expect("it ends with the log's client");
    }

    #[tokio::test]
    async fn a_fork_that_was_there_before_is_shown_and_one_that_was_cleared_no_more() {
        let forks = watch::Sender::new(fork("old"));
        let reluctant = Arc::new(Reluctant::default());
        tokio::spawn(Arc::clone(&reluctant).run(forks.subscribe()));
        assert_eq!(reluctant.names(1).await, ["old"]);
        forks.send_replace(None);
        sleep(FIRST_PAUSE * 2).await;
        assert_eq!(reluctant.names(1).await, ["old"]);
    }
}
