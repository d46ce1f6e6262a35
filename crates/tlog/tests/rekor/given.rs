//! What tests are given: envelopes with their signatures, logs that are trusted, clients of them.

use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair};
use stella_attest::checkpoint::LogKey;
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::entry;
use stella_attest::evidence::LogEntry;
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};
use stella_attest::trust::{TrustedLog, Validity};
use stella_attest::verify;
use stella_tlog::rekor::RekorConfig;
use stella_tlog::{LogError, Submission};

/// A submission that no other test makes: an in-toto statement about a subject of its own, and that subject's digest.
pub fn submission() -> (Submission, Digest) {
    let ([submission, _], subject) = signed_twice();
    (submission, subject)
}

/// The same, and another signature by the same key over the same bytes.
pub fn signed_twice() -> ([Submission; 2], Digest) {
    twice_by(&SigningKey::generate(Algorithm::EcdsaP256).expect("a key"))
}

/// A submission of its own by a key of this kind.
pub fn signed_by(algorithm: Algorithm) -> Submission {
    let ([submission, _], _) = twice_by(&generated(algorithm));
    submission
}

fn generated(algorithm: Algorithm) -> SigningKey {
    let curve = |curve| {
        let der = EcdsaKeyPair::generate_pkcs8(curve, &SystemRandom::new()).expect("a key");
        der.as_ref().to_vec()
    };
    let der = match algorithm {
        Algorithm::EcdsaP384 => curve(&ECDSA_P384_SHA384_ASN1_SIGNING),
        Algorithm::EcdsaP521 => curve(&ECDSA_P521_SHA512_ASN1_SIGNING),
        Algorithm::Rsa => {
            let pair = rsa::KeyPair::generate(KeySize::Rsa2048).expect("a key");
            let der: Pkcs8V1Der<'_> = pair.as_der().expect("DER");
            der.as_ref().to_vec()
        }
        Algorithm::EcdsaP256 | Algorithm::Ed25519 => return SigningKey::generate(algorithm).expect("a key"),
    };
    SigningKey::from_pkcs8_der(&der).expect("a key")
}

fn twice_by(key: &SigningKey) -> ([Submission; 2], Digest) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let subject = Digest::of(&[key.verifying_key().spki(), &number.to_be_bytes()].concat());
    let payload = format!(
        "{{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicate\":{{}},\"predicateType\":\"https://example.com/p/v1\",\
         \"subject\":[{{\"digest\":{{\"sha256\":\"{}\"}},\"name\":\"app.bin\"}}]}}",
        subject.hex()
    );
    let sign = || {
        let envelope = Envelope::sign("application/vnd.in-toto+json", payload.as_bytes(), key);
        let envelope = envelope.expect("signed");
        Submission {
            pae_digest: Digest::of(&envelope.pae()),
            signature: envelope.signatures[0].sig.clone(),
            key: key.verifying_key().clone(),
            envelope: envelope.canonical_bytes().into(),
        }
    };
    ([sign(), sign()], subject)
}

/// The log with this key (PEM) and origin.
pub fn trusted(origin: &str, key_pem: &str) -> TrustedLog {
    let key = VerifyingKey::from_spki_pem(key_pem).expect("a key");
    TrustedLog {
        key: LogKey::new(origin, key).expect("a log's key"),
        base_url: String::new(),
        distrusted: false,
        validity: Validity::default(),
    }
}

/// Installs what TLS needs, once.
pub fn with_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        installed.expect("nobody else installs one");
    });
}

/// The configuration of a client of `log` at `url`, which keeps what it sees in `state`.
pub fn config(url: &str, log: TrustedLog, state: Option<&Path>) -> RekorConfig {
    with_provider();
    let mut config = RekorConfig::new(url, log);
    config.state_dir = state.map(Path::to_owned);
    config.stale_timeout = Duration::from_millis(300);
    config
}

/// Asserts that `entry` holds by itself, as any verifier would see it, and is of `submission`.
#[track_caller]
pub fn assert_proven(entry: &LogEntry, submission: &Submission, log: &TrustedLog) {
    let checked = verify::check_entry(entry, log).map(|_| ());
    assert_eq!(checked, Ok(()));
    let payload = Envelope::parse(&submission.envelope)
        .expect("an envelope")
        .payload;
    let body = entry::parse(&entry.kind, &entry.version, &entry.body).expect("a known kind");
    let bound = body.binds(
        &submission.pae_digest,
        Some(&Digest::of(&payload)),
        &submission.signature,
        submission.key.spki(),
    );
    assert_eq!(bound, Ok(()));
}

/// The reason within, of an outcome that failed because the log's answer does not hold; else what it was.
pub fn inner_reason<T>(outcome: Result<T, LogError>) -> String {
    match outcome {
        Ok(_) => "believed".to_owned(),
        Err(LogError::AnswerInvalid { reason, .. }) => reason.to_owned(),
        Err(error) => format!("{}: {error}", error.reason()),
    }
}
