//! Signed notes (C2SP signed-note): a text, and lines of signatures over it.
//!
//! A note is `<text>\n— <name> <base64(key id ‖ signature)>\n…`: the text ends with a newline, an empty line follows,
//! then one line for each signature. Anyone may add lines, so a line by an unknown key says nothing; a line by a known
//! key that does not verify spoils the note.
//!
//! Keys are written `<name>+<key id>+<base64(type ‖ key)>`. The types we know: 0x01 Ed25519, 0x02 ECDSA as Rekor v1
//! uses it (the key id is of the SPKI alone), 0x04 an Ed25519 witness (see [`cosignature`](crate::cosignature)).

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::key::KeyError;

mod keys;

pub use self::keys::{NoteKey, NoteSigner};
pub(crate) use self::keys::{ed25519_key_hash, sha256};

/// Most bytes of a note, as in the reference implementation.
pub const MAX_NOTE: usize = 1_000_000;

/// Most signature lines of a note, as in the reference implementation.
pub const MAX_SIGNATURES: usize = 100;

/// Most bytes of a key's name.
const MAX_NAME: usize = 1024;

const DASH: &str = "— ";

/// Why a note or its key is refused.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// More than [`MAX_NOTE`] bytes.
    #[error("the note has {0} bytes")]
    TooLarge(usize),
    /// Not UTF-8, or a control character in it.
    #[error("the note is not plain text")]
    NotText,
    /// No empty line between text and signatures, or no final newline, or no signature at all.
    #[error("the note has no signatures")]
    NoSignatures,
    /// More than [`MAX_SIGNATURES`] lines.
    #[error("the note has more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// A line that is not `— name base64`.
    #[error("signature line {0} is malformed")]
    SignatureLine(usize),
    /// The name of a key is empty, too long, or has a space or a `+` in it.
    #[error("`{0}` is not a key name")]
    KeyName(String),
    /// The text of a key is not `name+id+base64`.
    #[error("the verifier key is malformed")]
    KeyFormat,
    /// A type of key that we do not know.
    #[error("verifier keys of type {0:#04x} are not known")]
    KeyType(u8),
    /// The id in the key's text is not the key's.
    #[error("the verifier key's id is wrong")]
    KeyId,
    /// The bytes in the key's text, or the key given, are not of the stated type.
    #[error("the verifier key is not of its type")]
    Key(#[source] Option<KeyError>),
    /// Two of the known keys have the same name and id, and a line is by one of them.
    #[error("two known keys are called `{0}`")]
    AmbiguousKey(String),
    /// No line is by a known key.
    #[error("no signature is by a known key")]
    Unsigned,
    /// A line by a known key does not verify.
    #[error("the signature by `{0}` is wrong")]
    Signature(String),
    /// The private key could not sign.
    #[error("signing the note failed")]
    Signing(#[source] KeyError),
}

impl NoteError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "NOTE_TOO_LARGE",
            Self::NotText => "NOTE_NOT_TEXT",
            Self::NoSignatures => "NOTE_NO_SIGNATURES",
            Self::TooManySignatures => "NOTE_TOO_MANY_SIGNATURES",
            Self::SignatureLine(_) => "NOTE_SIGNATURE_LINE",
            Self::KeyName(_) => "NOTE_KEY_NAME",
            Self::KeyFormat => "NOTE_KEY_FORMAT",
            Self::KeyType(_) => "NOTE_KEY_TYPE",
            Self::KeyId => "NOTE_KEY_ID",
            Self::Key(_) => "NOTE_KEY",
            Self::AmbiguousKey(_) => "NOTE_KEY_AMBIGUOUS",
            Self::Unsigned => "NOTE_UNSIGNED",
            Self::Signature(_) => "NOTE_SIGNATURE",
            Self::Signing(_) => "NOTE_SIGNING",
        }
    }
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// Who claims to have signed.
    pub name: String,
    /// Which of their keys.
    pub id: [u8; 4],
    /// What the key's type says it is.
    pub bytes: Vec<u8>,
}

impl fmt::Display for NoteSignature {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blob = [&self.id[..], &self.bytes].concat();
        writeln!(out, "{DASH}{} {}", self.name, BASE64_STANDARD.encode(blob))
    }
}

