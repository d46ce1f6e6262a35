//! The service's own binary: `stella-feedser --config FILE`.

use std::path::Path;
use std::process::ExitCode;

use stella_serve::config::ConfigError;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, file] = &arguments[..] else {
        return usage();
    };
    if flag != "--config" {
        return usage();
    }
    match serve(Path::new(file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stella-feedser: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: stella-feedser --config FILE");
    ExitCode::from(2)
}

fn serve(file: &Path) -> anyhow::Result<()> {
    let explained = |error: ConfigError| {
        anyhow::anyhow!("{} [{}]\n  help: {}", error.whole(), error.reason(), error.help())
    };
    let config = stella_serve::config::load(file).map_err(explained)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(stella_feedser::run(config))
}
