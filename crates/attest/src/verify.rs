//! Turns evidence into a verdict with its reasons.
//!
//! Bytes go in, a [`Report`] comes out, and, if everything that a verdict needs holds, a [`Proof`], which only
//! [`verify`] can build. The order is: parse, find the trust-root key that signed, judge every log entry, take the
//! times that others vouch for, judge the key at the earliest of them, then what was asked: subject, kind, evidence,
//! chain, policy.
//!
//! Nobody is believed: keys come from the trust roots alone, and a time counts only if somebody other than the signer
//! vouches for it: a configured witness who cosigned a checkpoint in which the entry is proven to be included, a
//! configured timestamp authority, or a Rekor v1 whose signed entry timestamp holds.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};

use crate::canonical;
use crate::digest::Digest;
use crate::dsse;
use crate::entry::{self, Entry, EntryError};
use crate::event::Event;
use crate::evidence::{Evidence, LogEntry, Material, MessageSignature, Parsed};
use crate::key::VerifyingKey;
use crate::pattern;
use crate::policy::{self, Decision, Policy};
use crate::report::{Check, CheckName, Report, Status, TrustedTime};
use crate::statement::{self, Kind, Statement};
use crate::timestamp::Timestamp;
use crate::trust::{AttestationKey, TrustRoots};

mod chain;
#[cfg(test)]
mod foreign_tests;
mod log;

pub use chain::Link;
pub use log::{check_entry, uuid};

use log::{Finding, Logged, judge_log, judge_timestamps, judge_validity};

/// What the evidence is to be held against. The default asks nothing beyond signature, log and time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// A digest that must be among the statement's subjects. An event brings its own.
    pub subject: Option<Digest>,
    /// The event that the evidence is to prove: gives subject, kind and evidence digest.
    pub event: Option<&'a Event>,
    /// PredicateTypes that prove an INGEST event.
    pub ingest_types: &'a [String],
    /// The tenant for whom the key must be allowed to sign; `None` judges predicateTypes alone.
    pub tenant: Option<&'a str>,
    /// The time to judge at; `None` is the evidence's own trusted time.
    pub at: Option<Timestamp>,
    /// A policy whose gate must allow it.
    pub policy: Option<&'a Policy>,
    /// The predecessors that are claimed, oldest first.
    pub chain: &'a [Link<'a>],
}

impl Request<'_> {
    /// True if evidence without a log entry may hold: the policy says so, and no event is to be proven by it.
    fn allows_unlogged(&self) -> bool {
        self.event.is_none() && self.policy.is_some_and(Policy::allows_unlogged)
    }
}

/// A report and, if it is one of success, the proof.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The verdict with its reasons.
    pub report: Report,
    /// Present exactly if `report.verified()` and the evidence is an attestation.
    pub proof: Option<Proof>,
}

/// Evidence that was verified. Only [`verify`] builds one.
#[derive(Clone, Debug)]
pub struct Proof {
    evidence: Evidence,
    statement: Statement,
    key_id: String,
    issuer: String,
    algorithm: &'static str,
    trusted_time: Option<TrustedTime>,
    witnesses: usize,
    chain: Vec<chain::Proven>,
}

impl Proof {
    /// Digest of the envelope's bytes as received.
    pub fn envelope_digest(&self) -> Digest {
        self.evidence.envelope_digest
    }

    /// The statement that was signed.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Number of distinct configured witnesses that cosigned.
    pub fn witnesses(&self) -> usize {
        self.witnesses
    }

    /// The time that counts.
    pub fn trusted_time(&self) -> Option<&TrustedTime> {
        self.trusted_time.as_ref()
    }

    /// The log entry that is recorded on the event; none only where a policy allowed it.
    fn entry(&self) -> Option<&LogEntry> {
        self.evidence.material.log_entries.first()
    }

    /// The `provenance.dsse` block of an event.
    pub fn to_dsse(&self) -> Value {
        let mut dsse = log_and_time(self.entry(), self.trusted_time.as_ref());
        dsse.insert(
            "envelopeDigest".into(),
            self.evidence.envelope_digest.to_string().into(),
        );
        dsse.insert(
            "payloadType".into(),
            self.evidence.envelope.payload_type.clone().into(),
        );
        let key = json!({"algo": self.algorithm, "issuer": self.issuer, "keyId": self.key_id});
        dsse.insert("key".into(), key);
        if !self.chain.is_empty() {
            dsse.insert(
                "chain".into(),
                self.chain.iter().map(chain::Proven::to_value).collect(),
            );
        }
        Value::Object(dsse)
    }
}

