//! `stella publish`: stores an attestation and appends the event that it proves, or attaches it to one that exists.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::event::provenance_meta;
use stella_attest::evidence::Evidence;
use stella_attest::statement::{Kind, Statement};
use stella_attest::timestamp::Timestamp;
use stella_proto::feedser::v1 as pb;
use stella_proto::feedser::v1::append_events_result::Outcome;
use stella_proto::status::from_item_error;

use super::attest::read_evidence;
use super::events;
use crate::client::{Connection, random_hex};
use crate::failure::{Failure, try_to_write, write_file};
use crate::output::{print_json, print_line};

/// Stores an attestation and appends the event that it proves
#[derive(Args, Debug)]
pub struct Arguments {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// Kind of the event: SBOM, VEX, SCAN, INGEST or DERIVED
    #[arg(
        long,
        value_name = "KIND",
        required_unless_present = "to_event",
        conflicts_with = "to_event"
    )]
    pub kind: Option<String>,
    /// Bundle of a predecessor, oldest first
    #[arg(long, value_name = "BUNDLE")]
    pub chain: Vec<PathBuf>,
    /// Id of the event; default: a new random one
    #[arg(long, value_name = "ID", conflicts_with = "to_event")]
    pub id: Option<String>,
    /// Attach to this event instead of appending one
    #[arg(long, value_name = "ID")]
    pub to_event: Option<String>,
    /// Envelope digest that is attached now and is to give way
    #[arg(long, value_name = "DIGEST", requires = "to_event", default_value = "")]
    pub supersede: String,
    /// Writes what was verified to FILE, as publish_attestation_with_provenance.sh does
    #[arg(long, value_name = "FILE")]
    pub emit_meta: Option<PathBuf>,
}

/// The time now, in whole seconds.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A kind of event, as an argument.
///
/// # Errors
/// The text is none.
pub fn kind(text: &str) -> Result<Kind, Failure> {
    text.parse()
        .map_err(|error| Failure::usage(format!("`{text}` is no kind of event: {error}")))
}

/// The event that a bundle proves.
///
/// # Errors
/// The payload is no statement, or has no subject with a SHA-256.
pub fn event_of(evidence: &Evidence, kind: Kind, id: &str) -> Result<Value, Failure> {
    let statement = Statement::parse(&evidence.envelope.payload)
        .map_err(|error| Failure::new(format!("the payload is refused: {error} [{}]", error.reason())))?;
    let subject = statement
        .subjects
        .iter()
        .find(|subject| subject.digests.contains_key("sha256"));
    let subject = subject.ok_or_else(|| Failure::new("the statement has no subject with a sha256 digest"))?;
    let mut described = json!({"digest": {"sha256": subject.digests["sha256"]}});
    if let Some(name) = &subject.name {
        described["name"] = name.clone().into();
    }
    Ok(json!({"_id": id, "kind": kind.as_str(), "subject": described, "ts": now().to_string()}))
}

/// An event that was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its id.
    pub event_id: String,
    /// Its revision.
    pub rev: u64,
    /// The envelope that proves it.
    pub envelope_digest: String,
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection) -> Result<(), Failure> {
    let emit_meta = arguments.emit_meta.clone();
    if let Some(file) = &emit_meta {
        try_to_write(file)?;
    }
    let published = publish(arguments, connection).await?;
    if let Some(file) = &emit_meta {
        write_file(file, &meta(&published.event_id, connection).await?)?;
    }
    if connection.is_json() {
        return print_json(&json!({
            "envelopeDigest": published.envelope_digest, "eventId": published.event_id, "rev": published.rev,
        }));
    }
    print_line(&published.event_id)
}

/// `provenance-meta.json` of a proven event: canonical JSON and a newline.
async fn meta(event_id: &str, connection: &Connection) -> Result<Vec<u8>, Failure> {
    let request = pb::GetEventRequest {
        event_id: event_id.to_owned(),
    };
    let mut feedser = connection.feedser().await?;
    let answer = feedser.get_event(connection.request(request)).await?.into_inner();
    let event = answer
        .event
        .ok_or_else(|| Failure::new(format!("no event {event_id}")))?;
    let document = events::document(&event)?;
    let meta = provenance_meta(&document["provenance"], &document["trust"]);
    let mut bytes = canonical::to_vec(&meta);
    bytes.push(b'\n');
    Ok(bytes)
}

/// Stores the bundle and its predecessors, and appends or attaches.
///
/// # Errors
/// A file cannot be read, or Feedser refused.
pub async fn publish(arguments: Arguments, connection: &Connection) -> Result<Published, Failure> {
    let (bytes, evidence) = read_evidence(&arguments.bundle)?;
    let mut chain = Vec::new();
    for path in &arguments.chain {
        let (bytes, link) = read_evidence(path)?;
        put(connection, bytes).await?;
        chain.push(link.envelope_digest.to_string());
    }
    if let Some(event_id) = arguments.to_event {
        let stored = put(connection, bytes).await?;
        let attach = pb::AttachProvenanceRequest {
            event_id: event_id.clone(),
            envelope_digest: stored.envelope_digest.clone(),
            chain,
            supersede: arguments.supersede,
            ..pb::AttachProvenanceRequest::default()
        };
        let attached = connection
            .call(async || {
                let request = connection.request(attach.clone());
                let mut feedser = connection.feedser().await?;
                Ok(feedser.attach_provenance(request).await?.into_inner())
            })
            .await?;
        return Ok(Published {
            event_id,
            rev: attached.rev,
            envelope_digest: stored.envelope_digest,
        });
    }
    let kind = kind(arguments.kind.as_deref().unwrap_or_default())?;
    let id = match arguments.id {
        Some(id) => id,
        None => format!("evt_{}", random_hex()?),
    };
    let event = event_of(&evidence, kind, &id)?;
    let item = pb::AppendEventsItem {
        reference: id.clone(),
        event: canonical::to_vec(&event).into(),
        chain,
        evidence: bytes.into(),
        ..pb::AppendEventsItem::default()
    };
    // The id is ours, so the same event again is the same event.
    let outcome = connection
        .call(async || {
            let message = pb::AppendEventsRequest {
                items: vec![item.clone()],
            };
            let request = connection.request(tokio_stream::once(message));
            let mut answers = connection
                .feedser()
                .await?
                .append_events(request)
                .await?
                .into_inner();
            let answer = answers.message().await?.unwrap_or_default();
            let result = answer.results.into_iter().next();
            match result.and_then(|result| result.outcome) {
                Some(Outcome::Error(error)) => Err(from_item_error(&error).into()),
                outcome => Ok(outcome),
            }
        })
        .await?;
    match outcome {
        Some(Outcome::Appended(appended)) => Ok(Published {
            event_id: appended.event_id,
            rev: appended.rev,
            envelope_digest: evidence.envelope_digest.to_string(),
        }),
        Some(Outcome::Error(_)) | None => Err(Failure::new("Feedser gave no answer to the event")),
    }
}

/// Stores evidence; the same again changes nothing.
async fn put(connection: &Connection, evidence: Vec<u8>) -> Result<pb::PutAttestationResponse, Failure> {
    let put = pb::PutAttestationRequest {
        evidence: evidence.into(),
    };
    let stored = connection
        .call(async || {
            let request = connection.request(put.clone());
            let mut feedser = connection.feedser().await?;
            Ok(feedser.put_attestation(request).await?.into_inner())
        })
        .await?;
    Ok(stored)
}
