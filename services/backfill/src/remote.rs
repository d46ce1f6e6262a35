//! Feedser, which has the events and the attestations: the four calls that a backfill makes.
//!
//! Who answers is checked when the connection is made ([`Upstream`]); what is answered is parsed here, and an answer
//! that does not fit its question is refused as a whole.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::stream;
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;
use stella_proto::feedser::v1 as pb;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::types::v1::ItemError;
use stella_serve::access::Tenant;
use stella_serve::upstream::{Upstream, select_tenant};
use tonic::body::Body;
use tonic::{Code, Request, Status, Streaming};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt as _};

use crate::error::Error;
use crate::job::Listed;

/// What carries calls: a connection, or a service in this process.
pub type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, TransportError>;

/// A call that was not carried.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(BoxError);

impl TransportError {
    /// What kept the call from being carried.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        Self(cause.into())
    }
}

/// Most digests that one call of `FindAttestations` takes.
pub(crate) const MAX_SUBJECTS: usize = 1_000;

/// Items of one message of `AttachProvenanceBatch`: small enough to be verified while the next one travels.
const MESSAGE_ITEMS: usize = 64;

/// Longest event id and cursor that are taken, in bytes.
const MAX_TEXT: usize = 1_024;

/// Feedser.
#[derive(Clone)]
pub struct Feedser {
    transport: Transport,
    upstream: Option<Upstream>,
    max_message_bytes: usize,
    timeout: Duration,
}

/// How many events of a kind are unproven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KindCount {
    pub(crate) kind: Kind,
    pub(crate) unproven: u64,
}

/// A stored attestation, as far as it says of itself what is needed to choose it.
///
/// The order is the one in which candidates are tried: by time, log id, log index and envelope digest. Those that lack
/// a time or a log entry come last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub(crate) time: LastIfNone<Timestamp>,
    pub(crate) log: LastIfNone<([u8; 32], u64)>,
    pub(crate) envelope: Digest,
    pub(crate) predicate_type: String,
}

/// A value that may be missing; missing is greater than all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LastIfNone<T> {
    Some(T),
    None,
}

impl<T> From<Option<T>> for LastIfNone<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Self::Some)
    }
}

/// What to attach to which event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachOrder<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) envelope: Digest,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// The envelope is attached now.
    Attached,
    /// It was attached already, by this job of Backfill; empty if by none.
    AlreadyAttached { job: String },
    /// It is not.
    Refused(ItemError),
}

impl Feedser {
    /// Feedser behind `upstream`; a message of a stream may take as long as `timeout`.
    pub fn of(upstream: Upstream, timeout: Duration) -> Self {
        let transport = BoxCloneSyncService::new(upstream.channel().map_err(TransportError::new));
        let max_message_bytes = upstream.max_message_bytes();
        Self {
            transport,
            upstream: Some(upstream),
            max_message_bytes,
            timeout,
        }
    }

    /// A Feedser that answers without a network.
    pub fn in_process(transport: Transport, timeout: Duration) -> Self {
        Self {
            transport,
            upstream: None,
            max_message_bytes: 32 << 20,
            timeout,
        }
    }

    /// Counts the unproven events of these kinds.
    pub(crate) async fn count(&self, tenant: &Tenant, kinds: &[Kind]) -> Result<Vec<KindCount>, Error> {
        let request = self.unary(tenant, pb::CountUnprovenRequest { kinds: names(kinds) });
        let answer = self
            .in_time(self.client().count_unproven(request))
            .await?
            .into_inner();
        let mut counts = Vec::new();
        for count in answer.counts {
            let kind = count
                .kind
                .parse()
                .map_err(|_| Error::BadAnswer("a count is of no kind"))?;
            if kinds.contains(&kind) {
                counts.push(KindCount {
                    kind,
                    unproven: count.unproven,
                });
            }
        }
        Ok(counts)
    }

    /// Returns at most `rows` unproven events behind `cursor`, in the order of their append, and the cursor behind
    /// them. There are none only at the end.
    pub(crate) async fn unproven(
        &self,
        tenant: &Tenant,
        kinds: &[Kind],
        cursor: &str,
        rows: u64,
    ) -> Result<(Vec<Listed>, String), Error> {
        let message = pb::ListUnprovenRequest {
            kinds: names(kinds),
            cursor: cursor.to_owned(),
            limit: rows,
        };
        let mut client = self.client();
        let mut answers = self
            .in_time(client.list_unproven(self.streaming(tenant, message)))
            .await?
            .into_inner();
        let (mut events, mut last) = (Vec::new(), cursor.to_owned());
        while let Some(answer) = self.next(&mut answers).await? {
            for event in answer.events {
                last.clone_from(&event.cursor);
                events.push(listed(event, kinds)?);
            }
            if events.len() as u64 > rows {
                return Err(Error::BadAnswer("more events than were asked for"));
            }
        }
        if last.len() > MAX_TEXT {
            return Err(Error::BadAnswer("a cursor is too long"));
        }
        Ok((events, last))
    }

