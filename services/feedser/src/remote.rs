//! The services that Feedser calls: the Verifier, which judges and seals, and the Signer, which signs manifests.
//!
//! Who answers is checked when the connection is made ([`Upstream`]); what is answered is checked in
//! [`seal`](crate::seal) and [`audit`](crate::audit).

use std::time::Duration;

use futures_util::stream;
use prost::bytes::Bytes;
use stella_proto::signer::v1::SignManifestRequest;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_proto::verifier::v1::{VerifyBatchItem, VerifyBatchRequest, VerifyBatchResult};
use stella_serve::access::Tenant;
use stella_serve::upstream::{Upstream, select_tenant};
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt as _};

use crate::error::Error;

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

/// Most bytes of one message to the Verifier, unless one item alone has more.
const MESSAGE_BYTES: usize = 4 << 20;

/// Most items of one message to the Verifier: small enough to be judged while the next one travels.
const MESSAGE_ITEMS: usize = 64;

/// One called service.
#[derive(Clone)]
struct Link {
    transport: Transport,
    upstream: Option<Upstream>,
    max_message_bytes: usize,
    timeout: Duration,
}

impl Link {
    fn of(upstream: Upstream, timeout: Duration) -> Self {
        let transport = BoxCloneSyncService::new(upstream.channel().map_err(TransportError::new));
        let max_message_bytes = upstream.max_message_bytes();
        Self {
            transport,
            upstream: Some(upstream),
            max_message_bytes,
            timeout,
        }
    }

    fn in_process(transport: Transport, timeout: Duration) -> Self {
        Self {
            transport,
            upstream: None,
            max_message_bytes: 64 << 20,
            timeout,
        }
    }

    fn request<T>(&self, tenant: &Tenant, message: T) -> Request<T> {
        match &self.upstream {
            Some(upstream) => upstream.stream_request(tenant, message),
            None => {
                let mut request = Request::new(message);
                select_tenant(&mut request, tenant);
                request
            }
        }
    }

    /// Waits for the whole answer, or as long as configured.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
        let answer = tokio::time::timeout(self.timeout, call).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(stella_proto::status::refuse(
                Code::DeadlineExceeded,
                "UPSTREAM_TIMEOUT",
                "a called service took too long to answer",
            ))
        });
        answer.map_err(|status| {
            Error::Upstream(match &self.upstream {
                Some(upstream) => upstream.explain(status),
                None => status,
            })
        })
    }
}

/// The Verifier.
#[derive(Clone)]
pub struct Verifier(Link);

impl Verifier {
    /// The Verifier behind `upstream`; a batch may take as long as `timeout`.
    pub fn of(upstream: Upstream, timeout: Duration) -> Self {
        Self(Link::of(upstream, timeout))
    }

    /// A Verifier that answers without a network.
    pub fn in_process(transport: Transport, timeout: Duration) -> Self {
        Self(Link::in_process(transport, timeout))
    }

    /// Sends the items in as many messages as they need; returns one result for each item, in order.
    pub(crate) async fn verify(
        &self,
        tenant: &Tenant,
        items: Vec<VerifyBatchItem>,
    ) -> Result<Vec<VerifyBatchResult>, Error> {
        let references: Vec<String> = items.iter().map(|item| item.reference.clone()).collect();
        let request = self.0.request(tenant, stream::iter(split(items)));
        let call = async {
            let mut client = VerifierServiceClient::new(self.0.transport.clone())
                .max_decoding_message_size(self.0.max_message_bytes)
                .max_encoding_message_size(usize::MAX);
            let mut answers = client.verify_batch(request).await?.into_inner();
            let mut results = Vec::with_capacity(references.len());
            while let Some(answer) = answers.message().await? {
                results.extend(answer.results);
                if results.len() > references.len() {
                    break;
                }
            }
            Ok(results)
        };
        let results = self.0.call(call).await?;
        if !results.iter().map(|result| &result.reference).eq(&references) {
            return Err(Error::SealInvalid("the answers are not those of the items"));
        }
        Ok(results)
    }
}

fn split(items: Vec<VerifyBatchItem>) -> Vec<VerifyBatchRequest> {
    let mut messages: Vec<VerifyBatchRequest> = Vec::new();
    let mut room = 0;
    for item in items {
        let size = prost::Message::encoded_len(&item);
        match messages.last_mut() {
            Some(message) if message.items.len() < MESSAGE_ITEMS && size <= room => {
                message.items.push(item);
                room -= size;
            }
            _ => {
                messages.push(VerifyBatchRequest { items: vec![item] });
                room = MESSAGE_BYTES.saturating_sub(size);
            }
        }
    }
    messages
}

/// The Signer.
#[derive(Clone)]
pub struct Signer(Link);

impl Signer {
    /// The Signer behind `upstream`; a call may take as long as `timeout`.
    pub fn of(upstream: Upstream, timeout: Duration) -> Self {
        Self(Link::of(upstream, timeout))
    }

    /// A Signer that answers without a network.
    pub fn in_process(transport: Transport, timeout: Duration) -> Self {
        Self(Link::in_process(transport, timeout))
    }

    /// Has the manifest of an export signed; returns the envelope.
    pub(crate) async fn sign_manifest(&self, tenant: &Tenant, payload: Vec<u8>) -> Result<Bytes, Error> {
        let request = self.0.request(
            tenant,
            SignManifestRequest {
                payload: payload.into(),
            },
        );
        let call = async {
            let mut client = SignerServiceClient::new(self.0.transport.clone())
                .max_decoding_message_size(self.0.max_message_bytes);
            Ok(client.sign_manifest(request).await?.into_inner().envelope)
        };
        self.0.call(call).await
    }
}

#[cfg(test)]
mod tests {
    use stella_proto::verifier::v1::VerifyRequest;

    use super::*;

    #[test]
    fn a_batch_is_cut_at_its_items_and_bytes() {
        let item = |evidence: usize| VerifyBatchItem {
            reference: String::new(),
            request: Some(VerifyRequest {
                evidence: vec![0; evidence].into(),
                ..VerifyRequest::default()
            }),
        };
        for (case, sizes, want) in [
            ("none", vec![], vec![]),
            ("many small ones", vec![10; 130], vec![64, 64, 2]),
            ("large ones", vec![3 << 20, 3 << 20, 1 << 10], vec![1, 2]),
            ("one above the limit", vec![10, 5 << 20, 10, 10], vec![1, 1, 2]),
        ] {
            let messages = split(sizes.into_iter().map(item).collect());
            let got: Vec<usize> = messages.iter().map(|message| message.items.len()).collect();
            assert_eq!(got, want, "{case}");
        }
    }
}
