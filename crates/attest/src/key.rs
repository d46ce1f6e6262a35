//! Keys: public ones that verify, private ones that sign, and their ids.
//!
//! A public key is its DER SubjectPublicKeyInfo (RFC 5280 §4.1); the algorithm comes from there and never from the
//! signature. Signatures are made and verified by `aws-lc-rs`; P-256 keys are read and made by `p256`, which also
//! checks that the point lies on the curve.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_ASN1,
    ECDSA_P521_SHA512_ASN1_SIGNING, ECDSA_P521_SHA512_FIXED, ED25519, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaKeyPair, VerificationAlgorithm,
};
use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::der::asn1::{AnyRef, ContextSpecific, OctetStringRef, UintRef};
use p256::pkcs8::der::pem::{self, LineEnding};
use p256::pkcs8::der::{self, Decode as _, Header, SliceReader};
use p256::pkcs8::spki::SubjectPublicKeyInfoRef;
use p256::pkcs8::{
    AlgorithmIdentifierRef, DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _,
    ObjectIdentifier, PrivateKeyInfoRef, SecretDocument,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// Largest key file or SubjectPublicKeyInfo that is read, in bytes.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// The algorithm of ECDSA keys (RFC 5480 §2.1.1).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// The algorithm of RSA keys (RFC 3279 §2.3.1).
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// Lengths of the RSA moduli that sign, in bytes: 2048, 3072 and 4096 bits.
const RSA_MODULUS_BYTES: [usize; 3] = [256, 384, 512];

/// Names a public key: `cosign:SHA256-PKIX:` and the unpadded base64 of SHA-256 over its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

impl KeyId {
    const PREFIX: &'static str = "cosign:SHA256-PKIX:";

    /// The id of the key with this DER SubjectPublicKeyInfo.
    pub fn of_spki(spki: &[u8]) -> Self {
        let digest = BASE64_STANDARD_NO_PAD.encode(Digest::of(spki).as_bytes());
        Self(format!("{}{digest}", Self::PREFIX).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digest = text.strip_prefix(Self::PREFIX).ok_or(KeyError::BadId)?;
        match BASE64_STANDARD_NO_PAD.decode(digest) {
            Ok(bytes) if bytes.len() == 32 => Ok(Self(text.into())),
            _ => Err(KeyError::BadId),
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a key id of ours.
    #[error("a key id is `cosign:SHA256-PKIX:` and 43 base64 characters")]
    BadId,
    /// Not PEM, or PEM of something else.
    #[error("not a PEM `{expected}`")]
    Pem {
        /// The label that was expected.
        expected: &'static str,
    },
    /// An encrypted private key.
    #[error("the private key is encrypted; give an unencrypted PKCS#8 file")]
    Encrypted,
    /// Not the DER that was expected, or trailing bytes.
    #[error("not a well-formed key")]
    Malformed,
    /// An algorithm or curve that is not used here.
    #[error("keys of this algorithm are not supported")]
    Unsupported,
    /// The private key could not sign.
    #[error("the key could not sign")]
    Signing,
    /// No key could be made.
    #[error("no key could be made")]
    Generation,
}

impl KeyError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::BadId => "BAD_KEY_ID",
            Self::Pem { .. } | Self::Malformed => "BAD_KEY",
            Self::Encrypted => "KEY_ENCRYPTED",
            Self::Unsupported => "KEY_UNSUPPORTED",
            Self::Signing | Self::Generation => "KEY_FAILED",
        }
    }
}

/// The algorithms that are known; the hash follows from the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256 (FIPS 186-5), signatures in DER.
    EcdsaP256,
    /// ECDSA on P-384 with SHA-384, signatures in DER.
    EcdsaP384,
    /// ECDSA on P-521 with SHA-512, signatures in DER.
    EcdsaP521,
    /// RSA with SHA-256, PKCS#1 v1.5 or PSS (RFC 8017).
    Rsa,
    /// Pure Ed25519 (RFC 8032).
    Ed25519,
}

