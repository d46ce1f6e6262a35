//! Replay slices: events and their evidence in one signed file, verified without any service.
//!
//! The file is RFC 8785 JSON, `{version, query, events[], evidence[{envelopeDigest, data}], manifest}`. The manifest is a
//! DSSE envelope of `stella.ops/slice@v1` whose predicate lists the digests of everything else in file order, so no byte
//! can be changed, left out or added. What [`verify`] reports of an event comes from its receipt and from verifying its
//! evidence again; trust roots come from the caller alone.
//!
//! A slice proves what was exported, not that nothing was withheld.

use std::collections::{BTreeMap, BTreeSet};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::dsse::Envelope;
use crate::event::Event;
use crate::evidence::Evidence;
use crate::json::{self, Limits};
use crate::note::Note;
use crate::policy::Policy;
use crate::receipt;
use crate::statement::{self, PAYLOAD_TYPE};
use crate::timestamp::Timestamp;
use crate::trust::{Purpose, TrustRoots};
use crate::verify::{self, Link, Outcome, Request};

/// The predicateType of a manifest.
pub const PREDICATE_TYPE: &str = "stella.ops/slice@v1";

/// The format's version.
const VERSION: u64 = 1;
/// Largest file that is read, in bytes.
pub const MAX_BYTES: usize = 256 << 20;
/// Most JSON values of a slice.
pub const MAX_VALUES: usize = 8_000_000;

/// A slice whose manifest is not signed yet.
#[derive(Clone, Debug)]
pub struct SliceDraft {
    query: Value,
    events: Vec<Value>,
    evidence: Vec<(Digest, Vec<u8>)>,
    statement: Vec<u8>,
}

/// Puts a slice together: the question, the events in order, and each envelope that they name, once.
pub fn build(
    query: &Value,
    events: &[Value],
    evidence: &[(Digest, &[u8])],
    checkpoint: Option<&str>,
) -> SliceDraft {
    let evidence: Vec<(Digest, Vec<u8>)> = evidence
        .iter()
        .map(|(digest, data)| (*digest, data.to_vec()))
        .collect();
    let data = evidence.iter().map(|(_, data)| data.as_slice());
    let statement = manifest(query, events, data, checkpoint);
    SliceDraft {
        query: query.clone(),
        events: events.to_vec(),
        evidence,
        statement,
    }
}

impl SliceDraft {
    /// The statement that the manifest key must sign, byte for byte.
    pub fn statement(&self) -> &[u8] {
        &self.statement
    }

    /// The file's bytes.
    pub fn finish(self, manifest: &Envelope) -> Vec<u8> {
        let evidence = self.evidence.into_iter().map(|(digest, data)| {
            json!({"data": BASE64_STANDARD.encode(data), "envelopeDigest": digest.to_string()})
        });
        canonical::to_vec(&json!({
            "events": self.events,
            "evidence": evidence.collect::<Vec<_>>(),
            "manifest": manifest.to_value(),
            "query": self.query,
            "version": VERSION,
        }))
    }
}

fn manifest<'d>(
    query: &Value,
    events: &[Value],
    evidence: impl Iterator<Item = &'d [u8]>,
    checkpoint: Option<&str>,
) -> Vec<u8> {
    let digest = |value: &Value| Digest::of(&canonical::to_vec(value)).to_string();
    let predicate = json!({
        "checkpoint": checkpoint,
        "count": events.len(),
        "events": events.iter().map(digest).collect::<Vec<_>>(),
        "evidence": evidence.map(|data| Digest::of(data).to_string()).collect::<Vec<_>>(),
        "query": digest(query),
        "version": VERSION,
    });
    let subject = Digest::of(&canonical::to_vec(&predicate));
    statement::build("slice", &subject, PREDICATE_TYPE, predicate)
}

