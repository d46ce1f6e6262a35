//! The keys of notes: what verifies a line, and what makes one.

use std::fmt;

use aws_lc_rs::digest;
use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::{NoteError, NoteSignature, is_name};
use crate::cosignature;
use crate::key::{Algorithm, SigningKey, VerifyingKey};

const TYPE_ED25519: u8 = 0x01;
const TYPE_ECDSA: u8 = 0x02;
const TYPE_COSIGNATURE: u8 = 0x04;

/// What a DER SubjectPublicKeyInfo of an Ed25519 key begins with (RFC 8410); the 32 bytes of the key follow.
const ED25519_SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ed25519,
    Ecdsa,
    Cosignature,
}

/// A public key that verifies notes, under the name it signs with.
#[derive(Clone, Debug)]
pub struct NoteKey {
    name: String,
    id: [u8; 4],
    kind: Kind,
    key: VerifyingKey,
}

impl NoteKey {
    /// Reads a verifier key, `<name>+<key id>+<base64(type ‖ key)>`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::KeyFormat);
        };
        let mut stated = [0; 4];
        if id.bytes().any(|byte| byte.is_ascii_uppercase()) || hex::decode_to_slice(id, &mut stated).is_err()
        {
            return Err(NoteError::KeyFormat);
        }
        let blob = BASE64_STANDARD
            .decode(encoded)
            .map_err(|_| NoteError::KeyFormat)?;
        let (kind, bytes) = blob.split_first().ok_or(NoteError::KeyFormat)?;
        let key = match *kind {
            TYPE_ED25519 => Self::ed25519(name, &ed25519_key(bytes)?),
            TYPE_COSIGNATURE => Self::cosignature(name, &ed25519_key(bytes)?),
            TYPE_ECDSA => {
                let key = VerifyingKey::from_spki_der(bytes).map_err(|error| NoteError::Key(Some(error)))?;
                Self::ecdsa(name, &key)
            }
            unknown => Err(NoteError::KeyType(unknown)),
        }?;
        if key.id != stated {
            return Err(NoteError::KeyId);
        }
        Ok(key)
    }

    /// A log's or signer's Ed25519 key (type 0x01).
    pub fn ed25519(name: &str, key: &VerifyingKey) -> Result<Self, NoteError> {
        let raw = ed25519_bytes(key).ok_or(NoteError::Key(None))?;
        let id = first_four(&c2sp_key_hash(name, TYPE_ED25519, raw));
        Self::named(name, id, Kind::Ed25519, key)
    }

    /// A witness's Ed25519 key (type 0x04), whose signatures bear a time.
    pub fn cosignature(name: &str, key: &VerifyingKey) -> Result<Self, NoteError> {
        let raw = ed25519_bytes(key).ok_or(NoteError::Key(None))?;
        let id = first_four(&c2sp_key_hash(name, TYPE_COSIGNATURE, raw));
        Self::named(name, id, Kind::Cosignature, key)
    }

    /// An ECDSA key as Rekor v1 uses it (type 0x02): the key id is of the SubjectPublicKeyInfo alone.
    pub fn ecdsa(name: &str, key: &VerifyingKey) -> Result<Self, NoteError> {
        match key.algorithm() {
            Algorithm::EcdsaP256 | Algorithm::EcdsaP384 | Algorithm::EcdsaP521 => {}
            Algorithm::Rsa | Algorithm::Ed25519 => return Err(NoteError::Key(None)),
        }
        Self::named(name, first_four(&sha256(&[key.spki()])), Kind::Ecdsa, key)
    }

    fn named(name: &str, id: [u8; 4], kind: Kind, key: &VerifyingKey) -> Result<Self, NoteError> {
        if !is_name(name) {
            return Err(NoteError::KeyName(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            id,
            kind,
            key: key.clone(),
        })
    }

    /// The name that the key signs with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key id of its signature lines.
    pub fn id(&self) -> &[u8; 4] {
        &self.id
    }

    /// The key itself.
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// True for a witness's key, whose signatures bear a time.
    pub fn is_witness(&self) -> bool {
        self.kind == Kind::Cosignature
    }

    /// Checks one line that bears this key's name and id.
    pub(super) fn check(&self, text: &str, signature: &NoteSignature) -> Result<(), NoteError> {
        let holds = match self.kind {
            Kind::Ed25519 | Kind::Ecdsa => self.key.verify(text.as_bytes(), &signature.bytes),
            Kind::Cosignature => cosignature::time_of(text, &self.key, &signature.bytes).is_some(),
        };
        if holds {
            Ok(())
        } else {
            Err(NoteError::Signature(self.name.clone()))
        }
    }
}

