//! The README's lines, copied and pasted.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::{built, tool};

const README: &str = include_str!("../../../../README.md");

/// The lines of every block that begins with "```sh", in order.
fn lines() -> String {
    let blocks = README.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().expect("a block ends"))
        .collect()
}

#[test]
fn the_lines_of_the_readme_work_by_copy_and_paste() {
    let needed = ["cosign", "grpcurl", "buf", "jq", "curl"].map(tool);
    let Some(tools) = needed.into_iter().collect::<Option<Vec<_>>>() else {
        return;
    };
    let stack = Stack::start();
    let checkout = stack.file("checkout");
    std::fs::create_dir_all(checkout.join("target")).unwrap();
    symlink(built("stella").parent().unwrap(), checkout.join("target/release")).unwrap();
    symlink(stack.dir(), checkout.join(".stella-up")).unwrap();
    let folders = tools
        .iter()
        .filter_map(|tool| tool.parent().map(ToOwned::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(folders.chain(std::env::split_paths(&path))).unwrap();

    let script = stack.write("readme.sh", format!("set -eux\n{}", lines()));
    let mut bash = Command::new("bash");
    bash.arg(&script)
        .current_dir(&checkout)
        .env("PATH", path)
        .env("HOME", stack.dir())
        .stdin(Stdio::null());
    let ended = Ended::of(&mut bash);
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    for (what, said) in [
        ("backfill", "1 proven, 0 not found"),
        ("integrity", "0 altered"),
        ("verify", "VERIFIED"),
        ("policy", "ALLOW"),
        ("reflection", "stella.signer.v1.SignerService"),
        ("sign through reflection", "envelopeDigest"),
    ] {
        assert!(ended.stdout.contains(said), "{what}: {}", ended.stdout);
    }
    assert!(ended.stderr.contains("Verified OK"), "cosign: {}", ended.stderr);
}
