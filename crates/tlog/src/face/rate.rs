//! How many writes may come: so many a second, and after a pause so many at once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(super) struct Rate {
    per_second: f64,
    burst: f64,
    state: Mutex<State>,
}

struct State {
    /// Writes that may come at once.
    left: f64,
    at: Instant,
}

impl Rate {
    /// A rate whose whole burst is there; both numbers count as at least 1.
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self {
            per_second: f64::from(per_second.max(1)),
            burst,
            state: Mutex::new(State { left: burst, at: now }),
        }
    }

    /// Takes one write.
    ///
    /// # Errors
    /// There is none; the time until there is.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(state.at).as_secs_f64();
        state.at = state.at.max(now);
        state.left = (state.left + since * self.per_second).min(self.burst);
        if state.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - state.left) / self.per_second));
        }
        state.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_so_many_a_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let rate = Rate::new(2, 3, start);
        for (millis, want) in [
            (0, Ok(())),
            (0, Ok(())),
            (0, Ok(())),
            (0, Err(500)),
            (250, Err(250)),
            (500, Ok(())),
            (500, Err(500)),
            // Time that seems to go back gives nothing.
            (400, Err(500)),
            // A long pause gives the burst again and no more.
            (100_000, Ok(())),
            (100_000, Ok(())),
            (100_000, Ok(())),
            (100_000, Err(500)),
        ] {
            let got = rate.take(at(millis)).map_err(|wait| wait.as_millis());
            assert_eq!(got, want, "at {millis} ms");
        }
    }
}
