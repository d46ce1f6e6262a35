//! `stella up` in a directory of its own, as an operator runs it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use stella_serve::access::{SpiffeId, Tenant};
use stella_serve::upstream::{ConnectError, UpstreamChannel, select_tenant};
use tempfile::TempDir;
use tonic::Request;

use crate::tools::built;

/// Longest wait for a service to be serving again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the standard error of `stella up` goes, beside its directory.
const SAID: &str = "up.log";

/// The variable that `stella` takes the URI of a MongoDB database from.
const MONGODB_URI: &str = "STELLA_MONGODB_URI";

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Runs `command` to its end.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn of(command: &mut Command) -> Self {
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Standard output, if it ended well.
    ///
    /// # Panics
    /// It did not.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard output as JSON, whatever the exit code.
    ///
    /// # Panics
    /// It is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The files of one identity.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its certificate chain (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// The four services, until this is dropped.
pub struct Stack {
    home: TempDir,
    up: Child,
    env: BTreeMap<String, String>,
    /// Ends the services of a stack that is never dropped.
    undertaker: Option<Child>,
}

/// Waits until standard input closes, ends process `$0` and removes the directory `$1`.
const UNDERTAKER: &str = r#"cat >/dev/null
kill -TERM "$0" 2>/dev/null
for _ in $(seq 300); do kill -0 "$0" 2>/dev/null || break; sleep 0.1; done
rm -rf -- "$1""#;

impl Stack {
    /// Starts them in a new directory and waits until they are ready.
    ///
    /// # Panics
    /// They do not come up.
    pub fn start() -> Self {
        Self::start_on(&[])
    }

    /// The same on real parts, which the flags of `stella up` name.
    ///
    /// # Panics
    /// They do not come up.
    pub fn start_on(flags: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (up, env) = launch(&home.path().join("up"), &home.path().join(SAID), flags);
        Self {
            home,
            up,
            env,
            undertaker: None,
        }
    }

    /// The same for a `static`, which is never dropped: they end when this process has ended, however it does.
    ///
    /// # Panics
    /// They do not come up.
    pub fn start_for_all() -> Self {
        let mut stack = Self::start();
        let mut undertaker = Command::new("sh");
        undertaker.args(["-c", UNDERTAKER, &stack.up.id().to_string()]);
        undertaker.arg(stack.home.path()).stdin(Stdio::piped());
        undertaker.stdout(Stdio::null()).stderr(Stdio::null());
        stack.undertaker = Some(undertaker.spawn().expect("sh starts"));
        stack
    }

    /// One stack for all tests that leave it as they found it; it ends with the process.
    ///
    /// # Panics
    /// They do not come up.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<Stack>> = LazyLock::new(|| Arc::new(Stack::start_for_all()));
        Arc::clone(&SHARED)
    }

    /// The same as [`start`](Self::start), with `prepare` on the directory before the services start for good: keys,
    /// configurations and the method table are there then.
    ///
    /// # Panics
    /// They do not come up.
    pub fn start_with(prepare: impl FnOnce(&Path)) -> Self {
        let mut stack = Self::start();
        stack.down();
        prepare(&stack.dir());
        stack.up();
        stack
    }

    /// Ends the services and starts them again on the same directory.
    ///
    /// # Panics
    /// They do not come up.
    pub fn restart(&mut self) {
        self.down();
        self.up();
    }

    /// Ends the services; the directory stays.
    pub fn down(&mut self) {
        terminate(&mut self.up);
    }

    /// Starts the services again after [`down`](Self::down).
    ///
    /// # Panics
    /// They do not come up.
    pub fn up(&mut self) {
        (self.up, self.env) = launch(&self.dir(), &self.file(SAID), &[]);
    }

    /// The directory of `stella up`.
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("up")
    }

    /// A place for a test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file of the test and returns where it is.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).expect("a test's file can be written");
        path
    }

    /// A value of `stella.env`.
    ///
    /// # Panics
    /// It has none of that name.
    pub fn env(&self, name: &str) -> &str {
        &self.env[name]
    }

    /// All values of `stella.env`.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// `stella` as the operator runs it, in the test's directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(built("stella"));
        command
            .args(arguments)
            .env_remove(MONGODB_URI)
            .envs(&self.env)
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `stella` to its end.
    pub fn stella(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    /// Runs `stella` with `input` on its standard input.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn stella_with(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut command = self.command(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("ends");
        let _ = writer.join();
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Attests `predicate` of the type `kind` about the file `subject`; returns where the bundle is.
    ///
    /// # Panics
    /// It is refused.
    pub fn attest(&self, kind: &str, subject: &Path, predicate: &serde_json::Value, name: &str) -> PathBuf {
        let document = self.write(&format!("{name}.predicate.json"), predicate.to_string());
        let bundle = self.file(&format!("{name}.bundle.json"));
        let path = |path: &Path| path.display().to_string();
        let arguments = [
            "attest",
            "--type",
            kind,
            "--subject",
            &path(subject),
            "--predicate",
            &path(&document),
            "-o",
            &path(&bundle),
        ];
        self.stella(&arguments).ok();
        bundle
    }

    /// The operator.
    pub fn operator(&self) -> Identity {
        Identity {
            cert: self.env["STELLA_CERT"].clone().into(),
            key: self.env["STELLA_KEY"].clone().into(),
        }
    }

    /// A service's own certificate and key, as a thief has them.
    pub fn stolen(&self, service: &str) -> Identity {
        Identity {
            cert: self.dir().join(service).join("cert.pem"),
            key: self.dir().join(service).join("key.pem"),
        }
    }

    /// Another caller's certificate from the development authority; the method table does not know it.
    ///
    /// # Panics
    /// It cannot be issued.
    pub fn issue(&self, name: &str) -> Identity {
        let (dir, out) = (
            self.dir().display().to_string(),
            self.file(&format!("client-{name}")),
        );
        let id = format!("spiffe://stella.local/{name}");
        self.stella(&[
            "pki",
            "issue",
            "--dir",
            &dir,
            "--id",
            &id,
            "-o",
            &out.display().to_string(),
        ])
        .ok();
        Identity {
            cert: out.join("cert.pem"),
            key: out.join("key.pem"),
        }
    }

    /// A connection to the service `signer`, `verifier`, `feedser` or `backfill`.
    ///
    /// # Errors
    /// The service refused it, or is not the `expected` one.
    pub async fn connect(
        &self,
        service: &str,
        identity: &Identity,
        expected: Option<SpiffeId>,
    ) -> Result<UpstreamChannel, ConnectError> {
        let url = self
            .env(&format!("STELLA_{}", service.to_uppercase()))
            .parse()
            .expect("a URL");
        let ca = PathBuf::from(self.env("STELLA_CA"));
        stella_serve::client::connect(&ca, &identity.cert, &identity.key, &url, expected).await
    }

    /// The operator's connection to a service.
    ///
    /// # Panics
    /// There is none.
    pub async fn channel(&self, service: &str) -> UpstreamChannel {
        self.connect(service, &self.operator(), None)
            .await
            .expect("the operator is let in")
    }

    /// A request for the development tenant.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let tenant: Tenant = self.env("STELLA_TENANT").parse().expect("a tenant");
        let mut request = Request::new(message);
        select_tenant(&mut request, &tenant);
        request
    }

    /// What the service wrote into its log.
    pub fn log(&self, service: &str) -> String {
        std::fs::read_to_string(self.dir().join(format!("logs/{service}.log"))).unwrap_or_default()
    }

    /// Waits until what the service wrote into its log after its first `from` bytes holds `text`; returns its line.
    ///
    /// # Panics
    /// It does not within a minute.
    pub fn wait_for_log(&self, service: &str, from: usize, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log(service);
            // A line that is not ended may still grow.
            let mut lines = log.get(from..).unwrap_or_default().split_inclusive('\n');
            if let Some(line) = lines.find(|line| line.contains(text) && line.ends_with('\n')) {
                return line.trim_end().to_owned();
            }
            assert!(Instant::now() < deadline, "{service} never wrote {text:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The service's counter `name`, labels included, as it stands; 0 if it was never counted.
    ///
    /// # Panics
    /// The ops listener does not answer.
    pub fn counter(&self, service: &str, name: &str) -> u64 {
        let metrics = self.metrics(service);
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.trim().parse().expect("a counter is a number"))
    }

    /// What `stella up` wrote to standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.file(SAID)).unwrap_or_default()
    }

    /// The service's metrics, as Prometheus reads them.
    ///
    /// # Panics
    /// It does not answer.
    pub fn metrics(&self, service: &str) -> String {
        self.page(service, "/metrics")
    }

    /// Whether the service says that it takes calls.
    ///
    /// # Panics
    /// It does not answer.
    pub fn is_ready(&self, service: &str) -> bool {
        self.page(service, "/readyz").starts_with("HTTP/1.1 200 ")
    }

    /// A page of the service's ops listener, with its head.
    fn page(&self, service: &str, path: &str) -> String {
        use std::io::Read as _;
        let ports: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.dir().join("ports.json")).expect("ports"))
                .expect("JSON");
        let port = u16::try_from(ports[service]["ops"].as_u64().expect("a port")).expect("a port");
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the ops listener answers");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("reads");
        text
    }

    /// The process of a service.
    ///
    /// # Panics
    /// It does not run.
    pub fn pid(&self, service: &str) -> i32 {
        child_of(self.up.id(), service).unwrap_or_else(|| panic!("{service} does not run"))
    }

    /// Ends a service at once (kill -9); the supervisor starts it again. False if it did not run.
    pub fn kill(&self, service: &str) -> bool {
        let pid = child_of(self.up.id(), service);
        pid.inspect(|pid| signal(*pid, "KILL")).is_some()
    }

    /// Sends `name` (such as `STOP`) to a service.
    pub fn signal(&self, service: &str, name: &str) {
        signal(self.pid(service), name);
    }

    /// Waits until all four are serving.
    ///
    /// # Panics
    /// They are not within a minute.
    pub fn wait_ready(&self) {
        let dir = self.dir().display().to_string();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.stella(&["status", "--dir", &dir]);
            if status.code == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "not serving: {}", status.stdout);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(undertaker) = &mut self.undertaker {
            let _ = undertaker.kill();
            let _ = undertaker.wait();
        }
        terminate(&mut self.up);
        if std::thread::panicking() {
            for service in ["signer", "verifier", "feedser", "backfill"] {
                let log = self.log(service);
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!("-- end of {service}.log");
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}

/// Starts `stella up` and waits for its line `ready`; what it says beside goes into the file `said`.
fn launch(dir: &Path, said: &Path, flags: &[&str]) -> (Child, BTreeMap<String, String>) {
    let file = OpenOptions::new().create(true).append(true).open(said);
    let mut up = Command::new(built("stella"))
        .args(["up", "--dir"])
        .arg(dir)
        .args(flags)
        // It may name a server for other tests.
        .env_remove(MONGODB_URI)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file.expect("a file for what it says"))
        .spawn()
        .expect("stella starts");
    let mut line = String::new();
    let stdout = up.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("reads");
    let also = std::fs::read_to_string(said).unwrap_or_default();
    assert!(
        line.starts_with("ready"),
        "`stella up` said {line:?} and {also:?}"
    );
    let text = std::fs::read_to_string(dir.join("stella.env")).expect("stella.env is there");
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let env = pairs
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect();
    (up, env)
}

fn terminate(up: &mut Child) {
    if matches!(up.try_wait(), Ok(None)) {
        signal(i32::try_from(up.id()).expect("a pid"), "TERM");
        let _ = up.wait();
    }
}

fn signal(pid: i32, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
}

/// The child of `parent` that runs `stella serve SERVICE`.
fn child_of(parent: u32, service: &str) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let mut pids: Vec<i32> = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    for task in std::fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        pids.extend(
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    pids.into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.any(|word| word == b"serve") && words.next() == Some(service.as_bytes())
    })
}
