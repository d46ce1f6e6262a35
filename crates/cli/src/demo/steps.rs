//! The steps. Each returns what it saw, or fails.

use std::path::{Path, PathBuf};
use std::process::Output as ProcessOutput;

use bson::doc;
use serde_json::Value;
use stella_attest::digest::Digest;
use stella_attest::evidence::{Evidence, LogEntry};
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::note::Note;
use stella_attest::statement::{self, Kind};
use stella_proto::feedser::v1 as feedser;
use stella_proto::signer::v1 as signer;
use stella_proto::verifier::v1 as verifier;

use super::{Counts, documents, history};
use crate::client::{Connection, idempotency_key};
use crate::commands::{attest, audit, backfill, keys, policy, publish, up};
use crate::devdir::{DevDir, Service, TENANT, WITNESS};
use crate::failure::Failure;
use crate::output::Output;
use crate::parts::{self, Parts};
use crate::supervisor::Supervisor;

/// One of the four real attestations.
struct Attested {
    kind: Kind,
    event_id: String,
    bundle: PathBuf,
    digest: Digest,
}

/// A running demo.
pub(super) struct Demo {
    dir: DevDir,
    supervisor: Supervisor,
    connection: Connection,
    subject: Digest,
    attested: Vec<Attested>,
    mongodb_uri: Option<String>,
    parts: Parts,
    quiet: bool,
    _lock: std::fs::File,
}

/// The events of a MongoDB database, past the service.
async fn events_of(uri: &str) -> Result<mongodb::Collection<bson::Document>, Failure> {
    let client = mongodb::Client::with_uri_str(uri)
        .await
        .map_err(anyhow::Error::from)?;
    let database = client.default_database();
    let database = database.ok_or_else(|| Failure::new("the MongoDB URI names no database"))?;
    Ok(database.collection("events"))
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(Failure::new(otherwise()))
    }
}

impl Demo {
    pub(super) async fn start(root: &Path, arguments: &parts::Flags, quiet: bool) -> Result<Self, Failure> {
        let dir = DevDir::claim(root, "demo")?;
        let running = up::lock(&dir)?;
        dir.empty()?;
        drop(running);
        let lock = up::lock(&dir)?;
        let parts = dir.settle(arguments).await?;
        if let Some(uri) = &arguments.mongodb_uri {
            crate::commands::feedser::migrate(uri, None).await?;
            let events = events_of(uri).await?;
            let found = events.find_one(doc! {}).await.map_err(anyhow::Error::from)?;
            ensure(found.is_none(), || {
                "the database has events; the demo needs one of its own".to_owned()
            })?;
        }
        let supervisor = Supervisor::start(dir.clone(), &parts)?;
        if let Err(error) = supervisor.ready().await {
            supervisor.stop().await;
            return Err(error.into());
        }
        dir.write_env(supervisor.ports(), &parts)?;
        let url = |service: Service| {
            let port = supervisor.ports()[service.name()].main;
            format!("https://127.0.0.1:{port}")
                .parse()
                .map_err(|error| Failure::new(format!("{error}")))
        };
        let connection = Connection {
            signer: Some(url(Service::Signer)?),
            verifier: Some(url(Service::Verifier)?),
            feedser: Some(url(Service::Feedser)?),
            backfill: Some(url(Service::Backfill)?),
            ca: Some(dir.path("pki/ca.pem")),
            cert: Some(dir.path("operator/cert.pem")),
            key: Some(dir.path("operator/key.pem")),
            tenant: Some(TENANT.parse().map_err(anyhow::Error::from)?),
            // A log elsewhere takes its time for two thousand entries.
            timeout: if parts.rekor.is_some() { 180 } else { 20 },
            output: Output::Table,
        };
        std::fs::create_dir_all(dir.path("demo"))?;
        let program = std::env::current_exe()?;
        let subject = attest_subject(&program)?;
        Ok(Self {
            dir,
            supervisor,
            connection,
            subject,
            attested: Vec::new(),
            mongodb_uri: arguments.mongodb_uri.clone(),
            parts,
            quiet,
            _lock: lock,
        })
    }

