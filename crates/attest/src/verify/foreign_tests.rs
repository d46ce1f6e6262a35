//! Evidence that others make: entries of a Rekor v1, signatures over artifacts, attestations that are not logged.

use serde_json::{Value, json};

use super::*;
use crate::checkpoint::{self, LogKey};
use crate::dsse::{Envelope, Signature};
use crate::evidence::{BUNDLE_V0_3, InclusionProof};
use crate::key::{Algorithm, SigningKey};
use crate::merkle::{self, MemoryTree};
use crate::note::NoteKey;
use crate::rekor_v1;
use crate::trust::{ConfiguredKey, Purpose, TrustedLog, Validity};

const TREE: u64 = 0x6bbd_9c65_94f7_f621;
const TIME: i64 = 1_795_419_238;

/// Somebody's key, and a Rekor v1 of our own making.
struct World {
    signer: SigningKey,
    log: SigningKey,
    roots: TrustRoots,
}

impl World {
    fn new() -> Self {
        let signer = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let log = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let trusted = TrustedLog {
            key: LogKey::new("rekor.local", log.verifying_key().clone()).expect("a log"),
            base_url: "http://rekor.local".into(),
            distrusted: false,
            validity: Validity::default(),
        };
        let roots = TrustRoots::new(vec![configured(&signer)], None, vec![trusted], vec![], vec![]);
        Self { signer, log, roots }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(message).expect("signs")
    }

    fn envelope(&self, subject: &Digest) -> Envelope {
        let payload = json!({
            "_type": "https://in-toto.io/Statement/v0.1", "subject": [{"name": "blob", "digest": {"sha256": subject.hex()}}],
            "predicateType": "https://example.com/p/v1", "predicate": {},
        });
        let payload = payload.to_string().into_bytes();
        let sig = self.sign(&dsse::pae(statement::PAYLOAD_TYPE, &payload));
        Envelope {
            payload_type: statement::PAYLOAD_TYPE.into(),
            payload,
            signatures: vec![Signature {
                keyid: String::new(),
                sig,
            }],
        }
    }

    fn dsse_body(&self, envelope: &Envelope) -> Vec<u8> {
        let (whole, payload) = (envelope.digest(), Digest::of(&envelope.payload));
        rekor_v1::dsse_body(
            &whole,
            &payload,
            &envelope.signatures[0].sig,
            self.signer.verifying_key(),
        )
    }

    /// The second entry of two, with an index that counts over another tree of five, too.
    fn entry(&self, kind: &str, body: Vec<u8>) -> LogEntry {
        let mut tree = MemoryTree::new();
        tree.push(merkle::leaf_hash(b"another"));
        tree.push(merkle::leaf_hash(&body));
        let root = tree.root();
        let note_key = NoteKey::ecdsa("rekor.local", self.log.verifying_key()).expect("a name");
        let text = format!("rekor.local - {TREE}\n2\n{}\n", BASE64_STANDARD.encode(root));
        let blob = [
            &note_key.id()[..],
            &self.log.sign(text.as_bytes()).expect("signs"),
        ]
        .concat();
        let checkpoint = format!("{text}\n— rekor.local {}\n", BASE64_STANDARD.encode(blob));
        let mut entry = LogEntry {
            log_id: checkpoint::log_id("rekor.local", self.log.verifying_key()),
            kind: kind.into(),
            version: rekor_v1::VERSION.into(),
            log_index: 6,
            integrated_time: Some(TIME),
            promise: None,
            proof: Some(InclusionProof {
                log_index: 1,
                tree_size: 2,
                root,
                hashes: merkle::inclusion_proof(&tree, 1, 2).expect("a proof"),
                checkpoint,
            }),
            body,
        };
        self.promise(&mut entry);
        entry
    }