/// The `provenance.dsse.rekor` block of an entry, without its time.
fn rekor_value(entry: &LogEntry) -> Map<String, Value> {
    let mut rekor = Map::new();
    rekor.insert("logIndex".into(), entry.log_index.into());
    rekor.insert("uuid".into(), uuid(entry).into());
    rekor.insert("logId".into(), hex::encode(entry.log_id).into());
    rekor.insert("kind".into(), format!("{}/{}", entry.kind, entry.version).into());
    if let Some(promise) = &entry.promise {
        rekor.insert("promise".into(), BASE64_STANDARD.encode(promise).into());
    }
    if let Some(proof) = &entry.proof {
        rekor.insert("treeSize".into(), proof.tree_size.into());
        rekor.insert("rootHash".into(), hex::encode(proof.root).into());
        rekor.insert(
            "hashes".into(),
            proof.hashes.iter().map(hex::encode).collect::<Vec<_>>().into(),
        );
        rekor.insert("checkpoint".into(), proof.checkpoint.clone().into());
    }
    rekor
}

/// Verifies `evidence` (a Sigstore bundle or a bare DSSE envelope, as received) against `roots`.
///
/// Refused evidence is an answer, not an error: the report says which checks failed and why.
pub fn verify(evidence: &[u8], request: &Request<'_>, roots: &TrustRoots) -> Outcome {
    let mut checks = Checks::default();
    let parsed = match Parsed::parse(evidence) {
        Ok(Parsed::Attestation(parsed)) => *parsed,
        Ok(Parsed::Message(message)) => return judge_message(&message, checks, request, roots),
        Err(error) => {
            checks.fail(CheckName::Envelope, error.reason(), error.to_string());
            return checks.refuse(request, roots);
        }
    };
    checks.pass(
        CheckName::Envelope,
        if parsed.is_bundle {
            "Sigstore bundle"
        } else {
            "DSSE envelope"
        },
    );
    let statement = match read_statement(&parsed) {
        Ok(statement) => statement,
        Err((reason, detail)) => {
            checks.fail(CheckName::Statement, reason, detail);
            checks.envelope_digest = Some(parsed.envelope_digest);
            return checks.refuse(request, roots);
        }
    };
    checks.pass(CheckName::Statement, statement.predicate_type.clone());
    judge(parsed, statement, checks, request, roots)
}

fn read_statement(evidence: &Evidence) -> Result<Statement, (&'static str, String)> {
    if evidence.envelope.payload_type != statement::PAYLOAD_TYPE {
        return Err((
            "PAYLOAD_TYPE_UNKNOWN",
            format!("payloadType `{}`", evidence.envelope.payload_type),
        ));
    }
    Statement::parse(&evidence.envelope.payload).map_err(|error| (error.reason(), error.to_string()))
}

/// What an entry's body says, read once for all that ask.
type Body = Result<Entry, EntryError>;

fn bodies(material: &Material) -> Vec<Body> {
    material
        .log_entries
        .iter()
        .map(|entry| entry::parse(&entry.kind, &entry.version, &entry.body))
        .collect()
}

/// The signature that counts, the key that made it, and what it is over.
struct Signer<'r, 'e> {
    key: AttestationKey<'r>,
    signature: &'e [u8],
    message: Digest,
    payload: Option<Digest>,
}

