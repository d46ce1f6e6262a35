//! cosign and its files, and what we say of a bundle.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stella_attest::key::VerifyingKey;
use stella_testkit::needs;
use stella_testkit::stack::{Ended, Stack};
use stella_testkit::tools::tool;

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The failed checks of a report, as `NAME:REASON`.
pub(crate) fn failures(ended: &Ended) -> Vec<String> {
    let report = ended.json();
    let checks = report["checks"].as_array().expect("checks");
    let failed = checks.iter().filter(|check| check["status"] == "failed");
    failed
        .map(|check| {
            let member = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
            format!("{}:{}", member("name"), member("reason"))
        })
        .collect()
}

/// The failed checks of the same bundle by the Verifier and offline, which must agree to the byte.
pub(crate) fn judged(stack: &Stack, bundle: &Path, subject: &Path, roots: &Path) -> Vec<String> {
    let (bundle, subject, roots) = (text(bundle), text(subject), text(roots));
    let asked = stack.stella(&["verify", &bundle, "--subject", &subject, "--output", "json"]);
    let offline = stack.stella(&[
        "forensic",
        "verify",
        "--bundle",
        &bundle,
        "--trust-roots",
        &roots,
        "--subject",
        &subject,
        "--output",
        "json",
    ]);
    assert_eq!((asked.code, &asked.stdout), (offline.code, &offline.stdout));
    let failures = failures(&asked);
    assert_eq!(asked.code, if failures.is_empty() { 0 } else { 3 }, "{asked:?}");
    failures
}

/// cosign with a key of its own and a place for its files.
pub(crate) struct Cosign {
    program: PathBuf,
    home: tempfile::TempDir,
}

impl Cosign {
    /// `None`, said aloud, where it is not there or networks cannot be taken away.
    pub(crate) fn new() -> Option<Self> {
        let program = tool("cosign")?;
        let isolated = Command::new("unshare").args(["-n", "true"]).output();
        if !isolated.is_ok_and(|output| output.status.success()) {
            needs("unshare -n (a namespace without network)");
            return None;
        }
        let home = tempfile::tempdir().expect("a folder");
        let cosign = Self { program, home };
        cosign.run(&["generate-key-pair"]).ok();
        Some(cosign)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn key(&self) -> VerifyingKey {
        let pem = std::fs::read_to_string(self.file("cosign.pub")).expect("a public key");
        VerifyingKey::from_spki_pem(&pem).expect("a key")
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.run_as(Command::new(&self.program), arguments)
    }

    /// Without any network.
    pub(crate) fn run_offline(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new("unshare");
        command.arg("-n").arg(&self.program);
        self.run_as(command, arguments)
    }

    fn run_as(&self, mut command: Command, arguments: &[&str]) -> Ended {
        command.args(arguments).current_dir(self.home.path());
        command.env("HOME", self.home.path()).env("COSIGN_PASSWORD", "");
        Ended::of(command.env_remove("SIGSTORE_ROOT_FILE"))
    }

    /// Verifies `bundle` about `blob` offline, by its own key.
    pub(crate) fn verifies(&self, command: &[&str], bundle: &Path, blob: &Path) -> bool {
        self.verifies_by("cosign.pub", command, bundle, blob)
    }

    /// The same by another key.
    pub(crate) fn verifies_by(&self, key: &str, command: &[&str], bundle: &Path, blob: &Path) -> bool {
        let (bundle, blob) = (text(bundle), text(blob));
        let more = [
            "--key",
            key,
            "--trusted-root",
            "roots.json",
            "--bundle",
            &bundle,
            &blob,
        ];
        let ended = self.run_offline(&[command, &more].concat());
        assert_eq!(ended.code == 0, ended.stderr.contains("Verified OK"), "{ended:?}");
        ended.code == 0
    }
}

/// Has the Verifier trust `key` for attestations.
pub(crate) fn trust(dir: &Path, key: &VerifyingKey) {
    let path = dir.join("verifier/trust-roots.json");
    let mut roots: Value = serde_json::from_slice(&std::fs::read(&path).expect("trust roots")).expect("JSON");
    let keys = roots["keys"].as_array_mut().expect("keys");
    keys.push(json!({
        "keyId": key.key_id().as_str(), "purpose": "attestation", "issuer": "ci",
        "spki": BASE64_STANDARD.encode(key.spki()), "tenants": ["*"], "predicateTypes": ["*"],
    }));
    std::fs::write(path, roots.to_string()).expect("writes");
}
