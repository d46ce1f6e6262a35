//! The gRPC face: parses requests, calls the domain, writes answers. It holds no rules of its own.
//!
//! In the batch streams several messages are worked on at the same time, and answered in the order they came: while
//! one is being stored, the next one is being verified.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt as _, stream};
use prost::bytes::Bytes;
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_proto::feedser::v1 as pb;
use stella_proto::feedser::v1::feedser_service_server::FeedserService;
use stella_serve::access::{Caller, Tenant};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::append::{AppendOrder, Appended, Evidence};
use crate::attach::{AttachOrder, Attached, Source};
use crate::audit::STREAM_PAGE;
use crate::error::Error;
use crate::feedser::Feedser;
use crate::logs::Place;
use crate::record::Record;
use crate::store::{AttestationInfo, Filter, KindCount};

/// Most items of one message of a batch stream.
pub const MAX_ITEMS: usize = 1_000;

/// Bytes of one message of an export.
const CHUNK: usize = 256 << 10;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service behind the generated server.
#[derive(Clone)]
pub struct FeedserApi {
    feedser: Arc<Feedser>,
}

impl FeedserApi {
    /// The face of `feedser`.
    pub fn new(feedser: Arc<Feedser>) -> Self {
        Self { feedser }
    }

    /// Answers each message of `messages` with what `work` makes of it, in order, several at the same time.
    fn pipelined<T, U, F>(
        &self,
        messages: Streaming<T>,
        work: impl Fn(Arc<Feedser>, T) -> F + Send + 'static,
    ) -> Answers<U>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: Future<Output = Result<U, Status>> + Send + 'static,
    {
        let feedser = Arc::clone(&self.feedser);
        let in_flight = feedser.limits.batches_in_flight.get();
        let started = messages.map(move |message| {
            // Ends with its stream when the caller goes away.
            let started = message.map(|message| {
                AbortOnDropHandle::new(tokio::spawn(
                    work(Arc::clone(&feedser), message).in_current_span(),
                ))
            });
            async move { started?.await.unwrap_or_else(|_| Err(Error::Cancelled.into())) }
        });
        Box::pin(started.buffered(in_flight))
    }
}

#[tonic::async_trait]
impl FeedserService for FeedserApi {
    type AppendEventsStream = Answers<pb::AppendEventsResponse>;
    type AttachProvenanceBatchStream = Answers<pb::AttachProvenanceBatchResponse>;
    type ListUnprovenStream = Answers<pb::ListUnprovenResponse>;
    type ReplaySliceStream = Answers<pb::ReplaySliceResponse>;

