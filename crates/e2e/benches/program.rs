//! Whole processes, from start to end: what someone waits for who verifies one bundle.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::domain::Sample;
use super::row::{Goal, Row, median};

pub const NAMES: [&str; 1] = ["stella-forensic-verify on one bundle / an empty program"];

const FORENSIC: &str = "stella-forensic-verify";
const ROUNDS: usize = 151;

/// What the machine lacks to run the offline verifier and an empty program.
pub fn lacks() -> Option<&'static str> {
    if built(FORENSIC).is_none() {
        return Some("target/release/stella-forensic-verify (cargo xtask bench builds it)");
    }
    let version = rustc().arg("--version").stdout(Stdio::null()).status();
    version.is_err().then_some("rustc, to compile an empty program")
}

/// What the machine lacks to start the services.
pub fn lacks_stella() -> Option<&'static str> {
    built("stella")
        .is_none()
        .then_some("target/release/stella (cargo xtask bench builds it)")
}

pub fn rows() -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let sample = Sample::new()?;
    std::fs::write(path("bundle.json"), &sample.bundle)?;
    std::fs::write(path("roots.json"), sample.roots.to_canonical())?;
    std::fs::write(path("empty.rs"), "fn main() {}\n")?;
    let compiled = rustc()
        .args(["-O", "-o"])
        .args([path("empty"), path("empty.rs")])
        .status()?;
    anyhow::ensure!(compiled.success(), "the empty program was not compiled");
    let verifier = built(FORENSIC).ok_or_else(|| anyhow::anyhow!("{FORENSIC} is not built"))?;
    let (bundle, roots) = (path("bundle.json"), path("roots.json"));
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let arguments = [Path::new("--bundle"), &bundle, Path::new("--trust-roots"), &roots];
        ours.push(millis(Command::new(&verifier).args(arguments))?);
        floor.push(millis(&mut Command::new(path("empty")))?);
    }
    let (ours, floor) = (median(ours), median(floor));
    Ok(vec![Row {
        name: NAMES[0],
        ours,
        floor,
        goal: Goal::AtMost(2.5),
        unit: "ms",
    }])
}

/// A program of this workspace that stands beside this one's folder.
fn built(name: &str) -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    let found = this.parent()?.parent()?.join(name);
    found.is_file().then_some(found)
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// How long the program runs.
fn millis(command: &mut Command) -> anyhow::Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status()?;
    let elapsed = start.elapsed();
    anyhow::ensure!(status.success(), "{command:?} ended with {status}");
    Ok(elapsed.as_secs_f64() * 1e3)
}
