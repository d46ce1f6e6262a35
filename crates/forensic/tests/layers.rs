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

/// The crates that `package` links, without its own name.
fn links(package: &str) -> Vec<String> {
    let tree = cargo(&[
        "tree",
        "--offline",
        "-p",
        package,
        "-e",
        "normal",
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

#[test]
fn the_offline_verifier_links_no_network_code() {
    let linked = links("stella-forensic-verify");
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
    let mut allowed: Vec<(&str, Vec<&str>)> = vec![
        ("stella-attest", vec![]),
        ("stella-forensic-verify", vec!["stella-attest"]),
        ("stella-proto", vec!["stella-attest"]),
        ("stella-tlog", vec!["stella-attest"]),
        ("stella-serve", vec!["stella-attest", "stella-proto"]),
    ];
    for service in services {
        allowed.push((service, [&middle[..], &["stella-attest"]].concat()));
    }
    allowed.push((
        "stella-cli",
        [
            &services[..],
            &middle[..],
            &["stella-attest", "stella-forensic-verify"],
        ]
        .concat(),
    ));
    for (package, may) in allowed {
        let ours = links(package)
            .into_iter()
            .filter(|name| name.starts_with("stella-"));
        let beyond: Vec<String> = ours.filter(|name| !may.contains(&name.as_str())).collect();
        assert_eq!(
            beyond,
            Vec::<String>::new(),
            "{package} depends upwards or sideways"
        );
    }
}