    async fn append_events(
        &self,
        request: Request<Streaming<pb::AppendEventsRequest>>,
    ) -> Result<Response<Self::AppendEventsStream>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let answers = self.pipelined(
            request.into_inner(),
            move |feedser, message: pb::AppendEventsRequest| {
                let tenant = tenant.clone();
                async move {
                    check_items(message.items.len())?;
                    let (references, orders): (Vec<_>, Vec<_>) = message
                        .items
                        .into_iter()
                        .map(|item| (item.reference.clone(), append_order(item)))
                        .unzip();
                    let appended = feedser.append(&tenant, orders, now()).await;
                    let results = references.into_iter().zip(appended).map(append_result).collect();
                    Ok(pb::AppendEventsResponse { results })
                }
            },
        );
        Ok(Response::new(answers))
    }

    async fn attach_provenance(
        &self,
        request: Request<pb::AttachProvenanceRequest>,
    ) -> Result<Response<pb::AttachProvenanceResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let order = attach_order(request.into_inner())?;
        let order = self.feedser.complete(&tenant, order).await?;
        let attached = self.feedser.attach(&tenant, vec![Ok(order)], now()).await.pop();
        Ok(Response::new(attach_response(
            attached.unwrap_or(Err(Error::Cancelled))?,
        )))
    }

    async fn attach_provenance_batch(
        &self,
        request: Request<Streaming<pb::AttachProvenanceBatchRequest>>,
    ) -> Result<Response<Self::AttachProvenanceBatchStream>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let messages = request.into_inner();
        let answers = self.pipelined(
            messages,
            move |feedser, message: pb::AttachProvenanceBatchRequest| {
                let tenant = tenant.clone();
                async move {
                    check_items(message.items.len())?;
                    let (references, orders): (Vec<_>, Vec<_>) = message
                        .items
                        .into_iter()
                        .map(|item| (item.reference, batch_order(item.request.unwrap_or_default())))
                        .unzip();
                    let attached = feedser.attach(&tenant, orders, now()).await;
                    let results = references.into_iter().zip(attached).map(attach_result).collect();
                    Ok(pb::AttachProvenanceBatchResponse { results })
                }
            },
        );
        Ok(Response::new(answers))
    }

    async fn get_event(
        &self,
        request: Request<pb::GetEventRequest>,
    ) -> Result<Response<pb::GetEventResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let record = self
            .feedser
            .event(&tenant, &request.into_inner().event_id)
            .await?;
        Ok(Response::new(pb::GetEventResponse {
            event: Some(stored_event(record)),
        }))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let request = request.into_inner();
        let subject = match request.subject_digest.as_str() {
            "" => None,
            text => Some(digest(text, "subject_digest")?),
        };
        let proven = match request.proven() {
            pb::ProvenFilter::Unspecified => None,
            pb::ProvenFilter::Proven => Some(true),
            pb::ProvenFilter::Unproven => Some(false),
        };
        let filter = Filter {
            kinds: kinds(&request.kinds)?,
            subject,
            proven,
        };
        let size = request.page_size as usize;
        let (records, next) = self
            .feedser
            .events(&tenant, filter, size, &request.page_token)
            .await?;
        let events = records.into_iter().map(stored_event).collect();
        Ok(Response::new(pb::ListEventsResponse {
            events,
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn list_unproven(
        &self,
        request: Request<pb::ListUnprovenRequest>,
    ) -> Result<Response<Self::ListUnprovenStream>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let request = request.into_inner();
        let kinds = kinds(&request.kinds)?;
        let left = if request.limit == 0 {
            u64::MAX
        } else {
            request.limit
        };
        // The first page is read before the answer begins, so that a bad cursor refuses the call itself.
        let first = unproven_page(&self.feedser, &tenant, &kinds, &request.cursor, left).await?;
        let feedser = Arc::clone(&self.feedser);
        let pages = stream::try_unfold((first, left), move |(page, left)| {
            let (feedser, tenant, kinds) = (Arc::clone(&feedser), tenant.clone(), kinds.clone());
            async move {
                let Some(last) = page.events.last() else {
                    return Ok(None);
                };
                let left = left - page.events.len() as u64;
                let next = match left {
                    0 => pb::ListUnprovenResponse::default(),
                    _ => unproven_page(&feedser, &tenant, &kinds, &last.cursor, left).await?,
                };
                Ok(Some((page, (next, left))))
            }
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn count_unproven(
        &self,
        request: Request<pb::CountUnprovenRequest>,
    ) -> Result<Response<pb::CountUnprovenResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let counts = self
            .feedser
            .counts(&tenant, &kinds(&request.into_inner().kinds)?)
            .await?;
        let total = counts.iter().map(|count| count.unproven).sum();
        let counts = counts.into_iter().map(kind_count).collect();
        Ok(Response::new(pb::CountUnprovenResponse { counts, total }))
    }

    async fn compliance_gap(
        &self,
        request: Request<pb::ComplianceGapRequest>,
    ) -> Result<Response<pb::ComplianceGapResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let counts = self
            .feedser
            .gap(&tenant)
            .await?
            .into_iter()
            .map(kind_count)
            .collect();
        Ok(Response::new(pb::ComplianceGapResponse { counts }))
    }

    async fn replay_slice(
        &self,
        request: Request<pb::ReplaySliceRequest>,
    ) -> Result<Response<Self::ReplaySliceStream>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let request = request.into_inner();
        let subject = digest(&request.subject_digest, "subject_digest")?;
        let file = Bytes::from(
            self.feedser
                .slice(&tenant, subject, kinds(&request.kinds)?)
                .await?,
        );
        let starts = (0..file.len()).step_by(CHUNK);
        let chunks = starts.map(move |start| {
            let end = file.len().min(start + CHUNK);
            Ok(pb::ReplaySliceResponse {
                chunk: file.slice(start..end),
            })
        });
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn put_attestation(
        &self,
        request: Request<pb::PutAttestationRequest>,
    ) -> Result<Response<pb::PutAttestationResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let (info, existed) = self.feedser.put(&tenant, request.into_inner().evidence).await?;
        let envelope_digest = info.received.to_string();
        Ok(Response::new(pb::PutAttestationResponse {
            envelope_digest,
            existed,
        }))
    }

    async fn get_attestation(
        &self,
        request: Request<pb::GetAttestationRequest>,
    ) -> Result<Response<pb::GetAttestationResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let digest = digest(&request.into_inner().envelope_digest, "envelope_digest")?;
        let found = self.feedser.attestation(&tenant, digest).await?;
        let (evidence, info) = (found.evidence.clone(), Some(attestation_info(&found.info)));
        Ok(Response::new(pb::GetAttestationResponse { evidence, info }))
    }

    async fn find_attestations(
        &self,
        request: Request<pb::FindAttestationsRequest>,
    ) -> Result<Response<pb::FindAttestationsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant()?.clone();
        let texts = request.into_inner().subject_digests;
        check_items(texts.len())?;
        let subjects = texts
            .iter()
            .map(|text| digest(text, "subject_digests"))
            .collect::<Result<_, _>>()?;
        let found = self.feedser.find(&tenant, subjects).await?;
        let found = texts
            .into_iter()
            .zip(found)
            .map(|(subject_digest, of_subject)| pb::FoundAttestations {
                subject_digest,
                attestations: of_subject.iter().map(attestation_info).collect(),
            });
        Ok(Response::new(pb::FindAttestationsResponse {
            found: found.collect(),
        }))
    }
}

