//! The records of the audit log: how each is written as one line, and how a line is read back.
//!
//! A line is RFC 8785 JSON. Every record has `at`, `kind`, `previous` (SHA-256 of the line before it, `""` for the
//! first) and `seq` (from 1, without gaps). The records of one call share its `call`. `previous` and `seq` are known
//! only when the line takes its place in the log, so a [`Draft`] has all of the line but these two, and remembers where
//! they belong: no other name may sort between them.

use std::borrow::Cow;
use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::timestamp::Timestamp;

use crate::order::Transparency;

/// Names one call in all its records: the `seq` of the process's start record and a number within that process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    start: u64,
    number: u64,
}

impl CallId {
    /// The id of call `number` of the process whose start record is `start`.
    pub const fn new(start: u64, number: u64) -> Self {
        Self { start, number }
    }

    fn parse(text: &str) -> Option<Self> {
        let (start, number) = text.split_once('-')?;
        Some(Self {
            start: start.parse().ok()?,
            number: number.parse().ok()?,
        })
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.number)
    }
}

/// The idempotency key of a call, as it is recorded.
#[derive(Clone, Copy, Debug)]
pub struct RecordedKey<'a> {
    /// The caller's key.
    pub key: &'a str,
    /// SHA-256 of the request.
    pub request: &'a Digest,
}

/// What is recorded before a key signs.
#[derive(Clone, Copy, Debug)]
pub struct Intent<'a> {
    /// The call.
    pub call: CallId,
    /// Identity of the caller.
    pub caller: &'a str,
    /// The key's id.
    pub key: &'a str,
    /// The method's name, without its service.
    pub method: &'a str,
    /// SHA-256 of the pre-authentication encoding.
    pub pae: &'a Digest,
    /// Digest of the signing policy that allowed it.
    pub policy: &'a Digest,
    /// The statement's predicateType.
    pub predicate_type: &'a str,
    /// The caller's idempotency key, if it gave one.
    pub idempotency: Option<RecordedKey<'a>>,
    /// The slot of the key.
    pub slot: &'a str,
    /// The tenant that it is signed for.
    pub tenant: &'a str,
    /// Whether it must be logged.
    pub transparency: Transparency,
}

/// Where a signature is logged.
#[derive(Clone, Copy, Debug)]
pub struct LoggedAt<'a> {
    /// The log's id; `None` is the log in this process, whose id the start record has.
    pub log_id: Option<&'a [u8; 32]>,
    /// Index in the log.
    pub log_index: u64,
    /// The response of a timestamp authority (RFC 3161, DER), which a retry is answered with.
    pub timestamp: Option<&'a [u8]>,
    /// Size of the tree whose checkpoint the answer carries.
    pub tree_size: u64,
    /// The time that somebody vouches for.
    pub trusted_at: Option<Timestamp>,
}

/// A line that lacks only its place in the chain.
#[derive(Clone, Debug)]
pub struct Draft {
    bytes: Vec<u8>,
    splice: usize,
    /// Part of the line's checkpoint record, which is written before it if it is not the last one written.
    pub(super) note: Option<(Timestamp, String)>,
}

impl Draft {
    /// A process began to use the log. `head` tells whether the end of the log could be checked.
    pub fn start(at: Timestamp, head: &str, policy: &Digest, log_id: Option<&str>) -> Self {
        let mut line = Line::new(at);
        line.text("head", head);
        line.text("kind", "start");
        if let Some(log_id) = log_id {
            line.text("logId", log_id);
        }
        line.text("policy", &policy.to_string());
        line.end()
    }

    /// A key is about to sign.
    pub fn intent(at: Timestamp, intent: &Intent<'_>) -> Self {
        let mut line = Line::new(at);
        line.display("call", intent.call);
        line.text("caller", intent.caller);
        if let Some(idempotency) = intent.idempotency {
            line.idempotency(idempotency);
        }
        line.text("key", intent.key);
        line.text("kind", "intent");
        line.text("method", intent.method);
        line.digest("pae", intent.pae);
        line.digest("policy", intent.policy);
        line.text("predicateType", intent.predicate_type);
        line.text("slot", intent.slot);
        line.text("tenant", intent.tenant);
        line.text("transparency", intent.transparency.as_str());
        line.end()
    }

