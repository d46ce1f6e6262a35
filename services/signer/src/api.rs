//! `stella.signer.v1`: who asks, what, sign it, answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use stella_attest::digest::Digest;
use stella_attest::history::{HistoryKey, KeyState};
use stella_proto::signer::v1 as pb;
use stella_proto::signer::v1::sign_batch_result::Outcome;
use stella_proto::signer::v1::signer_service_server::SignerService;
use stella_proto::status::item_error;
use stella_serve::access::Caller;
use tonic::{Request, Response, Status, Streaming};

use crate::error::Error;
use crate::order::{DEFAULT_SLOT, ManifestOrder, RotateOrder, SignOrder};
use crate::signer::{Asker, Rotated, Signed, Signer};

/// Most items of one batch.
const MAX_ITEMS: usize = 1_000;
/// Largest statement that an async thread parses itself, in bytes.
const PARSED_IN_PLACE: usize = 16 << 10;
/// Messages of one stream that are worked on at the same time.
const IN_FLIGHT: usize = 4;

/// The service's methods.
pub struct SignerApi {
    signer: Arc<Signer>,
}

impl SignerApi {
    /// The methods over `signer`.
    pub fn new(signer: Arc<Signer>) -> Self {
        Self { signer }
    }
}

fn asker<T>(request: &Request<T>) -> Result<Asker, Status> {
    let caller = Caller::of(request)?;
    let tenant = caller.tenant()?.as_str().to_owned();
    Ok(Asker {
        caller: caller.identity().as_str().to_owned(),
        tenant,
        deadline: caller.deadline(),
    })
}

fn answer(signed: Signed) -> pb::SignResponse {
    let log = signed.entries.into_iter().next().map(|entry| pb::LogPosition {
        log_id: hex::encode(entry.log_id),
        log_index: entry.log_index,
        tree_size: entry.proof.map_or(0, |proof| proof.tree_size),
    });
    pb::SignResponse {
        envelope_digest: Digest::of(&signed.envelope).to_string(),
        envelope: signed.envelope.into(),
        bundle: signed.bundle.into(),
        key_id: signed.key_id.to_string(),
        log,
    }
}

fn key(key: &HistoryKey) -> pb::Key {
    let state = match key.state {
        KeyState::Prepared => pb::KeyState::Prepared,
        KeyState::Active => pb::KeyState::Active,
        KeyState::Retired => pb::KeyState::Retired,
        KeyState::Revoked => pb::KeyState::Revoked,
    };
    let time =
        |at: Option<stella_attest::timestamp::Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
    pb::Key {
        key_id: key.key.key_id().to_string(),
        slot: key.slot.clone(),
        state: state.into(),
        spki: key.key.spki().to_vec().into(),
        algorithm: key.key.algorithm().family().to_owned(),
        tenants: key.tenants.clone(),
        predicate_types: key.predicate_types.clone(),
        activated_at: time(key.activated_at),
        retired_at: time(key.retired_at),
    }
}

async fn batch(
    signer: Arc<Signer>,
    asker: Asker,
    message: pb::SignBatchRequest,
) -> Result<pb::SignBatchResponse, Status> {
    if message.items.len() > MAX_ITEMS {
        return Err(Error::TooManyItems {
            found: message.items.len(),
            max: MAX_ITEMS,
        }
        .into());
    }
    let mut references = Vec::with_capacity(message.items.len());
    let mut requests = Vec::with_capacity(message.items.len());
    for item in message.items {
        references.push(item.reference);
        requests.push(item.request);
    }
    let parse = move || {
        let parse =
            |request: Option<pb::SignRequest>| SignOrder::parse(request.ok_or(Error::MissingRequest)?);
        requests.into_iter().map(parse).collect::<Vec<_>>()
    };
    let orders = tokio::task::spawn_blocking(parse)
        .await
        .map_err(|_| Error::CutOff)?;
    let signed = signer.sign_batch(&asker, orders).await;
    let results = references.into_iter().zip(signed).map(|(reference, result)| {
        let outcome = match result {
            Ok(signed) => Outcome::Signed(answer(signed)),
            Err(error) => Outcome::Error(item_error(&error.into())),
        };
        pb::SignBatchResult {
            reference,
            outcome: Some(outcome),
        }
    });
    Ok(pb::SignBatchResponse {
        results: results.collect(),
    })
}