    fn promise(&self, entry: &mut LogEntry) {
        let signed = format!(
            "{{\"body\":\"{}\",\"integratedTime\":{},\"logID\":\"{}\",\"logIndex\":{}}}",
            BASE64_STANDARD.encode(&entry.body),
            entry.integrated_time.expect("a time"),
            hex::encode(entry.log_id),
            entry.log_index
        );
        entry.promise = Some(self.log.sign(signed.as_bytes()).expect("signs"));
    }

    fn bundle(&self, envelope: &Envelope, entries: &[LogEntry]) -> Vec<u8> {
        Evidence::bundle(envelope, self.signer.verifying_key().key_id(), entries)
    }

    fn message_bundle(&self, artifact: &[u8], signature: &[u8], entries: &[LogEntry]) -> Vec<u8> {
        let entries: Vec<Value> = entries.iter().map(LogEntry::to_value).collect();
        let bundle = json!({
            "mediaType": BUNDLE_V0_3,
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode(Digest::of(artifact).as_bytes())},
                "signature": BASE64_STANDARD.encode(signature),
            },
            "verificationMaterial": {"publicKey": {"hint": ""}, "tlogEntries": entries},
        });
        canonical::to_vec(&bundle)
    }

    fn hashedrekord_body(&self, artifact: &[u8], signature: &[u8]) -> Vec<u8> {
        let body = json!({
            "apiVersion": "0.0.1", "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": Digest::of(artifact).hex()}},
                "signature": {
                    "content": BASE64_STANDARD.encode(signature),
                    "publicKey": {"content": BASE64_STANDARD.encode(self.signer.verifying_key().to_pem())},
                },
            },
        });
        canonical::to_vec(&body)
    }
}

/// The key as one that may sign any attestation.
fn configured(signer: &SigningKey) -> ConfiguredKey {
    ConfiguredKey {
        key: signer.verifying_key().clone(),
        purpose: Purpose::Attestation,
        issuer: "ci".into(),
        tenants: vec!["*".into()],
        predicate_types: vec!["*".into()],
    }
}

/// The reasons of the checks that failed.
fn failures(report: &Report) -> Vec<String> {
    let failed = report
        .checks()
        .iter()
        .filter(|check| matches!(check.status, Status::Failed(_)));
    failed
        .map(|check| format!("{}:{}", check.name.as_str(), check.status.reason()))
        .collect()
}

#[test]
fn an_entry_of_a_rekor_v1_gives_its_time_and_its_long_id() {
    let world = World::new();
    let subject = Digest::of(b"blob");
    let envelope = world.envelope(&subject);
    let entry = world.entry(rekor_v1::DSSE, world.dsse_body(&envelope));
    let request = Request {
        subject: Some(subject),
        ..Request::default()
    };
    let outcome = verify(
        &world.bundle(&envelope, std::slice::from_ref(&entry)),
        &request,
        &world.roots,
    );
    assert_eq!(failures(&outcome.report), [""; 0]);
    let proof = outcome.proof.expect("it is proven");
    let time = proof.trusted_time().expect("a time");
    assert_eq!(
        (time.time.unix(), time.source.as_str(), time.by.as_str()),
        (TIME, "rekor-set", "rekor.local")
    );
    let rekor = &proof.to_dsse()["rekor"];
    let uuid = format!("6bbd9c6594f7f621{}", hex::encode(entry.leaf_hash()));
    assert_eq!(
        (
            &rekor["uuid"],
            &rekor["logIndex"],
            &rekor["integratedTime"],
            &rekor["kind"]
        ),
        (&json!(uuid), &json!(6), &json!(TIME), &json!("dsse/0.0.1"))
    );
}

