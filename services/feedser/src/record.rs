//! A stored event as the domain sees it: one document, and what its proof is worth.
//!
//! Reading is the moment of truth. The columns that the event was found by are compared with its document, and the
//! receipt is checked against all of it; nothing that a database says is believed.

use serde_json::Value;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::json::{self, Limits};
use stella_attest::key::VerifyingKey;
use stella_attest::receipt::{self, Receipt, ReceiptError};

use crate::store::StoredEvent;

/// A stored event that was read and judged.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its `_id`.
    pub id: String,
    /// How often it was written.
    pub rev: u64,
    /// The columns and documents as they lie in the store.
    pub(crate) stored: StoredEvent,
    /// The whole document, `tenant`, `rev` and the stored proof included; `None` if what is stored is no event.
    event: Option<Event>,
    /// The receipt, or why the event counts as unproven.
    proof: Result<Receipt, NotProven>,
}

/// Why a stored event counts as unproven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProven {
    /// It has no valid receipt.
    Receipt(ReceiptError),
    /// What it is found by is not what its document says.
    Integrity,
}

impl NotProven {
    /// The reason code.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Receipt(error) => error.reason(),
            Self::Integrity => "INTEGRITY",
        }
    }
}

impl Record {
    /// Reads what is stored for `tenant` and judges it by `keys`. Costs a signature check if there is a receipt.
    pub(crate) fn read(stored: StoredEvent, tenant: &str, keys: &[VerifyingKey]) -> Self {
        let event = compose(&stored, tenant);
        let proof = match &event {
            Some(event) if columns_fit(&stored, event) => {
                receipt::check(event, keys).map_err(NotProven::Receipt)
            }
            _ => Err(NotProven::Integrity),
        };
        let (id, rev) = (stored.id.clone(), stored.rev);
        Self {
            id,
            rev,
            stored,
            event,
            proof,
        }
    }

    /// The whole document, if it is one.
    pub fn event(&self) -> Option<&Event> {
        self.event.as_ref()
    }

    /// The receipt, or why the event counts as unproven.
    pub fn proof(&self) -> Result<&Receipt, NotProven> {
        self.proof.as_ref().map_err(|error| *error)
    }

    /// The whole document as RFC 8785 JSON; of an altered event what is left of it. The id is always the row's own: an
    /// altered document must not name another event.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.event {
            Some(event) if event.id() == self.id => canonical::to_vec(event.value()),
            Some(_) | None => canonical::to_vec(&self.document()),
        }
    }

    /// The same as [`to_bytes`](Self::to_bytes), as a value.
    pub(crate) fn document(&self) -> Value {
        let mut document = match &self.event {
            Some(event) => event.value().clone(),
            None => parse(&self.stored.doc)
                .filter(Value::is_object)
                .unwrap_or_default(),
        };
        document["_id"] = self.id.clone().into();
        document
    }
}

fn parse(text: &str) -> Option<Value> {
    json::parse(text.as_bytes(), &Limits::default()).ok()
}

/// The whole document of what is stored; `None` if it is no event.
fn compose(stored: &StoredEvent, tenant: &str) -> Option<Event> {
    let Value::Object(mut document) = parse(&stored.doc)? else {
        return None;
    };
    document.insert("tenant".into(), tenant.into());
    document.insert("rev".into(), stored.rev.into());
    for (name, text) in [("provenance", &stored.provenance), ("trust", &stored.trust)] {
        if let Some(text) = text {
            document.insert(name.into(), parse(text)?);
        }
    }
    Event::from_stored(Value::Object(document)).ok()
}

fn columns_fit(stored: &StoredEvent, event: &Event) -> bool {
    let log_index = event
        .provenance()
        .and_then(|block| block["dsse"]["rekor"]["logIndex"].as_u64());
    let has_receipt = event.trust().is_some_and(|block| block.get("receipt").is_some());
    stored.id == event.id()
        && stored.kind == Some(event.kind())
        && stored.subject == Some(event.subject_digest())
        && stored.log_index == log_index
        && stored.has_receipt == has_receipt
        && stored.unproven == Some(!has_receipt || log_index.is_none())
}

/// The document of `event` as it will be stored at revision `rev`, without its proof.
pub(crate) fn at_revision(event: &Event, tenant: &str, rev: u64) -> Option<Event> {
    let mut document = event.without_proof();
    document["tenant"] = tenant.into();
    document["rev"] = rev.into();
    Event::from_stored(document).ok()
}

/// Digests of the envelopes that a proof names: attached, in its chain, and superseded.
pub(crate) fn named_envelopes(event: &Event) -> Vec<Digest> {
    let Some(provenance) = event.provenance() else {
        return Vec::new();
    };
    let mut blocks = vec![&provenance["dsse"]];
    let history = provenance["history"].as_array();
    blocks.extend(history.into_iter().flatten().map(|old| &old["dsse"]));
    let mut named = Vec::new();
    for dsse in blocks {
        let chain = dsse["chain"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|link| &link["digest"]);
        for digest in chain.chain([&dsse["envelopeDigest"]]) {
            named.extend(digest.as_str().and_then(|text| text.parse::<Digest>().ok()));
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use stella_attest::statement::Kind;

    use super::*;

    #[test]
    fn an_altered_event_is_answered_under_the_id_of_its_row() {
        let subject = Digest::of(b"subject");
        let doc = |id: &str| {
            format!(
                r#"{{"_id":"{id}","kind":"VEX","subject":{{"digest":{{"sha256":"{}"}}}},"ts":"2025-11-11T12:00:00Z"}}"#,
                subject.hex()
            )
        };
        let whole = |id: &str| {
            doc(id)
                .replace(r#""subject""#, r#""rev":1,"subject""#)
                .replace(r#""ts""#, r#""tenant":"dev","ts""#)
        };
        let untouched = NotProven::Receipt(ReceiptError::NoProvenance);
        for (case, text, why, want) in [
            ("untouched", doc("evt_1"), untouched, whole("evt_1")),
            (
                "under another id",
                doc("evt_2"),
                NotProven::Integrity,
                whole("evt_1"),
            ),
            (
                "no event",
                r#"{"_id":"evt_2","a":1}"#.into(),
                NotProven::Integrity,
                r#"{"_id":"evt_1","a":1}"#.into(),
            ),
            (
                "no object",
                "[1]".into(),
                NotProven::Integrity,
                r#"{"_id":"evt_1"}"#.into(),
            ),
            (
                "no JSON",
                "altered".into(),
                NotProven::Integrity,
                r#"{"_id":"evt_1"}"#.into(),
            ),
        ] {
            let stored = StoredEvent {
                id: "evt_1".into(),
                kind: Some(Kind::Vex),
                subject: Some(subject),
                rev: 1,
                log_index: None,
                has_receipt: false,
                unproven: Some(true),
                doc: text,
                provenance: None,
                trust: None,
            };
            let record = Record::read(stored, "dev", &[]);
            assert_eq!(record.proof().map(|_| ()), Err(why), "{case}");
            assert_eq!(String::from_utf8_lossy(&record.to_bytes()), want, "{case}");
        }
    }
}
