//! Checkpoints of transparency logs (C2SP tlog-checkpoint): how many leaves a log has, and their root.
//!
//! A checkpoint is the text of a signed note: origin, size, root, and lines that a log may add. [`LogKey`] is what
//! makes one count: only the log's own key, under its own name, on a checkpoint with its own origin.
//! [`TlogProof`] (C2SP tlog-proof) is a checkpoint together with the proof of one leaf, in one text.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::key::{Algorithm, VerifyingKey};
use crate::merkle::{Hash, MAX_PROOF};
use crate::note::{self, MAX_NOTE, Note, NoteError, NoteKey};

/// Most bytes of an origin.
const MAX_ORIGIN: usize = 1024;

/// Most lines that a log may add to a checkpoint.
const MAX_EXTENSIONS: usize = 100;

/// Why a checkpoint does not count.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Fewer than three lines, or one of them not ended.
    #[error("the checkpoint has fewer than three lines")]
    Lines,
    /// The first line is empty or too long.
    #[error("the checkpoint names no origin")]
    NoOrigin,
    /// The second line is not a decimal number of 64 bits without leading zeros.
    #[error("the checkpoint's size is not a number")]
    Size,
    /// The third line is not base64, or not of 32 bytes.
    #[error("the checkpoint's root is not a hash")]
    Root,
    /// Too many extension lines, or the last one not ended.
    #[error("the checkpoint's extension lines are malformed")]
    Extensions,
    /// The checkpoint is of another log.
    #[error("the checkpoint is of `{0}`")]
    Origin(String),
    /// The log's key did not sign it.
    #[error("the log did not sign the checkpoint")]
    Signature(#[source] NoteError),
}

impl CheckpointError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Lines | Self::NoOrigin | Self::Size | Self::Root | Self::Extensions => {
                "CHECKPOINT_MALFORMED"
            }
            Self::Origin(_) => "CHECKPOINT_ORIGIN",
            Self::Signature(_) => "CHECKPOINT_SIGNATURE",
        }
    }
}

/// The first three lines of a checkpoint and what follows them, with a root of whatever hash.
///
/// For reading the checkpoints of logs that are not SHA-256 trees; [`Checkpoint`] is for all else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointText<'a> {
    /// The log's name for itself.
    pub origin: &'a str,
    /// Number of leaves.
    pub size: u64,
    /// The root, as decoded.
    pub root: Vec<u8>,
    /// What follows the third line, unread.
    pub rest: &'a str,
}

impl<'a> CheckpointText<'a> {
    /// Reads the three lines.
    pub fn parse(text: &'a str) -> Result<Self, CheckpointError> {
        let mut parts = text.splitn(4, '\n');
        let (Some(origin), Some(size), Some(root), Some(rest)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(CheckpointError::Lines);
        };
        if origin.is_empty() || origin.len() > MAX_ORIGIN {
            return Err(CheckpointError::NoOrigin);
        }
        let size = parse_number(size).ok_or(CheckpointError::Size)?;
        let root = BASE64_STANDARD.decode(root).map_err(|_| CheckpointError::Root)?;
        Ok(Self {
            origin,
            size,
            root,
            rest,
        })
    }
}

/// A decimal number without sign and without leading zeros.
fn parse_number(text: &str) -> Option<u64> {
    let is_plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// A statement of a log about itself: so many leaves, this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name for itself.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Hash,
    /// Lines that the log added; without their newlines.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// Reads the text of a note.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let CheckpointText {
            origin,
            size,
            root,
            rest,
        } = CheckpointText::parse(text)?;
        let root = Hash::try_from(root).map_err(|_| CheckpointError::Root)?;
        let mut extensions = Vec::new();
        if !rest.is_empty() {
            let lines = rest.strip_suffix('\n').ok_or(CheckpointError::Extensions)?;
            for line in lines.split('\n') {
                if extensions.len() == MAX_EXTENSIONS {
                    return Err(CheckpointError::Extensions);
                }
                extensions.push(line.to_owned());
            }
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            extensions,
        })
    }

    /// The text that is signed.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            BASE64_STANDARD.encode(self.root)
        );
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// The id of a log in Sigstore bundles.
///
/// Ed25519: the whole SHA-256 of origin, newline, 0x01 and the key, of which the note's key id is the first four bytes
/// (Rekor v2). Other keys: SHA-256 of the SubjectPublicKeyInfo (Rekor v1).
pub fn log_id(origin: &str, key: &VerifyingKey) -> [u8; 32] {
    note::ed25519_key_hash(origin, key).unwrap_or_else(|| note::sha256(&[key.spki()]))
}