    /// The key has signed.
    pub fn outcome(at: Timestamp, call: CallId, key: &str, signature: &[u8]) -> Self {
        let mut line = Line::new(at);
        line.display("call", call);
        line.text("key", key);
        line.text("kind", "outcome");
        line.base64("signature", signature);
        line.end()
    }

    /// The signature stands in a log. `checkpoint` is the signed note of the log in this process that the answer
    /// carries.
    pub fn logged(at: Timestamp, call: CallId, place: &LoggedAt<'_>, checkpoint: Option<String>) -> Self {
        let mut line = Line::new(at);
        line.display("call", call);
        line.text("kind", "logged");
        if let Some(log_id) = place.log_id {
            line.text("logId", &hex::encode(log_id));
        }
        line.display("logIndex", place.log_index);
        line.splice();
        if let Some(timestamp) = place.timestamp {
            line.base64("timestamp", timestamp);
        }
        line.display("treeSize", place.tree_size);
        if let Some(trusted_at) = place.trusted_at {
            line.text("trustedAt", &trusted_at.to_string());
        }
        let mut draft = line.end();
        draft.note = checkpoint.map(|checkpoint| (at, checkpoint));
        draft
    }

    /// An intent that has no outcome and will have none.
    pub fn abandoned(at: Timestamp, call: CallId, cause: &str) -> Self {
        let mut line = Line::new(at);
        line.display("call", call);
        line.text("cause", cause);
        line.text("kind", "abandoned");
        line.end()
    }

    /// The last checkpoint of the log.
    pub(super) fn checkpoint(at: Timestamp, note: &str) -> Self {
        let mut line = Line::new(at);
        line.text("kind", "checkpoint");
        line.text("note", note);
        line.end()
    }

    /// A step of a rotation.
    pub fn rotation(at: Timestamp, rotation: &Rotation<'_>) -> Self {
        let mut line = Line::new(at);
        line.display("call", rotation.call);
        line.text("caller", rotation.caller);
        if let Some(idempotency) = rotation.idempotency {
            line.idempotency(idempotency);
        }
        line.text("kind", "rotation");
        line.text("newKey", rotation.new_key);
        line.text("oldKey", rotation.old_key);
        line.text("phase", rotation.phase.as_str());
        line.text("slot", rotation.slot);
        line.text("tenant", rotation.tenant);
        line.display("version", rotation.version);
        line.end()
    }

    /// Appends the whole line, newline included.
    pub(super) fn write(&self, previous: Option<&Digest>, seq: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.splice]);
        out.extend_from_slice(b",\"previous\":\"");
        if let Some(previous) = previous {
            push_digest(out, previous);
        }
        out.extend_from_slice(b"\",\"seq\":");
        push_display(out, seq);
        out.extend_from_slice(&self.bytes[self.splice..]);
        out.push(b'\n');
    }
}

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The new key is about to sign.
    Begun,
    /// The old key is retired.
    Done,
}

impl Phase {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
        }
    }
}

/// What is recorded of a rotation.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// The call.
    pub call: CallId,
    /// Identity of the caller.
    pub caller: &'a str,
    /// The caller's idempotency key, if it gave one.
    pub idempotency: Option<RecordedKey<'a>>,
    /// The key that signs from now on.
    pub new_key: &'a str,
    /// The key that signs no more; empty if the slot had none.
    pub old_key: &'a str,
    /// How far it is.
    pub phase: Phase,
    /// The slot.
    pub slot: &'a str,
    /// The tenant of the caller.
    pub tenant: &'a str,
    /// The version of the key history that says so.
    pub version: u64,
}

/// Writes one line; names must come in the order of RFC 8785.
struct Line {
    bytes: Vec<u8>,
    splice: Option<usize>,
    last: &'static str,
}

