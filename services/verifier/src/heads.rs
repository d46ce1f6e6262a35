//! What the witness has seen last of each log, durable before it is answered.
//!
//! One small JSON file per log id. A head only grows; once a log is distrusted it stays so until an operator removes
//! the file and the log's key is replaced.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::json::{self, Limits};
use stella_attest::merkle::Hash;
use stella_serve::fs::{Access, write_atomic};

/// The last state of a log that was cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Size of the tree.
    pub size: u64,
    /// Its root.
    pub root: Hash,
    /// The signed note that said so.
    pub checkpoint: String,
    /// The note that contradicts it, once one was seen.
    pub fork: Option<String>,
}

/// All heads, by log id.
#[derive(Debug)]
pub struct Heads {
    dir: PathBuf,
    heads: HashMap<[u8; 32], Head>,
}

impl Heads {
    /// Reads what was kept in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// A file that is not a head: the witness must not forget what it saw, so it does not start.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        let mut heads = HashMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let (log_id, head) =
                    read(&path).with_context(|| format!("`{}` is no head", path.display()))?;
                heads.insert(log_id, head);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            heads,
        })
    }

    /// The head of a log, if it was ever seen.
    pub fn get(&self, log_id: &[u8; 32]) -> Option<&Head> {
        self.heads.get(log_id)
    }

    /// The logs of which a fork was seen.
    pub fn forked(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.heads
            .iter()
            .filter(|(_, head)| head.fork.is_some())
            .map(|(log_id, _)| log_id)
    }

    /// Keeps a head; it is durable when this returns.
    ///
    /// # Errors
    /// The file could not be written; the old head stays.
    pub fn keep(&mut self, log_id: [u8; 32], head: Head) -> anyhow::Result<()> {
        let document = json!({
            "checkpoint": head.checkpoint, "fork": head.fork, "logId": hex::encode(log_id),
            "root": hex::encode(head.root), "size": head.size,
        });
        let path = self.dir.join(format!("{}.json", hex::encode(log_id)));
        write_atomic(&path, &canonical::to_vec(&document), Access::Everybody)?;
        self.heads.insert(log_id, head);
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<([u8; 32], Head)> {
    let document = json::parse(&std::fs::read(path)?, &Limits::default())?;
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
    let fork = match &document["fork"] {
        Value::Null => None,
        _ => Some(text("fork")?.to_owned()),
    };
    let size = document["size"].as_u64().context("`size` is missing")?;
    let checkpoint = text("checkpoint")?.to_owned();
    Ok((
        hash("logId")?,
        Head {
            size,
            root: hash("root")?,
            checkpoint,
            fork,
        },
    ))
}
