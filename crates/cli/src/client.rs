//! The way to the services: where they are and who we are, from flags or from the environment.

use std::path::PathBuf;

use clap::Args;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_serve::access::Tenant;
use stella_serve::config::ServiceUrl;
use stella_serve::upstream::{UpstreamChannel, select_tenant};
use tonic::Request;

use crate::failure::Failure;
use crate::output::Output;

/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Where the services are, and who calls them.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// URL of the Signer
    #[arg(
        long,
        env = "STELLA_SIGNER",
        value_name = "URL",
        global = true,
        help_heading = "Connection"
    )]
    pub signer: Option<ServiceUrl>,
    /// URL of the Verifier
    #[arg(
        long,
        env = "STELLA_VERIFIER",
        value_name = "URL",
        global = true,
        help_heading = "Connection"
    )]
    pub verifier: Option<ServiceUrl>,
    /// URL of Feedser
    #[arg(
        long,
        env = "STELLA_FEEDSER",
        value_name = "URL",
        global = true,
        help_heading = "Connection"
    )]
    pub feedser: Option<ServiceUrl>,
    /// URL of Backfill
    #[arg(
        long = "backfill-url",
        env = "STELLA_BACKFILL",
        value_name = "URL",
        global = true,
        help_heading = "Connection"
    )]
    pub backfill: Option<ServiceUrl>,
    /// Certificate authority of the services (PEM)
    #[arg(
        long,
        env = "STELLA_CA",
        value_name = "FILE",
        global = true,
        help_heading = "Connection"
    )]
    pub ca: Option<PathBuf>,
    /// Own certificate (PEM)
    #[arg(
        long,
        env = "STELLA_CERT",
        value_name = "FILE",
        global = true,
        help_heading = "Connection"
    )]
    pub cert: Option<PathBuf>,
    /// Own private key (PEM)
    #[arg(
        long,
        env = "STELLA_KEY",
        value_name = "FILE",
        global = true,
        help_heading = "Connection"
    )]
    pub key: Option<PathBuf>,
    /// Tenant
    #[arg(
        long,
        env = "STELLA_TENANT",
        value_name = "NAME",
        global = true,
        help_heading = "Connection"
    )]
    pub tenant: Option<Tenant>,
    /// How to print results
    #[arg(long, value_enum, default_value_t, global = true, help_heading = "Output")]
    pub output: Output,
}

impl Connection {
    async fn channel(
        &self,
        url: Option<&ServiceUrl>,
        flag: &str,
        env: &str,
    ) -> Result<UpstreamChannel, Failure> {
        let url = needed(url, flag, env)?;
        let ca = needed(self.ca.as_ref(), "--ca", "STELLA_CA")?;
        let cert = needed(self.cert.as_ref(), "--cert", "STELLA_CERT")?;
        let key = needed(self.key.as_ref(), "--key", "STELLA_KEY")?;
        let connected = stella_serve::client::connect(ca, cert, key, url, None).await;
        connected.map_err(|error| {
            let cause = std::error::Error::source(&error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            Failure::new(format!("cannot connect to {url}: {error}{cause}"))
                .hint("is the service running? `stella status` tells")
        })
    }

    /// The Signer.
    ///
    /// # Errors
    /// It is not configured or cannot be reached.
    pub async fn signer(&self) -> Result<SignerServiceClient<UpstreamChannel>, Failure> {
        let channel = self
            .channel(self.signer.as_ref(), "--signer", "STELLA_SIGNER")
            .await?;
        Ok(SignerServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// The Verifier.
    ///
    /// # Errors
    /// As [`signer`](Self::signer).
    pub async fn verifier(&self) -> Result<VerifierServiceClient<UpstreamChannel>, Failure> {
        let channel = self
            .channel(self.verifier.as_ref(), "--verifier", "STELLA_VERIFIER")
            .await?;
        Ok(VerifierServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// Feedser.
    ///
    /// # Errors
    /// As [`signer`](Self::signer).
    pub async fn feedser(&self) -> Result<FeedserServiceClient<UpstreamChannel>, Failure> {
        let channel = self
            .channel(self.feedser.as_ref(), "--feedser", "STELLA_FEEDSER")
            .await?;
        Ok(FeedserServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// Backfill.
    ///
    /// # Errors
    /// As [`signer`](Self::signer).
    pub async fn backfill(&self) -> Result<BackfillServiceClient<UpstreamChannel>, Failure> {
        let channel = self
            .channel(self.backfill.as_ref(), "--backfill-url", "STELLA_BACKFILL")
            .await?;
        Ok(BackfillServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// A request for the configured tenant.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(tenant) = &self.tenant {
            select_tenant(&mut request, tenant);
        }
        request
    }

    /// True if results go to a program.
    pub fn is_json(&self) -> bool {
        self.output == Output::Json
    }
}

fn needed<'v, T>(value: Option<&'v T>, flag: &str, env: &str) -> Result<&'v T, Failure> {
    value.ok_or_else(|| {
        Failure::usage(format!("{flag} is not given and {env} is not set"))
            .hint("after `stella up --dir D`: set -a; . D/stella.env; set +a")
    })
}

/// A key that makes a repeated call harmless.
///
/// # Errors
/// The system has no randomness.
pub fn idempotency_key() -> Result<String, Failure> {
    Ok(format!("cli-{}", random_hex()?))
}

/// Thirty-two random hex digits.
///
/// # Errors
/// The system has no randomness.
pub fn random_hex() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Failure::new("the system has no randomness"))?;
    Ok(hex::encode(bytes))
}
