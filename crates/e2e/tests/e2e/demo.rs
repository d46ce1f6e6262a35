//! `stella demo`: one object for programs, nothing left running, nothing of others touched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use stella_testkit::peers::{FerretV2, RekorV1, RekorV2, Tsa};
use stella_testkit::stack::Ended;
use stella_testkit::tools::{built, tool_of};

/// The steps, in their order.
const STEPS: [&str; 11] = [
    "start", "sign", "publish", "history", "gap", "backfill", "policy", "replay", "tamper", "rotate", "stop",
];

/// A demo that ran in a new directory.
pub(crate) struct Demo {
    dir: PathBuf,
    ended: Ended,
    /// The predicate and the bundle of its SBOM.
    pub(crate) sbom: Vec<u8>,
    pub(crate) sbom_bundle: Vec<u8>,
}

/// The one demo that the tests look at; the directory is of this build and is made anew.
pub(crate) static DEMO: LazyLock<Demo> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier one is removed");
    }
    let ended = run(&dir);
    let read = |name: &str| std::fs::read(dir.join("demo").join(name)).unwrap_or_default();
    let (sbom, sbom_bundle) = (read("sbom.json"), read("sbom.bundle.json"));
    Demo {
        dir,
        ended,
        sbom,
        sbom_bundle,
    }
});

fn run(dir: &Path) -> Ended {
    run_on(dir, &[])
}

fn run_on(dir: &Path, flags: &[&str]) -> Ended {
    let mut command = Command::new(built("stella"));
    Ended::of(
        command
            .args(["demo", "--json", "--dir"])
            .arg(dir)
            .args(flags)
            .stdin(Stdio::null()),
    )
}

/// Command lines of the processes that have to do with `dir`.
fn running(dir: &Path) -> Vec<String> {
    let needle = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&needle)).collect()
}

fn held(ended: &Ended, dir: &Path) {
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert_eq!(
        ended.stdout.matches('\n').count(),
        1,
        "one line: {}",
        ended.stdout
    );
    let object = ended.json();
    let steps: Vec<(&str, Option<bool>)> = object["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .map(|step| (step["name"].as_str().unwrap_or(""), step["ok"].as_bool()))
        .collect();
    assert_eq!(steps, STEPS.map(|name| (name, Some(true))), "{object}");
    for step in object["steps"].as_array().into_iter().flatten() {
        let says = step["detail"].as_str().is_some_and(|detail| !detail.is_empty());
        assert!(says && step["millis"].is_u64(), "{step}");
    }
    let numbers =
        ["events", "unproven_before", "unproven_after", "not_found"].map(|name| object[name].as_u64());
    assert_eq!(numbers, [Some(2_004), Some(2_000), Some(10), Some(10)]);
    assert_eq!(object["ok"], true);
    assert_eq!(running(dir), Vec::<String>::new(), "nothing keeps running");
}

#[test]
fn the_demo_holds_and_leaves_nothing_running() {
    let demo = &*DEMO;
    held(&demo.ended, &demo.dir);
    // Another one takes the place of what the first left, and of what was put there since.
    let put = demo.dir.join("demo/put-there-since");
    std::fs::write(&put, "x").expect("written");
    let log = std::fs::read(demo.dir.join("signer/log.pem")).expect("a key");
    held(&run(&demo.dir), &demo.dir);
    assert!(!put.exists());
    assert_ne!(
        std::fs::read(demo.dir.join("signer/log.pem")).expect("a key"),
        log,
        "keys are new"
    );
}

#[test]
fn a_directory_of_others_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("signer")).expect("a folder");
    std::fs::write(dir.path().join("signer/keep.pem"), "not yours").expect("written");
    let file = dir.path().join("signer/keep.pem");
    for (case, place) in [("a directory", dir.path()), ("a file", file.as_path())] {
        let ended = run(place);
        let object = ended.json();
        let steps = object["steps"].as_array().expect("steps");
        let names: Vec<(&str, &Value)> = steps
            .iter()
            .map(|step| (step["name"].as_str().unwrap_or(""), &step["ok"]))
            .collect();
        assert_eq!(
            (ended.code, names),
            (1, vec![("start", &Value::Bool(false))]),
            "{case}: {object}"
        );
        let want = match case {
            "a file" => format!("`{}` is not a directory", place.display()),
            _ => format!(
                "`{}` is not empty and not of an earlier `stella demo`; name another --dir",
                place.display()
            ),
        };
        assert_eq!(steps[0]["detail"], format!("error: {want}"));
        assert_eq!(object["ok"], false);
    }
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).expect("there").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names(dir.path()), names(&dir.path().join("signer"))),
        (vec!["signer".into()], vec!["keep.pem".into()])
    );
    assert_eq!(std::fs::read(&file).expect("there"), b"not yours");
    assert_eq!(running(dir.path()), Vec::<String>::new());
}

