//! Developer commands: `cargo xtask test` runs every test with what the machine has, `cargo xtask bench` measures,
//! `cargo xtask peers` brings the programs of others that both need, `cargo xtask demo-real` runs the demo on them.

mod peers;
mod test;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Developer commands
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs every test; names at the end what could not run and why
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures against floors of the same run
    Bench {
        /// Prints one JSON object
        #[arg(long)]
        json: bool,
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Runs `stella demo` on DocumentDB with FerretDB v2 and Rekor v1, then v2; prints both tables
    DemoReal,
    /// Brings the programs of others that checks and tests need into `$STELLA_PEERS`, the user's cache by default
    Peers {
        /// Prints each with version, licence and the files that use it, and brings nothing
        #[arg(long)]
        list: bool,
        /// Only these
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Test { arguments } => test::run(&arguments),
        Task::Bench { json, only } => bench(json, only),
        Task::DemoReal => demo_real(),
        Task::Peers { list: true, .. } => peers::list().map(|()| ExitCode::SUCCESS),
        Task::Peers { list: false, names } => peers::bring(&names).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// The program that runs cargo again.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    command
}

fn bench(json: bool, only: Option<String>) -> anyhow::Result<ExitCode> {
    let build = cargo()
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "stella-cli",
            "-p",
            "stella-forensic-verify",
        ])
        .status()?;
    anyhow::ensure!(build.success(), "the release build failed");
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "-p", "stella-e2e", "--bench", "ladder", "--"]);
    if json {
        bench.arg("--json");
    }
    if let Some(only) = only {
        bench.args(["--only", &only]);
    }
    Ok(if bench.status()?.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the demo on real parts runs on.
const REAL_PARTS: [&str; 8] = [
    "postgresql",
    "documentdb",
    "ferretdb",
    "redis-server",
    "trillian",
    "rekor-v1",
    "rekor-v2",
    "timestamp-server",
];

fn demo_real() -> anyhow::Result<ExitCode> {
    peers::bring(&REAL_PARTS.map(str::to_owned))?;
    let build = cargo()
        .args(["build", "--release", "--quiet", "-p", "stella-cli"])
        .status()?;
    anyhow::ensure!(build.success(), "the release build failed");
    let mut run = cargo();
    run.args([
        "run",
        "--quiet",
        "-p",
        "stella-testkit",
        "--bin",
        "demo-real",
        "--",
        "target/release/stella",
    ]);
    Ok(if run.status()?.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
