//! The Signer's audit log and transparency log, read from their files, and whether they agree.
//!
//! [`Records`] holds the audit log to its form: canonical lines, each naming the one before, the head over the last.
//! [`Log`] reads the entries from the tiles and holds tiles and checkpoint to them. [`Books`] compares the two: what
//! one of our keys signed stands in both, once. Nothing here comes from the Signer's code.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use stella_attest::canonical;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::cosignature;
use stella_attest::digest::Digest;
use stella_attest::hashedrekord;
use stella_attest::key::{KeyId, VerifyingKey};
use stella_attest::merkle::{self, Hash, MemoryTree};
use stella_attest::note::Note;
use stella_attest::tile::{self, TILE_WIDTH, TileKind, TilePath};
use stella_attest::trust::TrustRoots;

/// What does not hold, in words.
type Problem = String;

/// The records of the audit log, in order.
#[derive(Clone)]
pub struct Records(Vec<Value>);

impl Records {
    /// Reads the audit log of the Signer of a directory of `stella up`. An unfinished line at the very end was never
    /// acknowledged and does not count.
    ///
    /// # Errors
    /// It is not whole.
    pub fn read(up: &Path) -> Result<Self, Problem> {
        let key = up.join("signer/audit.pem");
        let key = std::fs::read_to_string(key).map_err(|error| error.to_string())?;
        Self::read_from(&up.join("signer/audit"), &key)
    }

    fn read_from(dir: &Path, audit_key: &str) -> Result<Self, Problem> {
        // Before the lines, for it may lag behind them and never runs ahead.
        let head = std::fs::read_to_string(dir.join("head")).unwrap_or_default();
        let (mut records, mut hashes) = (Vec::new(), Vec::new());
        let segments = segments(dir);
        for (number, (first, path)) in segments.iter().enumerate() {
            if *first != records.len() as u64 + 1 {
                return Err(format!("record {}: its segment is missing", records.len() + 1));
            }
            let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
            let is_last = number + 1 == segments.len();
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                let seq = records.len() as u64 + 1;
                match line.strip_suffix(b"\n") {
                    Some(line) => {
                        records.push(record(line, seq, hashes.last())?);
                        hashes.push(Digest::of(line));
                    }
                    None if is_last => {}
                    None => return Err(format!("record {seq}: its line has no end")),
                }
            }
        }
        check_head(&head, audit_key, &hashes)?;
        Ok(Self(records))
    }

    /// How many calls were signed and are not known to be logged, or were begun and have no end.
    pub fn open(&self) -> usize {
        self.calls().values().filter(|call| call.is_open()).count()
    }

    /// The calls, by their ids.
    fn calls(&self) -> BTreeMap<&str, Call<'_>> {
        let mut calls: BTreeMap<&str, Call<'_>> = BTreeMap::new();
        for (place, record) in self.0.iter().enumerate() {
            let Some(call) = record["call"].as_str() else {
                continue;
            };
            let call = calls.entry(call).or_default();
            match record["kind"].as_str() {
                Some("intent") => call.intents.push(record),
                Some("outcome") => call.outcomes.push(record),
                Some("logged") => call.logged.push((place, record)),
                Some("abandoned") => call.abandoned.push(record),
                _ => {}
            }
        }
        calls
    }

    /// The signatures that were made for an idempotency key.
    pub fn signatures(&self, idempotency_key: &str) -> Vec<Vec<u8>> {
        let calls = self.calls();
        let calls = calls.values().filter(|call| call.key() == Some(idempotency_key));
        calls
            .flat_map(|call| call.outcomes.iter().map(|outcome| signature(outcome)))
            .collect()
    }

    /// What was recorded of the calls of an idempotency key: the kinds of records, in order.
    pub fn of(&self, idempotency_key: &str) -> Vec<&str> {
        let ids: BTreeSet<&str> = self
            .calls()
            .into_iter()
            .filter(|(_, call)| call.key() == Some(idempotency_key))
            .map(|(id, _)| id)
            .collect();
        let records = self
            .0
            .iter()
            .filter(|record| record["call"].as_str().is_some_and(|id| ids.contains(id)));
        records.filter_map(|record| record["kind"].as_str()).collect()
    }

    /// One more than the highest index that a record names.
    fn reach(&self) -> u64 {
        let logged = self.0.iter().filter(|record| record["kind"] == "logged");
        logged
            .filter_map(|record| Some(record["logIndex"].as_u64()? + 1))
            .max()
            .unwrap_or(0)
    }
}

