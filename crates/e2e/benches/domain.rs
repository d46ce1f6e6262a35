//! Rows of the pure domain: verification and canonical JSON, one thread, no IO.

use std::hint::black_box;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey};
use serde_json::json;
use stella_attest::canonical;
use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::digest::Digest;
use stella_attest::dsse::{self, Envelope};
use stella_attest::evidence::{Evidence, InclusionProof, LogEntry};
use stella_attest::hashedrekord;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::merkle;
use stella_attest::note::NoteSigner;
use stella_attest::statement::{self, PAYLOAD_TYPE};
use stella_attest::trust::{ConfiguredKey, Purpose, TrustRoots, TrustedLog};
use stella_attest::verify::{Request, verify};

use super::row::{Goal, Row, times};

/// Depth of the proof that is verified: a log of about a million entries.
const PROOF_DEPTH: usize = 20;

/// A payload of about 1 KiB.
pub fn payload(number: usize) -> Vec<u8> {
    let subject = Digest::of(&number.to_be_bytes());
    let filler: Vec<String> = (0..12).map(|part| format!("component-{part}-of-{number}-{}", "x".repeat(40))).collect();
    statement::build("bench", &subject, "https://cyclonedx.org/bom", json!({"components": filler}))
}

pub fn rows() -> anyhow::Result<Vec<Row>> {
    Ok(vec![verification()?, canonical_json()])
}

fn verification() -> anyhow::Result<Row> {
    let key = SigningKey::generate(Algorithm::EcdsaP256)?;
    let log_signing = SigningKey::generate(Algorithm::Ed25519)?;
    let log = LogKey::new("127.0.0.1", log_signing.verifying_key().clone())?;
    let envelope = Envelope::sign(PAYLOAD_TYPE, &payload(1), &key)?;
    let pae = dsse::pae(PAYLOAD_TYPE, &envelope.payload);
    let signature = envelope.signatures[0].sig.clone();
    let body = hashedrekord::entry_body(&Digest::of(&pae), &signature, key.verifying_key());

    // A leaf at index 0 of a full tree: every sibling stands on the right.
    let hashes: Vec<merkle::Hash> = (0..PROOF_DEPTH).map(|level| [level as u8; 32]).collect();
    let leaf = merkle::leaf_hash(&body);
    let root = hashes.iter().fold(leaf, |node, sibling| merkle::node_hash(&node, sibling));
    let size = 1u64 << PROOF_DEPTH;
    let checkpoint = Checkpoint { origin: "127.0.0.1".into(), size, root, extensions: Vec::new() };
    let note = NoteSigner::new("127.0.0.1", &log_signing)?.sign(&checkpoint.to_text())?;
    let proof =
        InclusionProof { log_index: 0, tree_size: size, root, hashes: hashes.clone(), checkpoint: note.to_string() };
    let entry = LogEntry {
        log_id: log.log_id,
        kind: hashedrekord::KIND.into(),
        version: hashedrekord::VERSION.into(),
        log_index: 0,
        integrated_time: None,
        promise: None,
        proof: Some(proof),
        body: body.clone(),
    };
    let bundle = Evidence::bundle(&envelope, key.verifying_key().key_id(), std::slice::from_ref(&entry));
    let configured = ConfiguredKey {
        key: key.verifying_key().clone(),
        purpose: Purpose::Attestation,
        issuer: "bench".into(),
        tenants: vec!["*".into()],
        predicate_types: vec!["*".into()],
    };
    let trusted = TrustedLog { key: log, base_url: "https://127.0.0.1".into(), distrusted: false };
    let roots = TrustRoots::new(vec![configured], None, vec![trusted], Vec::new(), Vec::new());
    let outcome = verify(&bundle, &Request::default(), &roots);
    anyhow::ensure!(outcome.report.verified(), "the bench's bundle is refused: {:?}", outcome.report.failures());

    let point = spki_key(key.verifying_key().spki(), 65);
    let log_point = spki_key(log_signing.verifying_key().spki(), 32);
    let dsse_key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).parse()?;
    let note_key = UnparsedPublicKey::new(&ED25519, log_point).parse()?;
    let note_text = checkpoint.to_text();
    let note_signature = note.signatures[0].signature.clone();
    let (ours, floor) = times(
        || {
            black_box(verify(black_box(&bundle), &Request::default(), &roots));
        },
        || {
            dsse_key.verify_sig(black_box(&pae), &signature).expect("valid");
            note_key.verify_sig(black_box(note_text.as_bytes()), &note_signature).expect("valid");
            let mut node = sha256(&[&[0], &body]);
            for sibling in &hashes {
                node = sha256(&[&[1], &node, sibling]);
            }
            black_box(node);
        },
    );
    Ok(Row {
        name: "verify DSSE + inclusion + checkpoint / the same aws-lc-rs checks",
        ours,
        floor,
        goal: Goal::AtMost(1.25),
        unit: "us",
    })
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The raw key at the end of a SubjectPublicKeyInfo.
fn spki_key(spki: &[u8], length: usize) -> Vec<u8> {
    spki[spki.len() - length..].to_vec()
}

fn canonical_json() -> Row {
    let value: serde_json::Value = serde_json::from_slice(&payload(2)).expect("a statement is JSON");
    let (ours, floor) = times(
        || {
            black_box(canonical::to_vec(black_box(&value)));
        },
        || {
            black_box(serde_json::to_vec(black_box(&value)).expect("writes"));
        },
    );
    Row { name: "canonical JSON / serde_json::to_vec", ours, floor, goal: Goal::AtMost(1.5), unit: "us" }
}