impl Algorithm {
    /// `ECDSA`, `RSA` or `ED25519`, as events name it.
    pub const fn family(self) -> &'static str {
        match self {
            Self::EcdsaP256 | Self::EcdsaP384 | Self::EcdsaP521 => "ECDSA",
            Self::Rsa => "RSA",
            Self::Ed25519 => "ED25519",
        }
    }
}

struct Public {
    spki: Vec<u8>,
    id: KeyId,
    algorithm: Algorithm,
    /// RSA has two: PKCS#1 v1.5 and PSS.
    verifiers: Vec<ParsedPublicKey>,
}

/// A public key, parsed once; cheap to clone.
#[derive(Clone)]
pub struct VerifyingKey(Arc<Public>);

impl VerifyingKey {
    /// Reads a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] or [`KeyError::Unsupported`].
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, KeyError> {
        let algorithm = algorithm_of(spki)?;
        let algorithms: &[&'static dyn VerificationAlgorithm] = match algorithm {
            Algorithm::EcdsaP256 => {
                p256::PublicKey::from_public_key_der(spki).map_err(|_| KeyError::Malformed)?;
                &[&ECDSA_P256_SHA256_ASN1, &ECDSA_P256_SHA256_FIXED]
            }
            Algorithm::EcdsaP384 => &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA384_FIXED],
            Algorithm::EcdsaP521 => &[&ECDSA_P521_SHA512_ASN1, &ECDSA_P521_SHA512_FIXED],
            Algorithm::Rsa => &[&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256],
            Algorithm::Ed25519 => &[&ED25519],
        };
        let parsed = algorithms
            .iter()
            .map(|algorithm| ParsedPublicKey::new(*algorithm, spki));
        let verifiers = parsed
            .collect::<Result<_, _>>()
            .map_err(|_| KeyError::Malformed)?;
        Ok(Self(Arc::new(Public {
            spki: spki.to_vec(),
            id: KeyId::of_spki(spki),
            algorithm,
            verifiers,
        })))
    }

    /// Reads a PEM `PUBLIC KEY` (RFC 7468 §13).
    ///
    /// # Errors
    /// As [`from_spki_der`](Self::from_spki_der), and [`KeyError::Pem`].
    pub fn from_spki_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_spki_der(&read_pem(text, "PUBLIC KEY")?)
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    /// The key as PEM `PUBLIC KEY`.
    pub fn to_pem(&self) -> String {
        pem::encode_string("PUBLIC KEY", LineEnding::LF, &self.0.spki).expect("the label is well-formed")
    }

    /// The key's id.
    pub fn key_id(&self) -> &KeyId {
        &self.0.id
    }

    /// The key's algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.0.algorithm
    }

    /// True if `signature` is one of `message` by this key. ECDSA signatures are DER, or r and s at full length as the
    /// DSSE specification writes them; RSA ones PKCS#1 v1.5 or PSS.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0
            .verifiers
            .iter()
            .any(|verifier| verifier.verify_sig(message, signature).is_ok())
    }

    /// True if `signature` is by this key over the message with this SHA-256 digest; false for keys that do not sign
    /// SHA-256 digests.
    pub fn verify_digest(&self, digest: &Digest, signature: &[u8]) -> bool {
        let Some(verifier) = self.0.verifiers.first() else {
            return false;
        };
        if !matches!(self.0.algorithm, Algorithm::EcdsaP256 | Algorithm::Rsa) {
            return false;
        }
        let digest =
            aws_lc_rs::digest::Digest::import_less_safe(digest.as_bytes(), &aws_lc_rs::digest::SHA256);
        digest.is_ok_and(|digest| verifier.verify_digest_sig(&digest, signature).is_ok())
    }

    /// True if a `hashedrekord` entry can hold its signatures: they must be over a digest.
    pub fn is_loggable(&self) -> bool {
        self.key_details().is_some() && self.0.algorithm != Algorithm::Ed25519
    }

    /// The algorithm's name in Sigstore documents (`PublicKeyDetails`), if it has one.
    pub fn key_details(&self) -> Option<&'static str> {
        match self.0.algorithm {
            Algorithm::EcdsaP256 => Some("PKIX_ECDSA_P256_SHA_256"),
            Algorithm::EcdsaP384 => Some("PKIX_ECDSA_P384_SHA_384"),
            Algorithm::EcdsaP521 => Some("PKIX_ECDSA_P521_SHA_512"),
            Algorithm::Ed25519 => Some("PKIX_ED25519"),
            Algorithm::Rsa => match self.0.spki.len() {
                290..=300 => Some("PKIX_RSA_PKCS1V15_2048_SHA256"),
                418..=428 => Some("PKIX_RSA_PKCS1V15_3072_SHA256"),
                546..=556 => Some("PKIX_RSA_PKCS1V15_4096_SHA256"),
                _ => None,
            },
        }
    }
}

impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for VerifyingKey {}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.0.id)
    }
}

fn algorithm_of(spki: &[u8]) -> Result<Algorithm, KeyError> {
    if spki.len() > MAX_KEY_BYTES {
        return Err(KeyError::Malformed);
    }
    let parsed = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| KeyError::Malformed)?;
    algorithm_named(&parsed.algorithm)
}

fn algorithm_named(identifier: &AlgorithmIdentifierRef<'_>) -> Result<Algorithm, KeyError> {
    match identifier.oid.to_string().as_str() {
        "1.2.840.10045.2.1" => {
            let curve = identifier.parameters_oid().map_err(|_| KeyError::Malformed)?;
            match curve.to_string().as_str() {
                "1.2.840.10045.3.1.7" => Ok(Algorithm::EcdsaP256),
                "1.3.132.0.34" => Ok(Algorithm::EcdsaP384),
                "1.3.132.0.35" => Ok(Algorithm::EcdsaP521),
                _ => Err(KeyError::Unsupported),
            }
        }
        "1.2.840.113549.1.1.1" => Ok(Algorithm::Rsa),
        "1.3.101.112" => Ok(Algorithm::Ed25519),
        _ => Err(KeyError::Unsupported),
    }
}

/// The label and the bytes of one PEM block; what is encrypted is refused as such.
fn read_block<'t>(text: &'t str, expected: &'static str) -> Result<(&'t str, Vec<u8>), KeyError> {
    if text.len() > MAX_KEY_BYTES {
        return Err(KeyError::Malformed);
    }
    let block = pem::decode_vec(text.trim().as_bytes()).map_err(|_| KeyError::Pem { expected })?;
    match block.0 {
        "ENCRYPTED PRIVATE KEY" | "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => {
            Err(KeyError::Encrypted)
        }
        _ => Ok(block),
    }
}

fn read_pem(text: &str, expected: &'static str) -> Result<Vec<u8>, KeyError> {
    match read_block(text, expected)? {
        (label, der) if label == expected => Ok(der),
        _ => Err(KeyError::Pem { expected }),
    }
}

/// The curve that a private key of SEC 1 names (RFC 5915 §3). What follows it is read with the whole key.
fn curve_of(sec1: &[u8]) -> der::Result<ObjectIdentifier> {
    let mut reader = SliceReader::new(sec1)?;
    Header::decode(&mut reader)?;
    u8::decode(&mut reader)?;
    <&OctetStringRef>::decode(&mut reader)?;
    Ok(ContextSpecific::<ObjectIdentifier>::decode(&mut reader)?.value)
}

/// The length of the modulus of a private key of PKCS#1 (RFC 8017 §A.1.2), in bytes.
fn modulus_bytes(pkcs1: &[u8]) -> der::Result<usize> {
    let mut reader = SliceReader::new(pkcs1)?;
    Header::decode(&mut reader)?;
    u8::decode(&mut reader)?;
    Ok(UintRef::decode(&mut reader)?.as_bytes().len())
}