impl Line {
    fn new(at: Timestamp) -> Self {
        let mut line = Self {
            bytes: Vec::with_capacity(640),
            splice: None,
            last: "",
        };
        line.bytes.push(b'{');
        line.name("at");
        line.bytes.push(b'"');
        push_display(&mut line.bytes, at);
        line.bytes.push(b'"');
        line
    }

    fn name(&mut self, name: &'static str) {
        debug_assert!(self.last < name, "`{name}` does not sort after `{}`", self.last);
        debug_assert!(
            !("previous"..="seq").contains(&name),
            "`{name}` sorts into the splice"
        );
        if name > "seq" {
            self.splice();
        }
        if !self.last.is_empty() {
            self.bytes.push(b',');
        }
        self.last = name;
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"\":");
    }

    fn splice(&mut self) {
        self.splice.get_or_insert(self.bytes.len());
    }

    fn text(&mut self, name: &'static str, text: &str) {
        self.name(name);
        canonical::write_string(text, &mut self.bytes);
    }

    fn display(&mut self, name: &'static str, value: impl fmt::Display + Quoted) {
        self.name(name);
        let quote = value.is_text();
        if quote {
            self.bytes.push(b'"');
        }
        push_display(&mut self.bytes, value);
        if quote {
            self.bytes.push(b'"');
        }
    }

    fn digest(&mut self, name: &'static str, digest: &Digest) {
        self.name(name);
        self.bytes.push(b'"');
        push_digest(&mut self.bytes, digest);
        self.bytes.push(b'"');
    }

    fn base64(&mut self, name: &'static str, bytes: &[u8]) {
        self.name(name);
        self.bytes.push(b'"');
        self.bytes
            .extend_from_slice(BASE64_STANDARD.encode(bytes).as_bytes());
        self.bytes.push(b'"');
    }

    fn idempotency(&mut self, recorded: RecordedKey<'_>) {
        self.name("idempotency");
        self.bytes.extend_from_slice(b"{\"key\":");
        canonical::write_string(recorded.key, &mut self.bytes);
        self.bytes.extend_from_slice(b",\"request\":\"");
        push_digest(&mut self.bytes, recorded.request);
        self.bytes.extend_from_slice(b"\"}");
    }

    fn end(mut self) -> Draft {
        self.splice();
        self.bytes.push(b'}');
        let splice = self.splice.expect("set by the line before");
        Draft {
            bytes: self.bytes,
            splice,
            note: None,
        }
    }
}

/// Whether a value stands in quotes.
trait Quoted {
    fn is_text(&self) -> bool;
}

impl Quoted for u64 {
    fn is_text(&self) -> bool {
        false
    }
}

impl Quoted for CallId {
    fn is_text(&self) -> bool {
        true
    }
}

fn push_display(out: &mut Vec<u8>, value: impl fmt::Display) {
    use std::io::Write as _;
    write!(out, "{value}").expect("a vector takes every write");
}

fn push_digest(out: &mut Vec<u8>, digest: &Digest) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"sha256:");
    for byte in digest.as_bytes() {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// A line as it was read. What a kind of record does not have is `None`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fields<'a> {
    #[serde(borrow)]
    pub(crate) at: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) previous: Cow<'a, str>,
    pub(crate) seq: u64,
    #[serde(borrow)]
    call: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) caller: Option<Cow<'a, str>>,
    #[serde(borrow)]
    idempotency: Option<FieldsKey<'a>>,
    #[serde(borrow)]
    pub(crate) key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) new_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) note: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) old_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pae: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) phase: Option<Cow<'a, str>>,
    #[serde(borrow)]
    signature: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) tenant: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    transparency: Option<Cow<'a, str>>,
    #[serde(borrow)]
    trusted_at: Option<Cow<'a, str>>,
    pub(crate) version: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct FieldsKey<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    request: Cow<'a, str>,
}

