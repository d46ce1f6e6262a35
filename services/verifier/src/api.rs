//! `stella.verifier.v1`: who asks, what, judge it, answer.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::bytes::Bytes;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::event::Event;
use stella_attest::json::{self, Limits};
use stella_attest::policy::{Decision, Policy};
use stella_attest::report::{Report, Status as CheckStatus};
use stella_attest::timestamp::Timestamp;
use stella_proto::status::{item_error, refuse, refuse_field};
use stella_proto::types::v1 as types;
use stella_proto::verifier::v1 as pb;
use stella_proto::verifier::v1::verifier_service_server::VerifierService;
use stella_proto::verifier::v1::verify_batch_result::Outcome;
use stella_serve::access::{Caller, SpiffeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::error::Error;
use crate::follow::Follower;
use crate::roots::Roots;
use crate::verifier::{ChainCache, ChainLink, Order, SealOrder, Verdict, Verifier};
use crate::witness::{self, Witness};

/// Most items of one batch.
const MAX_ITEMS: usize = 1_000;
/// Most predecessors of one item.
const MAX_CHAIN: usize = 32;
/// Most nodes of a consistency proof.
const MAX_PROOF: usize = 128;
/// Answers of one stream that may wait to be read.
const STREAM_DEPTH: usize = 4;

/// The service's methods.
#[derive(Clone)]
pub struct VerifierApi {
    inner: Arc<Inner>,
}

/// What the methods need.
pub struct Inner {
    /// Judges and seals.
    pub verifier: Verifier,
    /// Cosigns.
    pub witness: Witness,
    /// What verdicts believe.
    pub roots: Arc<Roots>,
    /// Asks for newer keys.
    pub follower: Arc<Follower>,
    /// Who may have verdicts sealed.
    pub sealer: SpiffeId,
    /// Who may have checkpoints cosigned.
    pub log_caller: SpiffeId,
}

impl VerifierApi {
    /// The methods over `inner`.
    pub fn new(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::CutOff)
}

impl Inner {
    /// Judges orders on all cores; a key that nobody knows yet is asked for once.
    async fn judge(
        self: &Arc<Self>,
        tenant: &str,
        orders: Vec<Order>,
    ) -> Result<Vec<Result<Verdict, Error>>, Error> {
        let orders = Arc::new(orders);
        let mut verdicts = self
            .judge_all(tenant, &orders, (0..orders.len()).collect())
            .await?;
        let unknown: Vec<usize> = verdicts
            .iter()
            .filter(|(_, verdict)| verdict.as_ref().is_ok_and(Verdict::is_by_unknown_key))
            .map(|(index, _)| *index)
            .collect();
        if !unknown.is_empty() && self.follower.ask().await {
            for (index, verdict) in self.judge_all(tenant, &orders, unknown).await? {
                verdicts[index].1 = verdict;
            }
        }
        Ok(verdicts.into_iter().map(|(_, verdict)| verdict).collect())
    }

    /// Judges the orders at `indexes`, in their order.
    async fn judge_all(
        self: &Arc<Self>,
        tenant: &str,
        orders: &Arc<Vec<Order>>,
        indexes: Vec<usize>,
    ) -> Result<Vec<(usize, Result<Verdict, Error>)>, Error> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = indexes.len().div_ceil(cores).max(8);
        let roots = self.roots.current();
        let mut tasks = Vec::new();
        for part in indexes.chunks(share) {
            let (inner, orders, roots) = (Arc::clone(self), Arc::clone(orders), Arc::clone(&roots));
            let (tenant, part) = (tenant.to_owned(), part.to_vec());
            tasks.push(tokio::task::spawn_blocking(move || {
                let mut cache = ChainCache::default();
                let judge = |index: usize| {
                    let verdict = inner
                        .verifier
                        .judge(&orders[index], &tenant, &roots, now(), &mut cache);
                    (index, verdict)
                };
                part.into_iter().map(judge).collect::<Vec<_>>()
            }));
        }
        let mut verdicts = Vec::with_capacity(indexes.len());
        for task in tasks {
            verdicts.extend(task.await.map_err(|_| Error::CutOff)?);
        }
        Ok(verdicts)
    }

    /// Parses a request; what only the sealer may ask is refused to everybody else.
    fn order(&self, caller: &Caller, tenant: &str, request: pb::VerifyRequest) -> Result<Order, Error> {
        if request.evidence.is_empty() {
            return Err(Error::Missing("evidence"));
        }
        if request.seal.is_some() && *caller.identity() != self.sealer {
            return Err(Error::SealNotAllowed(caller.identity().clone()));
        }
        Ok(Order {
            evidence: request.evidence,
            subject: read_digest(&request.subject_digest, "subject_digest")?,
            at: read_time(&request.at, "at")?,
            policy: read_policy(&request.policy)?,
            seal: request.seal.map(|seal| read_seal(seal, tenant)).transpose()?,
        })
    }

    async fn batch(
        self: &Arc<Self>,
        caller: &Caller,
        tenant: &str,
        request: pb::VerifyBatchRequest,
    ) -> Result<pb::VerifyBatchResponse, Error> {
        if request.items.len() > MAX_ITEMS {
            return Err(Error::TooManyItems {
                found: request.items.len(),
                max: MAX_ITEMS,
            });
        }
        let mut results: Vec<pb::VerifyBatchResult> = Vec::with_capacity(request.items.len());
        let (mut orders, mut places) = (Vec::new(), Vec::new());
        for item in request.items {
            let parsed = item.request.ok_or(Error::Missing("request"));
            let order = parsed.and_then(|request| self.order(caller, tenant, request));
            let outcome = match order {
                Ok(order) => {
                    orders.push(order);
                    places.push(results.len());
                    None
                }
                Err(error) => Some(Outcome::Error(item_error(&error.into()))),
            };
            results.push(pb::VerifyBatchResult {
                reference: item.reference,
                outcome,
            });
        }
        let verdicts = self.judge(tenant, orders).await?;
        let answers =
            blocking(move || verdicts.into_iter().map(|v| v.map(answer)).collect::<Vec<_>>()).await?;
        for (place, answer) in places.into_iter().zip(answers) {
            results[place].outcome = Some(match answer {
                Ok(verdict) => Outcome::Verdict(verdict),
                Err(error) => Outcome::Error(item_error(&error.into())),
            });
        }
        Ok(pb::VerifyBatchResponse { results })
    }
}

