//! Raw computation on every core: the floor of work that only signatures can bound.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Pieces that a thread takes at a time.
const SHARE: usize = 32;

/// Does `work` for each number below `count`, on every core; how many a second.
pub fn rate(count: usize, work: impl Fn(usize) + Sync) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(SHARE, Ordering::Relaxed);
                    if first >= count {
                        return;
                    }
                    for number in first..count.min(first + SHARE) {
                        work(number);
                    }
                }
            });
        }
    });
    count as f64 / start.elapsed().as_secs_f64()
}
