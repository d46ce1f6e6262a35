//! Proof that a log was forked: two checkpoints that it signed, and that no one tree has.
//!
//! The proof stands for itself. Whoever holds it can show it to anybody who knows the log's key, and nobody without that
//! key can make one up, so it does not matter who shows it.

use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, CheckpointError, LogKey};
use crate::merkle::{self, Hash, ProofError};
use crate::note::{Note, NoteError};

/// Two checkpoints that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkProof {
    /// The signed note of the smaller tree, or of either if both have one size.
    pub first: String,
    /// The signed note of the other one.
    pub second: String,
    /// The root that the second tree has over as many leaves as the first tree has.
    pub root: Hash,
    /// RFC 6962 consistency proof that it has: from `root` to the second root. Empty if both have one size.
    pub consistency: Vec<Hash>,
}

/// Why something is no proof of a fork.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// `field` is not a signed note.
    #[error("`{field}` is not a signed note")]
    Note {
        /// `first` or `second`.
        field: &'static str,
        /// Why not.
        source: NoteError,
    },
    /// `field` is not a checkpoint that the log signed.
    #[error("`{field}` is not a checkpoint of this log")]
    Checkpoint {
        /// `first` or `second`.
        field: &'static str,
        /// Why not.
        source: CheckpointError,
    },
    /// They are of two trees that the log keeps apart by their origins, as a Rekor v1 does.
    #[error("the checkpoints are of different trees")]
    OtherTree,
    /// The second tree is not shown to have the root.
    #[error("the second tree is not shown to have that root")]
    Unproven(#[source] ProofError),
    /// The second tree extends the first one.
    #[error("the checkpoints do not contradict each other")]
    NoFork,
}

impl ForkProof {
    /// The two checkpoints, if they are a fork of the log with this key.
    ///
    /// # Errors
    /// [`ForkError`] if the proof does not hold.
    pub fn verify(&self, key: &LogKey) -> Result<(Checkpoint, Checkpoint), ForkError> {
        let read = |field, note: &str| {
            let note = Note::parse(note.as_bytes()).map_err(|source| ForkError::Note { field, source })?;
            let checkpoint = key.verify_checkpoint(&note);
            checkpoint.map_err(|source| ForkError::Checkpoint { field, source })
        };
        let (first, second) = (read("first", &self.first)?, read("second", &self.second)?);
        if first.origin != second.origin {
            return Err(ForkError::OtherTree);
        }
        merkle::verify_consistency(
            first.size,
            second.size,
            &self.consistency,
            &self.root,
            &second.root,
        )
        .map_err(ForkError::Unproven)?;
        if self.root == first.root {
            return Err(ForkError::NoFork);
        }
        Ok((first, second))
    }

    /// For a file: `{consistency[], first, root, second}`, hashes in hex.
    pub fn to_value(&self) -> Value {
        let consistency: Vec<String> = self.consistency.iter().map(hex::encode).collect();
        json!({
            "consistency": consistency, "first": self.first,
            "root": hex::encode(self.root), "second": self.second,
        })
    }

