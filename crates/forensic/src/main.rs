//! `stella-forensic-verify --bundle FILE --trust-roots FILE`: the offline verifier, with no network code linked.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use stella_forensic::Arguments;

/// Verifies a bundle, an envelope or a slice offline.
///
/// Exit codes: 0 verified, 2 wrong usage, 3 refused, 4 a file is not there, 1 anything else.
#[derive(Parser)]
#[command(name = "stella-forensic-verify", version)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    stella_forensic::run(&cli.arguments, &mut io::stdout().lock())
}