impl<'a> Fields<'a> {
    /// Reads a line without its newline.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let fields: Self = serde_json::from_slice(line).ok()?;
        matches!(
            &*fields.kind,
            "start" | "intent" | "outcome" | "logged" | "abandoned" | "checkpoint" | "rotation"
        )
        .then_some(fields)
    }

    pub(crate) fn at(&self) -> Option<Timestamp> {
        self.at.parse().ok()
    }

    pub(crate) fn call(&self) -> Option<CallId> {
        CallId::parse(self.call.as_deref()?)
    }

    /// The caller's idempotency key and the SHA-256 of its request.
    pub(crate) fn idempotency(&self) -> Option<(&str, Digest)> {
        let recorded = self.idempotency.as_ref()?;
        Some((&recorded.key, recorded.request.parse().ok()?))
    }

    pub(crate) fn pae(&self) -> Option<Digest> {
        self.pae.as_deref()?.parse().ok()
    }

    pub(crate) fn signature(&self) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(self.signature.as_deref()?).ok()
    }

    pub(crate) fn timestamp(&self) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(self.timestamp.as_deref()?).ok()
    }

    pub(crate) fn transparency(&self) -> Option<Transparency> {
        Transparency::parse(self.transparency.as_deref()?)
    }

    pub(crate) fn trusted_at(&self) -> Option<Timestamp> {
        self.trusted_at.as_deref()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_one_canonical_line() {
        let at = Timestamp::from_unix(1_762_862_400);
        let digest = Digest::of(b"x");
        let call = CallId::new(7, 42);
        let intent = Intent {
            call,
            caller: "spiffe://stella.local/ci",
            key: "cosign:SHA256-PKIX:abc",
            method: "Sign",
            pae: &digest,
            policy: &digest,
            predicate_type: "quote \" backslash \\ tab \t bell \u{7} umlaut ü",
            idempotency: Some(RecordedKey {
                key: "k-1",
                request: &digest,
            }),
            slot: "default",
            tenant: "dev",
            transparency: Transparency::Required,
        };
        let rotation = Rotation {
            call,
            caller: "c",
            idempotency: None,
            new_key: "n",
            old_key: "",
            phase: Phase::Done,
            slot: "default",
            tenant: "dev",
            version: 3,
        };
        for draft in [
            Draft::start(at, "checked", &digest, Some("ab")),
            Draft::intent(at, &intent),
            Draft::outcome(at, call, "k", &[1, 2, 3]),
            Draft::logged(
                at,
                call,
                &LoggedAt {
                    log_id: None,
                    log_index: 5,
                    timestamp: Some(&[7; 9]),
                    tree_size: 6,
                    trusted_at: Some(at),
                },
                Some("note".into()),
            ),
            Draft::abandoned(at, call, "the process ended"),
            Draft::checkpoint(at, "127.0.0.1\n5\nAAAA\n\n— 127.0.0.1 xyz\n"),
            Draft::rotation(at, &rotation),
        ] {
            for previous in [None, Some(&digest)] {
                let mut line = Vec::new();
                draft.write(previous, 12, &mut line);
                assert_eq!(line.pop(), Some(b'\n'));
                let text = String::from_utf8(line).expect("text");
                assert!(canonical::is_canonical(text.as_bytes()), "{text}");
                let fields = Fields::parse(text.as_bytes()).expect(&text);
                let want = previous.map(Digest::to_string).unwrap_or_default();
                assert_eq!(
                    (fields.seq, fields.previous.to_string(), fields.at()),
                    (12, want, Some(at)),
                    "{text}"
                );
            }
        }
        let mut line = Vec::new();
        Draft::intent(at, &intent).write(None, 1, &mut line);
        let fields = Fields::parse(&line).expect("a record");
        assert_eq!(
            (
                fields.call(),
                fields.idempotency(),
                fields.pae(),
                fields.transparency()
            ),
            (
                Some(call),
                Some(("k-1", digest)),
                Some(digest),
                Some(Transparency::Required)
            ),
        );
    }
}