/// The clock, where a call begins.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn check_items(found: usize) -> Result<(), Error> {
    if found > MAX_ITEMS {
        return Err(Error::TooManyItems {
            field: "items",
            found,
            max: MAX_ITEMS,
        });
    }
    Ok(())
}

fn digest(text: &str, field: &str) -> Result<Digest, Error> {
    text.parse().map_err(|source| Error::BadDigest {
        field: field.to_owned(),
        source,
    })
}

fn chain(texts: &[String]) -> Result<Vec<Digest>, Error> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| digest(text, &format!("chain[{index}]")))
        .collect()
}

fn kinds(texts: &[String]) -> Result<Vec<Kind>, Error> {
    let kind = |text: &String| {
        text.parse().map_err(|_| Error::BadKind {
            field: "kinds",
            kind: text.clone(),
        })
    };
    texts.iter().map(kind).collect()
}

fn append_order(item: pb::AppendEventsItem) -> Result<AppendOrder, Error> {
    let evidence = match (item.evidence.is_empty(), item.envelope_digest.as_str()) {
        (true, "") => None,
        (true, text) => Some(Evidence::Stored(digest(text, "envelope_digest")?)),
        (false, "") => Some(Evidence::Given(item.evidence)),
        (false, _) => return Err(Error::EvidenceAmbiguous),
    };
    Ok(AppendOrder {
        event: item.event,
        evidence,
        chain: chain(&item.chain)?,
    })
}

fn append_result((reference, result): (String, Result<Appended, Error>)) -> pb::AppendEventsResult {
    use pb::append_events_result::Outcome;
    let outcome = match result {
        Ok(Appended {
            event_id,
            rev,
            proven,
            existed,
        }) => Outcome::Appended(pb::AppendedEvent {
            event_id,
            rev,
            proven,
            existed,
        }),
        Err(error) => Outcome::Error(error.to_item()),
    };
    pb::AppendEventsResult {
        reference,
        outcome: Some(outcome),
    }
}

fn attach_order(request: pb::AttachProvenanceRequest) -> Result<AttachOrder, Error> {
    let evidence = Source::Stored(digest(&request.envelope_digest, "envelope_digest")?);
    let supersede = match request.supersede.as_str() {
        "" => None,
        text => Some(digest(text, "supersede")?),
    };
    let job = Some(request.job).filter(|job| !job.is_empty());
    let chain = chain(&request.chain)?;
    let place = request.log_entry.map(place).transpose()?;
    Ok(AttachOrder {
        supersede,
        job,
        place,
        ..AttachOrder::new(request.event_id, evidence, chain)
    })
}

