//! `cargo xtask test`: one `cargo test` over the workspace, and a summary that hides nothing.
//!
//! A test that lacks a tool or input writes `NAME` into the file that `STELLA_NOT_RUN` names (see `testkit::needs`) and
//! passes; the summary lists each. With `CI=true` all peers are brought first, and such a test fails instead.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};

use anyhow::Context as _;

use crate::{cargo, peers};

/// Runs every test.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<ExitCode> {
    if std::env::var("CI").as_deref() == Ok("true") {
        peers::bring(&[])?;
    }
    let lacking = std::env::temp_dir().join(format!("stella-not-run-{}", std::process::id()));
    std::fs::write(&lacking, "")?;
    let built = cargo()
        .args(["build", "--workspace", "--bins", "--quiet"])
        .status()?;
    anyhow::ensure!(built.success(), "the build failed");
    let mut child = cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .env("STELLA_NOT_RUN", &lacking)
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut passed, mut failed) = (0u64, 0u64);
    for line in BufReader::new(child.stdout.take().context("cargo's output is piped")?).lines() {
        let line = line?;
        if let Some(counts) = line.strip_prefix("test result: ") {
            passed += count(counts, " passed");
            failed += count(counts, " failed");
        }
        println!("{line}");
    }
    let status = child.wait()?;
    let mut needs: BTreeMap<String, u64> = BTreeMap::new();
    for name in std::fs::read_to_string(&lacking)?.lines() {
        *needs.entry(name.to_owned()).or_default() += 1;
    }
    std::fs::remove_file(&lacking)?;
    println!();
    for (name, tests) in &needs {
        println!("not run: needs {name} ({tests} tests)");
    }
    println!("{} tests not run", needs.values().sum::<u64>());
    println!("{passed} passed, {failed} failed");
    Ok(if status.success() && failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_are_read_from_the_closing_line_of_a_runner() {
        let line = "ok. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.05s";
        assert_eq!(
            (
                count(line, " passed"),
                count(line, " failed"),
                count(line, " lost")
            ),
            (12, 3, 0)
        );
    }
}
