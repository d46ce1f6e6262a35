//! Two thousand events of the past, most of them with an attestation that lies in the repository unattached.

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::statement::{self, Kind};
use stella_proto::feedser::v1 as feedser;
use stella_proto::feedser::v1::append_events_result::Outcome as Appended;
use stella_proto::signer::v1 as signer;
use stella_proto::signer::v1::sign_batch_result::Outcome as Signed;
use stella_proto::status::from_item_error;

use crate::client::Connection;
use crate::failure::Failure;

/// Events of the past.
pub(super) const EVENTS: usize = 2_000;
/// How many of them nothing attests.
pub(super) const UNATTESTED: usize = 10;
/// Items of one message.
const BATCH: usize = 64;
/// Calls at the same time.
const IN_FLIGHT: usize = 32;

/// An event of the past.
pub(super) struct Past {
    pub(super) id: String,
    pub(super) kind: Kind,
    digest: Digest,
    number: usize,
}

/// The events, SBOM, VEX and SCAN in turn. The last ten have no attestation.
pub(super) fn events() -> Vec<Past> {
    let kinds = [Kind::Sbom, Kind::Vex, Kind::Scan];
    let make = |number: usize| {
        let digest = Digest::of(format!("historical artifact {number}").as_bytes());
        Past {
            id: format!("evt_history_{number:04}"),
            kind: kinds[number % kinds.len()],
            digest,
            number,
        }
    };
    (0..EVENTS).map(make).collect()
}

/// The ids of those that nothing attests.
pub(super) fn unattested(events: &[Past]) -> Vec<String> {
    let mut ids: Vec<String> = events[EVENTS - UNATTESTED..]
        .iter()
        .map(|event| event.id.clone())
        .collect();
    ids.sort();
    ids
}

impl Past {
    fn document(&self) -> Value {
        let day = 1 + self.number % 28;
        json!({
            "_id": self.id, "kind": self.kind.as_str(),
            "subject": {"digest": {"sha256": self.digest.hex()}, "purl": format!("pkg:generic/artifact-{}@1.0.0", self.number)},
            "ts": format!("2025-01-{day:02}T08:00:00Z"),
        })
    }

    fn statement(&self) -> Vec<u8> {
        let (predicate_type, predicate) = match self.kind {
            Kind::Vex => (
                statement::OPENVEX,
                json!({"@context": "https://openvex.dev/ns/v0.2.0", "statements": [{"status": "not_affected"}], "version": 1}),
            ),
            Kind::Scan => (
                statement::VULN_COSIGN,
                json!({"scanner": {"result": {"matches": []}}}),
            ),
            _ => (
                statement::CYCLONEDX,
                json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}),
            ),
        };
        statement::build(
            &format!("artifact-{}", self.number),
            &self.digest,
            predicate_type,
            predicate,
        )
    }
}

/// Appends every event without a proof.
///
/// # Errors
/// Feedser refused one.
pub(super) async fn append(connection: &Connection, events: &[Past]) -> Result<(), Failure> {
    let messages: Vec<feedser::AppendEventsRequest> = events
        .chunks(BATCH)
        .map(|part| {
            let items = part.iter().map(|event| feedser::AppendEventsItem {
                reference: event.id.clone(),
                event: canonical::to_vec(&event.document()).into(),
                ..feedser::AppendEventsItem::default()
            });
            feedser::AppendEventsRequest {
                items: items.collect(),
            }
        })
        .collect();
    let request = connection.request(tokio_stream::iter(messages));
    let mut answers = connection
        .feedser()
        .await?
        .append_events(request)
        .await?
        .into_inner();
    let mut appended = 0;
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            match result.outcome {
                Some(Appended::Appended(_)) => appended += 1,
                Some(Appended::Error(error)) => return Err(from_item_error(&error).into()),
                None => return Err(Failure::new("Feedser gave no answer to an event")),
            }
        }
    }
    if appended == events.len() {
        Ok(())
    } else {
        Err(Failure::new(format!("{appended} events were appended")))
    }
}

/// Signs, logs and has witnessed the attestations, and returns their bundles.
///
/// # Errors
/// The Signer refused one.
pub(super) async fn sign(
    connection: &Connection,
    events: &[Past],
) -> Result<Vec<prost::bytes::Bytes>, Failure> {
    let messages: Vec<signer::SignBatchRequest> = events
        .chunks(BATCH)
        .map(|part| {
            let items = part.iter().map(|event| signer::SignBatchItem {
                reference: event.id.clone(),
                request: Some(signer::SignRequest {
                    payload: event.statement().into(),
                    transparency: signer::Transparency::Required.into(),
                    ..signer::SignRequest::default()
                }),
            });
            signer::SignBatchRequest {
                items: items.collect(),
            }
        })
        .collect();
    let request = connection.request(tokio_stream::iter(messages));
    let mut answers = connection.signer().await?.sign_batch(request).await?.into_inner();
    let mut bundles = Vec::with_capacity(events.len());
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            match result.outcome {
                Some(Signed::Signed(signed)) => bundles.push(signed.bundle),
                Some(Signed::Error(error)) => return Err(from_item_error(&error).into()),
                None => return Err(Failure::new("the Signer gave no answer to an item")),
            }
        }
    }
    Ok(bundles)
}

/// Puts bundles into the repository.
///
/// # Errors
/// Feedser refused one.
pub(super) async fn store(connection: &Connection, bundles: Vec<prost::bytes::Bytes>) -> Result<(), Failure> {
    let feedser = connection.feedser().await?;
    let calls = futures_util::stream::iter(bundles).map(|evidence| {
        let mut feedser = feedser.clone();
        async move {
            let request = connection.request(feedser::PutAttestationRequest { evidence });
            feedser.put_attestation(request).await.map_err(Failure::from)
        }
    });
    calls
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await
}
