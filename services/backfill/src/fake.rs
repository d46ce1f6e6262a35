//! A Feedser in this process, for tests: it behaves as the contract says, and misbehaves as it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use stella_attest::digest::Digest;
use stella_proto::feedser::v1 as pb;
use stella_proto::feedser::v1::feedser_service_server::{FeedserService, FeedserServiceServer};
use stella_proto::status::{item_error, refuse};
use stella_proto::types::v1::ItemError;
use stella_serve::access::TENANT_HEADER;
use tonic::body::Body;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::remote::{Feedser, TransportError};

pub(crate) const SBOM: &str = "https://cyclonedx.org/bom/v1.6";
pub(crate) const VEX: &str = "https://openvex.dev/ns/v0.2.0";
pub(crate) const SCAN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";

/// Events and attestations, and what is to go wrong.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) events: Vec<Event>,
    /// By subject digest.
    pub(crate) attestations: BTreeMap<String, Vec<pb::AttestationInfo>>,
    /// What is said against an envelope, by its digest.
    pub(crate) refused: HashMap<String, ItemError>,
    /// What is said against an event, by its id.
    pub(crate) broken: HashMap<String, ItemError>,
    /// What is said once to an attach to an event, by its id.
    pub(crate) broken_once: HashMap<String, ItemError>,
    /// What is said once to a call, by its name.
    pub(crate) faults: Vec<(&'static str, Status)>,
    /// Attaches that are still carried out; then nothing is answered any more.
    pub(crate) attaches_left: Option<usize>,
    /// Most attestations of one answer; 0 means any number.
    pub(crate) most_found: usize,
    /// Most events of one answer; 0 means any number.
    pub(crate) most_listed: usize,
    /// Changes answers on their way out.
    pub(crate) mangle_attach: Option<fn(&mut pb::AttachProvenanceBatchResponse)>,
    pub(crate) mangle_find: Option<fn(&mut pb::FindAttestationsResponse)>,
    pub(crate) mangle_list: Option<fn(&mut pb::ListUnprovenResponse)>,
    /// Event and envelope of each attach, in their order.
    pub(crate) tried: Vec<(String, String)>,
    /// The tenants that were asked for.
    pub(crate) tenants: BTreeSet<String>,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) kind: &'static str,
    pub(crate) subject: String,
    pub(crate) ts: String,
    /// Envelope digest and job.
    pub(crate) attached: Option<(String, String)>,
}

/// An event that nothing proves yet.
pub(crate) fn event(id: &str, kind: &'static str, subject: &str) -> Event {
    let subject = Digest::of(subject.as_bytes()).to_string();
    Event {
        id: id.to_owned(),
        kind,
        subject,
        ts: "2025-11-11T12:00:00Z".to_owned(),
        attached: None,
    }
}