/// What the events of a slice are to be held against, besides the trust roots.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The subject that the slice must be of.
    pub subject: Option<Digest>,
    /// The time to judge at.
    pub at: Option<Timestamp>,
    /// A gate that each proven event must pass.
    pub policy: Option<&'a Policy>,
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventVerdict {
    /// The event's id; its place in the file if it has none.
    pub id: String,
    /// Proven, unproven or refused.
    pub verdict: Verdict,
    /// Why not proven.
    pub reasons: Vec<String>,
}

/// The verdict on one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Receipt and evidence hold.
    Proven,
    /// It claims nothing.
    Unproven,
    /// It claims what does not hold.
    Refused,
}

impl Verdict {
    /// The verdict as it stands in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Unproven => "unproven",
            Self::Refused => "refused",
        }
    }
}

/// The verdict on a slice, with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceReport {
    /// Why the slice as a whole is refused; empty if it is not.
    pub reasons: Vec<String>,
    /// One for each event, in file order.
    pub events: Vec<EventVerdict>,
    manifest_key: Option<String>,
    slice_digest: Digest,
    policy_digest: Option<Digest>,
    at: Option<Timestamp>,
    trust_root_digest: Digest,
}

impl SliceReport {
    /// True if the file is whole, nothing in it is refused and at least one event is proven.
    pub fn verified(&self) -> bool {
        self.reasons.is_empty()
    }

    /// How many events have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.events
            .iter()
            .filter(|event| event.verdict == verdict)
            .count()
    }

    /// The report's bytes: RFC 8785 JSON.
    pub fn to_canonical(&self) -> Vec<u8> {
        let events = self.events.iter().map(
            |event| json!({"id": event.id, "reasons": event.reasons, "verdict": event.verdict.as_str()}),
        );
        canonical::to_vec(&json!({
            "at": self.at.map(|at| at.to_string()),
            "counts": {
                "proven": self.count(Verdict::Proven),
                "refused": self.count(Verdict::Refused),
                "unproven": self.count(Verdict::Unproven),
            },
            "events": events.collect::<Vec<_>>(),
            "manifestKeyId": self.manifest_key,
            "policyDigest": self.policy_digest.map(|digest| digest.to_string()),
            "reasons": self.reasons,
            "sliceDigest": self.slice_digest.to_string(),
            "trustRootDigest": self.trust_root_digest.to_string(),
            "verified": self.verified(),
            "version": 1,
        }))
    }
}

/// True if a parsed document has the shape of a slice rather than of a bundle or envelope.
pub fn is_slice(document: &Value) -> bool {
    document.get("manifest").is_some() && document.get("events").is_some()
}

/// Verifies a slice file against `roots`.
pub fn verify(bytes: &[u8], options: &Options<'_>, roots: &TrustRoots) -> SliceReport {
    let mut report = SliceReport {
        reasons: Vec::new(),
        events: Vec::new(),
        manifest_key: None,
        slice_digest: Digest::of(bytes),
        policy_digest: options.policy.map(Policy::digest),
        at: options.at,
        trust_root_digest: roots.digest(),
    };
    if let Err(reason) = examine(bytes, options, roots, &mut report) {
        report.reasons.push(reason);
        return report;
    }
    if report.count(Verdict::Refused) > 0 {
        report.reasons.push("EVENT_REFUSED".into());
    }
    if report.count(Verdict::Proven) == 0 {
        report.reasons.push("NOTHING_PROVEN".into());
    }
    report
}

/// The file's parts, whose shape is right.
struct Parts<'v> {
    query: &'v Value,
    events: &'v [Value],
    evidence: BTreeMap<Digest, Vec<u8>>,
    envelope: Envelope,
}

