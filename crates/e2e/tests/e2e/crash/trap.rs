//! Kills a process at a system call of its own.
//!
//! `strace` attaches to one thread, or to a process and all that it starts, and injects a signal as the call is
//! entered: SIGKILL then, so the call is not made any more. Its counters are per thread and call.

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

/// What happens at the call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// The process dies before it.
    Killed,
    /// It fails, and is not made.
    Fails,
    /// It is made, and returns only after so many seconds.
    Late(u32),
}

/// A tracer that waits for its call; gone when dropped.
pub(super) struct Trap {
    strace: Child,
    /// Open, for a tracer that cannot write ends.
    _said: BufReader<ChildStderr>,
}

impl Trap {
    /// Waits for one thread of `pid`.
    pub(super) fn at(strace: &Path, pid: i32, place: Place, fate: Fate) -> Self {
        let Place { thread, call, nth } = place;
        let tid = thread_of(pid, thread);
        Self::set(strace, &["-p", &tid], &[call], nth, fate)
    }

    /// Waits for whichever thread of `pid`, or of a process that it starts from now on, is the first.
    pub(super) fn within(strace: &Path, pid: i32, calls: &[&str], nth: u32, fate: Fate) -> Self {
        Self::set(strace, &["-f", "-p", &pid.to_string()], calls, nth, fate)
    }

    fn set(strace: &Path, target: &[&str], calls: &[&str], nth: u32, fate: Fate) -> Self {
        let calls = calls.join(",");
        let fate = match fate {
            Fate::Killed => "signal=SIGKILL".to_owned(),
            Fate::Fails => "error=EIO".to_owned(),
            Fate::Late(seconds) => format!("delay_exit={seconds}000000"),
        };
        let mut strace = Command::new(strace)
            .args(target)
            .args(["-o", "/dev/null", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{fate}:when={nth}")])
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