/// A text with signature lines. That it parses says nothing about the signatures: see [`verify`](Self::verify).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// Reads a note; nothing in it is believed yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > MAX_NOTE {
            return Err(NoteError::TooLarge(bytes.len()));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
        if note.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
            return Err(NoteError::NotText);
        }
        let end_of_text = note.rfind("\n\n").ok_or(NoteError::NoSignatures)? + 1;
        let (text, lines) = note.split_at(end_of_text);
        Ok(Self {
            text: text.to_owned(),
            signatures: parse_lines(&lines[1..])?,
        })
    }

    /// A note with one signature, by `signer`. `text` must end with a newline and hold no other control characters.
    pub fn sign(text: &str, signer: &NoteSigner<'_>) -> Result<Self, NoteError> {
        if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') || !text.ends_with('\n') {
            return Err(NoteError::NotText);
        }
        Ok(Self {
            text: text.to_owned(),
            signatures: vec![signer.sign(text)?],
        })
    }

    /// The text that is signed, with its final newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines, in their order.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// The note with more signature lines, as a witness answers them. A line by a key that has one already replaces it.
    pub fn with_lines(mut self, lines: &str) -> Result<Self, NoteError> {
        for line in parse_lines(lines)? {
            self.signatures
                .retain(|known| (&known.name, known.id) != (&line.name, line.id));
            self.signatures.push(line);
        }
        if self.signatures.len() > MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures);
        }
        Ok(self)
    }

    /// The lines that claim to be by `key`.
    pub fn signatures_by<'a>(&'a self, key: &'a NoteKey) -> impl Iterator<Item = &'a NoteSignature> {
        self.signatures
            .iter()
            .filter(|signature| signature.name == key.name() && signature.id == *key.id())
    }

    /// Checks that `key` signed the text: there is a line by it, and every such line verifies.
    pub fn verify(&self, key: &NoteKey) -> Result<(), NoteError> {
        let mut is_signed = false;
        for signature in self.signatures_by(key) {
            key.check(&self.text, signature)?;
            is_signed = true;
        }
        if is_signed {
            Ok(())
        } else {
            Err(NoteError::Unsigned)
        }
    }

    /// The keys of `known` that signed; at least one must have, and no line by one of them may be wrong.
    pub fn open<'k>(&self, known: &[&'k NoteKey]) -> Result<Vec<&'k NoteKey>, NoteError> {
        let mut signers: Vec<&NoteKey> = Vec::new();
        for signature in &self.signatures {
            let mut named = known
                .iter()
                .filter(|key| key.name() == signature.name && *key.id() == signature.id);
            let Some(key) = named.next() else { continue };
            if named.next().is_some() {
                return Err(NoteError::AmbiguousKey(key.name().to_owned()));
            }
            key.check(&self.text, signature)?;
            if !signers.iter().any(|signer| std::ptr::eq(*signer, *key)) {
                signers.push(key);
            }
        }
        if signers.is_empty() {
            Err(NoteError::Unsigned)
        } else {
            Ok(signers)
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.text)?;
        for signature in &self.signatures {
            write!(out, "{signature}")?;
        }
        Ok(())
    }
}

/// Parses one or more signature lines, each ended by a newline.
fn parse_lines(lines: &str) -> Result<Vec<NoteSignature>, NoteError> {
    let lines = lines.strip_suffix('\n').ok_or(NoteError::NoSignatures)?;
    let mut signatures = Vec::new();
    for (index, line) in lines.split('\n').enumerate() {
        if index == MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures);
        }
        signatures.push(parse_line(line).ok_or(NoteError::SignatureLine(index + 1))?);
    }
    Ok(signatures)
}

fn parse_line(line: &str) -> Option<NoteSignature> {
    let (name, encoded) = line.strip_prefix(DASH)?.split_once(' ')?;
    if !is_name(name) {
        return None;
    }
    let blob = BASE64_STANDARD.decode(encoded).ok()?;
    let (id, bytes) = blob.split_first_chunk::<4>()?;
    if bytes.is_empty() {
        return None;
    }
    Some(NoteSignature {
        name: name.to_owned(),
        id: *id,
        bytes: bytes.to_vec(),
    })
}

