//! The witness that lives in the Verifier, as the log asks it.

use async_trait::async_trait;
use prost::bytes::Bytes;
use stella_attest::merkle::Hash;
use stella_attest::note::NoteKey;
use stella_proto::status::{metadata, reason};
use stella_proto::verifier::v1::CosignCheckpointRequest;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_serve::upstream::Upstream;
use stella_tlog::{Witness, WitnessError};
use tonic::Status;

/// Asks the Verifier to cosign.
pub struct VerifierWitness {
    upstream: Upstream,
    key: NoteKey,
}

impl VerifierWitness {
    /// The witness behind `upstream`, whose cosignatures must verify with `key`.
    pub fn new(upstream: Upstream, key: NoteKey) -> Self {
        Self { upstream, key }
    }
}

#[async_trait]
impl Witness for VerifierWitness {
    fn key(&self) -> &NoteKey {
        &self.key
    }

    async fn cosign(&self, old_size: u64, proof: &[Hash], checkpoint: &str) -> Result<String, WitnessError> {
        let request = self.upstream.request_without_tenant(CosignCheckpointRequest {
            old_size,
            consistency_proof: proof.iter().map(|node| Bytes::copy_from_slice(node)).collect(),
            checkpoint: Bytes::copy_from_slice(checkpoint.as_bytes()),
        });
        let mut client = VerifierServiceClient::new(self.upstream.channel());
        match client.cosign_checkpoint(request).await {
            Ok(answer) => Ok(answer.into_inner().cosignatures),
            Err(status) => Err(refusal(&self.upstream.explain(status))),
        }
    }
}

fn refusal(status: &Status) -> WitnessError {
    let reason = reason(status).unwrap_or_default();
    let kept = metadata(status, "size").and_then(|size| size.parse().ok());
    match (reason.as_str(), kept) {
        ("OLD_SIZE_MISMATCH", Some(kept)) => WitnessError::KeptSize { kept },
        ("CHECKPOINT_STALE", _) => WitnessError::Stale,
        ("CONSISTENCY_INVALID", _) => WitnessError::ConsistencyInvalid,
        ("LOG_FORK" | "LOG_DISTRUSTED", _) => WitnessError::Fork,
        ("UPSTREAM_UNAVAILABLE" | "PEER_NOT_EXPECTED" | "WITNESS_STATE_UNAVAILABLE" | "", _) => {
            WitnessError::Unavailable(format!("{}: {}", reason, status.message()))
        }
        (other, _) => WitnessError::Refused(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stella_proto::status::{refuse, refuse_with};
    use tonic::Code;

    #[test]
    fn what_the_verifier_answers_keeps_its_meaning() {
        for (status, want) in [
            (
                refuse_with(Code::Aborted, "OLD_SIZE_MISMATCH", "", "size", "7".into()),
                WitnessError::KeptSize { kept: 7 },
            ),
            (
                refuse(Code::FailedPrecondition, "CHECKPOINT_STALE", ""),
                WitnessError::Stale,
            ),
            (
                refuse(Code::FailedPrecondition, "CONSISTENCY_INVALID", ""),
                WitnessError::ConsistencyInvalid,
            ),
            (
                refuse(Code::FailedPrecondition, "LOG_FORK", ""),
                WitnessError::Fork,
            ),
            (
                refuse(Code::PermissionDenied, "COSIGN_NOT_ALLOWED", ""),
                WitnessError::Refused("COSIGN_NOT_ALLOWED".into()),
            ),
            (
                refuse(Code::Unavailable, "PEER_NOT_EXPECTED", "another"),
                WitnessError::Unavailable("PEER_NOT_EXPECTED: another".into()),
            ),
        ] {
            assert_eq!(refusal(&status), want);
        }
    }
}
