//! Holds the layers: what may depend on what, and that no network code is linked into the offline verifier.

use std::process::Command;

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// The crates that `package` depends on over these `edges`, without its own name.
fn depends(package: &str, edges: &str) -> Vec<String> {
    let tree = cargo(&[
        "tree",
        "--offline",
        "-p",
        package,
        "-e",
        edges,
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let names = tree
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// The names of the workspace's crates, sorted.
fn members() -> Vec<String> {
    let listed = cargo(&[
        "tree",
        "--offline",
        "--workspace",
        "--depth",
        "0",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let mut names: Vec<String> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn the_offline_verifier_links_no_network_code() {
    let linked = depends("stella-forensic-verify", "normal");
    assert!(
        linked.contains(&"stella-attest".to_owned()),
        "the tree was read: {linked:?}"
    );
    for banned in [
        "tokio", "hyper", "tonic", "rustls", "reqwest", "socket2", "mio", "h2",
    ] {
        assert!(!linked.contains(&banned.to_owned()), "{banned} is linked");
    }
}

#[test]
fn dependencies_between_our_crates_go_down_only() {
    let services = [
        "stella-signer",
        "stella-verifier",
        "stella-feedser",
        "stella-backfill",
    ];
    let middle = ["stella-serve", "stella-tlog", "stella-proto"];
    let below_cli = [
        &services[..],
        &middle[..],
        &["stella-attest", "stella-forensic-verify"],
    ]
    .concat();
    let mut allowed: Vec<(&str, Vec<&str>)> = vec![
        ("stella-attest", vec![]),
        ("stella-forensic-verify", vec!["stella-attest"]),
        ("stella-proto", vec!["stella-attest"]),
        ("stella-tlog", vec!["stella-attest"]),
        ("stella-serve", vec!["stella-attest", "stella-proto"]),
        ("stella-cli", below_cli.clone()),
        ("stella-testkit", [&below_cli[..], &["stella-cli"]].concat()),
        (
            "stella-e2e",
            [&below_cli[..], &["stella-cli", "stella-testkit"]].concat(),
        ),
        ("xtask", vec![]),
    ];
    for service in services {
        allowed.push((service, [&middle[..], &["stella-attest"]].concat()));
    }
    let mut rows: Vec<&str> = allowed.iter().map(|(package, _)| *package).collect();
    rows.sort_unstable();
    assert_eq!(members(), rows, "every crate of the workspace has its row");
    // Tests may start the programs of others, with what that stands on.
    let mut tests_may = depends("stella-testkit", "normal");
    tests_may.push("stella-testkit".to_owned());
    for (package, may) in allowed {
        let ours = |edges: &str| {
            let mut ours = depends(package, edges);
            ours.retain(|name| name.starts_with("stella-") && !may.contains(&name.as_str()));
            ours
        };
        assert_eq!(ours("normal"), [""; 0], "{package} depends upwards or sideways");
        let mut beyond = ours("normal,dev");
        beyond.retain(|name| !tests_may.contains(name));
        assert_eq!(beyond, [""; 0], "the tests of {package} do");
    }
}
