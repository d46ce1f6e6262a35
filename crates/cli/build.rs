//! Puts commit and target into `stella --version`, and the lock file into the demo's SBOM.

use std::path::Path;
use std::process::Command;

fn main() {
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    let commit = commit.ok().filter(|output| output.status.success());
    let commit = commit.and_then(|output| String::from_utf8(output.stdout).ok());
    println!(
        "cargo::rustc-env=STELLA_COMMIT={}",
        commit.as_deref().unwrap_or("unknown").trim()
    );
    println!(
        "cargo::rustc-env=STELLA_TARGET={}",
        std::env::var("TARGET").unwrap_or_default()
    );
    for file in ["../../.git/HEAD", "../../.git/refs/heads"] {
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
}