fn judge(
    evidence: Evidence,
    statement: Statement,
    mut checks: Checks,
    request: &Request<'_>,
    roots: &TrustRoots,
) -> Outcome {
    let pae = dsse::pae(&evidence.envelope.payload_type, &evidence.envelope.payload);
    let bodies = bodies(&evidence.material);
    let made_by = |key: &VerifyingKey| {
        let mut signatures = evidence.envelope.signatures.iter();
        signatures
            .find(|signature| key.verify(&pae, &signature.sig))
            .map(|signature| &signature.sig[..])
    };
    let signer = find_signer(&evidence.material, &bodies, made_by, roots).map(|(key, signature)| Signer {
        key,
        signature,
        message: Digest::of(&pae),
        payload: bodies
            .iter()
            .flatten()
            .any(|body| matches!(body.signed, entry::Signed::Payload(_)))
            .then(|| Digest::of(&evidence.envelope.payload)),
    });
    let logged = judge_material(&evidence.material, &bodies, &signer, request, roots, &mut checks);
    if let Ok(signer) = &signer {
        judge_scope(&signer.key, &statement, request.tenant, &mut checks);
    }
    judge_event(&statement, request, &mut checks);
    let chain = chain::judge(&evidence, &statement, &logged.times, request, &mut checks);

    checks.envelope_digest = Some(evidence.envelope_digest);
    checks.predicate_type = Some(statement.predicate_type.clone());
    let trusted_time = logged.times.first().cloned();
    checks.times = logged.times;
    let proof = signer.ok().map(|signer| {
        let (key_id, issuer) = (signer.key.key.key_id().to_string(), signer.key.issuer.to_owned());
        (key_id, issuer, signer.key.key.algorithm().family())
    });
    let proof = proof
        .filter(|_| checks.hold())
        .map(|(key_id, issuer, algorithm)| Proof {
            evidence,
            statement,
            key_id,
            issuer,
            algorithm,
            trusted_time,
            witnesses: logged.witnesses,
            chain,
        });
    judge_policy(proof.as_ref(), request, &mut checks);
    let report = checks.report(request, roots);
    let proof = proof.filter(|_| report.verified());
    Outcome { report, proof }
}

/// Judges a signature over an artifact: what an attestation's checks ask of the signature, the log and the time, and
/// that the artifact is the wanted one. It states nothing, so it proves no event; a policy reads its key and subject.
fn judge_message(
    message: &MessageSignature,
    mut checks: Checks,
    request: &Request<'_>,
    roots: &TrustRoots,
) -> Outcome {
    checks.pass(
        CheckName::Envelope,
        format!("Sigstore bundle of a signature over {}", message.digest),
    );
    checks.skip(CheckName::Statement, "MESSAGE_SIGNATURE");
    let bodies = bodies(&message.material);
    let made_by = |key: &VerifyingKey| {
        key.verify_digest(&message.digest, &message.signature)
            .then_some(&message.signature[..])
    };
    let signer = find_signer(&message.material, &bodies, made_by, roots).map(|(key, signature)| Signer {
        key,
        signature,
        message: message.digest,
        payload: None,
    });
    let logged = judge_material(&message.material, &bodies, &signer, request, roots, &mut checks);
    if let Ok(signer) = &signer {
        judge_tenant(&signer.key, request.tenant, &mut checks);
    }
    match wanted_subject(request) {
        None => checks.skip(CheckName::Subject, "NO_SUBJECT_GIVEN"),
        Some(digest) if digest == message.digest => checks.pass(CheckName::Subject, digest.to_string()),
        Some(digest) => checks.fail(
            CheckName::Subject,
            "SUBJECT_MISMATCH",
            format!("{digest} is not what was signed"),
        ),
    }
    match request.event {
        None => checks.skip(CheckName::Kind, "NO_EVENT"),
        Some(event) => checks.fail(
            CheckName::Kind,
            "KIND_MISMATCH",
            format!("{} by a signature without a statement", event.kind()),
        ),
    }
    if !request.chain.is_empty() {
        checks.fail(
            CheckName::Chain,
            "NOT_AN_ATTESTATION",
            "a signature without a statement has no predecessors",
        );
    }
    let facts = || {
        let mut facts =
            json!({"subject": {"digest": {"sha256": message.digest.hex()}}, "trust": {"verified": false}});
        if let Some(signer) = signer.as_ref().ok().filter(|_| checks.hold()) {
            let entry = message.material.log_entries.first();
            let mut dsse = log_and_time(entry, logged.times.first());
            dsse.insert("key".into(), key_value(&signer.key));
            facts["provenance"] = json!({"dsse": dsse});
        }
        facts
    };
    let outcome = request.policy.map(|policy| policy.evaluate(&facts()));
    apply(outcome, &mut checks);
    checks.times = logged.times;
    checks.refuse(request, roots)
}

