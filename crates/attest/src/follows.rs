//! What an attestation says, under its own signature, that it follows.
//!
//! Each format has a place for it: SLSA provenance `buildDefinition.resolvedDependencies`, CycloneDX `externalReferences`
//! of type `attestation`, and the formats that allow members of others a list `follows`. A format with a closed schema
//! and no such place, as SPDX, cannot say it.

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::statement::{CYCLONEDX, SLSA_PROVENANCE, SPDX, Statement};

/// The predicate has no place for predecessors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a predicate of this type has no place for predecessors")]
pub struct NoPlace;

/// The digests that the statement names as its predecessors, in their order.
pub fn digests(statement: &Statement) -> Vec<Digest> {
    let predicate = &statement.predicate;
    let hexes: Vec<&str> = match statement.predicate_type.as_str() {
        CYCLONEDX => {
            let references = predicate["externalReferences"].as_array().into_iter().flatten();
            let attestations = references.filter(|reference| reference["type"] == "attestation");
            let hashes =
                attestations.flat_map(|reference| reference["hashes"].as_array().into_iter().flatten());
            let sha256 = hashes.filter(|hash| hash["alg"] == "SHA-256");
            sha256.filter_map(|hash| hash["content"].as_str()).collect()
        }
        SLSA_PROVENANCE => descriptors(&predicate["buildDefinition"]["resolvedDependencies"]),
        _ => descriptors(&predicate["follows"]),
    };
    hexes
        .into_iter()
        .filter_map(|hex| Digest::from_hex(hex).ok())
        .collect()
}

fn descriptors(listed: &Value) -> Vec<&str> {
    let listed = listed.as_array().into_iter().flatten();
    listed
        .filter_map(|item| item["digest"]["sha256"].as_str())
        .collect()
}

/// Adds a predecessor to a predicate, which must be an object.
///
/// # Errors
/// [`NoPlace`] if the format cannot say it.
pub fn add(predicate: &mut Value, predicate_type: &str, digest: &Digest) -> Result<(), NoPlace> {
    let descriptor = json!({"digest": {"sha256": digest.hex()}, "name": "predecessor"});
    let (place, entry) = match predicate_type {
        SPDX => return Err(NoPlace),
        SLSA_PROVENANCE => (
            &mut predicate["buildDefinition"]["resolvedDependencies"],
            descriptor,
        ),
        CYCLONEDX => {
            let hashes = json!([{"alg": "SHA-256", "content": digest.hex()}]);
            let url = format!("urn:sha256:{}", digest.hex());
            (
                &mut predicate["externalReferences"],
                json!({"hashes": hashes, "type": "attestation", "url": url}),
            )
        }
        _ => (&mut predicate["follows"], descriptor),
    };
    match place {
        Value::Array(listed) => listed.push(entry),
        other => *other = json!([entry]),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{self, OPENVEX};

    #[test]
    fn what_is_added_is_read_back_in_order() {
        let added = [Digest::of(b"build"), Digest::of(b"sbom")];
        for predicate_type in [SLSA_PROVENANCE, CYCLONEDX, OPENVEX] {
            let mut predicate = json!({"kept": 1});
            for digest in &added {
                assert_eq!(add(&mut predicate, predicate_type, digest), Ok(()));
            }
            let payload = statement::build("a", &Digest::of(b"a"), predicate_type, predicate);
            let statement = Statement::parse(&payload).expect("a statement");
            assert_eq!(
                (digests(&statement), &statement.predicate["kept"]),
                (added.to_vec(), &json!(1))
            );
        }
        assert_eq!(add(&mut json!({}), SPDX, &added[0]), Err(NoPlace));
    }
}