/// The digest of the envelope that tests call `name`.
pub(crate) fn envelope(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

/// A logged attestation whose time is so many seconds after the events.
pub(crate) fn attestation(name: &str, predicate_type: &str, seconds: u8) -> pb::AttestationInfo {
    pb::AttestationInfo {
        envelope_digest: envelope(name),
        predicate_type: predicate_type.to_owned(),
        log_id: "ab".repeat(32),
        log_index: 7,
        logged: true,
        time: format!("2025-11-11T12:00:{seconds:02}Z"),
    }
}

fn verification_failed(checks: &str) -> ItemError {
    let message = format!("verification failed: {checks}");
    item_error(&refuse(Code::FailedPrecondition, "VERIFICATION_FAILED", message))
}

/// The Feedser; clones share their world.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<World>>);

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// The way to it.
    pub(crate) fn remote(&self) -> Feedser {
        let server = FeedserServiceServer::new(self.clone());
        let server = server
            .map_request(|request: http::Request<Body>| request)
            .map_err(TransportError::new);
        Feedser::in_process(BoxCloneSyncService::new(server), Duration::from_secs(60))
    }

    /// Adds an event and an attestation of its kind for each of `ids`.
    pub(crate) fn add(&self, ids: impl IntoIterator<Item = String>) {
        let mut world = self.world();
        for id in ids {
            let (kind, predicate_type) = [("SBOM", SBOM), ("VEX", VEX), ("SCAN", SCAN)][id.len() % 3];
            let event = event(&id, kind, &id);
            world
                .attestations
                .insert(event.subject.clone(), vec![attestation(&id, predicate_type, 3)]);
            world.events.push(event);
        }
    }

    async fn enter<T>(&self, call: &str, request: &Request<T>) -> Result<(), Status> {
        let hangs = {
            let mut world = self.world();
            let tenant = request
                .metadata()
                .get(TENANT_HEADER)
                .and_then(|tenant| tenant.to_str().ok());
            world.tenants.insert(tenant.unwrap_or_default().to_owned());
            if let Some(number) = world.faults.iter().position(|(name, _)| *name == call) {
                return Err(world.faults.remove(number).1);
            }
            world.attaches_left == Some(0)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn attach(&self, item: pb::AttachProvenanceBatchItem) -> pb::AttachProvenanceBatchResult {
        use pb::attach_provenance_batch_result::Outcome;
        let hangs = {
            let mut world = self.world();
            match &mut world.attaches_left {
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => false,
            }
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let outcome = match self.world().attach(item.request.unwrap_or_default()) {
            Ok(attached) => Outcome::Attached(attached),
            Err(error) => Outcome::Error(error),
        };
        pb::AttachProvenanceBatchResult {
            reference: item.reference,
            outcome: Some(outcome),
        }
    }
}

impl World {
    /// Holds `attestations` of the subject that tests call `name`.
    pub(crate) fn hold(&mut self, name: &str, attestations: Vec<pb::AttestationInfo>) {
        self.attestations.insert(envelope(name), attestations);
    }

    /// The envelope that tests call `name` fails these checks.
    pub(crate) fn fail(&mut self, name: &str, checks: &str) {
        self.refused.insert(envelope(name), verification_failed(checks));
    }

    fn attach(
        &mut self,
        request: pb::AttachProvenanceRequest,
    ) -> Result<pb::AttachProvenanceResponse, ItemError> {
        let (id, envelope) = (request.event_id, request.envelope_digest);
        self.tried.push((id.clone(), envelope.clone()));
        if let Some(error) = self.broken_once.remove(&id) {
            return Err(error);
        }
        if let Some(error) = self.broken.get(&id) {
            return Err(error.clone());
        }
        let event = self.events.iter_mut().find(|event| event.id == id);
        let event =
            event.ok_or_else(|| item_error(&refuse(Code::NotFound, "EVENT_NOT_FOUND", "no such event")))?;
        let already = match &event.attached {
            Some((attached, _)) if *attached != envelope => {
                let conflict = refuse(
                    Code::AlreadyExists,
                    "ENVELOPE_CONFLICT",
                    "another one is attached",
                );
                return Err(item_error(&conflict));
            }
            Some(_) => true,
            None => false,
        };
        if !already {
            if let Some(error) = self.refused.get(&envelope) {
                return Err(error.clone());
            }
            event.attached = Some((envelope, request.job));
        }
        let outcome = match already {
            true => pb::AttachOutcome::AlreadyAttached,
            false => pb::AttachOutcome::Attached,
        };
        Ok(pb::AttachProvenanceResponse {
            event_id: id,
            outcome: outcome.into(),
            rev: 2,
            attached_by_job: event.attached.clone().map(|(_, job)| job).unwrap_or_default(),
        })
    }

    /// Unproven events of these kinds behind a cursor, which is the number of the event.
    fn unproven(&self, request: &pb::ListUnprovenRequest) -> Vec<pb::UnprovenEvent> {
        let after: usize = request.cursor.parse().unwrap_or_default();
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            usize::try_from(request.limit).unwrap()
        };
        let open = self.events.iter().enumerate().skip(after);
        let open = open.filter(|(_, event)| {
            event.attached.is_none() && request.kinds.iter().any(|kind| kind == event.kind)
        });
        open.take(limit)
            .map(|(number, event)| pb::UnprovenEvent {
                event_id: event.id.clone(),
                kind: event.kind.to_owned(),
                subject_digest: event.subject.clone(),
                ts: event.ts.clone(),
                cursor: (number + 1).to_string(),
            })
            .collect()
    }
}

fn nobody_asks<T>() -> Result<T, Status> {
    Err(Status::unimplemented("a backfill does not ask that"))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FeedserService for Fake {
    type AppendEventsStream = Answers<pb::AppendEventsResponse>;
    type AttachProvenanceBatchStream = Answers<pb::AttachProvenanceBatchResponse>;
    type ListUnprovenStream = Answers<pb::ListUnprovenResponse>;
    type ReplaySliceStream = Answers<pb::ReplaySliceResponse>;

    async fn attach_provenance_batch(
        &self,
        request: Request<Streaming<pb::AttachProvenanceBatchRequest>>,
    ) -> Result<Response<Self::AttachProvenanceBatchStream>, Status> {
        self.enter("attach", &request).await?;
        let fake = self.clone();
        let answers = request.into_inner().then(move |message| {
            let fake = fake.clone();
            async move {
                let mut answer = pb::AttachProvenanceBatchResponse::default();
                for item in message?.items {
                    answer.results.push(fake.attach(item).await);
                }
                if let Some(mangle) = fake.world().mangle_attach {
                    mangle(&mut answer);
                }
                Ok(answer)
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_unproven(
        &self,
        request: Request<pb::ListUnprovenRequest>,
    ) -> Result<Response<Self::ListUnprovenStream>, Status> {
        self.enter("list", &request).await?;
        let world = self.world();
        let events = world.unproven(&request.into_inner());
        if world.most_listed > 0 && events.len() > world.most_listed {
            return Err(Status::out_of_range("the message is too large"));
        }
        let messages = events.chunks(3).map(<[pb::UnprovenEvent]>::to_vec);
        let messages = messages.map(|events| {
            let mut answer = pb::ListUnprovenResponse { events };
            if let Some(mangle) = world.mangle_list {
                mangle(&mut answer);
            }
            Ok(answer)
        });
        Ok(Response::new(Box::pin(stream::iter(
            messages.collect::<Vec<_>>(),
        ))))
    }

    async fn count_unproven(
        &self,
        request: Request<pb::CountUnprovenRequest>,
    ) -> Result<Response<pb::CountUnprovenResponse>, Status> {
        self.enter("count", &request).await?;
        let kinds = request.into_inner().kinds;
        let world = self.world();
        let counts = kinds.into_iter().map(|kind| {
            let of_kind: Vec<_> = world.events.iter().filter(|event| event.kind == kind).collect();
            let unproven = of_kind.iter().filter(|event| event.attached.is_none()).count() as u64;
            pb::KindCount {
                kind,
                unproven,
                events: of_kind.len() as u64,
            }
        });
        let counts: Vec<_> = counts.collect();
        let total = counts.iter().map(|count| count.unproven).sum();
        Ok(Response::new(pb::CountUnprovenResponse { counts, total }))
    }

    async fn find_attestations(
        &self,
        request: Request<pb::FindAttestationsRequest>,
    ) -> Result<Response<pb::FindAttestationsResponse>, Status> {
        self.enter("find", &request).await?;
        let world = self.world();
        let found = request
            .into_inner()
            .subject_digests
            .into_iter()
            .map(|subject_digest| {
                let attestations = world
                    .attestations
                    .get(&subject_digest)
                    .cloned()
                    .unwrap_or_default();
                pb::FoundAttestations {
                    subject_digest,
                    attestations,
                }
            });
        let mut answer = pb::FindAttestationsResponse {
            found: found.collect(),
        };
        let rows: usize = answer.found.iter().map(|found| found.attestations.len()).sum();
        if world.most_found > 0 && rows > world.most_found {
            return Err(refuse(
                Code::ResourceExhausted,
                "TOO_MANY_ROWS",
                "more rows would be needed",
            ));
        }
        if let Some(mangle) = world.mangle_find {
            mangle(&mut answer);
        }
        Ok(Response::new(answer))
    }

    async fn append_events(
        &self,
        _: Request<Streaming<pb::AppendEventsRequest>>,
    ) -> Result<Response<Self::AppendEventsStream>, Status> {
        nobody_asks()
    }

    async fn attach_provenance(
        &self,
        _: Request<pb::AttachProvenanceRequest>,
    ) -> Result<Response<pb::AttachProvenanceResponse>, Status> {
        nobody_asks()
    }

    async fn get_event(
        &self,
        _: Request<pb::GetEventRequest>,
    ) -> Result<Response<pb::GetEventResponse>, Status> {
        nobody_asks()
    }

    async fn list_events(
        &self,
        _: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        nobody_asks()
    }

    async fn compliance_gap(
        &self,
        _: Request<pb::ComplianceGapRequest>,
    ) -> Result<Response<pb::ComplianceGapResponse>, Status> {
        nobody_asks()
    }

    async fn replay_slice(
        &self,
        _: Request<pb::ReplaySliceRequest>,
    ) -> Result<Response<Self::ReplaySliceStream>, Status> {
        nobody_asks()
    }

    async fn put_attestation(
        &self,
        _: Request<pb::PutAttestationRequest>,
    ) -> Result<Response<pb::PutAttestationResponse>, Status> {
        nobody_asks()
    }

    async fn get_attestation(
        &self,
        _: Request<pb::GetAttestationRequest>,
    ) -> Result<Response<pb::GetAttestationResponse>, Status> {
        nobody_asks()
    }
}
