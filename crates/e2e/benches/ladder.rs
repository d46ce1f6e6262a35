//! Measures our figures against what the same work costs without us, in the same run.
//!
//! Each row is a pair: ours and a floor, measured in turns so that what else the machine does falls on both alike. What
//! counts is their ratio; a row says what its floor is and which ratio it must keep. A row that lacks something is named
//! with what it lacks. `cargo xtask bench` builds what the rows need and runs this.

mod bare;
mod cores;
mod domain;
mod events;
mod log;
mod log_http;
mod mongo;
mod program;
mod row;
mod signing;
mod stored;

use std::process::ExitCode;

use serde_json::json;
use stella_testkit::stack::Stack;
use tokio::runtime::Runtime;

use self::row::{Row, header};

/// What the rows are measured on.
pub struct Lab {
    runtime: Runtime,
    stack: Option<Stack>,
}

impl Lab {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { runtime, stack: None })
    }

    /// The four services, started when the first row needs them.
    pub fn stack(&mut self) -> (&Runtime, &Stack) {
        (&self.runtime, self.stack.get_or_insert_with(Stack::start))
    }
}

/// Rows that are measured together.
struct Part {
    names: &'static [&'static str],
    /// What the machine lacks for them, if anything.
    lacks: fn() -> Option<&'static str>,
    measure: fn(&mut Lab) -> anyhow::Result<Vec<Row>>,
}

const PARTS: [Part; 7] = [
    Part {
        names: &domain::NAMES,
        lacks: || None,
        measure: |_| domain::rows(),
    },
    Part {
        names: &log::NAMES,
        lacks: || None,
        measure: |lab| log::rows(&lab.runtime),
    },
    Part {
        names: &log_http::NAMES,
        lacks: log_http::lacks,
        measure: |lab| log_http::rows(&lab.runtime),
    },
    Part {
        names: &program::NAMES,
        lacks: program::lacks,
        measure: |_| program::rows(),
    },
    Part {
        names: &signing::NAMES,
        lacks: program::lacks_stella,
        measure: signing::rows,
    },
    Part {
        names: &events::NAMES,
        lacks: program::lacks_stella,
        measure: events::rows,
    },
    Part {
        names: &mongo::NAMES,
        lacks: mongo::lacks,
        measure: mongo::rows,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == bare::FLAG => bare::main(rest),
        _ => ladder(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ladder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ladder(arguments: &[String]) -> anyhow::Result<()> {
    let as_json = arguments.iter().any(|argument| argument == "--json");
    let only = arguments
        .iter()
        .skip_while(|argument| *argument != "--only")
        .nth(1);
    let wanted = |name: &str| only.is_none_or(|text| name.contains(text.as_str()));
    let mut lab = Lab::new()?;
    let (mut rows, mut not_run) = (Vec::new(), Vec::new());
    if !as_json {
        println!("{}", header());
    }
    for part in PARTS {
        if !part.names.iter().any(|name| wanted(name)) {
            continue;
        }
        if let Some(needs) = (part.lacks)() {
            let lacking = part.names.iter().filter(|name| wanted(name));
            not_run.extend(lacking.map(|name| (*name, needs)));
            continue;
        }
        for row in (part.measure)(&mut lab)?
            .into_iter()
            .filter(|row| wanted(row.name))
        {
            if !as_json {
                println!("{}", row.line());
            }
            rows.push(row);
        }
    }
    if as_json {
        let rows: Vec<_> = rows.iter().map(Row::to_json).collect();
        let not_run: Vec<_> = not_run
            .iter()
            .map(|(name, needs)| json!({"name": name, "needs": needs}))
            .collect();
        println!("{}", json!({"rows": rows, "not_run": not_run}));
    } else {
        for (name, needs) in not_run {
            println!("not run: {name}: needs {needs}");
        }
    }
    Ok(())
}