/// Parses off the async threads what would hold them up.
async fn parse(request: pb::SignRequest) -> Result<SignOrder, Error> {
    if request.payload.len() <= PARSED_IN_PLACE {
        return SignOrder::parse(request);
    }
    let parse = move || SignOrder::parse(request);
    tokio::task::spawn_blocking(parse)
        .await
        .map_err(|_| Error::CutOff)?
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SignerService for SignerApi {
    async fn sign(&self, request: Request<pb::SignRequest>) -> Result<Response<pb::SignResponse>, Status> {
        let asker = asker(&request)?;
        let order = parse(request.into_inner()).await?;
        let signed = self.signer.sign(asker, order).await?;
        Ok(Response::new(answer(signed)))
    }

    type SignBatchStream = Answers<pb::SignBatchResponse>;

    async fn sign_batch(
        &self,
        request: Request<Streaming<pb::SignBatchRequest>>,
    ) -> Result<Response<Self::SignBatchStream>, Status> {
        let asker = asker(&request)?;
        let signer = Arc::clone(&self.signer);
        let answers = request.into_inner().map(move |message| {
            let (signer, asker) = (Arc::clone(&signer), asker.clone());
            let work = async move { batch(signer, asker, message?).await };
            async move {
                tokio::spawn(work)
                    .await
                    .unwrap_or_else(|_| Err(Error::CutOff.into()))
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(IN_FLIGHT))))
    }

    async fn sign_manifest(
        &self,
        request: Request<pb::SignManifestRequest>,
    ) -> Result<Response<pb::SignManifestResponse>, Status> {
        let asker = asker(&request)?;
        let order = ManifestOrder::parse(request.into_inner())?;
        let (envelope, key_id) = self.signer.sign_manifest(&asker, &order).await?;
        let envelope = envelope.canonical_bytes();
        Ok(Response::new(pb::SignManifestResponse {
            envelope_digest: Digest::of(&envelope).to_string(),
            envelope: envelope.into(),
            key_id: key_id.to_string(),
        }))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        asker(&request)?;
        let keys = tokio::task::block_in_place(|| self.signer.keys())?;
        Ok(Response::new(pb::ListKeysResponse {
            keys: keys.iter().map(key).collect(),
        }))
    }

    async fn get_key(
        &self,
        request: Request<pb::GetKeyRequest>,
    ) -> Result<Response<pb::GetKeyResponse>, Status> {
        asker(&request)?;
        let request = request.into_inner();
        let slot = if request.slot.is_empty() {
            DEFAULT_SLOT
        } else {
            &request.slot
        };
        let keys = tokio::task::block_in_place(|| self.signer.keys())?;
        let found = keys.iter().find(|key| match request.key_id.as_str() {
            "" => key.slot == slot && key.state == KeyState::Active,
            id => key.key.key_id().as_str() == id,
        });
        let missing = || match request.key_id.as_str() {
            "" => Error::NoActiveKey(slot.to_owned()),
            id => Error::NoKey(id.to_owned()),
        };
        Ok(Response::new(pb::GetKeyResponse {
            key: Some(key(found.ok_or_else(missing)?)),
        }))
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::RotateKeyResponse>, Status> {
        let asker = asker(&request)?;
        let order = RotateOrder::parse(request.into_inner())?;
        let Rotated {
            active,
            retired,
            version,
        } = self.signer.rotate(asker, order).await?;
        Ok(Response::new(pb::RotateKeyResponse {
            active: Some(key(&active)),
            retired: retired.as_ref().map(key),
            history_version: version,
        }))
    }

    type WatchKeysStream = Answers<pb::WatchKeysResponse>;

    async fn watch_keys(
        &self,
        request: Request<pb::WatchKeysRequest>,
    ) -> Result<Response<Self::WatchKeysStream>, Status> {
        Caller::of(&request)?;
        let known = request.into_inner().known_version;
        let signer = Arc::clone(&self.signer);
        let versions = signer.ledger().watch();
        let state = (signer, versions, known, true);
        let answers = stream::unfold(state, |(signer, mut versions, known, first)| async move {
            loop {
                versions.mark_unchanged();
                let newer = signer.ledger().after(known);
                if first || !newer.is_empty() {
                    let next = known + newer.len() as u64;
                    let answer = pb::WatchKeysResponse { versions: newer };
                    return Some((Ok(answer), (signer, versions, next, false)));
                }
                versions.changed().await.ok()?;
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
