//! Rekor v1 with all that it stands on: Trillian, a PostgreSQL of its own, Redis for its index.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rcgen::KeyPair;

use super::home::Home;
use super::http;
use super::ports;
use super::process::{Process, program};
use crate::tools::{part_of, root, tool, tool_of};

/// Where Debian's `postgresql` 15 lies.
const POSTGRESQL: &str = "/usr/lib/postgresql/15/bin";

/// A running Rekor v1.
pub struct RekorV1 {
    /// The base URL.
    pub url: String,
    /// The log's P-256 key (PEM, SubjectPublicKeyInfo).
    pub public_key_pem: String,
    /// Trillian's number of the tree; it stands in the log's checkpoints (`rekor.local - TREE`).
    pub tree_id: String,
    rekor: Process,
    signer: Process,
    _log_server: Process,
    _redis: Process,
    _postgres: Process,
    home: Home,
    programs: Programs,
    ports: Ports,
}

#[derive(Clone)]
struct Programs {
    rekor: PathBuf,
    log_server: PathBuf,
    log_signer: PathBuf,
    schema: PathBuf,
    redis: PathBuf,
    postgres: PathBuf,
}

impl Programs {
    /// What is lacking is said aloud, each by name.
    fn brought() -> Option<Self> {
        root()?;
        let rekor = tool_of("rekor-v1", "rekor-server");
        let log_server = tool_of("trillian", "trillian_log_server");
        let log_signer = tool_of("trillian", "trillian_log_signer");
        let schema = part_of("trillian", "trillian.sql");
        let redis = tool("redis-server");
        let postgres = tool_of("postgresql", &format!("{POSTGRESQL}/postgres"));
        Some(Self {
            rekor: rekor?,
            log_server: log_server?,
            log_signer: log_signer?,
            schema: schema?,
            redis: redis?,
            postgres: postgres?,
        })
    }
}

#[derive(Clone, Copy)]
struct Ports {
    rekor: u16,
    log_server: u16,
    log_server_http: u16,
    signer: u16,
    signer_http: u16,
    redis: u16,
    postgres: u16,
}

impl RekorV1 {
    /// Starts an empty log; `None`, said aloud, where a part of it is not brought, and without root
    /// (it needs namespaces, and another user for PostgreSQL).
    ///
    /// # Panics
    /// It does not come up.
    pub fn start() -> Option<Self> {
        Some(Self::start_programs(Programs::brought()?))
    }

    /// One log for all tests of this program.
    ///
    /// # Panics
    /// It does not come up.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<RekorV1> = OnceLock::new();
        let programs = Programs::brought()?;
        Some(SHARED.get_or_init(|| Self::start_programs(programs)))
    }

    fn start_programs(programs: Programs) -> Self {
        let home = Home::new();
        let ports = Ports {
            rekor: ports::free(),
            log_server: ports::free(),
            log_server_http: ports::free(),
            signer: ports::free(),
            signer_http: ports::free(),
            redis: ports::free(),
            postgres: ports::free(),
        };
        let key = KeyPair::generate().expect("a key");
        home.write("rekor.key", key.serialize_pem());
        let postgres = launch_postgres(&programs, &home, ports.postgres);
        let redis = launch_redis(&programs.redis, &home, ports.redis);
        let store = format!(
            "--postgresql_uri=postgresql://postgres@127.0.0.1:{}/trillian?sslmode=disable",
            ports.postgres
        );
        let trillian = |server: &Path, rpc: u16, http: u16, more: &[&str]| {
            let mut trillian = program(server);
            trillian.args(["--quota_system=noop", "--storage_system=postgresql", &store]);
            trillian.arg(format!("--rpc_endpoint=127.0.0.1:{rpc}"));
            trillian.arg(format!("--http_endpoint=127.0.0.1:{http}"));
            trillian.args(more).current_dir(home.path());
            let name = server.file_name().expect("a program").to_string_lossy();
            let mut process = Process::start(trillian, &home.file(&format!("{name}.log")));
            process.wait_until(|| http::is_ok(http, "/healthz"));
            process
        };
        let log_server = trillian(&programs.log_server, ports.log_server, ports.log_server_http, &[]);
        let signer = trillian(
            &programs.log_signer,
            ports.signer,
            ports.signer_http,
            &["--force_master", "--sequencer_interval=50ms", "--batch_size=1000"],
        );
        let (rekor, tree_id) = launch_rekor(&programs.rekor, &home, ports, "0");
        Self {
            url: format!("http://127.0.0.1:{}", ports.rekor),
            public_key_pem: key.public_key_pem(),
            tree_id,
            rekor,
            signer,
            _log_server: log_server,
            _redis: redis,
            _postgres: postgres,
            home,
            programs,
            ports,
        }
    }

    /// Stops the part of Trillian that integrates entries (SIGSTOP): an upload hangs until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.signer.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signer.signal("CONT");
    }

    /// Ends Rekor's own server at once (kill -9).
    pub fn kill9(&mut self) {
        self.rekor.kill();
    }

    /// Starts it again on the same port and the same tree, after a [`kill9`](Self::kill9) of its own.
    ///
    /// # Panics
    /// It does not come up, or with another tree.
    pub fn restart(&mut self) {
        self.rekor.kill();
        let (rekor, tree_id) = launch_rekor(&self.programs.rekor, &self.home, self.ports, &self.tree_id);
        assert_eq!(tree_id, self.tree_id, "the tree");
        self.rekor = rekor;
    }
}

