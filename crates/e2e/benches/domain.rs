//! Rows of the pure domain: verification and canonical JSON, one thread, no IO.

use std::hint::black_box;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, ParsedPublicKey};
use serde_json::json;
use stella_attest::canonical;
use stella_attest::checkpoint::{Checkpoint, LogKey};
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::evidence::{Evidence, InclusionProof, LogEntry};
use stella_attest::hashedrekord;
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};
use stella_attest::merkle;
use stella_attest::note::{Note, NoteSigner};
use stella_attest::statement::{self, PAYLOAD_TYPE};
use stella_attest::trust::{ConfiguredKey, Purpose, TrustRoots, TrustedLog, Validity};
use stella_attest::verify::{Request, verify};

use super::row::{Goal, Row, times};

pub const NAMES: [&str; 2] = [
    "verify DSSE + inclusion + checkpoint / the same aws-lc-rs checks",
    "canonical JSON / serde_json::to_vec",
];

/// Depth of the proof that is verified: a log of about a million entries.
const PROOF_DEPTH: u8 = 20;

const ORIGIN: &str = "127.0.0.1";

/// A payload of about 1 KiB.
pub fn payload(number: usize) -> Vec<u8> {
    let subject = Digest::of(&number.to_be_bytes());
    let filler: Vec<String> = (0..12)
        .map(|part| format!("component-{part}-of-{number}-{}", "x".repeat(40)))
        .collect();
    statement::build(
        "bench",
        &subject,
        "https://cyclonedx.org/bom",
        json!({"components": filler}),
    )
}

pub fn rows() -> anyhow::Result<Vec<Row>> {
    Ok(vec![verification()?, canonical_json()])
}

/// A bundle that verifies, and what the floor checks of it.
pub struct Sample {
    pub bundle: Vec<u8>,
    pub roots: TrustRoots,
    key: VerifyingKey,
    pae: Vec<u8>,
    signature: Vec<u8>,
    log_key: VerifyingKey,
    note: Note,
    body: Vec<u8>,
    hashes: Vec<merkle::Hash>,
}

impl Sample {
    pub fn new() -> anyhow::Result<Self> {
        let key = SigningKey::generate(Algorithm::EcdsaP256)?;
        let log_key = SigningKey::generate(Algorithm::Ed25519)?;
        let log = LogKey::new(ORIGIN, log_key.verifying_key().clone())?;
        let envelope = Envelope::sign(PAYLOAD_TYPE, &payload(1), &key)?;
        let (pae, signature) = (envelope.pae(), envelope.signatures[0].sig.clone());
        let body = hashedrekord::entry_body(&Digest::of(&pae), &signature, key.verifying_key())?;

        // A leaf at index 0 of a full tree: every sibling stands on the right.
        let hashes: Vec<merkle::Hash> = (0..PROOF_DEPTH).map(|level| [level; 32]).collect();
        let mut root = merkle::leaf_hash(&body);
        for sibling in &hashes {
            root = merkle::node_hash(&root, sibling);
        }
        let size = 1 << PROOF_DEPTH;
        let checkpoint = Checkpoint {
            origin: ORIGIN.into(),
            size,
            root,
            extensions: Vec::new(),
        };
        let note = Note::sign(&checkpoint.to_text(), &NoteSigner::new(ORIGIN, &log_key)?)?;
        let proof = InclusionProof {
            log_index: 0,
            tree_size: size,
            root,
            hashes: hashes.clone(),
            checkpoint: note.to_string(),
        };
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
        let bundle = Evidence::bundle(&envelope, key.verifying_key().key_id(), &[entry]);
        let configured = ConfiguredKey {
            key: key.verifying_key().clone(),
            purpose: Purpose::Attestation,
            issuer: "bench".into(),
            tenants: vec!["*".into()],
            predicate_types: vec!["*".into()],
        };
        let trusted = TrustedLog {
            key: log,
            base_url: format!("https://{ORIGIN}"),
            distrusted: false,
            validity: Validity::default(),
        };
        let roots = TrustRoots::new(vec![configured], None, vec![trusted], Vec::new(), Vec::new());
        let outcome = verify(&bundle, &Request::default(), &roots);
        anyhow::ensure!(
            outcome.report.verified(),
            "the bench's bundle is refused: {:?}",
            outcome.report.failures()
        );
        let (key, log_key) = (key.verifying_key().clone(), log_key.verifying_key().clone());
        Ok(Self {
            bundle,
            roots,
            key,
            pae,
            signature,
            log_key,
            note,
            body,
            hashes,
        })
    }
}

fn verification() -> anyhow::Result<Row> {
    let sample = Sample::new()?;
    let dsse_key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, sample.key.spki())?;
    let note_key = ParsedPublicKey::new(&ED25519, sample.log_key.spki())?;
    let note_signature = &sample.note.signatures()[0].bytes;
    let (ours, floor) = times(
        || {
            black_box(verify(
                black_box(&sample.bundle),
                &Request::default(),
                &sample.roots,
            ));
        },
        || {
            dsse_key
                .verify_sig(black_box(&sample.pae), &sample.signature)
                .expect("valid");
            note_key
                .verify_sig(black_box(sample.note.text().as_bytes()), note_signature)
                .expect("valid");
            let mut node = sha256(&[&[0], &sample.body]);
            for sibling in &sample.hashes {
                node = sha256(&[&[1], &node, sibling]);
            }
            black_box(node);
        },
    );
    Ok(Row {
        name: NAMES[0],
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
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
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
    Row {
        name: NAMES[1],
        ours,
        floor,
        goal: Goal::AtMost(1.5),
        unit: "us",
    }
}
