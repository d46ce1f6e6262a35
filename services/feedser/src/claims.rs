//! What a caller says of evidence: the seed's `{dsse, trust}` body.
//!
//! A claim is checked and never stored. Each member that says something we derive must say the same; the known members
//! that are not compared (`mirrorSeq`, `witnesses`, `policyScore` and others) say nothing. A member that is not known is
//! refused: it may be a known one, written wrongly, that the caller wanted to be compared.

use serde_json::Value;
use stella_attest::digest::Digest;

use crate::error::Error;
use crate::logs::Place;

/// The members of `dsse` that are compared, as paths.
const COMPARED: [&[&str]; 12] = [
    &["payloadType"],
    &["key", "keyId"],
    &["key", "issuer"],
    &["key", "algo"],
    &["rekor", "logIndex"],
    &["rekor", "uuid"],
    &["rekor", "integratedTime"],
    &["rekor", "logId"],
    &["rekor", "kind"],
    &["rekor", "treeSize"],
    &["rekor", "rootHash"],
    &["trustedTime"],
];

/// The members that each object of the body may have: its path, and their names.
const KNOWN: [(&[&str], &[&str]); 6] = [
    (&[], &["bundle", "dsse", "trust"]),
    (
        &["trust"],
        &[
            "checks",
            "policyDigest",
            "policyScore",
            "receipt",
            "trustRootDigest",
            "verified",
            "verifiedAt",
            "verifier",
            "witnesses",
        ],
    ),
    (
        &["dsse"],
        &[
            "chain",
            "envelopeDigest",
            "key",
            "payloadType",
            "rekor",
            "siblings",
            "trustedTime",
        ],
    ),
    (&["dsse", "key"], &["algo", "issuer", "keyId"]),
    (
        &["dsse", "rekor"],
        &[
            "checkpoint",
            "hashes",
            "integratedTime",
            "kind",
            "logId",
            "logIndex",
            "mirrorSeq",
            "promise",
            "rootHash",
            "treeSize",
            "uuid",
        ],
    ),
    (&["dsse", "trustedTime"], &["source", "time"]),
];

/// The members that a link of the chain may have.
const KNOWN_OF_LINK: &[&str] = &["digest", "id", "type"];

/// Claims about evidence that the caller takes for verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    dsse: Value,
    /// The envelope that the claims are about.
    pub envelope_digest: Digest,
    /// The chain that the caller claims, oldest first.
    pub chain: Vec<Digest>,
}

impl Claims {
    /// Reads the body of a claim.
    ///
    /// # Errors
    /// `UNKNOWN_FIELD` for a member that is not known, `CLAIM_NOT_VERIFIED` without `trust.verified: true`, `BAD_VALUE`
    /// and `BAD_DIGEST` for what cannot be read.
    pub fn read(mut body: Value) -> Result<Self, Error> {
        for (path, known) in KNOWN {
            let object = path.iter().try_fold(&body, |value, name| value.get(*name));
            only_known(object, &path.join("."), known)?;
        }
        let links = body.get("dsse").and_then(|dsse| dsse["chain"].as_array());
        for (index, link) in links.into_iter().flatten().enumerate() {
            only_known(Some(link), &format!("dsse.chain[{index}]"), KNOWN_OF_LINK)?;
        }
        if body["trust"]["verified"] != Value::Bool(true) {
            return Err(Error::ClaimNotVerified);
        }
        let dsse = match body.get_mut("dsse").map(Value::take) {
            Some(dsse @ Value::Object(_)) => dsse,
            _ => {
                return Err(Error::BadValue {
                    field: "dsse",
                    rule: "must be an object",
                });
            }
        };
        let envelope_digest = digest(&dsse["envelopeDigest"], "dsse.envelopeDigest".to_owned())?;
        let mut chain = Vec::new();
        match dsse.get("chain") {
            None | Some(Value::Null) => {}
            Some(Value::Array(links)) => {
                for (index, link) in links.iter().enumerate() {
                    chain.push(digest(&link["digest"], format!("dsse.chain[{index}].digest"))?);
                }
            }
            Some(_) => {
                return Err(Error::BadValue {
                    field: "dsse.chain",
                    rule: "must be an array",
                });
            }
        }
        Ok(Self {
            dsse,
            envelope_digest,
            chain,
        })
    }