/// The programs under the demo on real parts.
const REAL_PARTS: [(&str, &str); 5] = [
    ("ferretdb", "ferretdb"),
    ("rekor-v1", "rekor-server"),
    ("trillian", "trillian_log_server"),
    ("rekor-v2", "rekor-v2"),
    ("timestamp-server", "timestamp-server"),
];

#[test]
fn the_demo_holds_on_mongodb_with_rekor_v1_and_with_rekor_v2() {
    for (peer, program) in REAL_PARTS {
        if tool_of(peer, program).is_none() {
            return;
        }
    }
    let ended = Ended::of(
        Command::new(built("demo-real"))
            .arg(built("stella"))
            .stdin(Stdio::null()),
    );
    // A peer is lacking, which it has said.
    if ended.code == 3 && std::env::var("CI").is_err() {
        return print!("{}", ended.stdout);
    }
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(
        ended.stdout.matches("all steps held").count(),
        2,
        "{}",
        ended.stdout
    );
    for (part, times) in [
        ("events in MongoDB", 2),
        ("logged in Rekor v1", 1),
        ("NO_TRUSTED_TIME without signed entry timestamp", 1),
        ("logged in Rekor v2", 1),
        ("NO_TRUSTED_TIME without cosignature and authority", 1),
    ] {
        assert_eq!(
            ended.stdout.matches(part).count(),
            times,
            "{part}: {}",
            ended.stdout
        );
    }
}

#[test]
fn each_of_the_real_parts_may_be_the_only_one() {
    let home = tempfile::tempdir().expect("a directory");
    let pem = |name: &str, text: &str| {
        let file = home.path().join(name);
        std::fs::write(&file, text).expect("writes");
        file.display().to_string()
    };
    let dir = home.path().join("demo");
    let assert_holds = |flags: &[&str]| {
        let ended = run_on(&dir, flags);
        let object = ended.json();
        assert_eq!(
            (ended.code, &object["ok"]),
            (0, &Value::Bool(true)),
            "{flags:?}: {ended:?}"
        );
        assert_eq!(running(&dir), Vec::<String>::new(), "nothing keeps running");
    };
    if let Some(ferret) = FerretV2::shared() {
        assert_holds(&["--mongodb-uri", &ferret.uri("the_only_part")]);
    }
    if let Some(rekor) = RekorV2::shared() {
        let key = pem("rekor.pem", &rekor.public_key_pem);
        assert_holds(&[
            "--rekor",
            &rekor.url,
            "--rekor-version",
            "2",
            "--rekor-key",
            &key,
            "--rekor-tiles",
            &rekor.tiles_url,
        ]);
    }
    if let Some(rekor) = RekorV1::shared() {
        assert_holds(&["--rekor", &rekor.url]);
    }
    if let Some(tsa) = Tsa::shared() {
        assert_holds(&["--tsa", &tsa.url]);
    }
}