    /// Reads what [`to_value`](Self::to_value) wrote; `None` if it is not of that form. Whether it proves anything is for
    /// [`verify`](Self::verify) to say.
    pub fn from_value(value: &Value) -> Option<Self> {
        let hash = |value: &Value| {
            let mut hash = [0; 32];
            hex::decode_to_slice(value.as_str()?, &mut hash).ok()?;
            Some(hash)
        };
        let nodes = value["consistency"].as_array()?;
        Some(Self {
            first: value["first"].as_str()?.to_owned(),
            second: value["second"].as_str()?.to_owned(),
            root: hash(&value["root"])?,
            consistency: nodes.iter().map(hash).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Algorithm, SigningKey};
    use crate::merkle::MemoryTree;
    use crate::note::NoteSigner;

    const ORIGIN: &str = "log.example.com";

    fn tree(name: &str, size: u64) -> MemoryTree {
        let mut tree = MemoryTree::new();
        for index in 0..size {
            tree.push(merkle::leaf_hash(format!("{name} {index}").as_bytes()));
        }
        tree
    }

    fn note(key: &SigningKey, origin: &str, tree: &MemoryTree) -> String {
        let checkpoint = Checkpoint {
            origin: origin.into(),
            size: tree.size(),
            root: tree.root(),
            extensions: Vec::new(),
        };
        let signer = NoteSigner::new(origin, key).expect("a signer");
        let note = Note::sign(&checkpoint.to_text(), &signer).expect("signs");
        note.to_string()
    }

    /// What shows that `second` does not extend `first`, or tries to.
    fn proof(key: &SigningKey, first: &MemoryTree, second: &MemoryTree) -> ForkProof {
        let (size, of) = (first.size(), second.size());
        ForkProof {
            first: note(key, ORIGIN, first),
            second: note(key, ORIGIN, second),
            root: merkle::root(second, size).expect("nodes of the tree"),
            consistency: match size {
                _ if size == of => Vec::new(),
                _ => merkle::consistency_proof(second, size, of).expect("nodes of the tree"),
            },
        }
    }

    fn reason(outcome: Result<(Checkpoint, Checkpoint), ForkError>) -> String {
        match outcome {
            Ok((first, second)) => format!("{} and {}", first.size, second.size),
            Err(ForkError::Note { field, source }) => format!("{field}: {}", source.reason()),
            Err(ForkError::Checkpoint { field, source }) => format!("{field}: {}", source.reason()),
            Err(ForkError::Unproven(source)) => source.reason().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn two_trees_are_a_fork_at_any_sizes_and_one_tree_is_none() {
        let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let log = LogKey::new(ORIGIN, key.verifying_key().clone()).expect("a log's key");
        for first in 1..=9 {
            for second in first..=17 {
                let forked = proof(&key, &tree("a", first), &tree("b", second));
                assert_eq!(reason(forked.verify(&log)), format!("{first} and {second}"));
                let read = ForkProof::from_value(&forked.to_value()).expect("as it was written");
                assert_eq!(read, forked);
                let honest = proof(&key, &tree("a", first), &tree("a", second));
                let refused = reason(honest.verify(&log));
                assert_eq!(refused, "the checkpoints do not contradict each other");
            }
        }
    }

    #[test]
    fn what_the_log_did_not_sign_or_the_second_tree_does_not_have_proves_nothing() {
        let key = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let log = LogKey::new(ORIGIN, key.verifying_key().clone()).expect("a log's key");
        let (a, b) = (tree("a", 5), tree("b", 7));
        let (good, honest) = (proof(&key, &a, &b), proof(&key, &a, &tree("a", 7)));
        let stranger = SigningKey::generate(Algorithm::Ed25519).expect("a key");
        let mut spoilt = good.consistency.clone();
        spoilt[1][0] ^= 1;
        for (case, proof, want) in [
            (
                "no note",
                ForkProof {
                    first: "a".into(),
                    ..good.clone()
                },
                "first: NOTE_NO_SIGNATURES",
            ),
            (
                "signed by somebody else",
                ForkProof {
                    second: note(&stranger, ORIGIN, &b),
                    ..good.clone()
                },
                "second: CHECKPOINT_SIGNATURE",
            ),
            (
                "of another log",
                ForkProof {
                    first: note(&key, "other.example.com", &a),
                    ..good.clone()
                },
                "first: CHECKPOINT_ORIGIN",
            ),
            (
                "an invented root",
                ForkProof {
                    root: [7; 32],
                    ..honest.clone()
                },
                "OLD_ROOT_MISMATCH",
            ),
            (
                "the proof of another tree",
                ForkProof {
                    root: good.root,
                    consistency: good.consistency.clone(),
                    ..honest.clone()
                },
                "ROOT_MISMATCH",
            ),
            (
                "a spoilt proof",
                ForkProof {
                    consistency: spoilt,
                    ..good.clone()
                },
                "ROOT_MISMATCH",
            ),
            (
                "no proof",
                ForkProof {
                    consistency: Vec::new(),
                    ..good.clone()
                },
                "PROOF_LENGTH",
            ),
            (
                "the larger one first",
                ForkProof {
                    first: good.second.clone(),
                    second: good.first.clone(),
                    ..good.clone()
                },
                "TREE_SHRUNK",
            ),
            (
                "from nothing",
                proof(&key, &tree("a", 0), &b),
                "PROOF_FROM_EMPTY_TREE",
            ),
        ] {
            assert_eq!(reason(proof.verify(&log)), want, "{case}");
        }
    }

    #[test]
    fn two_trees_of_one_rekor_v1_are_no_fork() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let log = LogKey::any_origin(key.verifying_key().clone()).expect("a log's key");
        let signed = |number: u64, tree: &MemoryTree| {
            let checkpoint = Checkpoint {
                origin: format!("{ORIGIN} - {number}"),
                size: tree.size(),
                root: tree.root(),
                extensions: Vec::new(),
            };
            let text = checkpoint.to_text();
            let line = crate::note::NoteSignature {
                name: ORIGIN.into(),
                id: *log.log_id.first_chunk().expect("32 bytes"),
                bytes: key.sign(text.as_bytes()).expect("signs"),
            };
            format!("{text}\n{line}")
        };
        let (a, b) = (tree("a", 5), tree("b", 5));
        let of_one = ForkProof {
            first: signed(7, &a),
            second: signed(7, &b),
            root: b.root(),
            consistency: Vec::new(),
        };
        assert_eq!(reason(of_one.verify(&log)), "5 and 5");
        let of_two = ForkProof {
            second: signed(8, &b),
            ..of_one
        };
        assert_eq!(
            reason(of_two.verify(&log)),
            "the checkpoints are of different trees"
        );
    }
}
