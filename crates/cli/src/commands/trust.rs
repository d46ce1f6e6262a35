//! `stella trust`: the trust roots that the Verifier has in force.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use stella_attest::canonical;

use super::audit::trust_roots;
use crate::client::Connection;
use crate::failure::{Failure, write_file};
use crate::output::{print_json, print_line};

/// How the trust roots are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Our own format, for `stella forensic verify`.
    Stella,
    /// `trusted_root.json`, for any Sigstore client.
    Sigstore,
}

/// Shows what verdicts believe
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Writes the trust roots to a file
    Export {
        /// How to write them
        #[arg(long, value_enum, default_value_t = Format::Stella)]
        format: Format,
        /// Where they go
        #[arg(short = 'o', long = "out", value_name = "FILE")]
        out: PathBuf,
    },
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    let Command::Export { format, out } = command;
    let roots = trust_roots(connection).await?;
    match format {
        Format::Stella => write_file(&out, roots.to_canonical())?,
        Format::Sigstore => write_file(&out, &canonical::to_vec(&roots.to_sigstore()))?,
    }
    match connection.is_json() {
        true => print_json(&json!({"digest": roots.digest().to_string(), "file": out})),
        false => print_line(&format!(
            "wrote {} (trust roots {})",
            out.display(),
            roots.digest()
        )),
    }
}
