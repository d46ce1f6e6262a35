//! What the witness has seen last of each log, durable before it is answered.
//!
//! One small JSON file per origin and log key. A head only grows. A log that is distrusted stays so until an operator
//! gives the log another key.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::digest::Digest;
use stella_attest::fork::ForkProof;
use stella_attest::json::{self, Limits};
use stella_attest::merkle::Hash;
use stella_attest::note::{MAX_NOTE, Note};
use stella_serve::fs::{self, Access};

/// Most bytes of a head's file: three notes, each character of which may be escaped, a proof, and a little more.
const MAX_FILE: u64 = 6 * MAX_NOTE as u64 + 16_384;

/// The last state of a log that was cosigned, or the one that a fork contradicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The origin, as the log's checkpoints state it.
    pub(crate) origin: String,
    /// The id of the log, which is of its key.
    pub(crate) log_id: [u8; 32],
    /// Size of the tree.
    pub(crate) size: u64,
    /// Its root.
    pub(crate) root: Hash,
    /// The signed note that said so.
    pub(crate) checkpoint: String,
    /// The proof that the log was forked, once one was seen.
    pub(crate) fork: Option<ForkProof>,
}

impl Head {
    /// What tells this head from others: it is also the name of its file.
    fn name(&self) -> Digest {
        name(&self.origin, &self.log_id)
    }
}

fn name(origin: &str, log_id: &[u8; 32]) -> Digest {
    Digest::of(&[origin.as_bytes(), b"\n", log_id].concat())
}

/// All heads.
#[derive(Debug)]
pub(crate) struct Heads {
    dir: PathBuf,
    heads: HashMap<Digest, Head>,
    /// Forks that could not be written.
    unwritten: HashSet<Digest>,
}

impl Heads {
    /// Reads what was kept in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// A file that is not a head: the witness must not forget what it saw, so it does not start.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        let mut heads = HashMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let head = read(&path).with_context(|| format!("`{}` is no head", path.display()))?;
                heads.insert(head.name(), head);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            heads,
            unwritten: HashSet::new(),
        })
    }

    /// The head of a log, if it was ever seen.
    pub(crate) fn get(&self, origin: &str, log_id: &[u8; 32]) -> Option<&Head> {
        self.heads.get(&name(origin, log_id))
    }

    /// The logs of which a fork was seen.
    pub(crate) fn forked(&self) -> Vec<[u8; 32]> {
        let mut forked: Vec<[u8; 32]> = self
            .heads
            .values()
            .filter(|head| head.fork.is_some())
            .map(|head| head.log_id)
            .collect();
        forked.sort_unstable();
        forked.dedup();
        forked
    }

    /// Keeps a head; it is durable when this returns.
    ///
    /// # Errors
    /// The file could not be written. The old head stays, but a fork is remembered for as long as the process runs.
    pub(crate) fn keep(&mut self, head: Head) -> anyhow::Result<()> {
        let fork = head.fork.as_ref().map(ForkProof::to_value);
        let document = json!({
            "checkpoint": head.checkpoint, "fork": fork, "logId": hex::encode(head.log_id),
            "origin": head.origin, "root": hex::encode(head.root), "size": head.size.to_string(),
        });
        let path = self.dir.join(format!("{}.json", head.name().hex()));
        let written = fs::write_atomic(&path, &canonical::to_vec(&document), Access::Everybody);
        if written.is_ok() {
            self.unwritten.remove(&head.name());
        } else if head.fork.is_some() {
            self.unwritten.insert(head.name());
        }
        if written.is_ok() || head.fork.is_some() {
            self.heads.insert(head.name(), head);
        }
        Ok(written?)
    }

    /// True if what is known of the log is what its file says.
    pub(crate) fn is_written(&self, head: &Head) -> bool {
        !self.unwritten.contains(&head.name())
    }
}

fn read(path: &Path) -> anyhow::Result<Head> {
    let document = json::parse(&fs::read(path, MAX_FILE)?, &Limits::default())?;
    let text = |name: &str| {
        document[name]
            .as_str()
            .with_context(|| format!("`{name}` is missing"))
    };
    let hash = |name: &str| -> anyhow::Result<[u8; 32]> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text(name)?, &mut bytes)?;
        Ok(bytes)
    };
    // A size may be larger than a JSON number can be, so it is text; smaller ones were numbers once.
    let size = match &document["size"] {
        Value::String(digits) => digits.parse().ok(),
        number => number.as_u64(),
    };
    let checkpoint = text("checkpoint")?.to_owned();
    let head = Head {
        origin: text("origin")?.to_owned(),
        log_id: hash("logId")?,
        size: size.context("`size` is missing")?,
        root: hash("root")?,
        fork: match &document["fork"] {
            Value::Null => None,
            // The second root for the size of the checkpoint, as it was written once.
            Value::String(second) => Some(ForkProof {
                first: checkpoint.clone(),
                second: second.clone(),
                root: root_of(second).context("`fork` is no checkpoint")?,
                consistency: Vec::new(),
            }),
            fork => Some(ForkProof::from_value(fork).context("`fork` is malformed")?),
        },
        checkpoint,
    };
    let is_named = path.file_stem().is_some_and(|stem| *stem == *head.name().hex());
    anyhow::ensure!(is_named, "it is the head of another log than its name says");
    Ok(head)
}

fn root_of(note: &str) -> anyhow::Result<Hash> {
    let note = Note::parse(note.as_bytes())?;
    Ok(Checkpoint::parse(note.text())?.root)
}