/// The number of the tree in the origin of a Rekor v1 checkpoint, `<name> - <number>`, of a signed note not yet judged.
pub fn rekor_v1_tree(note: &str) -> Option<u64> {
    let origin = note.split('\n').next()?;
    origin.rsplit_once(" - ").and_then(|(_, tree)| parse_number(tree))
}

/// A log that is believed: its origin and its key.
#[derive(Clone, Debug)]
pub struct LogKey {
    /// The log's name for itself, which is also the name it signs with. Empty for a Rekor v1 known by its key alone.
    pub origin: String,
    /// The key that signs its checkpoints.
    pub key: VerifyingKey,
    /// Its id in Sigstore bundles.
    pub log_id: [u8; 32],
    note_key: NoteKey,
}

impl LogKey {
    /// The log `origin` with the key `key`: Ed25519, or ECDSA for a Rekor v1. The origin must be a key name.
    pub fn new(origin: &str, key: VerifyingKey) -> Result<Self, NoteError> {
        let note_key = match key.algorithm() {
            Algorithm::Ed25519 => NoteKey::ed25519(origin, &key),
            Algorithm::EcdsaP256 | Algorithm::EcdsaP384 | Algorithm::EcdsaP521 | Algorithm::Rsa => {
                NoteKey::ecdsa(origin, &key)
            }
        }?;
        Ok(Self {
            origin: origin.to_owned(),
            log_id: log_id(origin, &key),
            key,
            note_key,
        })
    }

    /// The key as notes know it.
    pub fn note_key(&self) -> &NoteKey {
        &self.note_key
    }

    /// The Rekor v1 with the key `key`, whatever name its checkpoints bear: Sigstore knows such a log by its key alone.
    ///
    /// # Errors
    /// [`NoteError::Key`] for keys that no Rekor v1 has.
    pub fn any_origin(key: VerifyingKey) -> Result<Self, NoteError> {
        let note_key = NoteKey::ecdsa("any", &key)?;
        Ok(Self {
            origin: String::new(),
            log_id: log_id("", &key),
            key,
            note_key,
        })
    }

    /// Reads the checkpoint of `note`, which must be of this log and signed by it.
    pub fn verify_checkpoint(&self, note: &Note) -> Result<Checkpoint, CheckpointError> {
        let checkpoint = Checkpoint::parse(note.text())?;
        if self.origin.is_empty() {
            let name = match checkpoint.origin.rsplit_once(" - ") {
                Some((name, tree)) if parse_number(tree).is_some() => name,
                _ => &checkpoint.origin,
            };
            let note_key = NoteKey::ecdsa(name, &self.key).map_err(CheckpointError::Signature)?;
            note.verify(&note_key).map_err(CheckpointError::Signature)?;
            return Ok(checkpoint);
        }
        if !self.is_origin(&checkpoint.origin) {
            return Err(CheckpointError::Origin(checkpoint.origin));
        }
        note.verify(&self.note_key).map_err(CheckpointError::Signature)?;
        Ok(checkpoint)
    }

    /// Rekor v1 adds the number of the tree to its origin: `rekor.sigstore.dev - 2605736670972794746`.
    fn is_origin(&self, stated: &str) -> bool {
        if stated == self.origin {
            return true;
        }
        let tree = stated
            .strip_prefix(&self.origin)
            .and_then(|rest| rest.strip_prefix(" - "));
        self.key.algorithm() != Algorithm::Ed25519 && tree.and_then(parse_number).is_some()
    }
}

/// A leaf's inclusion proof and the checkpoint that it leads to, as one text (C2SP tlog-proof).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// Bytes that the log adds, without meaning here.
    pub extra: Option<Vec<u8>>,
    /// The leaf's index.
    pub index: u64,
    /// The path to the root, from the leaf upwards.
    pub hashes: Vec<Hash>,
    /// The signed note, unread.
    pub checkpoint: String,
}

/// The text is not a tlog-proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the proof is malformed")]
pub struct TlogProofError {
    /// The line, from 1.
    pub line: usize,
}