fn examine(
    bytes: &[u8],
    options: &Options<'_>,
    roots: &TrustRoots,
    report: &mut SliceReport,
) -> Result<(), String> {
    // An event stands two levels down.
    let limits = Limits {
        bytes: MAX_BYTES,
        depth: Limits::default().depth + 2,
        values: MAX_VALUES,
    };
    let document = json::parse(bytes, &limits).map_err(|error| error.reason().to_owned())?;
    if canonical::to_vec(&document) != bytes {
        return Err("SLICE_NOT_CANONICAL".into());
    }
    let parts = read(&document)?;
    let keys = roots.keys_for(Purpose::Manifest);
    let signers = parts
        .envelope
        .verify(&keys, 1)
        .map_err(|_| "MANIFEST_SIGNATURE".to_owned())?;
    report.manifest_key = signers.first().map(ToString::to_string);
    check_manifest(&parts, &document, roots)?;
    if options
        .subject
        .is_some_and(|subject| parts.query["subjectDigest"].as_str() != Some(&subject.to_string()))
    {
        return Err("SUBJECT_MISMATCH".into());
    }
    let mut judge = Judge {
        evidence: &parts.evidence,
        links: BTreeMap::new(),
        used: BTreeSet::new(),
        options,
        roots,
    };
    for (index, value) in parts.events.iter().enumerate() {
        let verdict = judge.event(value, index, parts.query["tenant"].as_str());
        report.events.push(verdict);
    }
    if judge.used.len() != parts.evidence.len() {
        return Err("EVIDENCE_EXTRA".into());
    }
    Ok(())
}

fn read(document: &Value) -> Result<Parts<'_>, String> {
    let malformed = |member: &str| format!("SLICE_MALFORMED:{member}");
    let members = document.as_object().ok_or_else(|| malformed(""))?;
    let known = ["events", "evidence", "manifest", "query", "version"];
    if let Some(missing) = known.into_iter().find(|name| !members.contains_key(*name)) {
        return Err(malformed(missing));
    }
    if let Some(unknown) = members.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(malformed(unknown));
    }
    if document["version"].as_u64() != Some(VERSION) {
        return Err(malformed("version"));
    }
    let events = document["events"].as_array().ok_or_else(|| malformed("events"))?;
    let mut evidence = BTreeMap::new();
    for item in document["evidence"]
        .as_array()
        .ok_or_else(|| malformed("evidence"))?
    {
        if item.as_object().is_none_or(|members| members.len() != 2) {
            return Err(malformed("evidence"));
        }
        let digest: Option<Digest> = item["envelopeDigest"].as_str().and_then(|text| text.parse().ok());
        let data = item["data"]
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok());
        let (digest, data) = digest.zip(data).ok_or_else(|| malformed("evidence"))?;
        let own = Evidence::parse(&data)
            .ok()
            .map(|evidence| evidence.envelope_digest);
        if own != Some(digest) {
            return Err(format!("EVIDENCE_DIGEST:{digest}"));
        }
        if evidence.insert(digest, data).is_some() {
            return Err(malformed("evidence"));
        }
    }
    let envelope = Envelope::from_value(&document["manifest"]).map_err(|_| malformed("manifest"))?;
    if envelope.to_value() != document["manifest"] {
        return Err(malformed("manifest"));
    }
    Ok(Parts {
        query: &document["query"],
        events,
        evidence,
        envelope,
    })
}

/// The signed statement is, byte for byte, the one that this file's content gives.
fn check_manifest(parts: &Parts<'_>, document: &Value, roots: &TrustRoots) -> Result<(), String> {
    let mismatch = || "MANIFEST_MISMATCH".to_owned();
    let signed = json::parse(&parts.envelope.payload, &Limits::default()).map_err(|_| mismatch())?;
    let checkpoint = match &signed["predicate"]["checkpoint"] {
        Value::Null => None,
        Value::String(note) => Some(note.as_str()),
        _ => return Err(mismatch()),
    };
    let listed = document["evidence"].as_array().into_iter().flatten();
    let digests = listed.filter_map(|item| item["envelopeDigest"].as_str()?.parse::<Digest>().ok());
    let data = digests
        .filter_map(|digest| parts.evidence.get(&digest))
        .map(Vec::as_slice);
    let wanted = manifest(parts.query, parts.events, data, checkpoint);
    if parts.envelope.payload_type != PAYLOAD_TYPE || parts.envelope.payload != wanted {
        return Err(mismatch());
    }
    if let Some(checkpoint) = checkpoint {
        let note = Note::parse(checkpoint.as_bytes()).map_err(|_| "CHECKPOINT_MALFORMED".to_owned())?;
        if !roots
            .logs()
            .iter()
            .any(|log| log.key.verify_checkpoint(&note).is_ok())
        {
            return Err("CHECKPOINT_SIGNATURE".into());
        }
    }
    Ok(())
}

