//! `stella audit`: the questions an auditor asks.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use stella_attest::event::Event;
use stella_attest::evidence::Evidence;
use stella_attest::receipt::{self, ReceiptError};
use stella_attest::trust::TrustRoots;
use stella_proto::feedser::v1 as pb;

use super::events::{document, each_event, print_events};
use crate::client::Connection;
use crate::failure::{Failure, read_file};
use crate::output::{print, print_json, print_line, table};

/// Answers an auditor's questions
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Counts VEX, SBOM and SCAN events that nothing proves
    Gap,
    /// Lists the proven events of a subject
    Proven {
        /// The subject
        #[arg(long, value_name = "sha256:HEX")]
        digest: String,
    },
    /// Exports the events of a subject with their evidence as one signed file
    Replay {
        /// The subject
        #[arg(long, value_name = "sha256:HEX")]
        digest: String,
        /// Where the slice goes
        #[arg(short = 'o', long = "out", value_name = "FILE")]
        out: PathBuf,
    },
    /// Checks every receipt and every envelope that it names, and lists what was altered
    Integrity {
        /// Finds what was lost, too: events that `publish` or `events append` answered with, as they print them with
        /// `--output json`, one answer after the other
        #[arg(long, value_name = "FILE")]
        answered: Option<PathBuf>,
    },
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Gap => gap(connection).await,
        Command::Proven { digest } => {
            let mut events = Vec::new();
            each_event(
                connection,
                Vec::new(),
                &digest,
                pb::ProvenFilter::Proven,
                |event| {
                    events.push(event);
                    Ok(())
                },
            )
            .await?;
            events.retain(|event| event.proven);
            print_events(connection, &events)
        }
        Command::Replay { digest, out } => {
            let bytes = replay(connection, &digest, &out).await?;
            match connection.is_json() {
                true => print_json(&json!({"bytes": bytes, "file": out})),
                false => print_line(&format!("wrote {} ({bytes} bytes)", out.display())),
            }
        }
        Command::Integrity { answered } => {
            let expected = match answered {
                Some(file) => read_answers(&read_file("the answers", &file)?)?,
                None => BTreeMap::new(),
            };
            integrity(connection, expected).await
        }
    }
}

async fn gap(connection: &Connection) -> Result<(), Failure> {
    let request = connection.request(pb::ComplianceGapRequest {});
    let answer = connection
        .feedser()
        .await?
        .compliance_gap(request)
        .await?
        .into_inner();
    if connection.is_json() {
        let counts = answer
            .counts
            .iter()
            .map(|count| json!({"events": count.events, "kind": count.kind, "unproven": count.unproven}));
        return print_json(&counts.collect());
    }
    let rows: Vec<Vec<String>> = answer
        .counts
        .iter()
        .map(|count| {
            vec![
                count.kind.clone(),
                count.unproven.to_string(),
                count.events.to_string(),
            ]
        })
        .collect();
    print(table(&["KIND", "UNPROVEN", "EVENTS"], &rows).as_bytes())
}

/// Writes the slice of a subject to `out` and returns its size; a broken export leaves no file.
///
/// # Errors
/// Feedser refused, or the file cannot be written.
pub async fn replay(connection: &Connection, digest: &str, out: &std::path::Path) -> Result<u64, Failure> {
    let request = pb::ReplaySliceRequest {
        subject_digest: digest.to_owned(),
        kinds: Vec::new(),
    };
    let mut chunks = connection
        .feedser()
        .await?
        .replay_slice(connection.request(request))
        .await?
        .into_inner();
    let partial = out.with_extension("partial");
    let mut file = std::fs::File::create(&partial)?;
    let mut bytes = 0;
    loop {
        match chunks.message().await {
            Ok(Some(answer)) => {
                file.write_all(&answer.chunk)?;
                bytes += answer.chunk.len() as u64;
            }
            Ok(None) => break,
            Err(status) => {
                let _ = std::fs::remove_file(&partial);
                return Err(status.into());
            }
        }
    }
    file.sync_all()?;
    std::fs::rename(&partial, out)?;
    Ok(bytes)
}

/// The trust roots that the Verifier has in force.
///
/// # Errors
/// The Verifier cannot be reached, or sent none.
pub async fn trust_roots(connection: &Connection) -> Result<TrustRoots, Failure> {
    let request = connection.request(stella_proto::verifier::v1::GetTrustRootsRequest {});
    let answer = connection
        .verifier()
        .await?
        .get_trust_roots(request)
        .await?
        .into_inner();
    TrustRoots::parse(&answer.trust_roots)
        .map_err(|error| Failure::new(format!("the Verifier's trust roots are refused: {error}")))
}

