//! Puts commit and target into `stella --version`.

use std::path::Path;
use std::process::Command;

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    println!(
        "cargo::rustc-env=STELLA_COMMIT={}",
        commit.as_deref().unwrap_or("unknown").trim()
    );
    println!(
        "cargo::rustc-env=STELLA_TARGET={}",
        std::env::var("TARGET").unwrap_or_default()
    );
    // A build without git, or from an archive, has no commit. It is looked for again when there is one.
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["HEAD", "refs/heads", "packed-refs"] {
        let file = git(&["rev-parse", "--git-path", name]).filter(|file| Path::new(file.trim()).exists());
        if let Some(file) = file {
            println!("cargo::rerun-if-changed={}", file.trim());
        }
    }
}

/// What git prints, if it runs and has an answer.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}