#[test]
fn a_time_that_a_log_signed_when_its_key_was_not_in_use_does_not_count() {
    let world = World::new();
    let subject = Digest::of(b"blob");
    let envelope = world.envelope(&subject);
    let entry = world.entry(rekor_v1::DSSE, world.dsse_body(&envelope));
    let bundle = world.bundle(&envelope, &[entry]);
    let at = |seconds: i64| Some(Timestamp::from_unix(seconds));
    let none: Vec<&str> = Vec::new();
    for (from, until, want) in [
        (None, None, none.clone()),
        (at(TIME), at(TIME), none.clone()),
        (at(TIME + 1), None, vec!["TIME:LOG_KEY_NOT_VALID"]),
        (None, at(TIME - 1), vec!["TIME:LOG_KEY_NOT_VALID"]),
    ] {
        let mut log = world.roots.logs()[0].clone();
        log.validity = Validity { from, until };
        let roots = TrustRoots::new(vec![configured(&world.signer)], None, vec![log], vec![], vec![]);
        // Ends belong to what is written, too.
        let roots = TrustRoots::parse(roots.to_canonical()).expect("trust roots");
        let outcome = verify(&bundle, &Request::default(), &roots);
        assert_eq!(failures(&outcome.report), want, "{from:?} {until:?}");
    }
}

#[test]
fn an_entry_of_a_rekor_v1_that_is_not_as_the_log_signed_it_is_refused() {
    let world = World::new();
    let subject = Digest::of(b"blob");
    let envelope = world.envelope(&subject);
    let entry = world.entry(rekor_v1::DSSE, world.dsse_body(&envelope));
    let proof = entry.proof.clone().expect("a proof");
    let with = |change: &dyn Fn(&mut LogEntry)| {
        let mut entry = entry.clone();
        change(&mut entry);
        entry
    };
    let other = World::new();
    let foreign = other.envelope(&subject);
    let again = Envelope {
        signatures: vec![Signature {
            keyid: String::new(),
            sig: world.sign(b"something else"),
        }],
        ..envelope.clone()
    };
    for (case, entry, want) in [
        (
            "another time",
            with(&|entry| entry.integrated_time = Some(TIME - 1)),
            vec!["TIME:SET_INVALID"],
        ),
        (
            "another index",
            with(&|entry| entry.log_index = 7),
            vec!["TIME:SET_INVALID"],
        ),
        (
            "no promise: the time is nobody's word, the index unbound",
            with(&|entry| entry.promise = None),
            vec!["LOG_INCLUSION:INDEX_MISMATCH", "TIME:SET_MISSING"],
        ),
        (
            "a promise without a time",
            with(&|entry| entry.integrated_time = None),
            vec!["TIME:SET_INVALID"],
        ),
        (
            "no proof",
            with(&|entry| entry.proof = None),
            vec!["LOG_INCLUSION:LOG_PROOF_MISSING"],
        ),
        (
            "another place in the tree",
            with(&|entry| entry.proof.as_mut().expect("a proof").log_index = 0),
            vec!["LOG_INCLUSION:INCLUSION_INVALID"],
        ),
        (
            "another size",
            with(&|entry| entry.proof.as_mut().expect("a proof").tree_size = 3),
            vec!["LOG_INCLUSION:TREE_SIZE_MISMATCH"],
        ),
        (
            "another root",
            with(&|entry| entry.proof.as_mut().expect("a proof").root = [0; 32]),
            vec!["LOG_INCLUSION:ROOT_MISMATCH"],
        ),
        (
            "a checkpoint of another name",
            with(&|entry| {
                let altered = proof.checkpoint.replacen("rekor.local - ", "rekor.other - ", 1);
                entry.proof.as_mut().expect("a proof").checkpoint = altered;
            }),
            vec!["CHECKPOINT:CHECKPOINT_ORIGIN"],
        ),
        (
            "a checkpoint of another tree",
            with(&|entry| {
                let altered = proof.checkpoint.replacen(&TREE.to_string(), "7", 1);
                entry.proof.as_mut().expect("a proof").checkpoint = altered;
            }),
            vec!["CHECKPOINT:CHECKPOINT_SIGNATURE"],
        ),
        (
            "a log that is not known",
            with(&|entry| entry.log_id = [7; 32]),
            vec!["CHECKPOINT:LOG_UNKNOWN", "TIME:SET_UNKNOWN"],
        ),
        (
            "the entry of another payload",
            world.entry(
                rekor_v1::DSSE,
                world.dsse_body(&world.envelope(&Digest::of(b"other"))),
            ),
            vec!["LOG_ENTRY:ENTRY_DIGEST_MISMATCH"],
        ),
        (
            "the entry of another signature",
            world.entry(rekor_v1::DSSE, world.dsse_body(&again)),
            vec!["LOG_ENTRY:ENTRY_SIGNATURE_MISMATCH"],
        ),
        (
            "the entry of another key",
            world.entry(
                rekor_v1::DSSE,
                rekor_v1::dsse_body(
                    &envelope.digest(),
                    &Digest::of(&envelope.payload),
                    &envelope.signatures[0].sig,
                    other.signer.verifying_key(),
                ),
            ),
            vec!["LOG_ENTRY:ENTRY_KEY_MISMATCH"],
        ),
        (
            "the entry of another kind",
            with(&|entry| entry.kind = "intoto".into()),
            vec!["LOG_ENTRY:ENTRY_KIND_UNKNOWN"],
        ),
        (
            "the kind of another body",
            with(&|entry| entry.kind = "hashedrekord".into()),
            vec!["LOG_ENTRY:ENTRY_MALFORMED"],
        ),
    ] {
        let request = Request {
            subject: Some(subject),
            ..Request::default()
        };
        let outcome = verify(&world.bundle(&envelope, &[entry]), &request, &world.roots);
        assert_eq!(failures(&outcome.report), want, "{case}");
        assert!(outcome.proof.is_none(), "{case}");
    }
    let strange = verify(&other.bundle(&foreign, &[]), &Request::default(), &world.roots);
    assert_eq!(failures(&strange.report), ["SIGNATURE:KEY_UNKNOWN"]);
}

