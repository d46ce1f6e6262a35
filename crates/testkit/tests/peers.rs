//! Each peer comes up and answers one true question, asked with a tool that is neither ours nor the peer's where there
//! is one.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use stella_testkit::peers::{
    Access, FerretV1, FerretV2, JavaMongo, Keeps, RekorV1, RekorV2, RekorV2Options, Stream, Toxiproxy, Tsa,
};
use stella_testkit::stack::Ended;
use stella_testkit::tools::{python, tool, tool_of};

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

/// curl's answer, or its exit code.
fn curl(arguments: &[&str]) -> Ended {
    let mut command = Command::new("curl");
    Ended::of(command.args(["-s", "-S", "--max-time", "30"]).args(arguments))
}

#[test]
fn rekor_v1_logs_an_envelope_and_finds_it_and_hangs_while_trillian_is_paused() {
    let (Some(cli), Some(openssl)) = (tool_of("rekor-v1", "rekor-cli"), tool("openssl")) else {
        return;
    };
    let Some(mut rekor) = RekorV1::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let sign = r#"cd "$1"
        "$0" genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem 2> /dev/null
        "$0" pkey -in key.pem -pubout -out pub.pem
        for n in 1 2; do
            printf '{"_type":"https://in-toto.io/Statement/v1","predicateType":"t","subject":[{"name":"%s","digest":
                {"sha256":"%064d"}}],"predicate":{}}' $n $n > statement
            printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < statement)" | cat - statement > pae
            "$0" dgst -sha256 -sign key.pem -out sig pae
            printf '{"payloadType":"application/vnd.in-toto+json","payload":"%s","signatures":[{"sig":"%s"}]}' \
                "$(base64 -w 0 statement)" "$(base64 -w 0 sig)" > envelope$n
        done"#;
    Ended::of(
        Command::new("sh")
            .args(["-ec", sign])
            .arg(&openssl)
            .arg(home.path()),
    )
    .ok();
    let cli = |url: &str, arguments: &[&str]| {
        let mut command = Command::new(&cli);
        command
            .args(arguments)
            .args(["--rekor_server", url, "--format", "json"]);
        Ended::of(command.current_dir(home.path()).env("HOME", home.path()))
    };
    let upload = |envelope| {
        [
            "upload",
            "--type",
            "dsse",
            "--public-key",
            "pub.pem",
            "--artifact",
            envelope,
        ]
    };
    let uploaded = cli(&rekor.url, &upload("envelope1"));
    assert_eq!(uploaded.json()["Index"], 0, "{uploaded:?}");

    // The index is written after the answer.
    let digest = format!("{:064}", 1);
    let deadline = Instant::now() + Duration::from_secs(60);
    while cli(&rekor.url, &["search", "--sha", &digest]).code != 0 {
        assert!(Instant::now() < deadline, "the index never knew the envelope");
    }

    rekor.pause();
    let hangs = cli(
        &rekor.url,
        &[&upload("envelope2")[..], &["--timeout", "2s"]].concat(),
    );
    assert!(hangs.stderr.contains("deadline exceeded"), "{hangs:?}");
    rekor.resume();

    rekor.kill9();
    rekor.restart();
    let again = cli(&rekor.url, &upload("envelope1"));
    assert_eq!(again.json()["AlreadyExists"], true, "{again:?}");
}

#[test]
fn the_timestamp_authority_stamps_what_openssl_asks() {
    let (Some(_), Some(openssl)) = (tool("curl"), tool("openssl")) else {
        return;
    };
    let (Some(tsa), Some(other)) = (Tsa::start(), Tsa::start()) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| home.path().join(name).display().to_string();
    for (name, chain) in [("chain.pem", &tsa.chain_pem), ("other.pem", &other.chain_pem)] {
        std::fs::write(file(name), chain).unwrap();
    }
    std::fs::write(file("data"), "artifact").unwrap();
    let ts = |arguments: &[&str]| Ended::of(Command::new(&openssl).arg("ts").args(arguments));
    ts(&[
        "-query",
        "-sha256",
        "-cert",
        "-data",
        &file("data"),
        "-out",
        &file("query"),
    ])
    .ok();
    curl(&[
        "--fail",
        "-H",
        "Content-Type: application/timestamp-query",
        "--data-binary",
        &format!("@{}", file("query")),
        "-o",
        &file("answer"),
        &tsa.url,
    ])
    .ok();
    let verify = |chain: &str| {
        let (chain, answer, data) = (file(chain), file("answer"), file("data"));
        ts(&[
            "-verify",
            "-in",
            &answer,
            "-data",
            &data,
            "-CAfile",
            &chain,
            "-untrusted",
            &chain,
        ])
    };
    let right = verify("chain.pem");
    assert!(right.stdout.contains("Verification: OK"), "{right:?}");
    let wrong = verify("other.pem");
    assert!(wrong.stderr.contains("certificate verify error"), "{wrong:?}");
}

#[test]
fn toxiproxy_refuses_delays_and_cuts_and_heals() {
    let Some(_) = tool("curl") else { return };
    let Some(toxiproxy) = Toxiproxy::start() else {
        return;
    };
    // Its own interface is as good a server as any.
    let api = toxiproxy.api();
    let proxy = toxiproxy.proxy(api.trim_start_matches("http://"));
    let url = format!("http://{}/version", proxy.address);
    let whole = curl(&[&url]).ok();
    assert!(whole.contains("version"), "{whole}");

    proxy.disable();
    assert_eq!(curl(&[&url]).code, 7, "refused");
    proxy.enable();

    let begun = Instant::now();
    proxy.latency(Stream::Answers, Duration::from_millis(300));
    assert_eq!(curl(&[&url]).ok(), whole);
    assert!(begun.elapsed() >= Duration::from_millis(300), "too soon");
    proxy.heal();

    let length = curl(&["-i", &url]).ok().len() as u64;
    proxy.limit_data(Stream::Answers, length - 5);
    assert_eq!(curl(&[&url]).code, 18, "cut before the end");
    proxy.heal();

    proxy.reset(Stream::Answers, Duration::ZERO);
    assert_eq!(curl(&[&url]).code, 56, "reset");
    proxy.heal();

    proxy.silence(Stream::Answers);
    assert_eq!(curl(&["--max-time", "1", &url]).code, 28, "silent");
    proxy.heal();
    assert_eq!(curl(&[&url]).ok(), whole);
}