    /// What runs, and on what.
    pub(super) fn started(&self) -> String {
        let ports = Service::ALL.map(|service| self.supervisor.ports()[service.name()].main.to_string());
        let mut text = format!("four services on 127.0.0.1 ports {}", ports.join(", "));
        if self.parts.mongodb {
            text.push_str(", events in MongoDB");
        }
        if let Some(rekor) = &self.parts.rekor {
            text.push_str(&format!(", logged in Rekor v{} at {}", rekor.version, rekor.url));
        }
        if let Some(tsa) = &self.parts.tsa {
            text.push_str(&format!(", dated by {}", tsa.url));
        }
        text
    }

    /// True if all that dates the evidence here is there: the promise of a Rekor v1, else the witness's cosignature, and
    /// the timestamp of the authority if there is one.
    fn is_dated(&self, evidence: &Evidence) -> bool {
        let is_logged = match &self.parts.rekor {
            Some(rekor) if rekor.version == 1 => is_promised(evidence),
            _ => is_witnessed(evidence),
        };
        is_logged && (self.parts.tsa.is_none() || !evidence.material.timestamps.is_empty())
    }

    /// What the policy step takes away.
    fn dated_by(&self) -> &'static str {
        match (&self.parts.rekor, &self.parts.tsa) {
            (Some(rekor), None) if rekor.version == 1 => "signed entry timestamp",
            (Some(rekor), Some(_)) if rekor.version == 1 => "signed entry timestamp and authority",
            (_, None) => "cosignature",
            (_, Some(_)) => "cosignature and authority",
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path(&format!("demo/{name}"))
    }

    /// Signs a statement about this program; writes predicate and bundle.
    async fn attest(
        &self,
        name: &str,
        predicate_type: &str,
        predicate: Value,
        after: &[Digest],
    ) -> Result<(PathBuf, Evidence), Failure> {
        let document = self.file(&format!("{name}.json"));
        std::fs::write(
            &document,
            serde_json::to_vec_pretty(&predicate).map_err(anyhow::Error::from)?,
        )?;
        let payload = attest::statement("stella", &self.subject, predicate_type, predicate, after)?;
        let request = signer::SignRequest {
            payload: payload.into(),
            transparency: signer::Transparency::Required.into(),
            idempotency_key: idempotency_key()?,
            ..signer::SignRequest::default()
        };
        let signed = self
            .connection
            .signer()
            .await?
            .sign(self.connection.request(request))
            .await?
            .into_inner();
        let path = self.file(&format!("{name}.bundle.json"));
        std::fs::write(&path, &signed.bundle)?;
        let (_, evidence) = attest::read_evidence(&path)?;
        ensure(self.is_dated(&evidence), || {
            format!("the bundle of {name} bears no {}", self.dated_by())
        })?;
        Ok((path, evidence))
    }

    pub(super) async fn sign(&mut self) -> Result<String, Failure> {
        let now = publish::now();
        let sbom = documents::sbom(&self.subject, now)?;
        let components = sbom["components"].as_array().map_or(0, Vec::len);
        let real = [
            (
                "build",
                Kind::Derived,
                statement::SLSA_PROVENANCE,
                documents::build(now),
            ),
            ("sbom", Kind::Sbom, statement::CYCLONEDX, sbom.clone()),
            (
                "scan",
                Kind::Scan,
                statement::VULN_COSIGN,
                documents::scan(&sbom, now),
            ),
            (
                "vex",
                Kind::Vex,
                statement::OPENVEX,
                documents::vex(&self.subject, now),
            ),
        ];
        let mut after: Vec<Digest> = Vec::new();
        for (name, kind, predicate_type, predicate) in real {
            let (bundle, evidence) = self.attest(name, predicate_type, predicate, &after).await?;
            let digest = evidence.envelope_digest;
            after.push(digest);
            self.attested.push(Attested {
                kind,
                event_id: format!("evt_demo_{name}"),
                bundle,
                digest,
            });
        }
        Ok(format!(
            "build, sbom ({components} components), scan and vex of {} signed, logged, {}",
            self.subject,
            if self.dated_by().starts_with("cosignature") {
                "witnessed"
            } else {
                "dated by the log"
            }
        ))
    }

