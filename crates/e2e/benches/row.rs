//! One row of the table: our figure, the floor that was measured in the same run, and their ratio.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What a ratio must keep.
#[derive(Clone, Copy)]
pub enum Goal {
    /// A rate: at least so much of the floor.
    AtLeast(f64),
    /// A time: at most so much of the floor.
    AtMost(f64),
    /// Shown for comparison.
    None,
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::AtLeast(ratio) => format!(">={ratio}"),
            Self::AtMost(ratio) => format!("<={ratio}"),
            Self::None => String::new(),
        }
    }

    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
            Self::None => true,
        }
    }
}

/// One measured row; `name` says what the floor is.
pub struct Row {
    pub name: &'static str,
    pub ours: f64,
    pub floor: f64,
    pub goal: Goal,
    pub unit: &'static str,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.ours / self.floor
    }

    /// The row as a line of the table.
    pub fn line(&self) -> String {
        let goal = self.goal.text();
        let verdict = match (goal.is_empty(), self.goal.met(self.ratio())) {
            (true, _) => "",
            (false, true) => "met",
            (false, false) => "MISSED",
        };
        format!(
            "{:>12.1} {:>12.1} {:<10} {:>6.2}  {:<7} {:<6} {}",
            self.ours,
            self.floor,
            self.unit,
            self.ratio(),
            goal,
            verdict,
            self.name
        )
    }

    /// The row for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name, "ours": self.ours, "floor": self.floor, "ratio": self.ratio(),
            "goal": self.goal.text(), "unit": self.unit,
        })
    }
}

/// The line above the rows.
pub fn header() -> String {
    format!(
        "{:>12} {:>12} {:<10} {:>6}  {:<7} {:<6} ours / floor",
        "ours", "floor", "", "ratio", "goal", ""
    )
}

/// The rate of two kinds of work that are done one after the other, at these rates.
pub fn in_turn(one: f64, other: f64) -> f64 {
    1.0 / (1.0 / one + 1.0 / other)
}

/// The middle of the samples.
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Microseconds that one call takes, measured over about `window`.
fn micros_per_call(window: Duration, mut call: impl FnMut()) -> f64 {
    let mut calls = 0u32;
    let start = Instant::now();
    while start.elapsed() < window {
        for _ in 0..8 {
            call();
        }
        calls += 8;
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

/// Times both, taking turns, so that what else the machine does falls on both alike. Microseconds a call.
pub fn times(mut ours: impl FnMut(), mut floor: impl FnMut()) -> (f64, f64) {
    const ROUNDS: usize = 45;
    const WINDOW: Duration = Duration::from_millis(20);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(micros_per_call(WINDOW, &mut ours));
        b.push(micros_per_call(WINDOW, &mut floor));
    }
    (median(a), median(b))
}