    /// Where the log entry is that the claims are about, if they say so.
    pub(crate) fn place(&self) -> Option<Place> {
        let rekor = self.dsse.get("rekor")?;
        let text = |name: &str| rekor[name].as_str().map(str::to_owned);
        let place = Place {
            field: "dsse.rekor",
            log_id: text("logId"),
            index: rekor["logIndex"].as_u64(),
            uuid: text("uuid"),
        };
        (place.index.is_some() || place.uuid.is_some()).then_some(place)
    }

    /// Compares with what was verified.
    ///
    /// # Errors
    /// `CLAIM_MISMATCH` names the first member that differs.
    pub(crate) fn hold(&self, verified: &Value) -> Result<(), Error> {
        for path in COMPARED {
            let member = |value: &Value| {
                path.iter()
                    .try_fold(value.clone(), |value, name| value.get(*name).cloned())
            };
            if let Some(claimed) = member(&self.dsse) {
                let verified = member(verified).unwrap_or(Value::Null);
                if claimed != verified {
                    return Err(mismatch(path.join("."), &claimed, &verified));
                }
            }
        }
        for (index, _) in self.chain.iter().enumerate() {
            for name in ["type", "id"] {
                let (claimed, verified) = (&self.dsse["chain"][index][name], &verified["chain"][index][name]);
                if !claimed.is_null() && claimed != verified {
                    return Err(mismatch(format!("chain[{index}].{name}"), claimed, verified));
                }
            }
        }
        Ok(())
    }
}

/// Refuses the first member of `object`, which stands at `path`, that is not `known`. Anything but an object has none.
fn only_known(object: Option<&Value>, path: &str, known: &[&str]) -> Result<(), Error> {
    for name in object
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|object| object.keys())
    {
        if !known.contains(&name.as_str()) {
            let name: String = name.chars().take(100).collect();
            let field = if path.is_empty() {
                name
            } else {
                format!("{path}.{name}")
            };
            return Err(Error::UnknownField { field });
        }
    }
    Ok(())
}

fn digest(value: &Value, field: String) -> Result<Digest, Error> {
    value
        .as_str()
        .unwrap_or_default()
        .parse()
        .map_err(|source| Error::BadDigest { field, source })
}

