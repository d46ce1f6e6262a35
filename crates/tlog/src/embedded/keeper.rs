//! Starts the log's threads, ends them, and starts them anew after a write that failed.
//!
//! A full disk is no reason to stay away until somebody restarts the process. When a thread could not write, the keeper
//! ends all of them, cuts the journal back to what is known to be on the disk, and waits until the disk takes something
//! again. Then it opens the log as after a crash, with the newest durable checkpoint as the floor. Meanwhile every
//! submission is refused; what was acknowledged before stays readable.

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stella_attest::key::SigningKey;
use stella_attest::tile::TILE_WIDTH;
use tokio::sync::watch;

use super::cosigner::{Cosigner, Known};
use super::intake::{self, Checked, Raw, Writer};
use super::journal::{self, Closed};
use super::open::{self, OpenError, Opened};
use super::publisher::{Publisher, Work};
use super::queue::Queue;
use super::sweeper::Sweeper;
use super::{BATCH_LIMIT, EmbeddedConfig, Shared, Signed, files};
use crate::Witness;

/// The first pause before the log is opened again; each one that leads nowhere is followed by one twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Bytes that the disk must take before the log is read again.
const PROBE_BYTES: usize = 64 << 10;

/// Something for the keeper to do.
pub(super) enum Event {
    /// A thread could not write.
    Failed,
    /// The log is to be closed.
    Close,
}

/// What is seen of the log from outside, whichever threads work on it.
#[derive(Clone)]
pub(super) struct Outlook {
    pub(super) durable: watch::Sender<Arc<Signed>>,
    pub(super) published: watch::Sender<Arc<Signed>>,
    pub(super) cosigned: watch::Sender<Option<Arc<Signed>>>,
    pub(super) is_working: watch::Sender<bool>,
}

impl Outlook {
    pub(super) fn new(opened: &Opened) -> Self {
        Self {
            durable: watch::Sender::new(opened.signed.clone()),
            published: watch::Sender::new(opened.signed.clone()),
            cosigned: watch::Sender::new(opened.cosigned.clone()),
            is_working: watch::Sender::new(true),
        }
    }
}

/// What submissions go into.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    pub(super) raw: Arc<Queue<Raw>>,
    pub(super) checked: Arc<Queue<Checked>>,
}

/// The threads, in the order in which they end.
struct Stages {
    running: Arc<Running>,
    checkers: Vec<JoinHandle<()>>,
    writer: JoinHandle<Closed>,
    closing: watch::Sender<bool>,
    cosigner: JoinHandle<()>,
    works: Arc<Queue<Work>>,
    publisher: JoinHandle<()>,
    sweeper: JoinHandle<Sweeper>,
    /// Held until all is written.
    lock: File,
}

impl Stages {
    /// Lets the threads finish what is under way; returns the segment that was written last, and what is left to sweep.
    fn end(self) -> (Option<Closed>, Option<Sweeper>, File) {
        self.running.raw.close();
        for checker in self.checkers {
            join(checker);
        }
        self.running.checked.close();
        let last = join(self.writer);
        self.closing.send_replace(true);
        join(self.cosigner);
        self.works.close();
        join(self.publisher);
        (last, join(self.sweeper), self.lock)
    }
}

/// Owns the threads.
pub(super) struct Keeper {
    config: EmbeddedConfig,
    key: Arc<SigningKey>,
    witnesses: Vec<Arc<dyn Witness>>,
    outlook: Outlook,
    running: Arc<RwLock<Arc<Running>>>,
    to_self: Sender<Event>,
    events: Receiver<Event>,
}

impl Keeper {
    /// Starts the threads on `opened`, and one that keeps them.
    #[expect(clippy::type_complexity, reason = "two things that live as long as the log")]
    pub(super) fn start(
        config: EmbeddedConfig,
        key: SigningKey,
        witnesses: Vec<Arc<dyn Witness>>,
        outlook: Outlook,
        opened: Opened,
        (to_self, events): (Sender<Event>, Receiver<Event>),
    ) -> io::Result<(JoinHandle<()>, Arc<RwLock<Arc<Running>>>)> {
        let key = Arc::new(key);
        let stages = start(&config, &key, &witnesses, &outlook, &to_self, opened)?;
        let running = Arc::new(RwLock::new(Arc::clone(&stages.running)));
        let keeper = Self {
            config,
            key,
            witnesses,
            outlook,
            running: Arc::clone(&running),
            to_self,
            events,
        };
        Ok((spawn("log-keep", move || keeper.run(stages))?, running))
    }

    /// Works until the log is closed.
    fn run(self, mut stages: Stages) {
        let mut pause = FIRST_PAUSE;
        let mut size = self.size();
        while let Ok(Event::Failed) = self.events.recv() {
            self.outlook.is_working.send_replace(false);
            // A log that fails again at once is not read again at once.
            pause = if self.size() > size { FIRST_PAUSE } else { pause };
            let (last, _, lock) = stages.end();
            drop(lock);
            let Some(again) = self.reopen(last, &mut pause) else {
                return;
            };
            stages = again;
            size = self.size();
            self.outlook.is_working.send_replace(true);
        }
        self.close(stages);
    }