    /// Finds the attestations of each of these subjects, at most [`MAX_SUBJECTS`].
    pub(crate) async fn find(
        &self,
        tenant: &Tenant,
        subjects: &[Digest],
    ) -> Result<HashMap<Digest, Vec<Candidate>>, Error> {
        let subject_digests = subjects.iter().map(Digest::to_string).collect();
        let request = self.unary(tenant, pb::FindAttestationsRequest { subject_digests });
        let answer = self
            .in_time(self.client().find_attestations(request))
            .await?
            .into_inner();
        let mut found = HashMap::with_capacity(subjects.len());
        for of_subject in answer.found {
            let subject = of_subject.subject_digest.parse();
            let subject: Digest = subject.map_err(|_| Error::BadAnswer("a subject is not a digest"))?;
            let candidates = of_subject
                .attestations
                .into_iter()
                .map(candidate)
                .collect::<Result<_, _>>()?;
            found.insert(subject, candidates);
        }
        if !subjects.iter().all(|subject| found.contains_key(subject)) {
            return Err(Error::BadAnswer("a subject was not looked up"));
        }
        Ok(found)
    }

    /// Has envelopes attached for `job`; one answer for each order, in order.
    pub(crate) async fn attach(
        &self,
        tenant: &Tenant,
        job: &str,
        orders: &[AttachOrder<'_>],
    ) -> Result<Vec<Answer>, Error> {
        let numbered: Vec<_> = orders.iter().enumerate().collect();
        let messages: Vec<_> = numbered
            .chunks(MESSAGE_ITEMS)
            .map(|chunk| attach_message(job, chunk))
            .collect();
        let mut client = self.client();
        let request = self.streaming(tenant, stream::iter(messages));
        let mut stream = self
            .in_time(client.attach_provenance_batch(request))
            .await?
            .into_inner();
        let mut answers = Vec::with_capacity(orders.len());
        // Read to its end, so that Feedser does not take the call for one that was broken off.
        while let Some(message) = self.next(&mut stream).await? {
            for result in message.results {
                let number = answers.len();
                let order = orders
                    .get(number)
                    .ok_or(Error::BadAnswer("more results than items"))?;
                if result.reference != number.to_string() {
                    return Err(Error::BadAnswer("the results are not those of the items"));
                }
                answers.push(answer(result, order)?);
            }
        }
        if answers.len() < orders.len() {
            return Err(Error::Upstream(stella_proto::status::refuse(
                Code::Unavailable,
                "UPSTREAM_UNAVAILABLE",
                "feedser ended the stream early",
            )));
        }
        Ok(answers)
    }

    fn client(&self) -> FeedserServiceClient<Transport> {
        FeedserServiceClient::new(self.transport.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(usize::MAX)
    }

    fn unary<T>(&self, tenant: &Tenant, message: T) -> Request<T> {
        match &self.upstream {
            Some(upstream) => upstream.request(tenant, message),
            None => self.streaming(tenant, message),
        }
    }

    fn streaming<T>(&self, tenant: &Tenant, message: T) -> Request<T> {
        match &self.upstream {
            Some(upstream) => upstream.stream_request(tenant, message),
            None => {
                let mut request = Request::new(message);
                select_tenant(&mut request, tenant);
                request
            }
        }
    }

    async fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Error> {
        self.in_time(stream.message()).await
    }

    /// Waits for an answer, or as long as configured.
    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
        let answer = tokio::time::timeout(self.timeout, answer)
            .await
            .unwrap_or_else(|_| {
                Err(stella_proto::status::refuse(
                    Code::DeadlineExceeded,
                    "UPSTREAM_TIMEOUT",
                    "feedser took too long to answer",
                ))
            });
        answer.map_err(|status| {
            Error::Upstream(match &self.upstream {
                Some(upstream) => upstream.explain(status),
                None => stella_serve::upstream::explain(status),
            })
        })
    }
}

fn names(kinds: &[Kind]) -> Vec<String> {
    kinds.iter().map(Kind::to_string).collect()
}

fn listed(event: pb::UnprovenEvent, kinds: &[Kind]) -> Result<Listed, Error> {
    if event.event_id.is_empty() || event.event_id.len() > MAX_TEXT {
        return Err(Error::BadAnswer("an event's id is empty or too long"));
    }
    let kind = event.kind.parse().ok().filter(|kind| kinds.contains(kind));
    Ok(Listed {
        id: event.event_id,
        kind: kind.ok_or(Error::BadAnswer("an event is of another kind"))?,
        subject: event
            .subject_digest
            .parse()
            .map_err(|_| Error::BadAnswer("a subject is not a digest"))?,
        ts: event.ts.parse().ok(),
    })
}

fn candidate(info: pb::AttestationInfo) -> Result<Candidate, Error> {
    let envelope = info.envelope_digest.parse();
    let time = match info.time.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| Error::BadAnswer("an attestation's time is not a time"))?,
        ),
    };
    let log = match info.logged {
        true => {
            let mut id = [0; 32];
            hex::decode_to_slice(&info.log_id, &mut id)
                .map_err(|_| Error::BadAnswer("a log id is not hex"))?;
            Some((id, info.log_index))
        }
        false => None,
    };
    Ok(Candidate {
        time: time.into(),
        log: log.into(),
        envelope: envelope.map_err(|_| Error::BadAnswer("an envelope digest is not a digest"))?,
        predicate_type: info.predicate_type,
    })
}

