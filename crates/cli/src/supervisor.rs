//! Keeps the four services running as processes of their own.
//!
//! The supervisor holds the listening sockets and hands them down, so a service that dies comes back on its port. Each
//! child holds the read end of a pipe as its standard input; when this process ends, however it ends, the pipe closes
//! and the child drains.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use command_fds::{CommandFdExt as _, FdMapping};
use stella_serve::config::ServiceUrl;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::devdir::{DevDir, Listeners, Ports, Service};
use crate::output::say;
use crate::parts::Parts;

/// Pauses before a service is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A service that ran so long is started again without a longer pause.
const STEADY: Duration = Duration::from_secs(30);
/// Longest wait until a service is SERVING.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for a service to drain before it is killed.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);
/// How often a service that starts is asked.
const ASK_EVERY: Duration = Duration::from_millis(15);

/// The running services.
pub struct Supervisor {
    dir: DevDir,
    stop: watch::Sender<bool>,
    keepers: Vec<JoinHandle<()>>,
    ports: BTreeMap<String, Ports>,
    /// Where in its log each service began.
    logged: BTreeMap<&'static str, u64>,
}

impl Supervisor {
    /// Binds the ports, makes what is missing in the directory, and starts the four services.
    ///
    /// # Errors
    /// The directory cannot be made, or a program cannot be started.
    pub fn start(dir: DevDir, parts: &Parts) -> anyhow::Result<Self> {
        let listeners = dir.bind(parts)?;
        let ports = dir.ports()?;
        dir.provision(&ports, parts)?;
        let (stop, stopped) = watch::channel(false);
        let program = std::env::current_exe().context("cannot find this program")?;
        let (mut keepers, mut logged) = (Vec::new(), BTreeMap::new());
        for (service, listeners) in listeners {
            let keeper = Keeper {
                service,
                dir: dir.clone(),
                program: program.clone(),
                listeners: Arc::new(listeners),
            };
            logged.insert(service.name(), keeper.logged());
            let first = keeper.spawn()?;
            keepers.push(tokio::spawn(keeper.keep(
                first,
                logged[service.name()],
                stopped.clone(),
            )));
        }
        Ok(Self {
            dir,
            stop,
            keepers,
            ports,
            logged,
        })
    }

    /// The ports of all services.
    pub fn ports(&self) -> &BTreeMap<String, Ports> {
        &self.ports
    }

    /// Waits until every service says that it is SERVING.
    ///
    /// # Errors
    /// One does not within half a minute; its log says why.
    pub async fn ready(&self) -> anyhow::Result<()> {
        for service in Service::ALL {
            let deadline = Instant::now() + READY_WITHIN;
            while !is_serving(&self.dir, &self.ports, service).await {
                if Instant::now() > deadline {
                    let log = self.dir.path(&format!("logs/{service}.log"));
                    let why = last_error(&log, self.logged[service.name()])
                        .map(|error| format!(": {error}"))
                        .unwrap_or_default();
                    bail!(
                        "{service} is not ready after {READY_WITHIN:?}{why}; its log is `{}`",
                        log.display()
                    );
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Has every service drain and end; returns when no process is left.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        for keeper in self.keepers {
            let _ = keeper.await;
        }
    }
}

/// True if the service answers that it is SERVING, to the operator's certificate.
pub async fn is_serving(dir: &DevDir, ports: &BTreeMap<String, Ports>, service: Service) -> bool {
    let Some(ports) = ports.get(service.name()) else {
        return false;
    };
    let Ok(url) = format!("https://127.0.0.1:{}", ports.main).parse::<ServiceUrl>() else {
        return false;
    };
    let [ca, cert, key] = ["pki/ca.pem", "operator/cert.pem", "operator/key.pem"].map(|file| dir.path(file));
    let Ok(channel) = stella_serve::client::connect(&ca, &cert, &key, &url, None).await else {
        return false;
    };
    let request = HealthCheckRequest {
        service: service.grpc_name().to_owned(),
    };
    let answer = HealthClient::new(channel).check(request).await;
    answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
}

/// Keeps one service running.
struct Keeper {
    service: Service,
    dir: DevDir,
    program: PathBuf,
    listeners: Arc<Listeners>,
}

impl Keeper {
    fn log(&self) -> PathBuf {
        self.dir.path(&format!("logs/{}.log", self.service))
    }

    /// Bytes in the service's log.
    fn logged(&self) -> u64 {
        std::fs::metadata(self.log()).map_or(0, |log| log.len())
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let file = self.log();
        let log = OpenOptions::new().create(true).append(true).open(&file);
        let log = log.with_context(|| format!("cannot write `{}`", file.display()))?;
        let socket = |listener: &std::net::TcpListener| -> anyhow::Result<OwnedFd> {
            Ok(listener.as_fd().try_clone_to_owned()?)
        };
        let Listeners { main, ops, log: face } = self.listeners.as_ref();
        let mut sockets = Vec::new();
        for (listener, child_fd) in [main, ops].into_iter().chain(face).zip(3..) {
            sockets.push(FdMapping {
                parent_fd: socket(listener)?,
                child_fd,
            });
        }
        let mut command = Command::new(&self.program);
        command
            .args(["serve", self.service.name(), "--config"])
            .arg(self.dir.config(self.service))
            .env("LISTEN_FDS", sockets.len().to_string())
            .env_remove("LISTEN_PID")
            .env("STELLA_SUPERVISED", "1")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for the supervisor; it tells the services itself.
            .process_group(0)
            .kill_on_drop(true)
            .fd_mappings(sockets)?;
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.service))
    }

    /// Keeps the service running; `logged` is how long its log was before it began.
    async fn keep(self, first: Child, mut logged: u64, mut stopped: watch::Receiver<bool>) {
        let mut running = Some(first);
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            if let Some(mut child) = running.take() {
                // Taken out, because waiting for a child closes its standard input.
                let input = child.stdin.take();
                tokio::select! {
                    status = child.wait() => {
                        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                        let why = last_error(&self.log(), logged).map(|error| format!(": {error}"));
                        say(&format!(
                            "{} ended ({status}){}; it is started again in {pause:?}",
                            self.service,
                            why.unwrap_or_default()
                        ));
                    }
                    () = told(&mut stopped) => {
                        drop(input);
                        return end(child, self.service).await;
                    }
                }
            }
            if started.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = told(&mut stopped) => return,
            }
            logged = self.logged();
            match self.spawn() {
                Ok(child) => running = Some(child),
                Err(error) => say(&format!("{error:#}")),
            }
        }
    }
}

/// What stands in a log behind its last `error:`, in one line; only what is behind the first `from` bytes counts.
fn last_error(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    // What a service says at its end is short.
    let begin = from.max(file.metadata().ok()?.len().saturating_sub(64 << 10));
    file.seek(SeekFrom::Start(begin)).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = format!("\n{}", String::from_utf8_lossy(&bytes));
    let (_, last) = text.rsplit_once("\nerror: ")?;
    let words: Vec<&str> = last.split_whitespace().collect();
    Some(words.join(" "))
}

/// Waits until the services are to stop.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the supervisor itself is gone, which is the same.
    let _ = stopped.wait_for(|stopped| *stopped).await.map(|_| ());
}

/// Waits for a child whose standard input is closed, which tells it to drain, and kills it if it does not.
async fn end(mut child: Child, service: Service) {
    if tokio::time::timeout(DRAIN_WITHIN, child.wait()).await.is_err() {
        say(&format!(
            "{service} did not drain within {DRAIN_WITHIN:?} and is killed"
        ));
        let _ = child.kill().await;
    }
}
