//! `stella demo`: the whole path on real input, in an empty directory, with four processes over mTLS.
//!
//! Each step says what it found, not that it ran; one that does not hold ends the demo, and `stop` runs all the same.

mod documents;
mod history;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Output, print, say, table};
use crate::parts;

/// Shows the whole path on real input, in an empty directory
#[derive(Args)]
pub struct Arguments {
    /// Directory of the demo; one of an earlier demo is replaced
    #[arg(long, value_name = "DIR", default_value = "./.stella")]
    dir: PathBuf,
    #[command(flatten)]
    parts: parts::Flags,
    /// Prints one JSON object and nothing else
    #[arg(long)]
    json: bool,
}

/// One step, as it came out.
struct Step {
    name: &'static str,
    ok: bool,
    millis: u128,
    detail: String,
}

/// Events of all kinds, as the steps counted them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    events: u64,
    unproven_before: u64,
    unproven_after: u64,
    not_found: u64,
}

/// The steps that were made, printed as they come.
struct Log {
    steps: Vec<Step>,
    quiet: bool,
}

impl Log {
    /// Notes how a step came out; true if it held.
    fn note(&mut self, name: &'static str, since: Instant, result: Result<String, Failure>) -> bool {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(failure) => (false, failure.text(false).trim_end().to_owned()),
        };
        let step = Step {
            name,
            ok,
            millis: since.elapsed().as_millis(),
            detail,
        };
        if !self.quiet {
            let result = if ok { "ok  " } else { "FAIL" };
            say(&format!("{result} {:<9} {}", step.name, step.detail));
        }
        self.steps.push(step);
        ok
    }

    fn held(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }
}

pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<ExitCode, Failure> {
    let as_json = arguments.json || output == Output::Json;
    let mut log = Log {
        steps: Vec::new(),
        quiet: as_json,
    };
    let mut counts = Counts::default();
    let since = Instant::now();
    let held = match steps::Demo::start(&arguments.dir, &arguments.parts, as_json).await {
        Ok(mut demo) => {
            log.note("start", since, Ok(demo.started()));
            let all = steps_of(&mut demo, &mut log, &mut counts).await;
            let since = Instant::now();
            let stopped = demo.stop().await;
            log.note("stop", since, stopped) && all
        }
        Err(failure) => log.note("start", since, Err(failure)),
    };
    report(&log, &counts, as_json)?;
    Ok(if held && log.held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the steps between `start` and `stop` until one does not hold.
async fn steps_of(demo: &mut steps::Demo, log: &mut Log, counts: &mut Counts) -> bool {
    macro_rules! step {
        ($name:literal, $step:expr) => {
            let since = Instant::now();
            let result = $step.await;
            if !log.note($name, since, result) {
                return false;
            }
        };
    }
    step!("sign", demo.sign());
    step!("publish", demo.publish());
    step!("history", demo.history(counts));
    step!("gap", demo.gap(counts));
    step!("backfill", demo.backfill(counts));
    step!("policy", demo.policy());
    step!("replay", demo.replay());
    step!("tamper", demo.tamper());
    step!("rotate", demo.rotate());
    true
}

fn report(log: &Log, counts: &Counts, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let steps: Vec<Value> = log
            .steps
            .iter()
            .map(|step| {
                let millis = u64::try_from(step.millis).unwrap_or(u64::MAX);
                json!({"detail": step.detail, "millis": millis, "name": step.name, "ok": step.ok})
            })
            .collect();
        let object = json!({
            "events": counts.events, "not_found": counts.not_found, "ok": log.held(), "steps": steps,
            "unproven_after": counts.unproven_after, "unproven_before": counts.unproven_before,
        });
        return print(format!("{object}\n").as_bytes());
    }
    let rows: Vec<Vec<String>> = log
        .steps
        .iter()
        .map(|step| {
            let result = if step.ok { "ok" } else { "FAILED" };
            vec![
                step.name.to_owned(),
                result.to_owned(),
                format!("{} ms", step.millis),
                step.detail.clone(),
            ]
        })
        .collect();
    print(b"\n")?;
    print(table(&["STEP", "RESULT", "TIME", "WHAT"], &rows).as_bytes())?;
    let millis: u128 = log.steps.iter().map(|step| step.millis).sum();
    print(
        format!(
            "\n{} in {:.1} s\n",
            if log.held() { "all steps held" } else { "FAILED" },
            millis as f64 / 1000.0
        )
        .as_bytes(),
    )
}
