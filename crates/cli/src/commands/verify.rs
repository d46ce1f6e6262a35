//! `stella verify` asks the Verifier, `stella forensic verify` asks nobody; both print the same report.

use std::path::PathBuf;

use clap::Args;
use stella_attest::digest::Digest;
use stella_proto::types::v1::CheckStatus;
use stella_proto::verifier::v1 as pb;

use crate::client::Connection;
use crate::failure::{Failure, read_file};
use crate::output::{Output, print, print_line, table};

/// Has the Verifier judge a bundle
#[derive(Args, Debug)]
pub struct Arguments {
    /// The bundle or envelope
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// The artifact that must be attested: a file, or its digest as sha256:HEX
    #[arg(long, value_name = "FILE|DIGEST")]
    pub subject: Option<String>,
    /// The time to judge at (RFC 3339); default: the evidence's own trusted time
    #[arg(long, value_name = "TIME", default_value = "")]
    pub at: String,
    /// A policy that must allow it
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Verifies a bundle, an envelope or a slice offline
#[derive(Args, Debug)]
pub struct Forensic {
    /// The bundle, envelope or slice
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    /// Trust roots, as `stella trust export` writes them, or a Sigstore trusted_root.json with --public-key
    #[arg(long, value_name = "FILE")]
    pub trust_roots: PathBuf,
    /// A public key (PEM) that may have signed the attestation, besides those of the trust roots; may be repeated
    #[arg(long = "public-key", value_name = "PEM")]
    pub keys: Vec<PathBuf>,
    /// The artifact that must be attested: a file, or its digest as sha256:HEX
    #[arg(long, value_name = "FILE|DIGEST")]
    pub subject: Option<String>,
    /// The time to judge at (RFC 3339); default: the evidence's own trusted time
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// A policy that must allow it
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Verifies without any service; `--tenant` and `--output` are the common ones.
pub(crate) fn forensic(asked: &Forensic, connection: &Connection) -> std::process::ExitCode {
    let arguments = stella_forensic::Arguments {
        bundle: asked.bundle.clone(),
        trust_roots: asked.trust_roots.clone(),
        keys: asked.keys.clone(),
        subject: asked.subject.clone(),
        at: asked.at.clone(),
        policy: asked.policy.clone(),
        tenant: connection
            .tenant
            .as_ref()
            .map(|tenant| tenant.as_str().to_owned()),
        output: match connection.output {
            Output::Table => stella_forensic::Output::Table,
            Output::Json => stella_forensic::Output::Json,
        },
    };
    stella_forensic::run(&arguments, &mut std::io::stdout().lock())
}

/// The digest of a subject argument.
///
/// # Errors
/// A malformed digest, or a file that cannot be read.
pub fn subject(text: &str) -> Result<Digest, Failure> {
    stella_forensic::subject_digest(text).map_err(|error| {
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        let message = format!("{error}{cause}");
        match error.exit_code() {
            2 => Failure::usage(message),
            4 => Failure::not_found(message),
            _ => Failure::new(message),
        }
    })
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection) -> Result<(), Failure> {
    let evidence = read_file("the bundle", &arguments.bundle)?;
    let policy = arguments
        .policy
        .as_deref()
        .map(|path| read_file("the policy", path))
        .transpose()?;
    let subject = arguments.subject.as_deref().map(subject).transpose()?;
    let request = pb::VerifyRequest {
        evidence: evidence.into(),
        subject_digest: subject.map(|digest| digest.to_string()).unwrap_or_default(),
        at: arguments.at,
        policy: policy.unwrap_or_default().into(),
        seal: None,
    };
    let verdict = connection
        .verifier()
        .await?
        .verify(connection.request(request))
        .await?
        .into_inner();
    if connection.is_json() {
        print(&[&verdict.report[..], b"\n"].concat())?;
    } else {
        print_line(if verdict.verified { "VERIFIED" } else { "REFUSED" })?;
        let rows: Vec<Vec<String>> = verdict
            .checks
            .iter()
            .map(|check| {
                let status = match check.status() {
                    CheckStatus::Passed => "passed",
                    CheckStatus::Failed => "failed",
                    CheckStatus::NotApplicable => "not-applicable",
                    CheckStatus::Unspecified => "unknown",
                };
                vec![
                    check.name.clone(),
                    status.to_owned(),
                    check.reason.clone(),
                    check.detail.clone(),
                ]
            })
            .collect();
        print(table(&["CHECK", "STATUS", "REASON", "DETAIL"], &rows).as_bytes())?;
    }
    let failed = verdict
        .checks
        .iter()
        .filter(|check| check.status() == CheckStatus::Failed);
    let failed: Vec<String> = failed
        .map(|check| format!("{}:{}", check.name, check.reason))
        .collect();
    match verdict.verified {
        true => Ok(()),
        false => Err(Failure::refused(format!(
            "verification failed: {}",
            failed.join(", ")
        ))),
    }
}
