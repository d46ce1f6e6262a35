//! `stella.verifier.v1`: who asks, what, judge it, answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use prost::bytes::Bytes;
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::TrustRoots;
use stella_proto::status::item_error;
use stella_proto::verifier::v1 as pb;
use stella_proto::verifier::v1::verifier_service_server::VerifierService;
use stella_proto::verifier::v1::verify_batch_result::Outcome;
use stella_serve::access::{Caller, SpiffeId};
use tonic::{Request, Response, Status, Streaming};

use crate::cores::Cores;
use crate::error::Error;
use crate::follow::Follower;
use crate::roots::Roots;
use crate::verifier::{Judged, Shared, Verifier};
use crate::wire::{read_cosign, read_fork, read_gate, read_order, write_decision, write_verdict};
use crate::witness::{Witness, WitnessError};

/// Most items of one message.
const MAX_ITEMS: usize = 1_000;
/// Messages of one stream that are worked on at the same time: one is judged while the next is read.
const MESSAGES_AT_ONCE: usize = 2;

/// The service's methods.
#[derive(Clone)]
pub struct VerifierApi(Arc<Service>);

/// What the methods need.
pub(crate) struct Service {
    /// Judges and seals.
    pub(crate) verifier: Verifier,
    /// Cosigns.
    pub(crate) witness: Witness,
    /// What verdicts believe.
    pub(crate) roots: Arc<Roots>,
    /// Asks for newer keys.
    pub(crate) follower: Arc<Follower>,
    /// Who may have verdicts sealed.
    pub(crate) sealer: SpiffeId,
    /// Who may have checkpoints cosigned.
    pub(crate) log_caller: SpiffeId,
    /// Where it is computed.
    pub(crate) cores: Cores,
    /// Tells the time.
    pub(crate) clock: fn() -> Timestamp,
}

impl VerifierApi {
    pub(crate) fn new(service: Service) -> Self {
        Self(Arc::new(service))
    }
}

impl Service {
    /// Judges all items by the trust roots in force; those that a newer key history could decide otherwise once more.
    async fn judge_all<I, T, F>(&self, items: Arc<Vec<I>>, judge: F) -> Result<Vec<T>, Error>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&I, &TrustRoots, &Shared) -> Judged<T> + Send + Sync + 'static,
    {
        let judge = Arc::new(judge);
        let pass = |indexes: Vec<usize>, roots: Arc<TrustRoots>| {
            let (judge, items, shared) = (Arc::clone(&judge), Arc::clone(&items), Shared::default());
            self.cores
                .each(indexes, move |index| judge(&items[*index], &roots, &shared))
        };
        let roots = self.roots.current();
        let judged_by = roots.digest();
        let mut judged = pass((0..items.len()).collect(), roots).await?;
        let again: Vec<usize> = (0..items.len())
            .filter(|index| judged[*index].wants_newer_keys)
            .collect();
        if !again.is_empty() && self.follower.ask(judged_by).await {
            let judged_again = pass(again.clone(), self.roots.current()).await?;
            for (index, newer) in again.into_iter().zip(judged_again) {
                judged[index] = newer;
            }
        }
        Ok(judged.into_iter().map(|judged| judged.result).collect())
    }

    /// Judges requests; one result for each, in order.
    async fn verify_all(
        self: &Arc<Self>,
        caller: &Caller,
        requests: Vec<Option<pb::VerifyRequest>>,
    ) -> Result<Vec<Result<pb::VerifyResponse, Error>>, Status> {
        let tenant = caller.tenant()?.clone();
        let (service, caller, now) = (Arc::clone(self), caller.clone(), (self.clock)());
        let judge = move |request: &Option<pb::VerifyRequest>, roots: &TrustRoots, shared: &Shared| {
            let request = request.as_ref().ok_or(Error::Missing("request"));
            let order = request.and_then(|request| {
                service.may_seal(&caller, request)?;
                read_order(request, tenant.as_str(), shared)
            });
            match order {
                Ok(order) => {
                    let judged = service
                        .verifier
                        .judge(&order, tenant.as_str(), roots, now, shared);
                    judged.map(|verdict| verdict.map(|verdict| write_verdict(&verdict)))
                }
                Err(error) => Judged {
                    result: Err(error),
                    wants_newer_keys: false,
                },
            }
        };
        let answers = self.judge_all(Arc::new(requests), judge).await?;
        for answer in &answers {
            let outcome = match answer {
                Ok(verdict) if verdict.verified => "verified",
                Ok(_) => "refused",
                Err(_) => "error",
            };
            metrics::counter!("stella_verdicts_total", "outcome" => outcome).increment(1);
        }
        Ok(answers)
    }

    fn may_seal(&self, caller: &Caller, request: &pb::VerifyRequest) -> Result<(), Error> {
        if request.seal.is_some() && *caller.identity() != self.sealer {
            return Err(Error::SealNotAllowed(caller.identity().clone()));
        }
        Ok(())
    }

    async fn verify_message(
        self: &Arc<Self>,
        caller: &Caller,
        message: pb::VerifyBatchRequest,
    ) -> Result<pb::VerifyBatchResponse, Status> {
        let found = message.items.len();
        if found > MAX_ITEMS {
            return Err(Error::TooMany {
                field: "items",
                found,
                max: MAX_ITEMS,
            }
            .into());
        }
        let (references, requests): (Vec<_>, Vec<_>) = message
            .items
            .into_iter()
            .map(|item| (item.reference, item.request))
            .unzip();
        let answers = self.verify_all(caller, requests).await?;
        let results = references.into_iter().zip(answers).map(|(reference, answer)| {
            let outcome = match answer {
                Ok(verdict) => Outcome::Verdict(verdict),
                Err(error) => Outcome::Error(item_error(&error.into())),
            };
            pb::VerifyBatchResult {
                reference,
                outcome: Some(outcome),
            }
        });
        Ok(pb::VerifyBatchResponse {
            results: results.collect(),
        })
    }
}