#[test]
fn one_bad_entry_spoils_a_good_one() {
    let world = World::new();
    let envelope = world.envelope(&Digest::of(b"blob"));
    let good = world.entry(rekor_v1::DSSE, world.dsse_body(&envelope));
    let unknown = LogEntry {
        log_id: [7; 32],
        promise: None,
        integrated_time: None,
        ..good.clone()
    };
    for entries in [[good.clone(), unknown.clone()], [unknown, good]] {
        let outcome = verify(
            &world.bundle(&envelope, &entries),
            &Request::default(),
            &world.roots,
        );
        assert_eq!(failures(&outcome.report), ["CHECKPOINT:LOG_UNKNOWN"]);
    }
}

#[test]
fn a_signature_over_an_artifact_is_judged_like_one_over_a_statement() {
    let world = World::new();
    let (artifact, signature) = (b"blob", world.sign(b"blob"));
    let body = world.hashedrekord_body(artifact, &signature);
    let entry = world.entry(rekor_v1::HASHEDREKORD, body);
    let other = World::new();
    let bundle = world.message_bundle(artifact, &signature, std::slice::from_ref(&entry));
    let request = Request {
        subject: Some(Digest::of(artifact)),
        ..Request::default()
    };
    let outcome = verify(&bundle, &request, &world.roots);
    assert_eq!(
        (failures(&outcome.report), outcome.report.verified()),
        (vec![], true)
    );
    assert!(
        outcome.proof.is_none(),
        "it states nothing, so it proves no event"
    );

    let event = json!({
        "_id": "e", "kind": "SBOM", "ts": "2026-01-01T00:00:00Z",
        "subject": {"digest": {"sha256": Digest::of(artifact).hex()}},
    });
    let event = Event::parse_new(event.to_string().as_bytes()).expect("an event");
    let policy = Policy::parse(b"rules: []").expect("a policy");
    let of_another = world.entry(
        rekor_v1::HASHEDREKORD,
        world.hashedrekord_body(b"other", &world.sign(b"other")),
    );
    for (case, bundle, request, want) in [
        (
            "another artifact",
            bundle.clone(),
            Request {
                subject: Some(Digest::of(b"other")),
                ..Request::default()
            },
            vec!["SUBJECT:SUBJECT_MISMATCH"],
        ),
        (
            "a digest that was not signed",
            world.message_bundle(b"other", &signature, std::slice::from_ref(&entry)),
            Request::default(),
            vec!["SIGNATURE:SIGNATURE_INVALID"],
        ),
        (
            "another key",
            world.message_bundle(artifact, &other.sign(artifact), &[]),
            Request::default(),
            vec!["SIGNATURE:KEY_UNKNOWN"],
        ),
        (
            "another artifact's entry",
            world.message_bundle(artifact, &signature, &[of_another]),
            Request::default(),
            vec!["LOG_ENTRY:ENTRY_DIGEST_MISMATCH"],
        ),
        (
            "not logged",
            world.message_bundle(artifact, &signature, &[]),
            Request::default(),
            vec!["LOG_ENTRY:NOT_LOGGED"],
        ),
        (
            "for an event",
            bundle.clone(),
            Request {
                event: Some(&event),
                ..Request::default()
            },
            vec!["KIND:KIND_MISMATCH"],
        ),
        (
            "with a policy",
            bundle,
            Request {
                policy: Some(&policy),
                ..Request::default()
            },
            vec!["POLICY:POLICY_REFUSED"],
        ),
    ] {
        let report = verify(&bundle, &request, &world.roots).report;
        assert_eq!(
            (failures(&report), report.verified()),
            (want.iter().map(ToString::to_string).collect(), false),
            "{case}"
        );
    }
}

