//! Hands work from thread to thread, several pieces at a time.
//!
//! What is on its way here can be announced first. Then the taker does not run off with the first piece while its
//! companions are about to arrive: it waits until at least as much has arrived as is still announced. So batches form
//! under load, and a single piece waits for nothing. Every announcement ends in a push or a withdrawal; both look again.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    most: usize,
}

struct State<T> {
    items: VecDeque<T>,
    announced: usize,
    takers_asleep: usize,
    is_closed: bool,
}

impl<T> State<T> {
    fn is_ready(&self, most: usize) -> bool {
        self.is_closed || (!self.items.is_empty() && self.items.len() >= self.announced.min(most))
    }
}

impl<T> Queue<T> {
    /// A queue from which at most `most` are taken at once.
    pub(super) fn new(most: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            announced: 0,
            takers_asleep: 0,
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            most,
        }
    }

    /// Says that something is on its way.
    pub(super) fn announce(&self) {
        self.lock().announced += 1;
    }

    /// Says that what was announced will not come.
    pub(super) fn withdraw(&self) {
        let mut state = self.lock();
        state.announced = state.announced.saturating_sub(1);
        self.wake(&state);
    }

    /// Adds a piece that was announced.
    pub(super) fn push_announced(&self, item: T) {
        let mut state = self.lock();
        state.announced = state.announced.saturating_sub(1);
        state.items.push_back(item);
        self.wake(&state);
    }

    /// Adds a piece; gives it back if the queue is closed.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(item);
        }
        state.items.push_back(item);
        self.wake(&state);
        Ok(())
    }

    /// Waits for pieces and takes them; nothing once the queue is closed and empty.
    pub(super) fn take(&self) -> Vec<T> {
        let mut state = self.lock();
        while !state.is_ready(self.most) {
            state.takers_asleep += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.takers_asleep -= 1;
        }
        let count = state.items.len().min(self.most);
        state.items.drain(..count).collect()
    }

    /// As [`take`](Self::take), but gathers until `not_before`, unless the queue is closed.
    pub(super) fn take_from(&self, not_before: Instant) -> Vec<T> {
        let mut state = self.lock();
        while !state.is_closed {
            let left = not_before.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(state);
        self.take()
    }

    /// Lets takers have what is there, and then nothing.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn wake(&self, state: &State<T>) {
        if state.takers_asleep > 0 && state.is_ready(self.most) {
            self.changed.notify_one();
        }
    }

    /// No code runs under the lock that could leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_single_piece_waits_for_nothing_and_companions_are_waited_for() {
        let queue = Queue::new(8);
        queue.push(1).unwrap();
        assert_eq!(queue.take(), [1]);

        for _ in 0..3 {
            queue.announce();
        }
        queue.push_announced(1);
        assert!(!queue.lock().is_ready(8), "two are still to come");
        queue.push_announced(2);
        assert_eq!(queue.take(), [1, 2], "the third is not worth waiting for");
        queue.withdraw();
        queue.push(4).unwrap();
        assert_eq!(queue.take(), [4]);
    }

    #[test]
    fn no_more_is_taken_at_once_than_allowed() {
        let queue = Queue::new(2);
        for item in 0..3 {
            queue.announce();
            queue.push_announced(item);
        }
        assert_eq!(queue.take(), [0, 1]);
        assert_eq!(queue.take(), [2]);
    }

    #[test]
    fn pieces_are_gathered_until_it_is_time() {
        let queue = Queue::new(8);
        queue.push(1).unwrap();
        let start = Instant::now();
        assert_eq!(queue.take_from(start + Duration::from_millis(30)), [1]);
        assert!(start.elapsed() >= Duration::from_millis(30));
        queue.push(2).unwrap();
        queue.close();
        assert_eq!(
            queue.take_from(start + Duration::from_secs(3600)),
            [2],
            "closed, nothing is waited for"
        );
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let queue = Arc::new(Queue::new(8));
        let taker = {
            let queue = queue.clone();
            thread::spawn(move || (queue.take(), queue.take()))
        };
        queue.push(1).unwrap();
        queue.close();
        let (first, second) = taker.join().unwrap();
        assert_eq!([first, second].concat(), [1]);
        assert_eq!(queue.push(2), Err(2));
        assert_eq!(queue.take(), Vec::<i32>::new());
    }
}