/// The events that `publish` and `events append` said are stored, with the latest revision they named.
fn read_answers(bytes: &[u8]) -> Result<BTreeMap<String, u64>, Failure> {
    let mut expected = BTreeMap::new();
    for answer in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let answer = answer.map_err(|error| Failure::new(format!("the answers are no JSON: {error}")))?;
        let answers = match answer {
            Value::Array(answers) => answers,
            one => vec![one],
        };
        for answer in answers {
            if answer["result"] == "refused" {
                continue;
            }
            let id = answer["eventId"].as_str();
            let id = id.ok_or_else(|| Failure::new("an answer has no `eventId`"))?;
            let rev = expected.entry(id.to_owned()).or_insert(1);
            *rev = answer["rev"].as_u64().unwrap_or(1).max(*rev);
        }
    }
    Ok(expected)
}

async fn integrity(connection: &Connection, mut expected: BTreeMap<String, u64>) -> Result<(), Failure> {
    let roots = trust_roots(connection).await?;
    let (mut checked, mut proven) = (0u64, 0u64);
    let mut altered: BTreeMap<String, String> = BTreeMap::new();
    let mut envelopes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    each_event(
        connection,
        Vec::new(),
        "",
        pb::ProvenFilter::Unspecified,
        |stored| {
            checked += 1;
            let document = document(&stored)?;
            let id = document["_id"].as_str().unwrap_or_default().to_owned();
            let rev = document["rev"].as_u64().unwrap_or_default();
            if expected.remove(&id).is_some_and(|answered| rev < answered) {
                altered.insert(id, "EVENT_ROLLED_BACK".into());
                return Ok(());
            }
            let Ok(event) = Event::from_stored(document) else {
                altered.insert(id, "BAD_STORED_EVENT".into());
                return Ok(());
            };
            match receipt::check(&event, roots.receipt_keys()) {
                Ok(_) if stored.proven => {
                    proven += 1;
                    let digest = event
                        .envelope_digest()
                        .map(|digest| digest.to_string())
                        .unwrap_or_default();
                    envelopes.entry(digest).or_default().push(id);
                }
                // Feedser found that the row is filed under what its document does not say.
                Ok(_) => drop(altered.insert(id, stored.reason)),
                Err(ReceiptError::NoProvenance) if stored.reason == "NO_PROVENANCE" => {}
                Err(ReceiptError::NoProvenance) => drop(altered.insert(id, stored.reason)),
                Err(error) => drop(altered.insert(id, error.reason().into())),
            }
            Ok(())
        },
    )
    .await?;
    let mut feedser = connection.feedser().await?;
    for (digest, ids) in envelopes {
        let request = pb::GetAttestationRequest {
            envelope_digest: digest.clone(),
        };
        let reason = match feedser.get_attestation(connection.request(request)).await {
            Ok(answer) => {
                let own = Evidence::parse(&answer.into_inner().evidence).ok();
                let same = own.is_some_and(|evidence| evidence.envelope_digest.to_string() == digest);
                if same { continue } else { "EVIDENCE_ALTERED" }
            }
            Err(status) if status.code() == tonic::Code::NotFound => "EVIDENCE_MISSING",
            Err(status) => return Err(status.into()),
        };
        altered.extend(ids.into_iter().map(|id| (id, reason.to_owned())));
    }
    altered.extend(expected.into_keys().map(|id| (id, "EVENT_MISSING".to_owned())));
    if connection.is_json() {
        let list = altered
            .iter()
            .map(|(id, reason)| json!({"eventId": id, "reason": reason}));
        let list: Vec<_> = list.collect();
        print_json(&json!({"altered": list, "checked": checked, "proven": proven}))?;
    } else {
        let rows: Vec<Vec<String>> = altered
            .iter()
            .map(|(id, reason)| vec![id.clone(), reason.clone()])
            .collect();
        if !rows.is_empty() {
            print(table(&["ALTERED", "REASON"], &rows).as_bytes())?;
        }
        print_line(&format!(
            "{checked} events checked, {proven} proven, {} altered",
            altered.len()
        ))?;
    }
    match altered.len() {
        0 => Ok(()),
        count => Err(Failure::refused(format!("{count} events were altered"))),
    }
}
