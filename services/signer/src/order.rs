//! What a caller wants signed, parsed: a strict in-toto Statement, a key slot, and whether it must be logged.

use prost::bytes::Bytes;
use stella_attest::digest::Digest;
use stella_attest::key::KeyId;
use stella_attest::statement::{self, PAYLOAD_TYPE, Statement};
use stella_proto::signer::v1 as pb;
use stella_serve::idempotency::{IdempotencyKey, request_digest};

use crate::error::Error;

/// The slot that an empty name means.
pub const DEFAULT_SLOT: &str = "default";

/// Whether a signature must be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transparency {
    /// Signed and audited.
    None,
    /// Signed, logged and witnessed, or an error.
    Required,
}

impl Transparency {
    /// The name in audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Required => "REQUIRED",
        }
    }

    /// Reads the name in an audit record.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Required]
            .into_iter()
            .find(|transparency| transparency.as_str() == text)
    }
}

/// A statement that is to be signed.
#[derive(Debug)]
pub struct SignOrder {
    /// The Statement's JSON, signed byte for byte.
    pub payload: Bytes,
    /// Its predicateType.
    pub predicate_type: String,
    /// The slot of the key.
    pub slot: String,
    /// Whether it must be logged.
    pub transparency: Transparency,
    /// The caller's idempotency key.
    pub idempotency: Option<IdempotencyKey>,
}

impl SignOrder {
    /// Parses a request.
    ///
    /// # Errors
    /// [`Error`] names the field at fault.
    pub fn parse(request: pb::SignRequest) -> Result<Self, Error> {
        if !matches!(request.payload_type.as_str(), "" | PAYLOAD_TYPE) {
            return Err(Error::PayloadType(request.payload_type));
        }
        let transparency = match request.transparency() {
            pb::Transparency::Unspecified | pb::Transparency::Required => Transparency::Required,
            pb::Transparency::None => Transparency::None,
        };
        if pb::Transparency::try_from(request.transparency).is_err() {
            return Err(Error::BadTransparency);
        }
        let predicate_type = signable(&request.payload)?;
        if statement::is_reserved(&predicate_type) {
            return Err(Error::Reserved(predicate_type));
        }
        let slot = if request.key_slot.is_empty() {
            DEFAULT_SLOT.to_owned()
        } else {
            request.key_slot
        };
        let idempotency = IdempotencyKey::parse(request.idempotency_key).map_err(Error::BadIdempotencyKey)?;
        Ok(Self {
            payload: request.payload,
            predicate_type,
            slot,
            transparency,
            idempotency,
        })
    }

    /// SHA-256 of all that makes this request this one.
    pub fn digest(&self) -> Digest {
        request_digest(&[
            &self.payload[..],
            self.slot.as_bytes(),
            self.transparency.as_str().as_bytes(),
        ])
    }
}

/// The predicateType of a payload that may be signed: a strict Statement v1 whose subjects have SHA-256 digests.
fn signable(payload: &[u8]) -> Result<String, Error> {
    let statement = Statement::parse(payload).map_err(Error::Statement)?;
    if statement.sha256_subjects().is_empty() {
        return Err(Error::NoSha256);
    }
    Ok(statement.predicate_type)
}

/// A manifest that is to be signed.
#[derive(Debug)]
pub struct ManifestOrder {
    /// The Statement's JSON.
    pub payload: Bytes,
    /// Its predicateType.
    pub predicate_type: String,
}

impl ManifestOrder {
    /// Parses a request; only manifests may be signed with the manifest key.
    ///
    /// # Errors
    /// [`Error`] names the field at fault.
    pub fn parse(request: pb::SignManifestRequest) -> Result<Self, Error> {
        let predicate_type = signable(&request.payload)?;
        if predicate_type != stella_attest::slice::PREDICATE_TYPE {
            return Err(Error::NoManifest(predicate_type));
        }
        Ok(Self {
            payload: request.payload,
            predicate_type,
        })
    }
}

