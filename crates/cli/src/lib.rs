//! The command line: parses what was asked, calls the services, prints the answer.
//!
//! `stella up` and `stella demo` start this very program four times as `stella serve SERVICE`.

mod client;
mod commands;
mod demo;
mod devdir;
mod failure;
mod output;
mod parts;
mod supervisor;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::Connection;
use crate::commands::{
    attest, audit, backfill, events, feedser, keys, pki, policy, publish, trust, up, verify,
};
use crate::devdir::Service;
use crate::failure::Failure;

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("STELLA_COMMIT"),
    ", ",
    env!("STELLA_TARGET"),
    ")"
);

/// Proves where software came from.
///
/// Exit codes: 0 ok, 2 wrong usage, 3 verification failed, 4 not found, 1 anything else.
#[derive(Parser)]
#[command(name = "stella", version = VERSION)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the whole path on real input, in an empty directory
    Demo(demo::Arguments),
    /// Starts the four services on this machine and stays
    Up(up::Arguments),
    /// Stops the services of `stella up`
    Down(up::Place),
    /// Shows whether the services of `stella up` are serving
    Status(up::Place),
    /// Runs one service
    Serve {
        /// Which one
        #[arg(value_enum)]
        service: Service,
        /// Its configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    Attest(attest::Arguments),
    Publish(publish::Arguments),
    #[command(subcommand)]
    Events(events::Command),
    #[command(subcommand)]
    Audit(audit::Command),
    Verify(verify::Arguments),
    #[command(subcommand)]
    Forensic(ForensicCommand),
    #[command(subcommand)]
    Trust(trust::Command),
    #[command(subcommand)]
    Keys(keys::Command),
    #[command(subcommand)]
    Backfill(backfill::Command),
    #[command(subcommand)]
    Feedser(feedser::Command),
    #[command(subcommand)]
    Policy(policy::Command),
    #[command(subcommand)]
    Pki(pki::Pki),
    #[command(subcommand)]
    Access(pki::Access),
}

/// Works without any service
#[derive(Subcommand)]
enum ForensicCommand {
    /// Verifies a bundle, an envelope or a slice offline
    Verify(verify::Forensic),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let as_json = cli.connection.is_json();
    match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::say(failure.text(as_json).trim_end());
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let Cli { connection, command } = cli;
    let done = match command {
        Command::Serve { service, config } => runtime.block_on(serve(service, config)),
        Command::Forensic(ForensicCommand::Verify(arguments)) => {
            return Ok(verify::forensic(&arguments, &connection));
        }
        Command::Pki(command) => pki::pki(command, connection.output),
        Command::Access(command) => pki::access(command, connection.output),
        Command::Demo(arguments) => return runtime.block_on(demo::run(arguments, connection.output)),
        Command::Up(arguments) => runtime.block_on(up::up(arguments, connection.output)),
        Command::Down(place) => runtime.block_on(up::down(place, connection.output)),
        Command::Status(place) => runtime.block_on(up::status(place, connection.output)),
        Command::Attest(arguments) => runtime.block_on(attest::run(arguments, &connection)),
        Command::Publish(arguments) => runtime.block_on(publish::run(arguments, &connection)),
        Command::Events(command) => runtime.block_on(events::run(command, &connection)),
        Command::Audit(command) => runtime.block_on(audit::run(command, &connection)),
        Command::Verify(arguments) => runtime.block_on(verify::run(arguments, &connection)),
        Command::Trust(command) => runtime.block_on(trust::run(command, &connection)),
        Command::Keys(command) => runtime.block_on(keys::run(command, &connection)),
        Command::Backfill(command) => runtime.block_on(backfill::run(command, &connection)),
        Command::Feedser(command) => runtime.block_on(feedser::run(command, &connection)),
        Command::Policy(command) => runtime.block_on(policy::run(command, &connection)),
    };
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(service: Service, config: PathBuf) -> Result<(), Failure> {
    let served = match service {
        Service::Signer => stella_signer::run(stella_serve::config::load(&config)?).await,
        Service::Verifier => stella_verifier::run(stella_serve::config::load(&config)?).await,
        Service::Feedser => stella_feedser::run(stella_serve::config::load(&config)?).await,
        Service::Backfill => stella_backfill::run(stella_serve::config::load(&config)?).await,
    };
    served.map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        super::Cli::command().debug_assert();
    }

    /// clap takes two arguments of one id for one, and gives each the environment and the value of the other.
    #[test]
    fn no_command_has_an_argument_of_its_own_with_the_id_of_a_global_one() {
        let cli = super::Cli::command();
        let global = cli.get_arguments().filter(|argument| argument.is_global_set());
        let global: Vec<_> = global.map(|argument| argument.get_id().clone()).collect();
        assert!(!global.is_empty());
        let mut commands: Vec<_> = cli.get_subcommands().collect();
        while let Some(command) = commands.pop() {
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(!global.contains(id), "`{id}` of `{}`", command.get_name());
            }
            commands.extend(command.get_subcommands());
        }
    }
}