#[tonic::async_trait]
impl VerifierService for VerifierApi {
    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<pb::VerifyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answers = self
            .0
            .verify_all(&caller, vec![Some(request.into_inner())])
            .await?;
        let answer = answers.into_iter().next().ok_or(Error::CutOff)?;
        Ok(Response::new(answer?))
    }

    type VerifyBatchStream =
        Pin<Box<dyn Stream<Item = Result<pb::VerifyBatchResponse, Status>> + Send + 'static>>;

    async fn verify_batch(
        &self,
        request: Request<Streaming<pb::VerifyBatchRequest>>,
    ) -> Result<Response<Self::VerifyBatchStream>, Status> {
        let caller = Caller::of(&request)?;
        caller.tenant()?;
        let service = Arc::clone(&self.0);
        let answers = request.into_inner().map(move |message| {
            let (service, caller) = (Arc::clone(&service), caller.clone());
            async move { service.verify_message(&caller, message?).await }
        });
        Ok(Response::new(Box::pin(answers.buffered(MESSAGES_AT_ONCE))))
    }

    async fn evaluate_policy(
        &self,
        request: Request<pb::EvaluatePolicyRequest>,
    ) -> Result<Response<pb::EvaluatePolicyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant()?.clone();
        let service = Arc::clone(&self.0);
        let judge =
            move |request: &pb::EvaluatePolicyRequest, roots: &TrustRoots, shared: &Shared| match read_gate(
                request,
                tenant.as_str(),
                shared,
            ) {
                Ok(order) => {
                    let judged = service.verifier.evaluate(&order, tenant.as_str(), roots, shared);
                    judged.map(|decided| Ok(write_decision(decided, order.policy.digest())))
                }
                Err(error) => Judged {
                    result: Err(error),
                    wants_newer_keys: false,
                },
            };
        let answers = self
            .0
            .judge_all(Arc::new(vec![request.into_inner()]), judge)
            .await?;
        let answer = answers.into_iter().next().ok_or(Error::CutOff)?;
        Ok(Response::new(answer?))
    }

    async fn get_trust_roots(
        &self,
        _: Request<pb::GetTrustRootsRequest>,
    ) -> Result<Response<pb::GetTrustRootsResponse>, Status> {
        let roots = self.0.roots.current();
        Ok(Response::new(pb::GetTrustRootsResponse {
            trust_roots: Bytes::copy_from_slice(roots.to_canonical()),
            digest: roots.digest().to_string(),
        }))
    }

    async fn cosign_checkpoint(
        &self,
        request: Request<pb::CosignCheckpointRequest>,
    ) -> Result<Response<pb::CosignCheckpointResponse>, Status> {
        let caller = Caller::of(&request)?;
        if *caller.identity() != self.0.log_caller {
            return Err(Error::CosignNotAllowed(caller.identity().clone()).into());
        }
        let order = read_cosign(request.get_ref())?;
        let service = Arc::clone(&self.0);
        let cosigning = tokio::task::spawn_blocking(move || {
            let answered = service
                .witness
                .cosign(&order, &service.roots.current(), (service.clock)());
            if matches!(answered, Err(WitnessError::Fork(_))) {
                service.roots.distrust(service.witness.forked());
            }
            answered
        });
        let answer = cosigning
            .await
            .map_err(|_| Error::CutOff)?
            .map_err(Error::Witness)?;
        Ok(Response::new(pb::CosignCheckpointResponse {
            cosignatures: answer.line,
        }))
    }

    async fn report_fork(
        &self,
        request: Request<pb::ReportForkRequest>,
    ) -> Result<Response<pb::ReportForkResponse>, Status> {
        let fork = read_fork(request.get_ref())?;
        let service = Arc::clone(&self.0);
        let taking = tokio::task::spawn_blocking(move || {
            let taken = service.witness.take(fork, &service.roots.current());
            // A log is distrusted even if that could not be kept.
            if matches!(taken, Ok(_) | Err(WitnessError::Storage(_))) {
                service.roots.distrust(service.witness.forked());
            }
            taken
        });
        let log_id = taking.await.map_err(|_| Error::CutOff)?.map_err(Error::Witness)?;
        Ok(Response::new(pb::ReportForkResponse {
            log_id: hex::encode(log_id),
            trust_roots_digest: self.0.roots.current().digest().to_string(),
        }))
    }
}
