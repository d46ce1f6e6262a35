//! Rekor v2 on the POSIX file system.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ED25519};

use super::home::Home;
use super::http;
use super::ports;
use super::process::{Process, program};
use super::tiles::Tiles;
use crate::tools::tool;

/// How a Rekor v2 runs.
#[derive(Clone, Copy, Debug)]
pub struct RekorV2Options {
    /// How often a checkpoint is published. An answer waits for the next one.
    pub checkpoint_interval: Duration,
    /// Longest time of a request. Shorter than `checkpoint_interval`, answers are lost though the entry is written.
    pub server_timeout: Duration,
    /// Takes no entries (405).
    pub read_only: bool,
}

impl Default for RekorV2Options {
    fn default() -> Self {
        Self {
            checkpoint_interval: Duration::from_millis(100),
            server_timeout: Duration::from_secs(20),
            read_only: false,
        }
    }
}

/// A running Rekor v2 and a file server for its tiles.
pub struct RekorV2 {
    /// Where entries are written: `POST {url}/api/v2/log/entries`. Checkpoint and tiles are not here (501).
    pub url: String,
    /// Where the log is read: `{tiles_url}/checkpoint`, `{tiles_url}/tile/…`.
    pub tiles_url: String,
    /// The log's Ed25519 key (PEM, SubjectPublicKeyInfo). Its checkpoints' origin is `127.0.0.1`.
    pub public_key_pem: String,
    process: Process,
    home: Home,
    server: PathBuf,
    ports: Ports,
    options: RekorV2Options,
    _tiles: Tiles,
}

#[derive(Clone, Copy)]
struct Ports {
    http: u16,
    grpc: u16,
    metrics: u16,
}

impl RekorV2 {
    /// Starts an empty log; `None`, said aloud, where Rekor v2 is not brought.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start(options: RekorV2Options) -> Option<Self> {
        Some(Self::start_program(tool("rekor-v2")?, options))
    }

    /// One log with the default options for all tests of this program.
    ///
    /// # Panics
    /// It does not come up.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<RekorV2> = OnceLock::new();
        let server = tool("rekor-v2")?;
        Some(SHARED.get_or_init(|| Self::start_program(server, RekorV2Options::default())))
    }

    /// Another log with the key of this one, and empty: what a log that was forked or rolled back looks like.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn another(&self, options: RekorV2Options) -> Self {
        let key = std::fs::read_to_string(self.home.file("key.pem")).expect("the key");
        let key = KeyPair::from_pem(&key).expect("the key");
        Self::start_with(self.server.clone(), &key, options)
    }

    fn start_program(server: PathBuf, options: RekorV2Options) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        Self::start_with(server, &key, options)
    }

    fn start_with(server: PathBuf, key: &KeyPair, options: RekorV2Options) -> Self {
        let home = Home::new();
        home.write("key.pem", key.serialize_pem());
        let ports = Ports {
            http: ports::free(),
            grpc: ports::free(),
            metrics: ports::free(),
        };
        let tiles = Tiles::serve(&home.folder("log"));
        Self {
            url: format!("http://127.0.0.1:{}", ports.http),
            tiles_url: tiles.url().to_owned(),
            public_key_pem: key.public_key_pem(),
            process: launch(&server, &home, ports, options),
            home,
            server,
            ports,
            options,
            _tiles: tiles,
        }
    }

    /// Ends the server at once (kill -9); what is published can still be read.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports and the same log, after a [`kill9`](Self::kill9) of its own.
    ///
    /// # Panics
    /// It does not come up.
    pub fn restart(&mut self) {
        self.restart_with(self.options);
    }

    /// The same with other options.
    ///
    /// # Panics
    /// It does not come up.
    pub fn restart_with(&mut self, options: RekorV2Options) {
        self.process.kill();
        self.options = options;
        self.process = launch(&self.server, &self.home, self.ports, options);
    }
}

fn launch(server: &Path, home: &Home, ports: Ports, options: RekorV2Options) -> Process {
    let mut rekor = program(server);
    rekor.args(["serve", "--hostname=127.0.0.1", "--log-level=error"]);
    rekor.args(["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]);
    rekor.args(["--batch-max-age=20ms", "--persistent-antispam"]);
    for (flag, value) in [
        ("http-port", ports.http.to_string()),
        ("grpc-port", ports.grpc.to_string()),
        ("http-metrics-port", ports.metrics.to_string()),
        ("storage-dir", home.file("log").display().to_string()),
        ("signer-filepath", home.file("key.pem").display().to_string()),
        ("read-only", options.read_only.to_string()),
        (
            "checkpoint-interval",
            format!("{}ms", options.checkpoint_interval.as_millis()),
        ),
        (
            "server-timeout",
            format!("{}ms", options.server_timeout.as_millis()),
        ),
    ] {
        rekor.arg(format!("--{flag}={value}"));
    }
    let mut process = Process::start(rekor, &home.file("rekor-v2.log"));
    process.wait_until(|| http::is_ok(ports.http, "/healthz"));
    process
}