/// The verifier key as [`NoteKey::parse`] reads it.
impl fmt::Display for NoteKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes) = match self.kind {
            Kind::Ecdsa => (TYPE_ECDSA, self.key.spki()),
            Kind::Ed25519 => (TYPE_ED25519, &self.key.spki()[ED25519_SPKI.len()..]),
            Kind::Cosignature => (TYPE_COSIGNATURE, &self.key.spki()[ED25519_SPKI.len()..]),
        };
        let encoded = BASE64_STANDARD.encode([&[kind], bytes].concat());
        write!(out, "{}+{}+{encoded}", self.name, hex::encode(self.id))
    }
}

impl PartialEq for NoteKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.id, self.kind, self.key.spki())
            == (&other.name, other.id, other.kind, other.key.spki())
    }
}

impl Eq for NoteKey {}

/// An Ed25519 key that signs notes under a name.
#[derive(Debug)]
pub struct NoteSigner<'a> {
    key: &'a SigningKey,
    public: NoteKey,
}

impl<'a> NoteSigner<'a> {
    /// Signs as `name` with `key`, which must be Ed25519.
    pub fn new(name: &str, key: &'a SigningKey) -> Result<Self, NoteError> {
        Ok(Self {
            key,
            public: NoteKey::ed25519(name, key.verifying_key())?,
        })
    }

    /// The name that stands in the signature lines.
    pub fn name(&self) -> &str {
        &self.public.name
    }

    pub(super) fn sign(&self, text: &str) -> Result<NoteSignature, NoteError> {
        let bytes = self.key.sign(text.as_bytes()).map_err(NoteError::Signing)?;
        Ok(NoteSignature {
            name: self.public.name.clone(),
            id: self.public.id,
            bytes,
        })
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> &NoteKey {
        &self.public
    }
}

/// The 32 bytes of an Ed25519 key.
fn ed25519_bytes(key: &VerifyingKey) -> Option<&[u8]> {
    if key.algorithm() != Algorithm::Ed25519 {
        return None;
    }
    key.spki()
        .strip_prefix(&ED25519_SPKI)
        .filter(|raw| raw.len() == 32)
}

fn ed25519_key(raw: &[u8]) -> Result<VerifyingKey, NoteError> {
    if raw.len() != 32 {
        return Err(NoteError::KeyFormat);
    }
    VerifyingKey::from_spki_der(&[&ED25519_SPKI, raw].concat()).map_err(|error| NoteError::Key(Some(error)))
}

/// SHA-256 of name, newline, type and key; a key id is its first four bytes.
fn c2sp_key_hash(name: &str, kind: u8, raw: &[u8]) -> [u8; 32] {
    sha256(&[name.as_bytes(), b"\n", &[kind], raw])
}

/// The whole hash behind the key id of a log's Ed25519 key; Sigstore calls it the log id.
pub(crate) fn ed25519_key_hash(name: &str, key: &VerifyingKey) -> Option<[u8; 32]> {
    Some(c2sp_key_hash(name, TYPE_ED25519, ed25519_bytes(key)?))
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The start of a hash, as a key id.
fn first_four(hash: &[u8; 32]) -> [u8; 4] {
    [hash[0], hash[1], hash[2], hash[3]]
}