fn is_name(name: &str) -> bool {
    let is_forbidden =
        |character: char| character.is_whitespace() || character.is_control() || character == '+';
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(is_forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cosignature;
    use crate::key::{Algorithm, SigningKey};
    use crate::timestamp::Timestamp;

    fn key() -> SigningKey {
        SigningKey::generate(Algorithm::Ed25519).unwrap()
    }

    #[test]
    fn a_signed_note_reads_back_and_verifies() {
        let (key, other) = (key(), key());
        let signer = NoteSigner::new("example.com/log", &key).unwrap();
        let stranger = NoteKey::ed25519("example.com/log", other.verifying_key()).unwrap();
        let note = Note::sign("one\n\ntwo\n", &signer).unwrap();
        let read = Note::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!(read, note);
        assert_eq!(
            read.open(&[&stranger, signer.public()]).unwrap(),
            [signer.public()]
        );
        assert_eq!(read.verify(&stranger).unwrap_err().reason(), "NOTE_UNSIGNED");
        assert_eq!(
            NoteKey::parse(&signer.public().to_string()).unwrap(),
            *signer.public()
        );
    }

    #[test]
    fn a_note_is_refused_for_its_first_fault() {
        let line = "— name AAAAAAA=\n";
        for (case, note, wanted) in [
            ("empty", String::new(), "NOTE_NO_SIGNATURES"),
            ("text only", "text\n".into(), "NOTE_NO_SIGNATURES"),
            ("no line", "text\n\n".into(), "NOTE_NO_SIGNATURES"),
            ("no empty line", format!("text\n{line}"), "NOTE_NO_SIGNATURES"),
            (
                "no final newline",
                format!("text\n\n{}", line.trim_end()),
                "NOTE_NO_SIGNATURES",
            ),
            (
                "two empty lines",
                format!("text\n\n{line}\n"),
                "NOTE_NO_SIGNATURES",
            ),
            ("control character", format!("te\txt\n\n{line}"), "NOTE_NOT_TEXT"),
            ("carriage return", format!("text\r\n\n{line}"), "NOTE_NOT_TEXT"),
            (
                "other line",
                format!("text\n\n{line}more\n"),
                "NOTE_SIGNATURE_LINE",
            ),
            (
                "hyphen for the dash",
                format!("text\n\n{}", line.replace('—', "-")),
                "NOTE_SIGNATURE_LINE",
            ),
            ("no name", "text\n\n—  AAAAAAA=\n".into(), "NOTE_SIGNATURE_LINE"),
            (
                "plus in the name",
                "text\n\n— na+me AAAAAAA=\n".into(),
                "NOTE_SIGNATURE_LINE",
            ),
            (
                "space in the name",
                "text\n\n— na\u{a0}me AAAAAAA=\n".into(),
                "NOTE_SIGNATURE_LINE",
            ),
            (
                "key id only",
                "text\n\n— name AAAAAA==\n".into(),
                "NOTE_SIGNATURE_LINE",
            ),
            (
                "no padding",
                "text\n\n— name AAAAAAA\n".into(),
                "NOTE_SIGNATURE_LINE",
            ),
            (
                "bits behind the end",
                "text\n\n— name AAAAAAB=\n".into(),
                "NOTE_SIGNATURE_LINE",
            ),
            (
                "101 lines",
                format!("text\n\n{}", line.repeat(101)),
                "NOTE_TOO_MANY_SIGNATURES",
            ),
            (
                "too large",
                format!("{}\n\n{line}", "x".repeat(MAX_NOTE)),
                "NOTE_TOO_LARGE",
            ),
        ] {
            assert_eq!(
                Note::parse(note.as_bytes()).map_err(|error| error.reason()),
                Err(wanted),
                "{case}"
            );
        }
        let invalid =
            Note::parse(b"\xfftext\n\n\xe2\x80\x94 name AAAAAAA=\n").map_err(|error| error.reason());
        assert_eq!(invalid, Err("NOTE_NOT_TEXT"));
        assert_eq!(
            Note::parse(format!("\n\n{}", line.repeat(100)).as_bytes())
                .unwrap()
                .signatures()
                .len(),
            100
        );
    }

    #[test]
    fn one_wrong_line_by_a_known_key_spoils_the_note() {
        let key = key();
        let signer = NoteSigner::new("log", &key).unwrap();
        let mut note = Note::sign("text\n", &signer).unwrap();
        let mut wrong = note.signatures[0].clone();
        wrong.bytes[5] ^= 1;
        note.signatures.push(wrong);
        assert_eq!(
            note.verify(signer.public()).unwrap_err().reason(),
            "NOTE_SIGNATURE"
        );
        assert_eq!(
            note.open(&[signer.public()]).unwrap_err().reason(),
            "NOTE_SIGNATURE"
        );
        note.signatures.pop();
        note.text.push('\n');
        assert_eq!(
            note.verify(signer.public()).unwrap_err().reason(),
            "NOTE_SIGNATURE"
        );
        let twice = note.open(&[signer.public(), signer.public()]).unwrap_err();
        assert_eq!(twice.reason(), "NOTE_KEY_AMBIGUOUS");
    }

    #[test]
    fn a_line_by_the_same_key_replaces_the_older_one() {
        let (log, witness) = (key(), key());
        let note = Note::sign("log\n1\nAA==\n", &NoteSigner::new("log", &log).unwrap()).unwrap();
        let public = NoteKey::cosignature("witness", witness.verifying_key()).unwrap();
        let first = cosignature::cosign("witness", &witness, &note, Timestamp::from_unix(10)).unwrap();
        let second = cosignature::cosign("witness", &witness, &note, Timestamp::from_unix(20)).unwrap();
        let note = note.with_lines(&first).unwrap().with_lines(&second).unwrap();
        assert_eq!(note.signatures().len(), 2);
        assert_eq!(
            cosignature::verify(&note, &public).unwrap(),
            Some(Timestamp::from_unix(20))
        );
        assert_eq!(
            note.with_lines("nothing").unwrap_err().reason(),
            "NOTE_NO_SIGNATURES"
        );
    }

    #[test]
    fn verifier_keys_are_refused_by_name() {
        let good = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(NoteKey::parse(good).unwrap().to_string(), good);
        for (case, text, wanted) in [
            ("empty", String::new(), "NOTE_KEY_FORMAT"),
            ("no key", "PeterNeumann+c74f20a3".into(), "NOTE_KEY_FORMAT"),
            ("no name", good.replace("PeterNeumann", ""), "NOTE_KEY_NAME"),
            (
                "space in the name",
                good.replace("Peter", "Peter "),
                "NOTE_KEY_NAME",
            ),
            (
                "id in capitals",
                good.replace("c74f20a3", "C74F20A3"),
                "NOTE_KEY_FORMAT",
            ),
            (
                "id too short",
                good.replace("c74f20a3", "c74f20"),
                "NOTE_KEY_FORMAT",
            ),
            ("another id", good.replace("c74f20a3", "c74f20a4"), "NOTE_KEY_ID"),
            ("another name", good.replace("Peter", "Pater"), "NOTE_KEY_ID"),
            ("unknown type", good.replace("+AR", "+ZR"), "NOTE_KEY_TYPE"),
            ("cut short", good[..good.len() - 4].into(), "NOTE_KEY_FORMAT"),
            ("not base64", good.replace("ARpc", "A*pc"), "NOTE_KEY_FORMAT"),
        ] {
            assert_eq!(
                NoteKey::parse(&text).map_err(|error| error.reason()),
                Err(wanted),
                "{case}"
            );
        }
        let ecdsa = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
        let refused = NoteSigner::new("log", &ecdsa)
            .map(|_| ())
            .map_err(|error| error.reason());
        assert_eq!(refused, Err("NOTE_KEY"));
        let rekor = NoteKey::ecdsa("rekor.sigstore.dev", ecdsa.verifying_key()).unwrap();
        assert_eq!(NoteKey::parse(&rekor.to_string()).unwrap(), rekor);
    }
}