fn mismatch(field: String, claimed: &Value, verified: &Value) -> Error {
    let short = |value: &Value| value.to_string().chars().take(200).collect();
    Error::ClaimMismatch {
        field: format!("dsse.{field}"),
        claimed: short(claimed),
        verified: short(verified),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body() -> Value {
        let digest = Digest::of(b"envelope").to_string();
        let link = Digest::of(b"build").to_string();
        json!({
            "dsse": {
                "envelopeDigest": digest, "payloadType": "application/vnd.in-toto+json",
                "key": {"keyId": "k", "issuer": "us", "algo": "ECDSA"},
                "rekor": {"logIndex": 7, "uuid": "ab", "integratedTime": 9, "mirrorSeq": 3},
                "chain": [{"type": "build", "id": "att:build#1", "digest": link}],
            },
            "trust": {"verified": true, "verifier": "Authority@stella", "witnesses": 5},
        })
    }

    fn set(mut value: Value, pointer: &str, member: Value) -> Value {
        *value.pointer_mut(pointer).unwrap() = member;
        value
    }

    #[test]
    fn a_claim_must_say_what_it_is_about() {
        let read = |body: Value| Claims::read(body).map(|_| ()).map_err(|error| error.reason());
        let refused = |reason: &str| Err(reason.to_owned());
        assert_eq!(read(body()), Ok(()));
        for (case, body, want) in [
            (
                "not verified",
                set(body(), "/trust/verified", json!(false)),
                refused("CLAIM_NOT_VERIFIED"),
            ),
            (
                "verified as text",
                set(body(), "/trust/verified", json!("true")),
                refused("CLAIM_NOT_VERIFIED"),
            ),
            (
                "no trust",
                set(body(), "/trust", Value::Null),
                refused("CLAIM_NOT_VERIFIED"),
            ),
            ("no object", json!([1]), refused("CLAIM_NOT_VERIFIED")),
            ("no dsse", set(body(), "/dsse", json!("x")), refused("BAD_VALUE")),
            (
                "bare hex",
                set(body(), "/dsse/envelopeDigest", json!("ab".repeat(32))),
                refused("BAD_DIGEST"),
            ),
            (
                "no digest",
                set(body(), "/dsse/envelopeDigest", json!(7)),
                refused("BAD_DIGEST"),
            ),
            (
                "chain of texts",
                set(body(), "/dsse/chain", json!(["x"])),
                refused("BAD_DIGEST"),
            ),
            (
                "chain is no list",
                set(body(), "/dsse/chain", json!({})),
                refused("BAD_VALUE"),
            ),
        ] {
            assert_eq!(read(body), want, "{case}");
        }
    }

    #[test]
    fn a_member_that_is_not_known_is_refused_by_its_path() {
        for (pointer, name, field) in [
            ("", "provenance", "provenance"),
            ("/trust", "Verified", "trust.Verified"),
            ("/dsse", "envelope", "dsse.envelope"),
            ("/dsse/key", "keyid", "dsse.key.keyid"),
            ("/dsse/rekor", "log_index", "dsse.rekor.log_index"),
            ("/dsse/chain/0", "kind", "dsse.chain[0].kind"),
        ] {
            let mut body = body();
            body.pointer_mut(pointer).unwrap()[name] = json!(1);
            let refused = Claims::read(body)
                .map(|_| ())
                .map_err(|error| (error.reason(), error.to_string()));
            let want = ("UNKNOWN_FIELD".to_owned(), format!("`{field}` is not known"));
            assert_eq!(refused, Err(want), "{pointer}");
        }
    }

    #[test]
    fn a_claim_holds_only_if_it_says_what_was_verified() {
        let verified = body()["dsse"].take();
        let held = |body: Value| {
            Claims::read(body)
                .unwrap()
                .hold(&verified)
                .map_err(|error| error.to_string())
        };
        assert_eq!(held(body()), Ok(()));
        assert_eq!(
            held(
                json!({"dsse": {"envelopeDigest": verified["envelopeDigest"]}, "trust": {"verified": true}})
            ),
            Ok(())
        );
        assert_eq!(held(set(body(), "/dsse/rekor/mirrorSeq", json!(4))), Ok(()));
        for (pointer, member, want) in [
            (
                "/dsse/payloadType",
                json!("x"),
                r#"`dsse.payloadType` is claimed to be "x", verified is "application/vnd.in-toto+json""#,
            ),
            (
                "/dsse/key/keyId",
                json!("l"),
                r#"`dsse.key.keyId` is claimed to be "l", verified is "k""#,
            ),
            (
                "/dsse/key/issuer",
                Value::Null,
                r#"`dsse.key.issuer` is claimed to be null, verified is "us""#,
            ),
            (
                "/dsse/rekor/logIndex",
                json!(8),
                "`dsse.rekor.logIndex` is claimed to be 8, verified is 7",
            ),
            (
                "/dsse/rekor/logIndex",
                json!("7"),
                r#"`dsse.rekor.logIndex` is claimed to be "7", verified is 7"#,
            ),
            (
                "/dsse/rekor/uuid",
                json!("ac"),
                r#"`dsse.rekor.uuid` is claimed to be "ac", verified is "ab""#,
            ),
            (
                "/dsse/rekor/integratedTime",
                json!(0),
                "`dsse.rekor.integratedTime` is claimed to be 0, verified is 9",
            ),
            (
                "/dsse/chain/0/type",
                json!("sbom"),
                r#"`dsse.chain[0].type` is claimed to be "sbom", verified is "build""#,
            ),
        ] {
            assert_eq!(
                held(set(body(), pointer, member)),
                Err(want.to_owned()),
                "{pointer}"
            );
        }
    }
}