impl TlogProofError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        "TLOG_PROOF_MALFORMED"
    }
}

const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";

impl TlogProof {
    /// Reads a proof; neither its hashes nor its checkpoint are believed yet.
    pub fn parse(text: &str) -> Result<Self, TlogProofError> {
        if text.len() > MAX_NOTE {
            return Err(TlogProofError { line: 1 });
        }
        let (head, checkpoint) = text.split_once("\n\n").ok_or(TlogProofError { line: 1 })?;
        let mut lines = head
            .split('\n')
            .enumerate()
            .map(|(index, line)| (TlogProofError { line: index + 1 }, line));
        let malformed = TlogProofError { line: 2 };
        if lines.next().is_none_or(|(_, line)| line != PROOF_HEADER) {
            return Err(TlogProofError { line: 1 });
        }
        let (mut place, mut line) = lines.next().ok_or(malformed)?;
        let mut extra = None;
        if let Some(encoded) = line.strip_prefix("extra ") {
            extra = Some(BASE64_STANDARD.decode(encoded).map_err(|_| place)?);
            (place, line) = lines.next().ok_or(place)?;
        }
        let index = line.strip_prefix("index ").and_then(parse_number).ok_or(place)?;
        let mut hashes = Vec::new();
        for (place, line) in lines {
            let bytes = BASE64_STANDARD.decode(line).map_err(|_| place)?;
            if hashes.len() == MAX_PROOF {
                return Err(place);
            }
            hashes.push(Hash::try_from(bytes).map_err(|_| place)?);
        }
        Ok(Self {
            extra,
            index,
            hashes,
            checkpoint: checkpoint.to_owned(),
        })
    }
}

