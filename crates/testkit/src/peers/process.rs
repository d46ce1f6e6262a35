//! A running program of others.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for a peer to do what it was asked.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long to wait before a question that was answered with no is asked again.
const BEAT: Duration = Duration::from_millis(10);

/// `program` so that the kernel kills it when this process has ended, however it did.
pub(crate) fn program(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A program that runs until this is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says is appended to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.expect("a log in an own directory");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle of a file"))
            .stderr(file)
            .process_group(0);
        let child = spawn(command).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// Waits until `probe` says yes.
    ///
    /// # Panics
    /// The program ends before, or two minutes pass.
    pub(crate) fn wait_until(&mut self, mut probe: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !probe() {
            if let Some(status) = self.child.try_wait().expect("an own child") {
                panic!("{status}: {}", self.end_of_log());
            }
            assert!(Instant::now() < deadline, "not ready: {}", self.end_of_log());
            thread::sleep(BEAT);
        }
    }

    /// Ends it at once (SIGKILL).
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("-- end of {}\n{}", self.log.display(), self.end_of_log());
        }
    }
}

/// Starts `command` from a thread that never ends: the kernel's signal comes when the starting thread dies, and tests
/// run in threads of their own.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Sender<Order>> = LazyLock::new(|| {
        let (sender, orders) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in orders {
                // Nobody waits for the answer only if the test is already failing.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, answer) = channel();
    SPAWNER.send((command, sender)).expect("the thread never ends");
    answer.recv().expect("each order is answered")
}