/// Judges what attestations and artifact signatures have in common: log entries, times, and the key at its time.
fn judge_material(
    material: &Material,
    bodies: &[Body],
    signer: &Result<Signer<'_, '_>, &'static str>,
    request: &Request<'_>,
    roots: &TrustRoots,
    checks: &mut Checks,
) -> Logged {
    let mut logged = match signer {
        Ok(signer) => judge_log(material, bodies, signer, request, roots, checks),
        Err(_) => Logged::default(),
    };
    if let Ok(signer) = signer {
        judge_timestamps(material, signer.signature, roots, &mut logged);
    }
    logged.times.sort();
    judge_validity(material, roots, &mut logged);
    judge_time(&logged, request.at, checks);
    checks.skip(CheckName::Threshold, "NO_THRESHOLD");
    match signer {
        Ok(signer) => {
            let key_id = signer.key.key.key_id().to_string();
            match signer
                .key
                .valid_at(logged.times.first().map(|trusted| trusted.time))
            {
                Ok(()) => checks.pass(CheckName::Signature, key_id.clone()),
                Err(reason) => checks.fail(CheckName::Signature, reason, key_id.clone()),
            }
            checks.key_id = Some(key_id);
        }
        Err(reason) => checks.fail(
            CheckName::Signature,
            reason,
            "no trust-root key made a signature of it",
        ),
    }
    checks.log = material.log_entries.first().map(log_value);
    logged
}

fn log_value(entry: &LogEntry) -> Value {
    json!({
        "logId": hex::encode(entry.log_id),
        "logIndex": entry.log_index,
        "rootHash": entry.proof.as_ref().map(|proof| hex::encode(proof.root)),
        "treeSize": entry.proof.as_ref().map(|proof| proof.tree_size),
    })
}

/// Finds the trust-root key that made one of the signatures; the keys that the evidence names are tried first.
fn find_signer<'r, 'e>(
    material: &Material,
    bodies: &[Body],
    made_by: impl Fn(&VerifyingKey) -> Option<&'e [u8]>,
    roots: &'r TrustRoots,
) -> Result<(AttestationKey<'r>, &'e [u8]), &'static str> {
    let is_named = |key: &AttestationKey<'_>| {
        bodies.iter().flatten().any(|body| body.names(key.key.spki()))
            || material
                .key_hint
                .as_deref()
                .is_some_and(|hint| hint == key.key.key_id().as_str())
    };
    let (first, rest): (Vec<_>, Vec<_>) = roots.attestation_keys().partition(is_named);
    let known = !first.is_empty();
    for key in first.into_iter().chain(rest) {
        if let Some(signature) = made_by(key.key) {
            return Ok((key, signature));
        }
    }
    match (known, material.certificate.is_some()) {
        (true, _) => Err("SIGNATURE_INVALID"),
        (false, true) => Err("CERTIFICATE_UNTRUSTED"),
        (false, false) => Err("KEY_UNKNOWN"),
    }
}

fn judge_time(logged: &Logged, at: Option<Timestamp>, checks: &mut Checks) {
    if let Some((reason, detail)) = &logged.invalid_time {
        return checks.fail(CheckName::Time, reason, detail.clone());
    }
    match (logged.times.first(), at) {
        (None, _) => checks.skip(CheckName::Time, "NO_TRUSTED_TIME"),
        (Some(trusted), Some(at)) if trusted.time > at => {
            checks.fail(
                CheckName::Time,
                "AFTER_AT",
                format!("{} is after {at}", trusted.time),
            );
        }
        (Some(trusted), _) => checks.pass(CheckName::Time, format!("{} by {}", trusted.time, trusted.by)),
    }
}

fn judge_tenant(key: &AttestationKey<'_>, tenant: Option<&str>, checks: &mut Checks) {
    if let Some(tenant) = tenant.filter(|tenant| !key.tenants.iter().any(|own| own == "*" || own == tenant)) {
        return checks.fail(
            CheckName::KeyScope,
            "TENANT_OUT_OF_SCOPE",
            format!("tenant `{tenant}`"),
        );
    }
    checks.pass(CheckName::KeyScope, format!("tenants {}", key.tenants.join(", ")));
}

fn judge_scope(key: &AttestationKey<'_>, statement: &Statement, tenant: Option<&str>, checks: &mut Checks) {
    if !pattern::any_matches(key.predicate_types, &statement.predicate_type) {
        let detail = format!("predicateType `{}`", statement.predicate_type);
        return checks.fail(CheckName::KeyScope, "PREDICATE_TYPE_OUT_OF_SCOPE", detail);
    }
    judge_tenant(key, tenant, checks);
}