/// The PKCS#8 form of a private key (RFC 5208 §5).
fn to_pkcs8(algorithm: AlgorithmIdentifierRef<'_>, key: &[u8]) -> der::Result<SecretDocument> {
    SecretDocument::encode_msg(&PrivateKeyInfoRef::new(algorithm, OctetStringRef::new(key)?))
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

/// A private key that signs in this process.
pub struct SigningKey {
    pair: Pair,
    public: VerifyingKey,
    random: SystemRandom,
    /// PKCS#8, as read or made.
    der: SecretDocument,
}

impl SigningKey {
    /// Reads a PEM `PRIVATE KEY` (PKCS#8, RFC 5208). See [`from_pkcs8_der`](Self::from_pkcs8_der).
    ///
    /// # Errors
    /// [`KeyError`]; never with any part of the key in it.
    pub fn from_pkcs8_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_pkcs8_der(&read_pem(text, "PRIVATE KEY")?)
    }

    /// Reads a private key as other tools write it: PEM `PRIVATE KEY` (PKCS#8, RFC 5208), `EC PRIVATE KEY` that names
    /// its curve (SEC 1, RFC 5915) or `RSA PRIVATE KEY` (PKCS#1, RFC 8017). It is PKCS#8 from then on.
    ///
    /// # Errors
    /// [`KeyError`]; never with any part of the key in it.
    pub fn from_any_pem(text: &str) -> Result<Self, KeyError> {
        const EXPECTED: &str = "PRIVATE KEY`, `EC PRIVATE KEY` or `RSA PRIVATE KEY";
        let (label, key) = read_block(text, EXPECTED)?;
        let pkcs8 = match label {
            "PRIVATE KEY" => return Self::from_pkcs8_der(&key),
            "EC PRIVATE KEY" => curve_of(&key).and_then(|curve| {
                let algorithm = AlgorithmIdentifierRef {
                    oid: EC_PUBLIC_KEY,
                    parameters: Some(AnyRef::from(&curve)),
                };
                to_pkcs8(algorithm, &key)
            }),
            "RSA PRIVATE KEY" => {
                let algorithm = AlgorithmIdentifierRef {
                    oid: RSA_ENCRYPTION,
                    parameters: Some(AnyRef::NULL),
                };
                to_pkcs8(algorithm, &key)
            }
            _ => return Err(KeyError::Pem { expected: EXPECTED }),
        };
        Self::from_pkcs8_der(pkcs8.map_err(|_| KeyError::Malformed)?.as_bytes())
    }

    /// Reads a DER PrivateKeyInfo (PKCS#8, RFC 5208 and RFC 5958): ECDSA on P-256, P-384 and P-521, Ed25519, and RSA of
    /// 2048, 3072 and 4096 bits.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] or [`KeyError::Unsupported`].
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let info = PrivateKeyInfoRef::try_from(der).map_err(|_| KeyError::Malformed)?;
        let pair = match algorithm_named(&info.algorithm)? {
            Algorithm::EcdsaP256 => {
                p256::SecretKey::from_pkcs8_der(der).map_err(|_| KeyError::Malformed)?;
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map(Pair::Ecdsa)
            }
            Algorithm::EcdsaP384 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, der).map(Pair::Ecdsa)
            }
            Algorithm::Ed25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Pair::Ed25519),
            Algorithm::EcdsaP521 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P521_SHA512_ASN1_SIGNING, der).map(Pair::Ecdsa)
            }
            Algorithm::Rsa => {
                let modulus = modulus_bytes(info.private_key.as_bytes()).map_err(|_| KeyError::Malformed)?;
                if !RSA_MODULUS_BYTES.contains(&modulus) {
                    return Err(KeyError::Unsupported);
                }
                RsaKeyPair::from_pkcs8(der).map(|pair| Pair::Rsa(Box::new(pair)))
            }
        };
        let pair = pair.map_err(|_| KeyError::Malformed)?;
        let spki = spki_of(&pair)?;
        Ok(Self {
            pair,
            public: VerifyingKey::from_spki_der(&spki)?,
            random: SystemRandom::new(),
            der: SecretDocument::try_from(der).map_err(|_| KeyError::Malformed)?,
        })
    }

    /// Makes a new key of the operating system's randomness: P-256 or Ed25519.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] for another algorithm, [`KeyError::Generation`] if there is no randomness.
    pub fn generate(algorithm: Algorithm) -> Result<Self, KeyError> {
        match algorithm {
            Algorithm::EcdsaP256 => {
                let key = p256::SecretKey::try_generate().map_err(|_| KeyError::Generation)?;
                let der = key.to_pkcs8_der().map_err(|_| KeyError::Generation)?;
                Self::from_pkcs8_der(der.as_bytes())
            }
            Algorithm::Ed25519 => {
                let der =
                    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Generation)?;
                Self::from_pkcs8_der(der.as_ref())
            }
            Algorithm::EcdsaP384 | Algorithm::EcdsaP521 | Algorithm::Rsa => Err(KeyError::Unsupported),
        }
    }

    /// The private key as PEM `PRIVATE KEY`. Secret.
    pub fn to_pkcs8_pem(&self) -> String {
        let pem = self
            .der
            .to_pem("PRIVATE KEY", LineEnding::LF)
            .expect("the label is well-formed");
        pem.as_str().to_owned()
    }

    /// Signs `message`.
    ///
    /// # Errors
    /// [`KeyError::Signing`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&self.random, message).map_err(|_| KeyError::Signing)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                    .map_err(|_| KeyError::Signing)?;
                Ok(signature)
            }
        }
    }

    /// The public half.
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, ****)", self.public.key_id())
    }
}

