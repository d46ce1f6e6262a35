//! 01-dsse: pre-authentication encoding, envelopes of other implementations, thresholds.
//!
//! A list is any JSON file below the folder with an array `cases`; what its cases name lies relative to it. The algorithm
//! comes from the key, not from what a case says of its signature.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use serde_json::{Value, json};
use stella_attest::dsse::{Envelope, pae};
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};

use crate::support::{Run, folder, read, walk};

#[test]
fn envelopes_of_others_verify_or_fail_as_stated() {
    let Some(root) = folder("01-dsse") else { return };
    let mut run = Run::new("01-dsse");
    for file in walk(&root) {
        let is_json = file.extension().is_some_and(|extension| extension == "json");
        // Some of the others are broken on purpose.
        let list: Value = match is_json.then(|| serde_json::from_slice(&read(&file))) {
            Some(Ok(list)) => list,
            Some(Err(_)) | None => continue,
        };
        let root = file.parent().unwrap_or(&root);
        for case in list["cases"].as_array().into_iter().flatten() {
            judge(root, case, &mut run);
        }
    }
    run.finish();
}

/// Runs one case of a list in `root`.
fn judge(root: &Path, case: &Value, run: &mut Run) {
    let id = case["id"].as_str().unwrap();
    let passes = case["expect"] == "pass";
    match case["kind"].as_str().unwrap() {
        "pae" => {
            let found = pae(text(case, "payloadType"), &bytes(case, "body_b64"));
            run.expect_text(id, text(case, "expect_pae_b64"), &BASE64_STANDARD.encode(found));
        }
        "verify" => run.expect(id, passes, verifies(root, case)),
        "verify-inline" => {
            let envelope = case["envelope"].to_string();
            run.expect(id, passes, is_signed(envelope.as_bytes(), &[strangers_key()]));
        }
        "decode-payload" => decoded(id, case, passes, run),
        "threshold" => threshold(id, case, run),
        "sign-rfc6979" => deterministic(root, id, case, run),
        "parse" => run.skip(id, "one library's rule, which the specification does not make"),
        other => run.expect_text(id, "a kind that is known", other),
    }
}

fn text<'c>(case: &'c Value, member: &str) -> &'c str {
    case[member]
        .as_str()
        .unwrap_or_else(|| panic!("{case} has no {member}"))
}

fn bytes(case: &Value, member: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text(case, member)).unwrap()
}

fn strangers_key() -> VerifyingKey {
    SigningKey::generate(Algorithm::EcdsaP256)
        .unwrap()
        .verifying_key()
        .clone()
}

fn is_signed(envelope: &[u8], keys: &[VerifyingKey]) -> bool {
    let keys: Vec<&VerifyingKey> = keys.iter().collect();
    Envelope::parse(envelope).is_ok_and(|envelope| envelope.verify(&keys, 1).is_ok())
}

fn verifies(root: &Path, case: &Value) -> bool {
    let listed = case["keys"]
        .as_array()
        .cloned()
        .unwrap_or_else(|| vec![case["key"].clone()]);
    let keys = listed.iter().map(|file| {
        let pem = read(&root.join(file.as_str().unwrap()));
        VerifyingKey::from_spki_pem(&String::from_utf8(pem).unwrap()).unwrap()
    });
    is_signed(
        &read(&root.join(text(case, "envelope"))),
        &keys.collect::<Vec<_>>(),
    )
}

fn decoded(id: &str, case: &Value, passes: bool, run: &mut Run) {
    let envelope = json!({"payload": case["payload"], "payloadType": "t", "signatures": [{"sig": "YQ=="}]});
    let parsed = Envelope::parse(envelope.to_string().as_bytes());
    run.expect(id, passes, parsed.is_ok());
    if case["expect_decoded"] == "bytes 00..ff" {
        let all: Vec<u8> = (0..=255).collect();
        run.expect(id, true, parsed.is_ok_and(|envelope| envelope.payload == all));
    }
}

/// So many keys signed; the threshold asks for more, or for none.
fn threshold(id: &str, case: &Value, run: &mut Run) {
    let number = |member: &str| usize::try_from(case[member].as_u64().unwrap()).unwrap();
    let keys: Vec<SigningKey> = (0..number("keys"))
        .map(|_| SigningKey::generate(Algorithm::EcdsaP256).unwrap())
        .collect();
    let mut envelope = Envelope::sign("t", b"payload", &keys[0]).unwrap();
    for key in &keys[1..] {
        envelope
            .signatures
            .extend(Envelope::sign("t", b"payload", key).unwrap().signatures);
    }
    let public: Vec<&VerifyingKey> = keys.iter().map(SigningKey::verifying_key).collect();
    let met = envelope.verify(&public, number("threshold")).is_ok();
    run.expect(id, text(case, "expect") == "pass", met);
}

/// The specification's own signature over our encoding, remade by another implementation, which our key accepts.
fn deterministic(root: &Path, id: &str, case: &Value, run: &mut Run) {
    let pem = String::from_utf8(read(&root.join(text(case, "key")))).unwrap();
    let message = pae(text(case, "payloadType"), &bytes(case, "body_b64"));
    let signature: p256::ecdsa::Signature = p256::ecdsa::SigningKey::from_pkcs8_pem(&pem)
        .unwrap()
        .sign(&message);
    run.expect_text(
        id,
        text(case, "expect_sig_raw_b64"),
        &BASE64_STANDARD.encode(signature.to_bytes()),
    );
    let ours = SigningKey::from_pkcs8_pem(&pem).unwrap();
    run.expect(
        id,
        true,
        ours.verifying_key()
            .verify(&message, &bytes(case, "expect_sig_raw_b64")),
    );
}