/// A rotation that is wanted.
#[derive(Debug)]
pub struct RotateOrder {
    /// The slot.
    pub slot: String,
    /// The key to activate; `None` is the only prepared one.
    pub to: Option<KeyId>,
    /// The caller's idempotency key.
    pub idempotency: Option<IdempotencyKey>,
}

impl RotateOrder {
    /// Parses a request.
    ///
    /// # Errors
    /// [`Error`] names the field at fault.
    pub fn parse(request: pb::RotateKeyRequest) -> Result<Self, Error> {
        let to = match request.to_key_id.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| Error::NoKey(id.to_owned()))?),
        };
        let slot = if request.slot.is_empty() {
            DEFAULT_SLOT.to_owned()
        } else {
            request.slot
        };
        let idempotency = IdempotencyKey::parse(request.idempotency_key).map_err(Error::BadIdempotencyKey)?;
        Ok(Self {
            slot,
            to,
            idempotency,
        })
    }

    /// SHA-256 of all that makes this request this one.
    pub fn digest(&self) -> Digest {
        request_digest(&[
            self.slot.as_str(),
            self.to.as_ref().map(KeyId::as_str).unwrap_or_default(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn payload(predicate_type: &str) -> Bytes {
        statement::build("a", &Digest::of(b"a"), predicate_type, json!({})).into()
    }

    #[test]
    fn what_cannot_be_signed_is_refused_by_its_field() {
        let sha1 = json!({
            "_type": statement::TYPE_V1, "predicate": {}, "predicateType": "t",
            "subject": [{"digest": {"sha1": "aa"}}],
        });
        let sha1 = Bytes::from(serde_json::to_vec(&sha1).expect("JSON"));
        let good = || pb::SignRequest {
            payload: payload("https://cyclonedx.org/bom"),
            ..pb::SignRequest::default()
        };
        for (case, request, want) in [
            ("no payload", pb::SignRequest::default(), ("BAD_JSON", "payload")),
            (
                "another payloadType",
                pb::SignRequest {
                    payload_type: "text/plain".into(),
                    ..good()
                },
                ("PAYLOAD_TYPE_NOT_ALLOWED", "payload_type"),
            ),
            (
                "a duplicate key",
                pb::SignRequest {
                    payload: Bytes::from_static(br#"{"_type":1,"_type":2}"#),
                    ..good()
                },
                ("DUPLICATE_KEY", "payload/_type"),
            ),
            (
                "a receipt",
                pb::SignRequest {
                    payload: payload("stella.ops/receipt@v1"),
                    ..good()
                },
                ("RESERVED_PREDICATE_TYPE", "payload.predicateType"),
            ),
            (
                "no sha256",
                pb::SignRequest {
                    payload: sha1,
                    ..good()
                },
                ("NO_SUBJECT", "payload.subject"),
            ),
            (
                "a bad key",
                pb::SignRequest {
                    idempotency_key: "a b".into(),
                    ..good()
                },
                ("BAD_IDEMPOTENCY_KEY", "idempotency_key"),
            ),
            (
                "a bad transparency",
                pb::SignRequest {
                    transparency: 9,
                    ..good()
                },
                ("BAD_TRANSPARENCY", "transparency"),
            ),
        ] {
            let status = SignOrder::parse(request).map(|_| ()).map_err(tonic::Status::from);
            let refused = status.map_err(|status| {
                use stella_proto::status::{field, reason};
                (
                    reason(&status).unwrap_or_default(),
                    field(&status).unwrap_or_default(),
                )
            });
            assert_eq!(refused, Err((want.0.to_owned(), want.1.to_owned())), "{case}");
        }
        let order = SignOrder::parse(good()).expect("an order");
        assert_eq!(
            (order.slot.as_str(), order.transparency),
            ("default", Transparency::Required)
        );
        let manifest = pb::SignManifestRequest {
            payload: payload("https://cyclonedx.org/bom"),
        };
        let refused = ManifestOrder::parse(manifest)
            .map(|_| ())
            .map_err(tonic::Status::from);
        let reason = refused.map_err(|status| stella_proto::status::reason(&status).unwrap_or_default());
        assert_eq!(reason, Err("NOT_A_MANIFEST".to_owned()));
    }
}
