//! What an attestation says, under its own signature, that it follows.
//!
//! SLSA provenance names predecessors in `buildDefinition.resolvedDependencies`; every other predicate in a member
//! `follows`. Both are lists of in-toto resource descriptors whose SHA-256 is the predecessor's envelope digest.

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::statement::{SLSA_PROVENANCE, Statement};

fn list<'p>(predicate: &'p Value, predicate_type: &str) -> &'p Value {
    if predicate_type == SLSA_PROVENANCE {
        &predicate["buildDefinition"]["resolvedDependencies"]
    } else {
        &predicate["follows"]
    }
}

/// The digests that the statement names as its predecessors, in their order.
pub fn digests(statement: &Statement) -> Vec<Digest> {
    let listed = list(&statement.predicate, &statement.predicate_type).as_array();
    let hexes = listed
        .into_iter()
        .flatten()
        .filter_map(|item| item["digest"]["sha256"].as_str());
    hexes.filter_map(|hex| Digest::from_hex(hex).ok()).collect()
}

/// Adds a predecessor to a predicate, which must be an object.
pub fn add(predicate: &mut Value, predicate_type: &str, name: &str, digest: &Digest) {
    let entry = json!({"digest": {"sha256": digest.hex()}, "name": name});
    let mut listed = list(predicate, predicate_type)
        .as_array()
        .cloned()
        .unwrap_or_default();
    listed.push(entry);
    if predicate_type == SLSA_PROVENANCE {
        predicate["buildDefinition"]["resolvedDependencies"] = listed.into();
    } else {
        predicate["follows"] = listed.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{self, OPENVEX};

    #[test]
    fn what_is_added_is_read_back_in_order() {
        let digests_added = [Digest::of(b"build"), Digest::of(b"sbom")];
        for predicate_type in [SLSA_PROVENANCE, OPENVEX] {
            let mut predicate = json!({"kept": 1});
            for digest in &digests_added {
                add(&mut predicate, predicate_type, "predecessor", digest);
            }
            let payload = statement::build("a", &Digest::of(b"a"), predicate_type, predicate);
            let statement = Statement::parse(&payload).expect("a statement");
            assert_eq!(
                (digests(&statement), &statement.predicate["kept"]),
                (digests_added.to_vec(), &json!(1))
            );
        }
    }
}