struct Judge<'a> {
    evidence: &'a BTreeMap<Digest, Vec<u8>>,
    /// Outcomes of predecessors, which events share.
    links: BTreeMap<Digest, Outcome>,
    used: BTreeSet<Digest>,
    options: &'a Options<'a>,
    roots: &'a TrustRoots,
}

impl Judge<'_> {
    fn event(&mut self, value: &Value, index: usize, tenant: Option<&str>) -> EventVerdict {
        let verdict = |id: String, verdict, reasons| EventVerdict { id, verdict, reasons };
        let Ok(event) = Event::from_stored(value.clone()) else {
            let id = value["_id"].as_str();
            return verdict(
                id.map_or_else(|| format!("#{index}"), str::to_owned),
                Verdict::Refused,
                vec!["BAD_STORED_EVENT".into()],
            );
        };
        let id = event.id().to_owned();
        if event.tenant() != tenant {
            return verdict(id, Verdict::Refused, vec!["TENANT_MISMATCH".into()]);
        }
        match receipt::check(&event, self.roots.receipt_keys()) {
            Err(receipt::ReceiptError::NoProvenance) => {
                verdict(id, Verdict::Unproven, vec!["NO_PROVENANCE".into()])
            }
            Err(error) => verdict(id, Verdict::Refused, vec![error.reason().into()]),
            Ok(receipt) => match self.proven(&event, receipt.envelope_digest) {
                Ok(()) => verdict(id, Verdict::Proven, Vec::new()),
                Err(reasons) => verdict(id, Verdict::Refused, reasons),
            },
        }
    }

    /// Verifies the evidence again; it must give exactly the stored provenance.
    fn proven(&mut self, event: &Event, attached: Digest) -> Result<(), Vec<String>> {
        let dsse = &event.provenance().unwrap_or(&Value::Null)["dsse"];
        let mut chain = Vec::new();
        for link in dsse["chain"].as_array().into_iter().flatten() {
            let digest: Option<Digest> = link["digest"].as_str().and_then(|text| text.parse().ok());
            let digest = digest.ok_or_else(|| vec!["PROVENANCE_MISMATCH".to_owned()])?;
            let data = self
                .evidence
                .get(&digest)
                .ok_or_else(|| vec!["EVIDENCE_MISSING".to_owned()])?;
            self.used.insert(digest);
            let plain = Request {
                tenant: event.tenant(),
                ..Request::default()
            };
            let roots = self.roots;
            self.links
                .entry(digest)
                .or_insert_with(|| verify::verify(data, &plain, roots));
            chain.push((digest, link["type"].as_str()));
        }
        let links: Vec<Link<'_>> = chain
            .iter()
            .filter_map(|(digest, link_type)| {
                Some(Link {
                    link_type: *link_type,
                    outcome: self.links.get(digest)?,
                })
            })
            .collect();
        let data = self
            .evidence
            .get(&attached)
            .ok_or_else(|| vec!["EVIDENCE_MISSING".to_owned()])?;
        let request = Request {
            event: Some(event),
            tenant: event.tenant(),
            at: self.options.at,
            policy: self.options.policy,
            chain: &links,
            ..Request::default()
        };
        let outcome = verify::verify(data, &request, self.roots);
        self.used.insert(attached);
        match outcome.proof {
            None => Err(outcome.report.failures()),
            Some(proof) if proof.to_dsse() != *dsse => Err(vec!["PROVENANCE_MISMATCH".into()]),
            Some(_) => Ok(()),
        }
    }
}