/// The segments of the audit log: number of the first record, and path.
pub fn segments(dir: &Path) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the audit log is a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let number = name
            .strip_prefix("audit-")
            .and_then(|name| name.strip_suffix(".ndjson"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    found
}

fn record(line: &[u8], seq: u64, previous: Option<&Digest>) -> Result<Value, Problem> {
    if !canonical::is_canonical(line) {
        return Err(format!("record {seq}: it is not canonical"));
    }
    let record: Value = serde_json::from_slice(line).map_err(|error| format!("record {seq}: {error}"))?;
    if record["seq"] != seq {
        return Err(format!("record {seq}: it has the number {}", record["seq"]));
    }
    let previous = previous.map(Digest::to_string).unwrap_or_default();
    if record["previous"] != *previous {
        return Err(format!("record {seq}: it does not follow the one before it"));
    }
    Ok(record)
}

/// `seq hash MAC`: the MAC by a key that is made from the audit key, over what stands before it.
fn check_head(head: &str, audit_key: &str, hashes: &[Digest]) -> Result<(), Problem> {
    let (said, tag) = head.trim_end().rsplit_once(' ').ok_or("the head says nothing")?;
    let root = hmac::Key::new(hmac::HMAC_SHA256, audit_key.as_bytes());
    let derived = hmac::sign(&root, b"stella audit log: head");
    let made = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        said.as_bytes(),
    );
    let (seq, hash) = said.split_once(' ').ok_or("the head says nothing")?;
    let seq: usize = seq.parse().map_err(|_| "the head names no record")?;
    let held = seq.checked_sub(1).and_then(|place| hashes.get(place));
    match held {
        _ if hex::encode(made) != tag => Err("the head is not by the audit key".into()),
        None => Err(format!("the head names record {seq} of {}", hashes.len())),
        Some(held) if held.hex() != hash => Err(format!("record {seq} is not the one that the head names")),
        Some(_) => Ok(()),
    }
}

fn signature(outcome: &Value) -> Vec<u8> {
    let text = outcome["signature"].as_str().unwrap_or_default();
    BASE64_STANDARD.decode(text).unwrap_or_default()
}

/// The records of one call.
#[derive(Default)]
struct Call<'a> {
    intents: Vec<&'a Value>,
    outcomes: Vec<&'a Value>,
    /// With their places among all records.
    logged: Vec<(usize, &'a Value)>,
    abandoned: Vec<&'a Value>,
}

impl Call<'_> {
    fn key(&self) -> Option<&str> {
        self.intents.first()?["idempotency"]["key"].as_str()
    }

    fn must_be_logged(&self) -> bool {
        self.intents
            .first()
            .is_some_and(|intent| intent["transparency"] == "REQUIRED")
    }

    fn is_open(&self) -> bool {
        match (self.intents.is_empty(), self.outcomes.is_empty()) {
            (false, true) => self.abandoned.is_empty(),
            (false, false) => self.must_be_logged() && self.logged.is_empty(),
            (true, _) => false,
        }
    }
}

/// The transparency log, as others read it.
#[derive(Clone)]
pub struct Log {
    entries: Vec<Vec<u8>>,
    tree: MemoryTree,
}

impl Log {
    /// Reads the log in `dir` up to its published checkpoint, which must be of a log that `roots` trust.
    ///
    /// # Errors
    /// Checkpoint, bundles and tiles of hashes do not agree.
    pub fn read(dir: &Path, roots: &TrustRoots) -> Result<Self, Problem> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|error| format!("`{}`: {error}", path.display()));
        let checkpoint = checkpoint(&read(&dir.join("checkpoint"))?, roots)?;
        let mut log = Self {
            entries: Vec::new(),
            tree: MemoryTree::new(),
        };
        for tile in tiles(TileKind::Entries, checkpoint.size) {
            let (bytes, width) = read_tile(dir, &tile)?;
            let entries = tile::read_entries(&bytes, width).map_err(|error| format!("`{tile}`: {error}"))?;
            for entry in entries.into_iter().take(tile.width.into()) {
                log.tree.push(merkle::leaf_hash(entry));
                log.entries.push(entry.to_vec());
            }
        }
        if log.tree.root() != checkpoint.root {
            return Err("the checkpoint's root is not that of the entries".into());
        }
        let (mut level, mut nodes) = (0, checkpoint.size);
        while nodes > 0 {
            for tile in tiles(TileKind::Hashes(level), nodes) {
                let first = tile.index as usize * usize::from(TILE_WIDTH);
                let wanted: Vec<Hash> =
                    log.tree.level(level * 8)[first..][..usize::from(tile.width)].to_vec();
                let (found, _) = read_tile(dir, &tile)?;
                if !found.starts_with(&wanted.concat()) {
                    return Err(format!("`{tile}` does not agree with the entries"));
                }
            }
            (level, nodes) = (level + 1, nodes / u64::from(TILE_WIDTH));
        }
        Ok(log)
    }

    fn size(&self) -> u64 {
        self.entries.len() as u64
    }
}