fn judge_event(statement: &Statement, request: &Request<'_>, checks: &mut Checks) {
    match wanted_subject(request) {
        None => checks.skip(CheckName::Subject, "NO_SUBJECT_GIVEN"),
        Some(digest) if statement.has_subject(&digest) => checks.pass(CheckName::Subject, digest.to_string()),
        Some(digest) => checks.fail(
            CheckName::Subject,
            "SUBJECT_MISMATCH",
            format!("{digest} is not a subject"),
        ),
    }
    let Some(event) = request.event else {
        checks.skip(CheckName::Kind, "NO_EVENT");
        return checks.skip(CheckName::Evidence, "NO_EVENT");
    };
    let detail = format!("{} by {}", event.kind(), statement.predicate_type);
    if event
        .kind()
        .accepts(&statement.predicate_type, request.ingest_types)
    {
        checks.pass(CheckName::Kind, detail);
    } else {
        checks.fail(CheckName::Kind, "KIND_MISMATCH", detail);
    }
    match event.evidence_digest() {
        None => checks.skip(CheckName::Evidence, "NO_EVIDENCE_DIGEST"),
        Some(digest) if attests(statement, &digest) => checks.pass(CheckName::Evidence, digest.to_string()),
        Some(digest) => checks.fail(CheckName::Evidence, "EVIDENCE_MISMATCH", digest.to_string()),
    }
}

pub(crate) fn wanted_subject(request: &Request<'_>) -> Option<Digest> {
    request.event.map(Event::subject_digest).or(request.subject)
}

/// True if `digest` is of the canonical predicate, or of a document that the predicate names by `digest.sha256`.
fn attests(statement: &Statement, digest: &Digest) -> bool {
    fn names(value: &Value, hex: &str) -> bool {
        match value {
            Value::Object(members) => {
                members.get("digest").and_then(|digest| digest["sha256"].as_str()) == Some(hex)
                    || members.values().any(|member| names(member, hex))
            }
            Value::Array(items) => items.iter().any(|item| names(item, hex)),
            _ => false,
        }
    }
    Digest::of(&canonical::to_vec(&statement.predicate)) == *digest
        || names(&statement.predicate, &digest.hex())
}

/// Where it is logged and when it was there, as `provenance.dsse` has it.
fn log_and_time(entry: Option<&LogEntry>, time: Option<&TrustedTime>) -> Map<String, Value> {
    let mut dsse = Map::new();
    if let Some(entry) = entry {
        let mut rekor = rekor_value(entry);
        if let Some(time) = time {
            rekor.insert("integratedTime".into(), time.time.unix().into());
        }
        dsse.insert("rekor".into(), rekor.into());
    }
    if let Some(time) = time {
        let block = json!({"source": time.source.as_str(), "time": time.time.to_string()});
        dsse.insert("trustedTime".into(), block);
    }
    dsse
}

/// The key as `provenance.dsse.key` has it.
fn key_value(key: &AttestationKey<'_>) -> Value {
    let id = key.key.key_id().to_string();
    json!({"algo": key.key.algorithm().family(), "issuer": key.issuer, "keyId": id})
}

fn judge_policy(proof: Option<&Proof>, request: &Request<'_>, checks: &mut Checks) {
    let outcome = request
        .policy
        .map(|policy| policy.evaluate(&facts(request.event, proof)));
    apply(outcome, checks);
}

/// Notes what a policy decided, if there is one.
fn apply(outcome: Option<policy::Outcome>, checks: &mut Checks) {
    let Some(outcome) = outcome else {
        return checks.skip(CheckName::Policy, "NO_POLICY");
    };
    let rule = outcome.rule.unwrap_or_default();
    match outcome.decision {
        Decision::Allow => checks.pass(CheckName::Policy, rule),
        Decision::Fail => {
            checks.fail(CheckName::Policy, "POLICY_REFUSED", rule);
            checks.policy_reasons = outcome.reasons;
        }
    }
}