    pub(super) async fn publish(&mut self) -> Result<String, Failure> {
        let mut before: Vec<PathBuf> = Vec::new();
        for attested in &self.attested {
            let arguments = publish::Arguments {
                bundle: attested.bundle.clone(),
                kind: Some(attested.kind.to_string()),
                chain: before.clone(),
                id: Some(attested.event_id.clone()),
                to_event: None,
                supersede: String::new(),
            };
            let published = publish::publish(arguments, &self.connection).await?;
            ensure(published.event_id == attested.event_id, || {
                format!("the event is {}", published.event_id)
            })?;
            before.push(attested.bundle.clone());
        }
        let vex = self.event("evt_demo_vex").await?;
        ensure(vex.proven, || {
            format!("the VEX event is unproven: {}", vex.reason)
        })?;
        let document = crate::commands::events::document(&vex)?;
        let links = document["provenance"]["dsse"]["chain"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let types: Vec<&str> = links.iter().filter_map(|link| link["type"].as_str()).collect();
        ensure(types == ["build", "sbom", "scan"], || {
            format!("the chain is {types:?}")
        })?;
        let digests: Vec<String> = links
            .iter()
            .filter_map(|link| link["digest"].as_str().map(str::to_owned))
            .collect();
        let wanted: Vec<String> = self.attested[..3]
            .iter()
            .map(|attested| attested.digest.to_string())
            .collect();
        ensure(digests == wanted, || format!("the chain names {digests:?}"))?;
        Ok("four proven events, chain build -> sbom -> scan".into())
    }

    async fn event(&self, id: &str) -> Result<feedser::StoredEvent, Failure> {
        let request = feedser::GetEventRequest {
            event_id: id.to_owned(),
        };
        let answer = self
            .connection
            .feedser()
            .await?
            .get_event(self.connection.request(request))
            .await?;
        answer
            .into_inner()
            .event
            .ok_or_else(|| Failure::new(format!("no event {id}")))
    }

    async fn unproven(&self) -> Result<feedser::CountUnprovenResponse, Failure> {
        let request = self
            .connection
            .request(feedser::CountUnprovenRequest { kinds: Vec::new() });
        Ok(self
            .connection
            .feedser()
            .await?
            .count_unproven(request)
            .await?
            .into_inner())
    }

    pub(super) async fn history(&mut self, counts: &mut Counts) -> Result<String, Failure> {
        let events = history::events();
        history::append(&self.connection, &events).await?;
        let attested = &events[..history::EVENTS - history::UNATTESTED];
        let bundles = history::sign(&self.connection, attested).await?;
        ensure(bundles.len() == attested.len(), || {
            format!("{} bundles", bundles.len())
        })?;
        for bundle in [bundles.first(), bundles.last()].into_iter().flatten() {
            let evidence = Evidence::parse(bundle).map_err(|error| Failure::new(error.to_string()))?;
            ensure(self.is_dated(&evidence), || {
                format!("a bundle of the history bears no {}", self.dated_by())
            })?;
        }
        let stored = bundles.len();
        history::store(&self.connection, bundles).await?;
        let unproven = self.unproven().await?;
        counts.events = unproven.counts.iter().map(|count| count.events).sum();
        counts.unproven_before = unproven.total;
        Ok(format!(
            "{} events without provenance, {stored} attestations in the repository",
            events.len()
        ))
    }

    pub(super) async fn gap(&mut self, counts: &mut Counts) -> Result<String, Failure> {
        let request = self.connection.request(feedser::ComplianceGapRequest {});
        let gap = self
            .connection
            .feedser()
            .await?
            .compliance_gap(request)
            .await?
            .into_inner();
        let total: u64 = gap.counts.iter().map(|count| count.unproven).sum();
        ensure(
            total == counts.unproven_before && total == history::EVENTS as u64,
            || format!("the gap is {total}, {} are unproven", counts.unproven_before),
        )?;
        let words: Vec<String> = gap
            .counts
            .iter()
            .map(|count| format!("{} {}", count.kind, count.unproven))
            .collect();
        Ok(format!("unproven: {}", words.join(", ")))
    }

    pub(super) async fn backfill(&mut self, counts: &mut Counts) -> Result<String, Failure> {
        let bar = if self.quiet {
            indicatif::ProgressBar::hidden()
        } else {
            backfill::bar()
        };
        let job = backfill::start_and_wait(&self.connection, Vec::new(), 0, |job| {
            bar.set_length(job.total);
            bar.set_position(job.processed);
        })
        .await?;
        bar.finish_and_clear();
        let found = (job.proven, job.not_found, job.errors, job.already_proven);
        let wanted = (
            (history::EVENTS - history::UNATTESTED) as u64,
            history::UNATTESTED as u64,
            0,
            0,
        );
        ensure(found == wanted, || {
            format!(
                "{} proven, {} not found, {} errors, {} proven already: {}",
                found.0, found.1, found.2, found.3, job.message
            )
        })?;
        let unproven = backfill::unproven(&self.connection, &job.id).await?;
        let mut named: Vec<String> = unproven.iter().map(|event| event.event_id.clone()).collect();
        named.sort();
        ensure(named == history::unattested(&history::events()), || {
            format!("not found are {named:?}")
        })?;
        counts.not_found = job.not_found;
        counts.unproven_after = self.unproven().await?.total;
        ensure(counts.unproven_after == job.not_found, || {
            format!("{} are unproven", counts.unproven_after)
        })?;
        Ok(format!(
            "{} proven, {} not found and named",
            job.proven, job.not_found
        ))
    }

    pub(super) async fn policy(&mut self) -> Result<String, Failure> {
        let (bytes, evidence) = attest::read_evidence(&self.file("vex.bundle.json"))?;
        let event = self.event("evt_demo_vex").await?;
        let document = crate::commands::events::document(&event)?;
        let dsse = &document["provenance"]["dsse"];
        let witnessed = dsse["rekor"]["integratedTime"].as_i64().unwrap_or_default();
        let key = dsse["key"]["keyId"].as_str().unwrap_or_default();
        let gate = |freeze: i64| gate(key, freeze);
        std::fs::write(self.file("policy.yaml"), gate(witnessed + 86_400))?;

        let after = policy::evaluate(&self.connection, gate(witnessed + 86_400), "evt_demo_vex").await?;
        ensure(
            after.decision() == verifier::Decision::Allow && after.rule == "GATE-PROVEN-VEX",
            || format!("a freeze after the witness time: {after:?}"),
        )?;
        let before = policy::evaluate(&self.connection, gate(witnessed - 1), "evt_demo_vex").await?;
        ensure(
            before.decision() == verifier::Decision::Fail && before.reasons == ["NO_RULE"],
            || format!("a freeze before the witness time: {before:?}"),
        )?;
        let events = history::events();
        let unproven = events[history::EVENTS - history::UNATTESTED..]
            .iter()
            .find(|event| event.kind == Kind::Vex);
        let unproven = unproven.ok_or_else(|| Failure::new("no VEX is among the unattested"))?;
        let failed = policy::evaluate(&self.connection, gate(witnessed + 86_400), &unproven.id).await?;
        ensure(
            failed.decision() == verifier::Decision::Fail && failed.rule == "BLOCK-UNPROVEN",
            || format!("an unproven VEX: {failed:?}"),
        )?;
        ensure(failed.message.starts_with("Unproven evidence"), || {
            format!("the reason is {:?}", failed.message)
        })?;
        let request = verifier::EvaluatePolicyRequest {
            policy: gate(witnessed + 86_400).into(),
            event: event.event,
            evidence: undated(&bytes, &evidence)?.into(),
            chain: Vec::new(),
        };
        let mut service = self.connection.verifier().await?;
        let untimed = service
            .evaluate_policy(self.connection.request(request))
            .await?
            .into_inner();
        ensure(untimed.reasons.contains(&"NO_TRUSTED_TIME".to_owned()), || {
            format!("without {}: {untimed:?}", self.dated_by())
        })?;
        Ok(format!(
            "ALLOW; NO_RULE before the freeze; FAIL by BLOCK-UNPROVEN; NO_TRUSTED_TIME without {}",
            self.dated_by()
        ))
    }

    /// Runs this program's own offline verifier as a process of its own.
    fn forensic(&self, file: &Path) -> Result<ProcessOutput, Failure> {
        let output = std::process::Command::new(std::env::current_exe()?)
            .args(["forensic", "verify", "--output", "json", "--bundle"])
            .arg(file)
            .arg("--trust-roots")
            .arg(self.file("trust-roots.json"))
            .output()?;
        Ok(output)
    }

    pub(super) async fn replay(&mut self) -> Result<String, Failure> {
        let slice = self.file("slice.json");
        let bytes = audit::replay(&self.connection, &self.subject.to_string(), &slice).await?;
        let roots = audit::trust_roots(&self.connection).await?;
        std::fs::write(self.file("trust-roots.json"), roots.to_canonical())?;
        let output = self.forensic(&slice)?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        ensure(output.status.success() && report["counts"]["proven"] == 4, || {
            format!(
                "the slice is refused: {}",
                String::from_utf8_lossy(&output.stdout)
            )
        })?;
        Ok(format!("one file of {bytes} bytes, 4 events proven offline"))
    }

    pub(super) async fn tamper(&mut self) -> Result<String, Failure> {
        let mut altered = std::fs::read(self.file("slice.json"))?;
        let middle = altered.len() / 2;
        altered[middle] ^= 1;
        let file = self.file("slice.altered.json");
        std::fs::write(&file, altered)?;
        let output = self.forensic(&file)?;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let reasons: Vec<&str> = report["reasons"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        ensure(output.status.code() == Some(3) && !reasons.is_empty(), || {
            "the altered slice is not refused".into()
        })?;

        let id = history::unattested(&history::events()).remove(0);
        self.set_trust(&id, Some(r#"{"verified":true}"#)).await?;
        let forged = self.event(&id).await?;
        ensure(!forged.proven && forged.reason == "NO_RECEIPT", || {
            format!("the forged event: {}", forged.reason)
        })?;
        let digest = self.attested[3].digest.to_string();
        let request = feedser::AttachProvenanceRequest {
            event_id: id.clone(),
            envelope_digest: digest,
            ..Default::default()
        };
        let attached = self
            .connection
            .feedser()
            .await?
            .attach_provenance(self.connection.request(request))
            .await;
        let refused = attached.err().map(Failure::from);
        let reason = refused
            .as_ref()
            .map(Failure::reason)
            .unwrap_or_default()
            .to_owned();
        ensure(reason == "NO_RECEIPT", || {
            format!("attaching to the forged event: {refused:?}")
        })?;
        self.set_trust(&id, None).await?;
        Ok(format!(
            "slice refused ({}), forged trust refused ({})",
            reasons.join(", "),
            forged.reason
        ))
    }

    /// Writes `trust` of an event into the database, behind the service's back.
    async fn set_trust(&self, id: &str, trust: Option<&'static str>) -> Result<(), Failure> {
        if let Some(uri) = &self.mongodb_uri {
            let change = match trust {
                Some(text) => {
                    let block: Value = serde_json::from_str(text).map_err(anyhow::Error::from)?;
                    let block = bson::serialize_to_bson(&block).map_err(anyhow::Error::from)?;
                    doc! {"$set": {"trust": block}}
                }
                None => doc! {"$unset": {"trust": ""}},
            };
            let events = events_of(uri).await?;
            let changed = events.update_one(doc! {"_id": id}, change).await;
            let changed = changed.map_err(anyhow::Error::from)?.matched_count;
            return ensure(changed == 1, || format!("{changed} documents were changed"));
        }
        let (path, id) = (self.dir.of(Service::Feedser, "feedser.db"), id.to_owned());
        let changed = tokio::task::spawn_blocking(move || -> Result<usize, rusqlite::Error> {
            let database = rusqlite::Connection::open(path)?;
            database.busy_timeout(std::time::Duration::from_secs(5))?;
            database.execute("UPDATE events SET trust = ?1 WHERE id = ?2", (trust, id))
        });
        let changed = changed
            .await
            .map_err(anyhow::Error::from)?
            .map_err(anyhow::Error::from)?;
        ensure(changed == 1, || format!("{changed} rows were changed"))
    }

    pub(super) async fn rotate(&mut self) -> Result<String, Failure> {
        let key = SigningKey::generate(Algorithm::EcdsaP256).map_err(anyhow::Error::from)?;
        keys::place(&self.dir.of(Service::Signer, "keys"), "default", &key)?;
        let mut signer = self.connection.signer().await?;
        let request = signer::RotateKeyRequest {
            to_key_id: key.verifying_key().key_id().to_string(),
            idempotency_key: idempotency_key()?,
            ..signer::RotateKeyRequest::default()
        };
        let rotated = signer
            .rotate_key(self.connection.request(request))
            .await?
            .into_inner();
        let sbom = documents::sbom(&self.subject, publish::now())?;
        let (new, evidence) = self
            .attest("sbom-after-rotation", statement::CYCLONEDX, sbom, &[])
            .await?;
        let hint = evidence.material.key_hint.unwrap_or_default();
        ensure(hint == key.verifying_key().key_id().as_str(), || {
            format!("the new attestation is by {hint}")
        })?;
        for bundle in [new, self.file("sbom.bundle.json")] {
            let request = verifier::VerifyRequest {
                evidence: std::fs::read(&bundle)?.into(),
                subject_digest: self.subject.to_string(),
                ..verifier::VerifyRequest::default()
            };
            let mut service = self.connection.verifier().await?;
            let verdict = service
                .verify(self.connection.request(request))
                .await?
                .into_inner();
            ensure(verdict.verified, || {
                format!("{} is refused: {:?}", bundle.display(), verdict.checks)
            })?;
        }
        Ok(format!(
            "key history version {}, old and new attestations verify",
            rotated.history_version
        ))
    }

    pub(super) async fn stop(self) -> Result<String, Failure> {
        let ports = self.supervisor.ports().clone();
        self.supervisor.stop().await;
        for (service, ports) in ports {
            for port in [ports.main, ports.ops] {
                let open = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
                ensure(!open, || format!("{service} still listens on port {port}"))?;
            }
        }
        Ok("nothing keeps running".into())
    }
}

fn attest_subject(program: &Path) -> Result<Digest, Failure> {
    crate::commands::verify::subject(&program.display().to_string())
}

fn is_witnessed(evidence: &Evidence) -> bool {
    let proofs = evidence
        .material
        .log_entries
        .iter()
        .filter_map(|entry| entry.proof.as_ref());
    let mut notes = proofs.filter_map(|proof| Note::parse(proof.checkpoint.as_bytes()).ok());
    notes.any(|note| {
        note.signatures()
            .iter()
            .any(|signature| signature.name == WITNESS)
    })
}

fn is_promised(evidence: &Evidence) -> bool {
    let entries = &evidence.material.log_entries;
    entries
        .iter()
        .any(|entry| entry.promise.is_some() && entry.integrated_time.is_some())
}

/// The bundle with all taken out of it that says when it was signed: the witness's lines in its checkpoint, the signed
/// entry timestamp, the timestamps of an authority.
fn undated(bundle: &[u8], evidence: &Evidence) -> Result<Vec<u8>, Failure> {
    let mut document: Value = serde_json::from_slice(bundle).map_err(anyhow::Error::from)?;
    let prefix = format!("\u{2014} {WITNESS} ");
    let entries = evidence.material.log_entries.iter().map(|entry| {
        let mut entry: LogEntry = entry.clone();
        (entry.promise, entry.integrated_time) = (None, None);
        if let Some(proof) = &mut entry.proof {
            let lines = proof.checkpoint.lines().filter(|line| !line.starts_with(&prefix));
            proof.checkpoint = lines.map(|line| format!("{line}\n")).collect();
        }
        entry.to_value()
    });
    document["verificationMaterial"]["tlogEntries"] = entries.collect();
    if let Some(material) = document["verificationMaterial"].as_object_mut() {
        material.remove("timestampVerificationData");
    }
    Ok(serde_json::to_vec(&document).map_err(anyhow::Error::from)?)
}

/// The specification's two rules.
fn gate(key: &str, freeze: i64) -> Vec<u8> {
    format!(
        r#"lists:
  VendorAllowlist: ["{key}"]
vars:
  releaseFreeze: {freeze}
rules:
  - id: GATE-PROVEN-VEX
    when:
      all:
        - kind: "VEX"
        - trust.verified: true
        - key.keyId in VendorAllowlist
        - rekor.integratedTime <= releaseFreeze
    then:
      decision: ALLOW
  - id: BLOCK-UNPROVEN
    when:
      any:
        - trust.verified != true
        - provenance.dsse.rekor.logIndex missing
    then:
      decision: FAIL
      reason: "Unproven evidence influences decision; require Rekor-backed attestation."
"#
    )
    .into_bytes()
}