/// The checkpoint of a trusted log.
fn checkpoint(note: &[u8], roots: &TrustRoots) -> Result<Checkpoint, Problem> {
    let note = Note::parse(note).map_err(|error| error.to_string())?;
    let found = roots
        .logs()
        .iter()
        .find_map(|log| log.key.verify_checkpoint(&note).ok());
    found.ok_or_else(|| "a checkpoint is not of a trusted log".into())
}

/// The tiles that `nodes` nodes or entries make.
fn tiles(kind: TileKind, nodes: u64) -> impl Iterator<Item = TilePath> {
    let width = u64::from(TILE_WIDTH);
    (0..nodes.div_ceil(width)).map(move |index| TilePath {
        kind,
        index,
        width: (nodes - index * width).min(width) as u16,
    })
}

/// A tile and how many it holds: the full one has taken the place of a partial one as soon as it is there.
fn read_tile(dir: &Path, tile: &TilePath) -> Result<(Vec<u8>, u16), Problem> {
    let full = TilePath {
        width: TILE_WIDTH,
        ..*tile
    };
    for tile in [*tile, full] {
        if let Ok(bytes) = std::fs::read(dir.join(tile.to_string())) {
            return Ok((bytes, tile.width));
        }
    }
    Err(format!("`{tile}` is missing"))
}

/// Both logs, and the keys that count.
pub struct Books {
    /// The audit log.
    pub records: Records,
    log: Log,
    roots: TrustRoots,
}

impl Books {
    /// Reads the books of the Signer of a directory of `stella up`.
    ///
    /// # Errors
    /// A log is not whole in itself, or the transparency log does not reach as far as the records say yet.
    pub fn read(dir: &Path) -> Result<Self, Problem> {
        let text = |path: &str| std::fs::read(dir.join(path)).map_err(|error| format!("`{path}`: {error}"));
        let roots =
            TrustRoots::parse(&text("verifier/trust-roots.json")?).map_err(|error| error.to_string())?;
        // In this order, for what was recorded was logged before.
        let records = Records::read(dir)?;
        let log = Log::read(&dir.join("signer/log"), &roots)?;
        if records.reach() > log.size() {
            return Err(format!(
                "{} entries are published of {}",
                log.size(),
                records.reach()
            ));
        }
        Ok(Self { records, log, roots })
    }

    /// How many entries the log has.
    pub fn entries(&self) -> u64 {
        self.log.size()
    }