    fn size(&self) -> u64 {
        self.outlook.durable.borrow().checkpoint.size
    }

    fn close(&self, stages: Stages) {
        let running = Arc::clone(&stages.running);
        let (last, sweeper, lock) = stages.end();
        if let (Some(last), Some(sweeper), None) = (last, sweeper, running.shared.failure()) {
            let size = self.outlook.published.borrow().checkpoint.size;
            if let Err(error) = sweeper.settle(size, last) {
                // The journal has everything that could not be flushed.
                tracing::warn!(%error, "the log was closed without being settled");
            }
        }
        drop(lock);
    }

    /// Tries until the log is open; `None` if it is closed meanwhile.
    fn reopen(&self, last: Option<Closed>, pause: &mut Duration) -> Option<Stages> {
        loop {
            match self.events.recv_timeout(*pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Failed) => continue,
                Ok(Event::Close) | Err(RecvTimeoutError::Disconnected) => return None,
            }
            *pause = (*pause * 2).min(LAST_PAUSE);
            match self.try_reopen(last.as_ref()) {
                Ok(stages) => return Some(stages),
                Err(error) => {
                    tracing::warn!(%error, cause = ?error, reason = error.reason(), "the log stays closed");
                }
            }
        }
    }

    fn try_reopen(&self, last: Option<&Closed>) -> Result<Stages, OpenError> {
        if let Some(last) = last {
            journal::cut_back(&self.config.dir, last)?;
        }
        files::probe(&self.config.dir, PROBE_BYTES)?;
        let floor = self.outlook.durable.borrow().checkpoint.clone();
        let opened = open::open(&self.config, &self.key, Some(&floor))?;
        let (signed, cosigned) = (opened.signed.clone(), opened.cosigned.clone());
        let stages = start(
            &self.config,
            &self.key,
            &self.witnesses,
            &self.outlook,
            &self.to_self,
            opened,
        )?;
        // The tree first: whoever sees a checkpoint may ask for proofs that lead to it.
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&stages.running);
        self.outlook.durable.send_replace(signed.clone());
        self.outlook.published.send_replace(signed);
        self.outlook.cosigned.send_replace(cosigned);
        Ok(stages)
    }
}

/// Starts all threads but the keeper's.
fn start(
    config: &EmbeddedConfig,
    key: &Arc<SigningKey>,
    witnesses: &[Arc<dyn Witness>],
    outlook: &Outlook,
    keeper: &Sender<Event>,
    opened: Opened,
) -> io::Result<Stages> {
    let last = opened.cosigned.as_deref();
    let witnesses = witnesses
        .iter()
        .map(|witness| Known::new(Arc::clone(witness), last))
        .collect();
    let shared = Arc::new(Shared {
        dir: config.dir.clone(),
        log: opened.log,
        tree: RwLock::new(opened.tree),
        durable: outlook.durable.clone(),
        published: outlook.published.clone(),
        cosigned: outlook.cosigned.clone(),
        failed: OnceLock::new(),
        keeper: keeper.clone(),
    });
    let size = opened.signed.checkpoint.size;
    let raw = Arc::new(Queue::new(1));
    let checked = Arc::new(Queue::new(config.batch_max.clamp(1, BATCH_LIMIT)));
    let works = Arc::new(Queue::new(usize::MAX));
    let (to_cosigner, durable) = tokio::sync::mpsc::unbounded_channel();
    let (to_sweeper, chores) = mpsc::channel();
    let closing = watch::Sender::new(false);

    let sweeper = Sweeper {
        dir: config.dir.clone(),
        durable: opened.base - opened.base % u64::from(TILE_WIDTH),
        segments: opened.closed,
        full: files::tiles_between(opened.base, size)
            .into_iter()
            .filter(|tile| !tile.is_partial())
            .collect(),
    };
    let publisher = Publisher {
        shared: Arc::clone(&shared),
        interval: config.publish_interval,
        edge: opened.edge,
        size,
        chores: to_sweeper.clone(),
    };
    let cosigner = Cosigner {
        shared: Arc::clone(&shared),
        witnesses,
        timeout: config.witness_timeout,
        publisher: Arc::clone(&works),
        closing: closing.subscribe(),
    };
    let writer = Writer {
        shared: Arc::clone(&shared),
        key: Arc::clone(key),
        journal: opened.journal,
        segment_bytes: config.segment_bytes,
        publisher: Arc::clone(&works),
        cosigner: to_cosigner,
        chores: to_sweeper,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tracing::info!(origin = %shared.log.origin, size, "log opened");
    Ok(Stages {
        checkers: intake::start_checkers(&raw, &checked)?,
        writer: {
            let checked = Arc::clone(&checked);
            spawn("log-write", move || writer.run(&checked))?
        },
        closing,
        cosigner: spawn("log-cosign", move || runtime.block_on(cosigner.run(durable)))?,
        publisher: {
            let works = Arc::clone(&works);
            spawn("log-publish", move || publisher.run(&works))?
        },
        works,
        sweeper: spawn("log-sweep", move || sweeper.run(&chores))?,
        lock: opened.lock,
        running: Arc::new(Running { shared, raw, checked }),
    })
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// What a stage leaves behind; `None` if it panicked, which its thread has said already.
fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    thread.join().ok()
}