fn spki_of(pair: &Pair) -> Result<Vec<u8>, KeyError> {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    let der: Result<PublicKeyX509Der<'_>, _> = match pair {
        Pair::Ecdsa(pair) => pair.public_key().as_der(),
        Pair::Ed25519(pair) => pair.public_key().as_der(),
        Pair::Rsa(pair) => pair.public_key().as_der(),
    };
    Ok(der.map_err(|_| KeyError::Malformed)?.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_verifies_what_it_signed_and_nothing_else() {
        for algorithm in [Algorithm::EcdsaP256, Algorithm::Ed25519] {
            let key = SigningKey::generate(algorithm).expect("a key");
            let again = SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem()).expect("the same key");
            let public = VerifyingKey::from_spki_pem(&key.verifying_key().to_pem()).expect("its public half");
            assert_eq!(
                (again.verifying_key(), public.key_id()),
                (&public, key.verifying_key().key_id())
            );
            let signature = again.sign(b"message").expect("signs");
            let other = SigningKey::generate(algorithm).expect("a key");
            assert!(public.verify(b"message", &signature), "{algorithm:?}");
            assert!(!public.verify(b"massage", &signature), "{algorithm:?}");
            assert!(!public.verify(b"message", &[]), "{algorithm:?}");
            assert!(
                !other.verifying_key().verify(b"message", &signature),
                "{algorithm:?}"
            );
            let digest_verifies = public.verify_digest(&Digest::of(b"message"), &signature);
            assert_eq!(digest_verifies, algorithm == Algorithm::EcdsaP256);
        }
    }

    #[test]
    fn p256_verifies_what_aws_lc_signs() {
        use p256::ecdsa::signature::Verifier as _;
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let signature =
            p256::ecdsa::DerSignature::try_from(key.sign(b"m").expect("signs").as_slice()).expect("DER");
        let oracle =
            p256::ecdsa::VerifyingKey::from_public_key_der(key.verifying_key().spki()).expect("SPKI");
        assert_eq!(
            oracle.verify(b"m", &signature).map_err(|error| error.to_string()),
            Ok(())
        );
    }

    #[test]
    fn what_is_not_a_usable_key_is_refused_by_name() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let (private, public) = (key.to_pkcs8_pem(), key.verifying_key().to_pem());
        let mut off_curve = key.verifying_key().spki().to_vec();
        *off_curve.last_mut().expect("not empty") ^= 1;
        let trailing = [key.verifying_key().spki(), b"\0"].concat();
        let is_private = KeyError::Pem {
            expected: "PUBLIC KEY",
        };
        for (case, result, want) in [
            (
                "private for public",
                VerifyingKey::from_spki_pem(&private).map(|_| ()),
                is_private,
            ),
            (
                "no PEM",
                VerifyingKey::from_spki_pem("hello").map(|_| ()),
                is_private,
            ),
            (
                "a point off the curve",
                VerifyingKey::from_spki_der(&off_curve).map(|_| ()),
                KeyError::Malformed,
            ),
            (
                "trailing bytes",
                VerifyingKey::from_spki_der(&trailing).map(|_| ()),
                KeyError::Malformed,
            ),
            (
                "nothing",
                VerifyingKey::from_spki_der(&[]).map(|_| ()),
                KeyError::Malformed,
            ),
            (
                "public for private",
                SigningKey::from_pkcs8_pem(&public).map(|_| ()),
                KeyError::Pem {
                    expected: "PRIVATE KEY",
                },
            ),
            (
                "encrypted",
                SigningKey::from_pkcs8_pem(
                    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                )
                .map(|_| ()),
                KeyError::Encrypted,
            ),
        ] {
            assert_eq!(result, Err(want), "{case}");
        }
    }

    /// A P-256 key as SEC 1; with its curve left out if it is not `named`.
    fn sec1_pem(named: bool) -> String {
        const CURVE: [u8; 12] = [0xa0, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
        let key = p256::SecretKey::try_generate().expect("a key");
        let mut sec1 = key.to_sec1_der().expect("SEC 1").to_vec();
        let at = sec1.windows(CURVE.len()).position(|window| window == CURVE);
        let at = at.expect("the curve is named");
        if !named {
            sec1.drain(at..at + CURVE.len());
            sec1[1] -= 12;
        }
        pem::encode_string("EC PRIVATE KEY", LineEnding::LF, &sec1).expect("PEM")
    }

    #[test]
    fn a_key_of_another_container_is_the_same_key_in_pkcs8() {
        let key = SigningKey::from_any_pem(&sec1_pem(true)).expect("a SEC 1 key");
        let again = SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem()).expect("PKCS#8");
        assert_eq!(again.verifying_key(), key.verifying_key());
        let signature = again.sign(b"m").expect("signs");
        assert!(key.verifying_key().verify(b"m", &signature));
        let expected = KeyError::Pem {
            expected: "PRIVATE KEY`, `EC PRIVATE KEY` or `RSA PRIVATE KEY",
        };
        let relabelled =
            |label: &str| pem::encode_string(label, LineEnding::LF, key.der.as_bytes()).expect("PEM");
        for (case, text, want) in [
            ("no curve is named", sec1_pem(false), KeyError::Malformed),
            (
                "PKCS#8 under another label",
                relabelled("EC PRIVATE KEY"),
                KeyError::Malformed,
            ),
            ("no RSA key", relabelled("RSA PRIVATE KEY"), KeyError::Malformed),
            ("a public key", key.verifying_key().to_pem(), expected),
            ("no PEM", "hello".to_owned(), expected),
            (
                "encrypted",
                relabelled("ENCRYPTED COSIGN PRIVATE KEY"),
                KeyError::Encrypted,
            ),
        ] {
            let refused = SigningKey::from_any_pem(&text).map(|key| key.verifying_key().clone());
            assert_eq!(refused, Err(want), "{case}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        assert_eq!(
            format!("{key:?}"),
            format!("SigningKey({}, ****)", key.verifying_key().key_id())
        );
    }
}