/// Starts Rekor's server on `tree`, or on a new one if that is `0`; returns its number.
fn launch_rekor(server: &Path, home: &Home, ports: Ports, tree: &str) -> (Process, String) {
    let mut rekor = program(server);
    rekor.args(["serve", "--rekor_server.hostname=rekor.local"]);
    rekor.args([
        "--rekor_server.address=127.0.0.1",
        "--redis_server.address=127.0.0.1",
    ]);
    rekor.arg("--trillian_log_server.address=127.0.0.1");
    rekor.arg(format!("--trillian_log_server.port={}", ports.log_server));
    rekor.arg(format!("--trillian_log_server.tlog_id={tree}"));
    rekor.arg(format!(
        "--rekor_server.signer={}",
        home.file("rekor.key").display()
    ));
    rekor.arg(format!("--port={}", ports.rekor));
    rekor.arg(format!("--redis_server.port={}", ports.redis));
    rekor.env("HOME", home.path()).current_dir(home.path());
    let mut process = Process::start(rekor, &home.file("rekor-server.log"));
    let mut tree_id = String::new();
    process.wait_until(|| {
        let answer = http::request("GET", ports.rekor, "/api/v1/log", b"");
        let Ok((200, answer)) = answer else { return false };
        let log: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
        log["treeID"].as_str().expect("a tree").clone_into(&mut tree_id);
        true
    });
    (process, tree_id)
}

fn launch_redis(server: &Path, home: &Home, port: u16) -> Process {
    let mut redis = program(server);
    redis.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
    redis.arg("--dir").arg(home.path());
    let mut process = Process::start(redis, &home.file("redis-server.log"));
    process.wait_until(|| {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            return false;
        };
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    });
    process
}

/// Runs PostgreSQL `$0` in namespaces of its own (all its processes die with the first one, its shared memory goes with
/// them) and as a user of its own, because it refuses root. `$1` is its directory, `$2` the port.
const IN_NAMESPACE: &str = r#"setpriv --reuid=postgres --regid=postgres --clear-groups \
    "$0" -D "$1/data" -k "$1" -p "$2" -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=off &
wait"#;

/// PostgreSQL with an empty database `trillian`. It need not survive a loss of power.
fn launch_postgres(programs: &Programs, home: &Home, port: u16) -> Process {
    let folder = home.folder("pg");
    run(Command::new("chown").arg("postgres:postgres").arg(&folder));
    let mut init = Command::new("setpriv");
    init.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    init.arg(format!("{POSTGRESQL}/initdb"));
    init.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
        "-D",
    ]);
    run(init.arg(folder.join("data")));

    let mut postgres = program("unshare");
    postgres.args(["--ipc", "--pid", "--fork", "--kill-child=KILL", "sh", "-ec"]);
    postgres.arg(IN_NAMESPACE).arg(&programs.postgres);
    postgres.arg(&folder).arg(port.to_string());
    let mut process = Process::start(postgres, &home.file("postgres.log"));
    let psql = |database: &str| {
        let mut psql = Command::new(format!("{POSTGRESQL}/psql"));
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-q", "-v", "ON_ERROR_STOP=1"]);
        psql.args(["-p", &port.to_string(), "-d", database]);
        psql
    };
    process.wait_until(|| {
        let output = psql("postgres").args(["-c", "create database trillian"]).output();
        output.expect("psql starts").status.success()
    });
    run(psql("trillian").arg("-f").arg(&programs.schema));
    process
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
