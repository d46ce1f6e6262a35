//! Tells the Verifier that a log was forked, as every service does that reads logs elsewhere.

use prost::bytes::Bytes;
use stella_attest::fork::ForkProof;
use stella_proto::status::reason;
use stella_proto::verifier::v1::ReportForkRequest;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;

use crate::upstream::Upstream;

/// Shows the proof to the Verifier behind `verifier`, which distrusts the log from then on.
///
/// # Errors
/// Why it was not taken: the reason code and what was said.
pub async fn report(verifier: &Upstream, fork: &ForkProof) -> Result<(), String> {
    let nodes = fork.consistency.iter();
    let request = verifier.request_without_tenant(ReportForkRequest {
        first: fork.first.clone().into(),
        second: fork.second.clone().into(),
        root: Bytes::copy_from_slice(&fork.root),
        consistency_proof: nodes.map(|node| Bytes::copy_from_slice(node)).collect(),
    });
    let mut client = VerifierServiceClient::new(verifier.channel());
    match client.report_fork(request).await {
        Ok(_) => Ok(()),
        Err(status) => {
            let status = verifier.explain(status);
            let reason = reason(&status).unwrap_or_default();
            Err(format!("{reason}: {}", status.message()))
        }
    }
}