    /// What keeps the two from being consistent; nothing, if they are.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let keys: HashMap<KeyId, VerifyingKey> = self
            .roots
            .attestation_keys()
            .map(|key| (key.key.key_id().clone(), key.key.clone()))
            .collect();
        let (calls, checkpoints) = (self.records.calls(), self.checkpoints());
        let mut indexes: HashMap<&[u8], Vec<u64>> = HashMap::new();
        for (index, entry) in self.log.entries.iter().enumerate() {
            indexes.entry(entry).or_default().push(index as u64);
        }
        let mut claimed: HashMap<Vec<u8>, &str> = HashMap::new();
        let mut by_key: HashMap<String, &str> = HashMap::new();
        for (id, call) in &calls {
            let mut say = |text: String| problems.push(format!("call {id}: {text}"));
            let ([intent], outcomes) = (&call.intents[..], &call.outcomes[..]) else {
                say(format!("{} intents", call.intents.len()));
                continue;
            };
            let outcome = match (outcomes, &call.abandoned[..]) {
                ([], [_]) => continue,
                ([outcome], []) => outcome,
                (outcomes, abandoned) => {
                    say(format!(
                        "{} outcomes, abandoned {} times",
                        outcomes.len(),
                        abandoned.len()
                    ));
                    continue;
                }
            };
            if intent["idempotency"].is_object() {
                let scope = [
                    &intent["caller"],
                    &intent["tenant"],
                    &intent["method"],
                    &intent["idempotency"]["key"],
                ];
                let other = by_key.insert(scope.map(Value::to_string).join(" "), id);
                if let Some(other) = other {
                    say(format!("its idempotency key was signed for by call {other} too"));
                }
            }
            if !call.must_be_logged() {
                continue;
            }
            let key = outcome["key"]
                .as_str()
                .and_then(|id| keys.get(&id.parse::<KeyId>().ok()?));
            let pae = intent["pae"].as_str().and_then(|pae| pae.parse::<Digest>().ok());
            let (Some(key), Some(pae)) = (key, pae) else {
                say("its key or its digest is unknown".into());
                continue;
            };
            if !key.verify_digest(&pae, &signature(outcome)) {
                say("its signature does not verify".into());
            }
            let body = hashedrekord::entry_body(&pae, &signature(outcome), key).unwrap_or_default();
            let index = match indexes.get(&body[..]).map(Vec::as_slice) {
                Some([index]) => Some(*index),
                found => {
                    say(format!("it is logged {} times", found.map_or(0, <[u64]>::len)));
                    None
                }
            };
            if let Some(other) = claimed.insert(body, id) {
                say(format!("its signature is that of call {other}"));
            }
            match &call.logged[..] {
                [(place, logged)] => {
                    let said = logged["logIndex"].as_u64();
                    if index.is_some() && said != index {
                        say(format!("it is recorded at {said:?} and stands at {index:?}"));
                    }
                    match checkpoints.range(..place).next_back() {
                        Some((_, Ok(stated))) => stated.covers(logged).unwrap_or_else(&mut say),
                        Some((_, Err(problem))) => say(problem.clone()),
                        None => say("no checkpoint is recorded before it was logged".into()),
                    }
                }
                logged => say(format!("it is recorded as logged {} times", logged.len())),
            }
        }
        for (index, entry) in self.log.entries.iter().enumerate() {
            let is_ours = hashedrekord::parse_body(entry)
                .is_ok_and(|body| keys.contains_key(&KeyId::of_spki(&body.spki)));
            if is_ours && !claimed.contains_key(entry) {
                problems.push(format!("entry {index}: no outcome"));
            }
        }
        problems
    }

    /// The checkpoints that were recorded, by their places among all records: size, and times of the witnesses.
    fn checkpoints(&self) -> BTreeMap<usize, Result<Stated, Problem>> {
        let records = self.records.0.iter().enumerate();
        let noted = records.filter_map(|(place, record)| match record["kind"].as_str() {
            Some("checkpoint") => Some((place, record["note"].as_str().unwrap_or_default())),
            _ => None,
        });
        noted.map(|(place, note)| (place, self.stated(note))).collect()
    }

    /// Holds a checkpoint to the log.
    fn stated(&self, note: &str) -> Result<Stated, Problem> {
        let stated = checkpoint(note.as_bytes(), &self.roots)?;
        if merkle::root(&self.log.tree, stated.size).ok() != Some(stated.root) {
            return Err(format!("the checkpoint of {} is of another tree", stated.size));
        }
        let note = Note::parse(note.as_bytes()).map_err(|error| error.to_string())?;
        let witnesses = self.roots.witnesses().iter();
        let times = witnesses.filter_map(|witness| cosignature::verify(&note, witness).ok()?);
        Ok(Stated {
            size: stated.size,
            times: times.map(|time| time.to_string()).collect(),
        })
    }
}

/// A checkpoint that holds.
struct Stated {
    size: u64,
    /// When witnesses cosigned it.
    times: Vec<String>,
}

impl Stated {
    /// It is the one that a record `logged` names, and covers the entry.
    fn covers(&self, logged: &Value) -> Result<(), Problem> {
        let (size, index) = (logged["treeSize"].as_u64(), logged["logIndex"].as_u64());
        if Some(self.size) != size || index >= size {
            return Err(format!(
                "its checkpoint of {} is not the recorded one of {size:?}",
                self.size
            ));
        }
        if self.times.iter().any(|time| logged["trustedAt"] == **time) {
            Ok(())
        } else {
            Err("no witness cosigned its checkpoint at the recorded time".into())
        }
    }
}