/// An order of a batch, which names no log entry: each would be read from its log by itself.
fn batch_order(request: pb::AttachProvenanceRequest) -> Result<AttachOrder, Error> {
    if request.log_entry.is_some() {
        return Err(Error::BadValue {
            field: "log_entry",
            rule: "must be absent in a batch",
        });
    }
    attach_order(request)
}

fn place(place: pb::LogEntryPlace) -> Result<Place, Error> {
    let said = |text: String| Some(text).filter(|text| !text.is_empty());
    let place = Place {
        field: "log_entry",
        log_id: said(place.log_id),
        index: place.index,
        uuid: said(place.uuid),
    };
    let is_hex = |text: &Option<String>, lengths: &[usize]| {
        let is_digit = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        text.as_ref()
            .is_none_or(|text| lengths.contains(&text.len()) && text.bytes().all(is_digit))
    };
    let rule = if place.index.is_some() == place.uuid.is_some() {
        "must have an index or a uuid"
    } else if !is_hex(&place.log_id, &[64]) {
        "has a log_id that is not 64 digits of lower-case hex"
    } else if !is_hex(&place.uuid, &[64, 80]) {
        "has a uuid that is not 64 or 80 digits of lower-case hex"
    } else {
        return Ok(place);
    };
    Err(Error::BadValue {
        field: place.field,
        rule,
    })
}

fn attach_response(attached: Attached) -> pb::AttachProvenanceResponse {
    let outcome = match attached.already {
        true => pb::AttachOutcome::AlreadyAttached,
        false => pb::AttachOutcome::Attached,
    };
    pb::AttachProvenanceResponse {
        event_id: attached.event_id,
        outcome: outcome.into(),
        rev: attached.rev,
        attached_by_job: attached.job.unwrap_or_default(),
    }
}

fn attach_result((reference, result): (String, Result<Attached, Error>)) -> pb::AttachProvenanceBatchResult {
    use pb::attach_provenance_batch_result::Outcome;
    let outcome = match result {
        Ok(attached) => Outcome::Attached(attach_response(attached)),
        Err(error) => Outcome::Error(error.to_item()),
    };
    pb::AttachProvenanceBatchResult {
        reference,
        outcome: Some(outcome),
    }
}

fn stored_event(record: Record) -> pb::StoredEvent {
    let reason = record.proof().err().map(|error| error.reason().to_owned());
    pb::StoredEvent {
        event: record.to_bytes().into(),
        proven: reason.is_none(),
        reason: reason.unwrap_or_default(),
    }
}

async fn unproven_page(
    feedser: &Feedser,
    tenant: &Tenant,
    kinds: &[Kind],
    cursor: &str,
    left: u64,
) -> Result<pb::ListUnprovenResponse, Error> {
    let rows = usize::try_from(left).unwrap_or(usize::MAX).min(STREAM_PAGE);
    let events = feedser.unproven(tenant, kinds, cursor, rows).await?;
    let events = events.into_iter().map(|found| pb::UnprovenEvent {
        event_id: found.event.id,
        kind: found.event.kind.to_string(),
        subject_digest: found.event.subject.to_string(),
        ts: found.event.ts,
        cursor: found.cursor,
    });
    Ok(pb::ListUnprovenResponse {
        events: events.collect(),
    })
}

fn kind_count(count: KindCount) -> pb::KindCount {
    pb::KindCount {
        kind: count.kind.to_string(),
        unproven: count.unproven,
        events: count.events,
    }
}

fn attestation_info(info: &AttestationInfo) -> pb::AttestationInfo {
    pb::AttestationInfo {
        envelope_digest: info.received.to_string(),
        predicate_type: info.predicate_type.clone(),
        log_id: info.log.map(|(id, _)| hex::encode(id)).unwrap_or_default(),
        log_index: info.log.map(|(_, index)| index).unwrap_or_default(),
        logged: info.log.is_some(),
        time: info.time.map(|time| time.to_string()).unwrap_or_default(),
    }
}
