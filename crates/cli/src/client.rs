//! The way to the services: where they are and who we are, from flags or from the environment.
//!
//! A call that a service could not take, because it was away, busy, or still at work on the same one, is made again
//! until the time that the user gives it is over. So every call is one that does no harm the second time: it carries an
//! idempotency key or names what it makes.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_serve::access::Tenant;
use stella_serve::config::ServiceUrl;
use stella_serve::upstream::{ConnectError, UpstreamChannel, select_tenant};
use tokio::time::Instant;
use tonic::Request;

use crate::failure::Failure;
use crate::output::Output;

/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// The pause before a call is made the second time, at most; each further one may be twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
    /// How long a call may take, with its repetitions while the service is away or busy
    #[arg(
        long,
        env = "STELLA_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
        global = true,
        help_heading = "Connection"
    )]
    pub timeout: u64,
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
            let failure = Failure::new(format!("cannot connect to {url}: {error}{cause}"))
                .hint("is the service running? `stella status` tells");
            if may_pass(&error) {
                failure.transient()
            } else {
                failure
            }
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

    /// Makes a call, again after failures that may pass, until `--timeout` is over. Each attempt connects anew and must
    /// be one that does no harm the second time.
    ///
    /// # Errors
    /// The first failure that will not pass, or the last one within the time.
    pub async fn call<R>(&self, attempt: impl AsyncFn() -> Result<R, Failure>) -> Result<R, Failure> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let mut pause = FIRST_PAUSE;
        let mut last = None;
        loop {
            let failure = match tokio::time::timeout_at(deadline, attempt()).await {
                Ok(Err(failure)) if failure.is_transient() => failure,
                Ok(outcome) => return outcome,
                Err(_) => {
                    let silent = || Failure::new(format!("no answer within {} seconds", self.timeout));
                    return Err(last.unwrap_or_else(|| silent().hint("give it more time with --timeout")));
                }
            };
            let wait = jittered(pause)?;
            if Instant::now() + wait >= deadline {
                return Err(failure);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            last = Some(failure);
        }
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

/// Whether the service may take a connection later.
fn may_pass(error: &ConnectError) -> bool {
    match error {
        ConnectError::Timeout { .. } | ConnectError::Network { .. } => true,
        // What a service says that ends while we greet it.
        ConnectError::Handshake { source, .. } => matches!(
            source.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        ConnectError::PeerNotExpected(_)
        | ConnectError::Tls(_)
        | ConnectError::Host(_)
        | ConnectError::Refused(_) => false,
    }
}

/// Between half of `pause` and all of it, so that those who failed together do not come back together.
fn jittered(pause: Duration) -> Result<Duration, Failure> {
    let mut byte = [0];
    aws_lc_rs::rand::fill(&mut byte).map_err(|_| Failure::new("the system has no randomness"))?;
    Ok(pause / 2 + (pause / 2) * u32::from(byte[0]) / 255)
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