/// The document that a policy reads: the event's own members, with `provenance` and `trust` only from `proof`.
///
/// Without an event, kind and subject are those of the statement.
pub fn facts(event: Option<&Event>, proof: Option<&Proof>) -> Value {
    let mut document = match (event, proof) {
        (Some(event), _) => match event.without_proof() {
            Value::Object(members) => members,
            _ => Map::new(),
        },
        (None, Some(proof)) => {
            let mut members = Map::new();
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| kind.accepts(&proof.statement.predicate_type, &[]));
            if let Some(kind) = kind {
                members.insert("kind".into(), kind.to_string().into());
            }
            if let Some(subject) = proof.statement.sha256_subjects().first() {
                members.insert("subject".into(), json!({"digest": {"sha256": subject.hex()}}));
            }
            members
        }
        (None, None) => Map::new(),
    };
    if let Some(proof) = proof {
        document.insert("provenance".into(), json!({"dsse": proof.to_dsse()}));
        document.insert(
            "trust".into(),
            json!({"verified": proof.entry().is_some(), "witnesses": proof.witnesses}),
        );
    } else {
        document.insert("trust".into(), json!({"verified": false}));
    }
    Value::Object(document)
}

/// The checks while they are made. What is never reached stays not applicable.
#[derive(Default)]
pub(crate) struct Checks {
    made: [Option<(Status, String)>; CheckName::ALL.len()],
    envelope_digest: Option<Digest>,
    predicate_type: Option<String>,
    key_id: Option<String>,
    log: Option<Value>,
    times: Vec<TrustedTime>,
    policy_reasons: Vec<String>,
}

impl Checks {
    fn set(&mut self, name: CheckName, status: Status, detail: String) {
        self.made[name as usize] = Some((status, detail));
    }

    pub(crate) fn pass(&mut self, name: CheckName, detail: impl Into<String>) {
        self.set(name, Status::Passed, detail.into());
    }

    pub(crate) fn fail(&mut self, name: CheckName, reason: &'static str, detail: impl Into<String>) {
        self.set(name, Status::Failed(reason), detail.into());
    }

    pub(crate) fn skip(&mut self, name: CheckName, reason: &'static str) {
        self.set(name, Status::NotApplicable(reason), String::new());
    }

    /// Passes or fails; an earlier failure of the same check stays.
    fn hold_to(&mut self, name: CheckName, finding: Finding) {
        if matches!(self.made[name as usize], Some((Status::Failed(_), _))) {
            return;
        }
        match finding {
            Ok(detail) => self.pass(name, detail),
            Err((reason, detail)) => self.fail(name, reason, detail),
        }
    }

    /// True if all that a verdict needs passed, or need not for a reason that says so, and nothing failed.
    fn hold(&self) -> bool {
        const SPARED: [&str; 2] = ["MESSAGE_SIGNATURE", "UNLOGGED_ALLOWED"];
        const NEEDED: [CheckName; 7] = [
            CheckName::Envelope,
            CheckName::Statement,
            CheckName::Signature,
            CheckName::KeyScope,
            CheckName::LogEntry,
            CheckName::LogInclusion,
            CheckName::Checkpoint,
        ];
        let passed = |name: CheckName| match self.made[name as usize] {
            Some((Status::Passed, _)) => true,
            Some((Status::NotApplicable(reason), _)) => SPARED.contains(&reason),
            _ => false,
        };
        let failed = self
            .made
            .iter()
            .flatten()
            .any(|(status, _)| matches!(status, Status::Failed(_)));
        NEEDED.into_iter().all(passed) && !failed
    }

    /// A report without a proof.
    fn refuse(self, request: &Request<'_>, roots: &TrustRoots) -> Outcome {
        Outcome {
            report: self.report(request, roots),
            proof: None,
        }
    }

    fn report(self, request: &Request<'_>, roots: &TrustRoots) -> Report {
        let verified = self.hold();
        let made = CheckName::ALL.into_iter().zip(self.made);
        let checks = made
            .map(|(name, made)| {
                let (status, detail) = made.unwrap_or((Status::NotApplicable("NOT_REACHED"), String::new()));
                Check { name, status, detail }
            })
            .collect();
        let trusted = self.times.first().map(|trusted| trusted.time);
        Report {
            checks,
            verified,
            at: request.at.or(trusted),
            envelope_digest: self.envelope_digest,
            predicate_type: self.predicate_type,
            subject: wanted_subject(request),
            key_id: self.key_id,
            log: self.log,
            times: self.times,
            policy_digest: request.policy.map(Policy::digest),
            policy_reasons: self.policy_reasons,
            trust_root_digest: roots.digest(),
        }
    }
}