fn read_digest(text: &str, field: &'static str) -> Result<Option<Digest>, Error> {
    let parsed = (!text.is_empty()).then(|| text.parse());
    parsed
        .transpose()
        .map_err(|source| Error::BadDigest { field, source })
}

fn read_time(text: &str, field: &'static str) -> Result<Option<Timestamp>, Error> {
    let parsed = (!text.is_empty()).then(|| text.parse());
    parsed
        .transpose()
        .map_err(|source| Error::BadTime { field, source })
}

fn read_policy(yaml: &[u8]) -> Result<Option<Policy>, Error> {
    (!yaml.is_empty())
        .then(|| Policy::parse(yaml))
        .transpose()
        .map_err(Error::BadPolicy)
}

fn read_block(bytes: &[u8], field: &'static str) -> Result<serde_json::Value, Error> {
    json::parse(bytes, &Limits::default()).map_err(|source| Error::BadBlock { field, source })
}

fn read_seal(seal: pb::Seal, tenant: &str) -> Result<SealOrder, Error> {
    let event = Event::from_stored(read_block(&seal.event, "seal.event")?).map_err(Error::BadEvent)?;
    if event.tenant() != Some(tenant) {
        return Err(Error::SealMismatch("tenant"));
    }
    if event.rev() != seal.next_rev {
        return Err(Error::SealMismatch("rev"));
    }
    if seal.chain.len() > MAX_CHAIN {
        return Err(Error::TooManyItems {
            found: seal.chain.len(),
            max: MAX_CHAIN,
        });
    }
    let superseded = match (
        seal.previous_provenance.is_empty(),
        seal.previous_trust.is_empty(),
    ) {
        (true, true) => None,
        (false, false) => Some((
            read_block(&seal.previous_provenance, "seal.previous_provenance")?,
            read_block(&seal.previous_trust, "seal.previous_trust")?,
        )),
        (true, false) => return Err(Error::Missing("seal.previous_provenance")),
        (false, true) => return Err(Error::Missing("seal.previous_trust")),
    };
    let attached_by = match seal.attached_by {
        None => None,
        Some(by) => {
            let at =
                read_time(&by.at, "seal.attached_by.at")?.ok_or(Error::Missing("seal.attached_by.at"))?;
            Some((by.job, at))
        }
    };
    let chain = seal.chain.into_iter().map(|link| ChainLink {
        link_type: Some(link.r#type).filter(|text| !text.is_empty()),
        evidence: link.evidence,
    });
    Ok(SealOrder {
        event,
        superseded,
        chain: chain.collect(),
        attached_by,
    })
}

fn checks(report: &Report) -> Vec<types::Check> {
    let checks = report.checks().iter().map(|check| {
        let status = match check.status {
            CheckStatus::Passed => types::CheckStatus::Passed,
            CheckStatus::Failed(_) => types::CheckStatus::Failed,
            CheckStatus::NotApplicable(_) => types::CheckStatus::NotApplicable,
        };
        types::Check {
            name: check.name.as_str().to_owned(),
            status: status.into(),
            reason: check.status.reason().to_owned(),
            detail: check.detail.clone(),
        }
    });
    checks.collect()
}

fn answer(verdict: Verdict) -> pb::VerifyResponse {
    let report = verdict.report.to_canonical();
    let sealed = verdict.sealed.map(|sealed| pb::Sealed {
        provenance: canonical::to_vec(&sealed.provenance).into(),
        trust: canonical::to_vec(&sealed.trust).into(),
    });
    pb::VerifyResponse {
        verified: verdict.report.verified(),
        checks: checks(&verdict.report),
        report_digest: Digest::of(&report).to_string(),
        report: report.into(),
        sealed,
    }
}

#[tonic::async_trait]
impl VerifierService for VerifierApi {
    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<pb::VerifyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant()?.as_str().to_owned();
        let order = self.inner.order(&caller, &tenant, request.into_inner())?;
        let verdict = self
            .inner
            .judge(&tenant, vec![order])
            .await?
            .pop()
            .ok_or(Error::CutOff)??;
        Ok(Response::new(answer(verdict)))
    }

    type VerifyBatchStream = ReceiverStream<Result<pb::VerifyBatchResponse, Status>>;

    async fn verify_batch(
        &self,
        request: Request<Streaming<pb::VerifyBatchRequest>>,
    ) -> Result<Response<Self::VerifyBatchStream>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant()?.as_str().to_owned();
        let mut messages = request.into_inner();
        let (answers, stream) = mpsc::channel(STREAM_DEPTH);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            loop {
                let answered = match messages.message().await {
                    Ok(None) => return,
                    Ok(Some(message)) => inner.batch(&caller, &tenant, message).await.map_err(Status::from),
                    Err(status) => Err(status),
                };
                let failed = answered.is_err();
                if answers.send(answered).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn evaluate_policy(
        &self,
        request: Request<pb::EvaluatePolicyRequest>,
    ) -> Result<Response<pb::EvaluatePolicyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant()?.as_str().to_owned();
        let request = request.into_inner();
        let policy = read_policy(&request.policy)?.ok_or(Error::Missing("policy"))?;
        let event = Event::from_stored(read_block(&request.event, "event")?).map_err(Error::BadEvent)?;
        if event.tenant().is_some_and(|own| own != tenant) {
            return Err(Error::SealMismatch("tenant").into());
        }
        let inner = Arc::clone(&self.inner);
        let roots = self.inner.roots.current();
        let answered = blocking(move || {
            let (outcome, report) =
                inner
                    .verifier
                    .evaluate(&policy, &event, &request.evidence, &tenant, &roots);
            pb::EvaluatePolicyResponse {
                decision: match outcome.decision {
                    Decision::Allow => pb::Decision::Allow.into(),
                    Decision::Fail => pb::Decision::Fail.into(),
                },
                rule: outcome.rule.unwrap_or_default(),
                reasons: outcome.reasons,
                message: outcome.message.unwrap_or_default(),
                policy_digest: policy.digest().to_string(),
                report: report
                    .map(|report| Bytes::from(report.to_canonical()))
                    .unwrap_or_default(),
            }
        });
        Ok(Response::new(answered.await?))
    }

    async fn get_trust_roots(
        &self,
        _: Request<pb::GetTrustRootsRequest>,
    ) -> Result<Response<pb::GetTrustRootsResponse>, Status> {
        let roots = self.inner.roots.current();
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
        if *caller.identity() != self.inner.log_caller {
            let message = format!("`{}` may not have checkpoints cosigned", caller.identity());
            return Err(refuse(Code::PermissionDenied, "COSIGN_NOT_ALLOWED", message));
        }
        let order = read_cosign(request.into_inner())?;
        let inner = Arc::clone(&self.inner);
        let answered = blocking(move || {
            let answered = inner.witness.cosign(&order, &inner.roots.current(), now());
            if matches!(answered, Err(witness::WitnessError::Fork(_))) {
                inner.roots.distrust(inner.witness.forked());
            }
            answered
        });
        let answer = answered.await??;
        Ok(Response::new(pb::CosignCheckpointResponse {
            cosignatures: answer.line,
        }))
    }
}

fn read_cosign(request: pb::CosignCheckpointRequest) -> Result<witness::Order, Status> {
    let refused = || {
        let rule = "`consistency_proof` has at most 128 nodes of 32 bytes";
        refuse_field(Code::InvalidArgument, "BAD_PROOF", "consistency_proof", rule)
    };
    if request.consistency_proof.len() > MAX_PROOF {
        return Err(refused());
    }
    let nodes = request
        .consistency_proof
        .iter()
        .map(|node| <[u8; 32]>::try_from(&node[..]));
    let proof = nodes.collect::<Result<_, _>>().map_err(|_| refused())?;
    Ok(witness::Order {
        old_size: request.old_size,
        proof,
        checkpoint: request.checkpoint.to_vec(),
    })
}
