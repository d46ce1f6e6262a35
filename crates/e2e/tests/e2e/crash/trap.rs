//! Kills a process at a system call of its own.
//!
//! `strace` attaches to one thread and injects SIGKILL as the call is entered, so the call is not made any more.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

/// A place to die at: the call `nth` of this name that a thread of this name makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) thread: &'static str,
    pub(super) call: &'static str,
    pub(super) nth: u32,
}

/// A tracer that waits for its call; gone when dropped.
pub(super) struct Trap {
    strace: Child,
    /// Open, for a tracer that cannot write ends.
    _said: BufReader<ChildStderr>,
}

impl Trap {
    /// Waits for one thread of `pid`.
    pub(super) fn at(strace: &Path, pid: i32, place: Place) -> Self {
        let Place { thread, call, nth } = place;
        let mut strace = Command::new(strace)
            .args(["-p", &thread_of(pid, thread)])
            .args(["-o", "/dev/null", "-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace starts");
        let mut said = BufReader::new(strace.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("reads");
        assert!(line.contains(" attached"), "strace said {line:?}");
        Self { strace, _said: said }
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        // It lets go of the process, where that still runs. Killed, it would leave it stopped.
        let _ = Command::new("kill")
            .args(["-TERM", &self.strace.id().to_string()])
            .status();
        let _ = self.strace.wait();
    }
}

fn thread_of(pid: i32, name: &str) -> String {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let mut threads = std::fs::read_dir(tasks).expect("the process runs").flatten();
    let found = threads.find(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    let found = found.unwrap_or_else(|| panic!("{pid} has no thread `{name}`"));
    found.file_name().into_string().expect("a number")
}
