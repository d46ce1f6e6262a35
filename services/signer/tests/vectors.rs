//! 06-cosign-keys: cosign's encrypted keys, keys to import, and what was signed with such keys.
//!
//! The suite is walked, and a list is known by its form: a new file with a list of the same form runs, too, and a list of
//! keys that is not known fails the test.

#[path = "../../../crates/attest/tests/vectors/support.rs"]
#[expect(dead_code, reason = "no file of this suite has one value in each line")]
mod support;

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};
use stella_attest::policy::Policy;
use stella_attest::report::Report;
use stella_attest::statement::PAYLOAD_TYPE;
use stella_attest::trust::{ConfiguredKey, Purpose, TrustRoots};
use stella_attest::verify::{Request, verify};
use stella_signer::keys::cosign;

use crate::support::{Run, folder, read, walk};

const SUITE: &str = "06-cosign-keys";
/// Passwords that are not the one of a key whose password nobody knows.
const WRONG: [&str; 3] = ["", "wrong", "\n"];

#[test]
fn cosigns_keys_and_what_they_signed_are_judged_as_stated() {
    let Some(root) = folder(SUITE) else {
        return;
    };
    let mut run = Run::new(SUITE);
    for file in walk(&root) {
        let bytes = read(&file);
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        if bytes.starts_with(b"-----BEGIN PRIVATE KEY") || bytes.starts_with(b"-----BEGIN RSA PRIVATE KEY") {
            // What `decrypt_fail` states of a file that the suite does not have.
            let outcome = cosign::decrypt(text(&bytes), Some(b"123")).map_err(|error| error.reason());
            run.expect_text(&format!("{name}: not encrypted"), "BAD_KEY", reason_of(&outcome));
        }
        let Ok(json) = serde_json::from_slice::<Value>(&bytes) else {
            continue;
        };
        let here = file.parent().unwrap();
        match &json {
            Value::Object(lists) if lists.contains_key("decrypt") => {
                for (name, list) in lists {
                    key_list(name, list.as_array().unwrap(), here, &mut run);
                }
            }
            Value::Object(lists) if lists.contains_key("cases") => {
                for case in lists["cases"].as_array().unwrap() {
                    attestation(case, &lists["predicate_aliases"], here, &mut run);
                }
            }
            Value::Array(list) if list.iter().all(|case| case.get("signature_b64").is_some()) => {
                for (at, case) in list.iter().enumerate() {
                    run.expect(
                        &format!("{name}: {at}"),
                        case["expect"] == "pass",
                        signature_holds(case),
                    );
                }
            }
            // Bundles, envelopes and trusted roots state no verdicts.
            _ => {}
        }
    }
    run.finish();
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn reason_of<T>(outcome: &Result<T, &'static str>) -> &'static str {
    outcome.as_ref().err().copied().unwrap_or("not refused")
}

fn key_list(name: &str, cases: &[Value], root: &Path, run: &mut Run) {
    for (at, case) in cases.iter().enumerate() {
        match name.split_whitespace().next().unwrap() {
            "decrypt" => decrypts(case, root, run),
            "decrypt_fail" => is_refused(case, root, run),
            "raw_encrypted_json" => opens(&format!("{name} {at}"), case, run),
            "import_plain_private_key" => imports(case, root, run),
            other => panic!("a list that is not known: {other}"),
        }
    }
}

fn decrypts(case: &Value, root: &Path, run: &mut Run) {
    let file = case["file"].as_str().unwrap();
    let bytes = read(&root.join(file));
    let pem = text(&bytes);
    let label = format!("-----BEGIN {}-----", case["pem_label"].as_str().unwrap());
    let labelled = pem.starts_with(&label) && cosign::is_encrypted(pem);
    run.expect(&format!("{file}: label"), true, labelled);
    let Some(password) = case["password"].as_str() else {
        // Nobody knows it: the key can only be refused.
        for wrong in WRONG {
            let outcome = cosign::read(pem, Some(wrong.as_bytes())).map_err(|error| error.reason());
            let id = format!("{file}: {wrong:?}");
            run.expect_text(&id, "KEY_PASSWORD_WRONG", reason_of(&outcome));
        }
        return;
    };
    let plaintext = match cosign::decrypt(pem, Some(password.as_bytes())) {
        Ok(plaintext) => plaintext,
        Err(error) => return run.expect_text(file, "decrypted", error.reason()),
    };
    let wanted = case["plaintext_der_sha256"].as_str().unwrap();
    run.expect_text(
        &format!("{file}: plaintext"),
        wanted,
        &Digest::of(&plaintext).hex(),
    );
    let key = match cosign::read(pem, Some(password.as_bytes())) {
        Ok(key) => key,
        Err(error) => return run.expect_text(file, "a key", error.reason()),
    };
    let public = key.verifying_key();
    if let Some(wanted) = case["public_key_pem"].as_str() {
        let same = VerifyingKey::from_spki_pem(wanted).unwrap() == *public;
        run.expect(&format!("{file}: public key"), true, same);
    }
    if let Some(seed) = case["ed25519_seed_hex"].as_str() {
        let of_seed = Ed25519KeyPair::from_seed_unchecked(&hex::decode(seed).unwrap()).unwrap();
        let same = public.spki().ends_with(of_seed.public_key().as_ref());
        run.expect(&format!("{file}: seed"), true, same);
    }
    run.expect(&format!("{file}: signs"), true, signs(&key));
}

fn is_refused(case: &Value, root: &Path, run: &mut Run) {
    let file = case["file"].as_str().unwrap();
    if !root.join(file).exists() {
        run.skip(file, "the list names a file that the suite does not have");
        return;
    }
    let bytes = read(&root.join(file));
    let id = format!("{file}: {}", case["password"]);
    let refusal = |password: Option<&[u8]>| {
        let outcome = cosign::read(text(&bytes), password).map_err(|error| error.reason());
        reason_of(&outcome)
    };
    match case["password"].as_str() {
        Some(password) => run.expect_text(&id, "KEY_PASSWORD_WRONG", refusal(Some(password.as_bytes()))),
        None => {
            run.expect_text(&id, "KEY_PASSWORD_MISSING", refusal(None));
            run.expect_text(&id, "KEY_PASSWORD_WRONG", refusal(Some(b"")));
        }
    }
}

/// The JSON of go-securesystemslib, without PEM around it and with any plaintext in it.
fn opens(id: &str, case: &Value, run: &mut Run) {
    let json = case["json"].as_str().unwrap().as_bytes();
    let opened = cosign::open(json, Some(case["password"].as_str().unwrap().as_bytes()));
    if case["expect"] == "pass" {
        let found = opened.map(|plaintext| text(&plaintext).to_owned());
        run.expect_text(
            id,
            case["plaintext"].as_str().unwrap(),
            found.as_deref().unwrap_or("refused"),
        );
        return;
    }
    let wanted = match case["why"].as_str().unwrap().contains("scrypt parameters") {
        true => "KEY_ENCRYPTION_UNSUPPORTED",
        false => "KEY_PASSWORD_WRONG",
    };
    run.expect_text(id, wanted, reason_of(&opened.map_err(|error| error.reason())));
}

fn imports(case: &Value, root: &Path, run: &mut Run) {
    let file = case["pem"].as_str().unwrap();
    let bytes = read(&root.join(file));
    let imported = SigningKey::from_any_pem(text(&bytes));
    run.expect(file, case["expect"] == "pass", imported.is_ok());
    match imported {
        Ok(key) => {
            let again = SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem());
            let same = again.is_ok_and(|again| again.verifying_key() == key.verifying_key());
            run.expect(&format!("{file}: as PKCS#8"), true, same && signs(&key));
        }
        Err(error) => {
            // What upstream validates, or fails to parse as ECDSA, is a key; the rest is none.
            let upstream = case["upstream"].as_str().unwrap();
            let wanted = match upstream.contains("error validating") || upstream.contains("error parsing") {
                true => "KEY_UNSUPPORTED",
                false => "BAD_KEY",
            };
            run.expect_text(&format!("{file}: {upstream}"), wanted, error.reason());
        }
    }
}

/// True if the public half verifies what the private one signs, and nothing else.
fn signs(key: &SigningKey) -> bool {
    let signature = key.sign(b"message").unwrap();
    let public = VerifyingKey::from_spki_der(key.verifying_key().spki()).unwrap();
    public.verify(b"message", &signature) && !public.verify(b"massage", &signature)
}

fn signature_holds(case: &Value) -> bool {
    let key = VerifyingKey::from_spki_pem(case["public_key"].as_str().unwrap());
    let signature = BASE64_STANDARD.decode(case["signature_b64"].as_str().unwrap());
    let (Ok(key), Ok(signature)) = (key, signature) else {
        return false;
    };
    key.verify(case["message"].as_str().unwrap().as_bytes(), &signature)
}

/// One call of `cosign verify-blob-attestation --key`: the key is trusted for the predicateType that is asked for, the
/// artifact must be a subject, and what is not logged is allowed where the case asks for no log.
fn attestation(case: &Value, aliases: &Value, root: &Path, run: &mut Run) {
    let id = case["description"].as_str().unwrap();
    let wanted = case["expect"] == "pass";
    if let Some(payloads) = case.get("payloads") {
        for payload in payloads.as_array().unwrap() {
            let payload = payload.as_str().unwrap();
            let report = judge_malformed(payload);
            let failures = report.failures();
            run.expect(
                &format!("{id}: {payload} {failures:?}"),
                wanted,
                report.verified(),
            );
            // The key is trusted and needs no log: only what was signed can be at fault.
            let blamed = failures.first().map(|failure| failure.split(':').next().unwrap());
            let blamed = matches!(blamed, Some("ENVELOPE" | "STATEMENT"));
            run.expect(&format!("{id}: {payload} {failures:?}"), true, blamed);
        }
        return;
    }
    let evidence = read(&root.join(case["envelope"].as_str().unwrap()));
    let pem = read(&root.join(case["key"].as_str().unwrap()));
    let key = VerifyingKey::from_spki_pem(text(&pem)).unwrap();
    let predicate_type = match case["predicateType"].as_str() {
        Some(name) => aliases[name].as_str().unwrap_or(name),
        None => "*",
    };
    let artifact: Digest = match case["blob"].as_str() {
        Some(blob) => Digest::of(&read(&root.join(blob))),
        None => case["digest"].as_str().unwrap().parse().unwrap(),
    };
    let subject = (case["check_claims"] != false).then_some(artifact);
    let require_log = case["require_tlog"].as_bool().unwrap();
    let report = judge(&evidence, &key, predicate_type, subject, require_log);
    let failures = report.failures();
    run.expect(&format!("{id} {failures:?}"), wanted, report.verified());
    if let Some(valid) = case["dsse_signature_valid"].as_bool() {
        let envelope = Envelope::parse(&evidence).unwrap();
        run.expect(
            &format!("{id}: signature"),
            valid,
            envelope.verify(&[&key], 1).is_ok(),
        );
        let blamed = failures.iter().any(|failure| failure.starts_with("SIGNATURE"));
        run.expect(&format!("{id}: the signature is not blamed"), valid, !blamed);
    }
}

/// The verdict on a payload that a new key signed, which is trusted for everything.
fn judge_malformed(payload: &str) -> Report {
    let without_payload = payload == "(envelope with the payload member removed)";
    assert!(
        without_payload || !payload.starts_with('('),
        "a payload that is not known: {payload}"
    );
    let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
    let envelope = Envelope::sign(PAYLOAD_TYPE, payload.as_bytes(), &key).unwrap();
    let mut envelope = envelope.to_value();
    if without_payload {
        envelope.as_object_mut().unwrap().remove("payload").unwrap();
    }
    judge(
        &serde_json::to_vec(&envelope).unwrap(),
        key.verifying_key(),
        "*",
        None,
        false,
    )
}

fn judge(
    evidence: &[u8],
    key: &VerifyingKey,
    predicate_type: &str,
    subject: Option<Digest>,
    require_log: bool,
) -> Report {
    let key = ConfiguredKey {
        key: key.clone(),
        purpose: Purpose::Attestation,
        issuer: "cosign".into(),
        tenants: vec!["*".into()],
        predicate_types: vec![predicate_type.to_owned()],
    };
    let roots = TrustRoots::new(vec![key], None, vec![], vec![], vec![]);
    let unlogged = Policy::parse(
        b"unlogged: allow\nrules: [{id: KEY, when: {all: [{key.issuer: cosign}]}, then: {decision: ALLOW}}]",
    )
    .unwrap();
    let request = Request {
        subject,
        policy: (!require_log).then_some(&unlogged),
        ..Request::default()
    };
    verify(evidence, &request, &roots).report
}
