//! `stella up`, `down` and `status`: the four services on this machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::feedser;
use crate::devdir::{DevDir, Service};
use crate::failure::Failure;
use crate::output::{Output, print, print_json, print_line, say, table};
use crate::parts;
use crate::supervisor::{Supervisor, is_serving};

/// Longest wait for `up` to end after it was told to.
const DOWN_WITHIN: Duration = Duration::from_secs(30);

/// Where the services live
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// Directory of keys, configurations, data and logs
    #[arg(long, value_name = "DIR", default_value = "./.stella-up")]
    pub dir: PathBuf,
}

/// How the services are started
#[derive(Args, Clone)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    parts: parts::Flags,
}

/// Takes the directory for one supervisor; it is free again when this process ends.
///
/// # Errors
/// Another one runs in it.
pub fn lock(dir: &DevDir) -> Result<File, Failure> {
    let path = dir.path("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let message = format!("services run in `{}` already", dir.path("").display());
            return Err(Failure::new(message).hint("stop them with `stella down --dir DIR`"));
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())?;
    file.sync_all()?;
    Ok(file)
}

/// The process that runs the services of a directory.
fn runner(dir: &DevDir) -> Result<Option<i32>, Failure> {
    let Ok(mut file) = File::open(dir.path("lock")) else {
        return Ok(None);
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(text.trim().parse().ok())
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

pub(crate) async fn up(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let dir = DevDir::claim(&arguments.place.dir, "up")?;
    let _lock = lock(&dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let parts = dir.settle(&arguments.parts).await?;
    if let Some(uri) = &arguments.parts.mongodb_uri {
        feedser::migrate(uri, None).await?;
    }
    let supervisor = Supervisor::start(dir.clone(), &parts)?;
    let ready = tokio::select! {
        ready = supervisor.ready() => ready,
        _ = terminate.recv() => Err(anyhow::anyhow!("told to end before the services were ready")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("told to end before the services were ready")),
    };
    if let Err(error) = ready {
        supervisor.stop().await;
        return Err(error.into());
    }
    let env = dir.write_env(supervisor.ports(), &parts)?;
    match output {
        // One line, so that whoever reads it need not wait for the end.
        Output::Json => {
            let urls: BTreeMap<_, _> = supervisor
                .ports()
                .iter()
                .map(|(service, ports)| (service, format!("https://127.0.0.1:{}", ports.main)))
                .collect();
            let ready = json!({"dir": arguments.place.dir, "env": env, "services": urls, "state": "ready"});
            print_line(&ready.to_string())?;
        }
        Output::Table => print_line(&format!(
            "ready; in another shell: set -a; . {}; set +a",
            env.display()
        ))?,
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    say("draining");
    supervisor.stop().await;
    Ok(())
}

pub(crate) async fn down(place: Place, output: Output) -> Result<(), Failure> {
    let dir = open(&place.dir)?;
    let Some(pid) = runner(&dir)?.and_then(rustix::process::Pid::from_raw) else {
        return Err(Failure::not_found(format!(
            "no services run in `{}`",
            place.dir.display()
        )));
    };
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(std::io::Error::from)?;
    let deadline = Instant::now() + DOWN_WITHIN;
    while runner(&dir)?.is_some() {
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "the services still run after {DOWN_WITHIN:?}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match output {
        Output::Json => print_json(&json!({"dir": place.dir, "state": "stopped"})),
        Output::Table => print_line("stopped"),
    }
}

fn open(dir: &Path) -> Result<DevDir, Failure> {
    DevDir::open(dir).map_err(|error| Failure::not_found(format!("{error:#}")))
}

pub(crate) async fn status(place: Place, output: Output) -> Result<(), Failure> {
    let dir = open(&place.dir)?;
    let running = runner(&dir)?.is_some();
    let ports = dir.ports()?;
    let mut rows = Vec::new();
    let mut all = running;
    for service in Service::ALL {
        let serving = running && is_serving(&dir, &ports, service).await;
        all &= serving;
        let port = ports
            .get(service.name())
            .map(|ports| ports.main.to_string())
            .unwrap_or_default();
        let state = if serving { "serving" } else { "down" };
        rows.push(vec![
            service.to_string(),
            format!("https://127.0.0.1:{port}"),
            state.to_owned(),
        ]);
    }
    if output == Output::Json {
        let list = rows
            .iter()
            .map(|row| json!({"service": row[0], "state": row[2], "url": row[1]}));
        print_json(&list.collect())?;
    } else {
        print(table(&["SERVICE", "URL", "STATE"], &rows).as_bytes())?;
    }
    if all {
        Ok(())
    } else {
        Err(Failure::new("not every service is serving").hint("see the logs in DIR/logs"))
    }
}