/// The text as [`TlogProof::parse`] reads it.
impl fmt::Display for TlogProof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{PROOF_HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(out, "extra {}", BASE64_STANDARD.encode(extra))?;
        }
        writeln!(out, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(out, "{}", BASE64_STANDARD.encode(hash))?;
        }
        write!(out, "\n{}", self.checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;
    use crate::merkle::EMPTY_ROOT;
    use crate::note::NoteSigner;

    const ROOT: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn a_checkpoint_reads_back_as_it_was_written() {
        for (extensions, text) in [
            (vec![], format!("log\n0\n{ROOT}\n")),
            (
                vec!["one".to_owned(), String::new(), "two".to_owned()],
                format!("log\n0\n{ROOT}\none\n\ntwo\n"),
            ),
        ] {
            let checkpoint = Checkpoint {
                origin: "log".into(),
                size: 0,
                root: EMPTY_ROOT,
                extensions,
            };
            assert_eq!(checkpoint.to_text(), text);
            assert_eq!(Checkpoint::parse(&text).unwrap(), checkpoint);
        }
    }

    #[test]
    fn only_a_whole_checkpoint_parses() {
        for (case, text) in [
            ("empty", String::new()),
            ("two lines", "log\n0\n".into()),
            ("no origin", format!("\n0\n{ROOT}\n")),
            (
                "long origin",
                format!("{}\n0\n{ROOT}\n", "x".repeat(MAX_ORIGIN + 1)),
            ),
            ("no size", format!("log\n\n{ROOT}\n")),
            ("signed size", format!("log\n+1\n{ROOT}\n")),
            ("leading zero", format!("log\n01\n{ROOT}\n")),
            ("size of 65 bits", format!("log\n18446744073709551616\n{ROOT}\n")),
            ("root not ended", format!("log\n0\n{ROOT}")),
            ("short root", "log\n0\nAAAA\n".into()),
            ("root not base64", format!("log\n0\n{}\n", ROOT.replace('+', "-"))),
            ("extension not ended", format!("log\n0\n{ROOT}\nmore")),
            (
                "many extensions",
                format!("log\n0\n{ROOT}\n{}", "x\n".repeat(MAX_EXTENSIONS + 1)),
            ),
        ] {
            let found = Checkpoint::parse(&text).map_err(|error| error.reason());
            assert_eq!(found, Err("CHECKPOINT_MALFORMED"), "{case}");
        }
    }

    #[test]
    fn only_the_logs_own_signed_checkpoint_counts() {
        let key = SigningKey::generate(Algorithm::Ed25519).unwrap();
        let other = SigningKey::generate(Algorithm::Ed25519).unwrap();
        let log = LogKey::new("127.0.0.1", key.verifying_key().clone()).unwrap();
        let note = |origin: &str, name: &str, key: &SigningKey| {
            let checkpoint = Checkpoint {
                origin: origin.into(),
                size: 7,
                root: EMPTY_ROOT,
                extensions: Vec::new(),
            };
            Note::sign(&checkpoint.to_text(), &NoteSigner::new(name, key).unwrap()).unwrap()
        };
        let checkpoint = log
            .verify_checkpoint(&note("127.0.0.1", "127.0.0.1", &key))
            .unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (7, EMPTY_ROOT));
        for (case, note, wanted) in [
            (
                "another origin",
                note("127.0.0.2", "127.0.0.1", &key),
                "CHECKPOINT_ORIGIN",
            ),
            (
                "a tree number, which Rekor v1 alone has",
                note("127.0.0.1 - 5", "127.0.0.1", &key),
                "CHECKPOINT_ORIGIN",
            ),
            (
                "another name",
                note("127.0.0.1", "127.0.0.2", &key),
                "CHECKPOINT_SIGNATURE",
            ),
            (
                "another key",
                note("127.0.0.1", "127.0.0.1", &other),
                "CHECKPOINT_SIGNATURE",
            ),
        ] {
            assert_eq!(
                log.verify_checkpoint(&note).map_err(|error| error.reason()),
                Err(wanted),
                "{case}"
            );
        }
        assert_eq!(log.log_id[..4], *log.note_key().id());
    }

    #[test]
    fn a_rekor_v1_checkpoint_may_name_its_tree() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
        let log = LogKey::new("rekor.example", key.verifying_key().clone()).unwrap();
        assert_eq!(log.log_id, note::sha256(&[key.verifying_key().spki()]));
        let signed = |origin: &str| {
            let text = format!("{origin}\n1\n{ROOT}\n");
            let blob = [&log.note_key().id()[..], &key.sign(text.as_bytes()).unwrap()].concat();
            let line = format!("— rekor.example {}\n", BASE64_STANDARD.encode(blob));
            Note::parse(format!("{text}\n{line}").as_bytes()).unwrap()
        };
        for (origin, wanted) in [
            ("rekor.example", Ok(1)),
            ("rekor.example - 2605736670972794746", Ok(1)),
            ("rekor.example - ", Err("CHECKPOINT_ORIGIN")),
            ("rekor.example - x", Err("CHECKPOINT_ORIGIN")),
            ("rekor.example.org - 5", Err("CHECKPOINT_ORIGIN")),
        ] {
            let found = log.verify_checkpoint(&signed(origin));
            assert_eq!(
                found
                    .map(|checkpoint| checkpoint.size)
                    .map_err(|error| error.reason()),
                wanted,
                "{origin}"
            );
        }
    }

    #[test]
    fn a_tlog_proof_reads_back_and_names_its_bad_line() {
        let whole = format!(
            "{PROOF_HEADER}\nextra AAAA\nindex 3\n{ROOT}\n{ROOT}\n\nlog\n4\n{ROOT}\n\n— log AAAAAAA=\n"
        );
        assert_eq!(TlogProof::parse(&whole).unwrap().to_string(), whole);
        for (case, text, line) in [
            ("no checkpoint", format!("{PROOF_HEADER}\nindex 3\n"), 1),
            ("no header", "index 3\n\nnote\n".into(), 1),
            ("no index", format!("{PROOF_HEADER}\n\nnote\n"), 2),
            ("extra only", format!("{PROOF_HEADER}\nextra AAAA\n\nnote\n"), 2),
            (
                "extra behind the index",
                format!("{PROOF_HEADER}\nindex 3\nextra AAAA\n\nnote\n"),
                3,
            ),
            (
                "short hash",
                format!("{PROOF_HEADER}\nindex 3\n{ROOT}\nAAAA\n\nnote\n"),
                4,
            ),
            (
                "a hash too many",
                format!(
                    "{PROOF_HEADER}\nindex 3{}\n\nnote\n",
                    format!("\n{ROOT}").repeat(66)
                ),
                68,
            ),
        ] {
            assert_eq!(TlogProof::parse(&text), Err(TlogProofError { line }), "{case}");
        }
    }
}
