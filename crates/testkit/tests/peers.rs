//! Each peer comes up and answers one true question, asked with a tool that is neither ours nor the peer's where there
//! is one.

use std::path::PathBuf;
use std::process::Command;

use stella_testkit::peers::{Access, FerretV1, FerretV2, JavaMongo, Keeps, RekorV2, RekorV2Options};
use stella_testkit::stack::Ended;
use stella_testkit::tools::{python, tool};

/// Runs `script` with `client`, a pymongo client of `uri`.
fn pymongo(python: &PathBuf, uri: &str, script: &str) -> Ended {
    let begin =
        "import sys, pymongo\nclient = pymongo.MongoClient(sys.argv[1], serverSelectionTimeoutMS=5000)\n";
    Ended::of(Command::new(python).args(["-c", &format!("{begin}{script}"), uri]))
}

const INSERT: &str = "client['d'].c.insert_one({'_id': 'one', 'n': 7})";
const FIND: &str = "print(client['d'].c.find_one({'_id': 'one'}))";
const FOUND: &str = "{'_id': 'one', 'n': 7}\n";

#[test]
fn mongo_java_server_keeps_what_it_acknowledged_over_a_kill() {
    let Some(python) = python("pymongo") else { return };
    let Some(mut mongo) = JavaMongo::start(Keeps::Durably) else {
        return;
    };
    pymongo(&python, &mongo.uri("d"), INSERT).ok();
    mongo.kill9();
    mongo.restart();
    assert_eq!(pymongo(&python, &mongo.uri("d"), FIND).ok(), FOUND);
}

#[test]
fn the_lying_mongo_java_server_acknowledges_and_loses() {
    let Some(python) = python("pymongo") else { return };
    let Some(mut mongo) = JavaMongo::start(Keeps::Lying) else {
        return;
    };
    // The server writes at most once a second; of what was acknowledged in the second before the kill something is lost.
    let insert = "import os, signal\n\
        for n in range(100000):\n    client['d'].c.insert_one({'_id': n})\n    print(n, flush=True)";
    let mut child = Command::new(&python)
        .args([
            "-c",
            &format!("import sys, pymongo\nclient = pymongo.MongoClient(sys.argv[1])\n{insert}"),
        ])
        .arg(mongo.uri("d"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = 0u64;
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for line in lines {
        acknowledged = line.unwrap().parse::<u64>().unwrap() + 1;
        if acknowledged == 2_000 {
            mongo.kill9();
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    mongo.restart();
    let kept = pymongo(
        &python,
        &mongo.uri("d"),
        "print(client['d'].c.count_documents({}))",
    )
    .ok();
    let kept: u64 = kept.trim().parse().unwrap();
    assert!(kept < acknowledged, "{kept} of {acknowledged}");
}

#[test]
fn ferretdb_v1_stores() {
    let Some(python) = python("pymongo") else { return };
    let Some(mongo) = FerretV1::start() else { return };
    pymongo(&python, &mongo.uri("d"), INSERT).ok();
    assert_eq!(pymongo(&python, &mongo.uri("d"), FIND).ok(), FOUND);
}

#[test]
fn ferretdb_v2_keeps_what_it_acknowledged_over_a_kill() {
    let Some(python) = python("pymongo") else { return };
    let Some(mut mongo) = FerretV2::start(Access::Open) else {
        return;
    };
    // Without its jobs the server would never answer the second.
    let indexed = format!("{INSERT}\nclient['d'].c.create_index('n', unique=True)");
    pymongo(&python, &mongo.uri("d"), &indexed).ok();
    mongo.kill9();
    mongo.restart();
    assert_eq!(pymongo(&python, &mongo.uri("d"), FIND).ok(), FOUND);
}

#[test]
fn ferretdb_v2_lets_in_by_certificate_only() {
    let Some(python) = python("pymongo") else { return };
    let Some(mongo) = FerretV2::start(Access::MutualTls) else {
        return;
    };
    pymongo(&python, &mongo.uri("d"), INSERT).ok();
    assert_eq!(pymongo(&python, &mongo.uri("d"), FIND).ok(), FOUND);
    let files = mongo.mutual_tls();
    let without = mongo
        .uri("d")
        .replace(&format!("&tlsCertificateKeyFile={}", files.client.display()), "");
    let refused = pymongo(&python, &without, FIND);
    assert!(refused.stderr.contains("certificate required"), "{refused:?}");
}

#[test]
fn ferretdb_v2_lets_in_by_password_only() {
    let Some(python) = python("pymongo") else { return };
    let Some(mongo) = FerretV2::start(Access::Scram) else {
        return;
    };
    pymongo(&python, &mongo.uri("d"), INSERT).ok();
    assert_eq!(pymongo(&python, &mongo.uri("d"), FIND).ok(), FOUND);
    let refused = pymongo(&python, &mongo.uri("d").replace("s3cret", "guess"), FIND);
    assert!(refused.stderr.contains("AuthenticationFailed"), "{refused:?}");
}

#[test]
fn rekor_v2_logs_a_signature_that_its_tiles_show() {
    let (Some(curl), Some(openssl)) = (tool("curl"), tool("openssl")) else {
        return;
    };
    let Some(mut rekor) = RekorV2::start(RekorV2Options::default()) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&curl);
        Ended::of(command.args(["-s", "-S", "--max-time", "30"]).args(arguments)).ok()
    };
    // A signature by OpenSSL over the SHA-256 of a file.
    let script = r#"cd "$1"; printf artifact > blob
        "$0" genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem 2> /dev/null
        "$0" pkey -in key.pem -pubout -outform DER -out pub.der
        "$0" dgst -sha256 -sign key.pem -out sig blob
        digest=$("$0" dgst -sha256 -binary blob | base64 -w 0)
        printf '{"hashedRekordRequestV002":{"digest":"%s","signature":{"content":"%s","verifier":{"publicKey":
            {"rawBytes":"%s"},"keyDetails":"PKIX_ECDSA_P256_SHA_256"}}}}' \
            "$digest" "$(base64 -w 0 sig)" "$(base64 -w 0 pub.der)" > request"#;
    let mut sh = Command::new("sh");
    sh.args(["-ec", script]).arg(&openssl).arg(home.path());
    Ended::of(&mut sh).ok();
    let request = format!("@{}", home.path().join("request").display());
    let entries = format!("{}/api/v2/log/entries", rekor.url);
    let answer: serde_json::Value =
        serde_json::from_str(&ask(&["--data-binary", &request, &entries])).unwrap();
    assert_eq!(answer["logIndex"], "0", "{answer}");
    let checkpoint = answer["inclusionProof"]["checkpoint"]["envelope"]
        .as_str()
        .unwrap();
    assert!(checkpoint.starts_with("127.0.0.1\n1\n"), "{checkpoint}");
    let status = ["-o", "/dev/null", "-w", "%{http_code}"];
    let codes = |url: &str, more: &[&str]| ask(&[&status[..], more, &[url]].concat());
    assert_eq!(ask(&[&format!("{}/checkpoint", rekor.tiles_url)]), checkpoint);
    assert_eq!(
        codes(&format!("{}/tile/entries/000.p/1", rekor.tiles_url), &[]),
        "200"
    );
    assert_eq!(
        codes(&format!("{}/tile/entries/001", rekor.tiles_url), &[]),
        "404"
    );

    rekor.kill9();
    rekor.restart();
    assert_eq!(codes(&entries, &["--data-binary", &request]), "409");
    rekor.restart_with(RekorV2Options {
        read_only: true,
        ..RekorV2Options::default()
    });
    assert_eq!(codes(&entries, &["--data-binary", &request]), "405");
}