fn attach_message(job: &str, orders: &[(usize, &AttachOrder<'_>)]) -> pb::AttachProvenanceBatchRequest {
    let items = orders
        .iter()
        .map(|(number, order)| pb::AttachProvenanceBatchItem {
            reference: number.to_string(),
            request: Some(pb::AttachProvenanceRequest {
                event_id: order.event_id.to_owned(),
                envelope_digest: order.envelope.to_string(),
                job: job.to_owned(),
                ..pb::AttachProvenanceRequest::default()
            }),
        });
    pb::AttachProvenanceBatchRequest {
        items: items.collect(),
    }
}

fn answer(result: pb::AttachProvenanceBatchResult, order: &AttachOrder<'_>) -> Result<Answer, Error> {
    use pb::attach_provenance_batch_result::Outcome;
    match result.outcome {
        Some(Outcome::Attached(attached)) if attached.event_id != order.event_id => {
            Err(Error::BadAnswer("a result is of another event"))
        }
        Some(Outcome::Attached(attached)) => match attached.outcome() {
            pb::AttachOutcome::Attached => Ok(Answer::Attached),
            pb::AttachOutcome::AlreadyAttached => Ok(Answer::AlreadyAttached {
                job: attached.attached_by_job,
            }),
            pb::AttachOutcome::Unspecified => Err(Error::BadAnswer("a result says nothing")),
        },
        Some(Outcome::Error(error)) => Ok(Answer::Refused(error)),
        None => Err(Error::BadAnswer("a result says nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_ordered_by_time_log_index_and_envelope() {
        let info = |time: &str, log: Option<(u8, u64)>, envelope: u8| pb::AttestationInfo {
            envelope_digest: Digest::from_bytes([envelope; 32]).to_string(),
            predicate_type: String::new(),
            log_id: log.map(|(id, _)| hex::encode([id; 32])).unwrap_or_default(),
            log_index: log.map(|(_, index)| index).unwrap_or_default(),
            logged: log.is_some(),
            time: time.to_owned(),
        };
        let mut candidates: Vec<Candidate> = [
            info("", None, 1),
            info("", Some((1, 1)), 2),
            info("2025-11-11T12:00:01Z", Some((1, 1)), 3),
            info("2025-11-11T12:00:00Z", Some((2, 1)), 4),
            info("2025-11-11T12:00:00Z", Some((1, 10)), 5),
            info("2025-11-11T12:00:00Z", Some((1, 9)), 7),
            info("2025-11-11T12:00:00Z", Some((1, 9)), 6),
        ]
        .into_iter()
        .map(|info| candidate(info).unwrap())
        .collect();
        candidates.sort();
        let order: Vec<u8> = candidates
            .iter()
            .map(|candidate| candidate.envelope.as_bytes()[0])
            .collect();
        assert_eq!(order, [6, 7, 5, 4, 3, 2, 1]);
    }
}