#[test]
fn what_is_not_logged_holds_only_as_far_as_a_policy_allows() {
    let world = World::new();
    let subject = Digest::of(b"blob");
    let bundle = world.bundle(&world.envelope(&subject), &[]);
    let policy = |head: &str| {
        let rules = "rules: [{id: OWN-KEY, when: {all: [{key.issuer: ci}]}, then: {decision: ALLOW}}]";
        Policy::parse(format!("{head}\n{rules}").as_bytes()).expect("a policy")
    };
    let (refuse, allow) = (policy(""), policy("unlogged: allow"));
    let trusting = Policy::parse(
        b"unlogged: allow\nrules: [{id: PROVEN, when: {all: [{trust.verified: true}]}, then: {decision: ALLOW}}]",
    )
    .expect("a policy");
    let event = json!({
        "_id": "e", "kind": "SBOM", "ts": "2026-01-01T00:00:00Z", "subject": {"digest": {"sha256": subject.hex()}},
    });
    let event = Event::parse_new(event.to_string().as_bytes()).expect("an event");
    for (case, policy, event, want) in [
        ("no policy", None, None, vec!["LOG_ENTRY:NOT_LOGGED"]),
        (
            "a policy that says nothing of it",
            Some(&refuse),
            None,
            vec!["LOG_ENTRY:NOT_LOGGED", "POLICY:POLICY_REFUSED"],
        ),
        ("a policy that allows it", Some(&allow), None, vec![]),
        (
            "a policy that asks for a proof besides",
            Some(&trusting),
            None,
            vec!["POLICY:POLICY_REFUSED"],
        ),
        (
            "an event, which is never proven so",
            Some(&allow),
            Some(&event),
            vec![
                "KIND:KIND_MISMATCH",
                "LOG_ENTRY:NOT_LOGGED",
                "POLICY:POLICY_REFUSED",
            ],
        ),
    ] {
        let request = Request {
            policy,
            event,
            ..Request::default()
        };
        let report = verify(&bundle, &request, &world.roots).report;
        let want: Vec<String> = want.iter().map(ToString::to_string).collect();
        assert_eq!(
            (failures(&report), report.verified()),
            (want.clone(), want.is_empty()),
            "{case}"
        );
    }
}
