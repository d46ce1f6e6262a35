//! Verifies bundles, envelopes and slices where there is no network.
//!
//! [`Arguments`] name the files, [`verify`] reads them once and asks `stella_attest`, [`run`] prints the report and gives
//! the exit code. The report is a pure function of the files and arguments: the same bytes on every machine, and the
//! same as from the service.

use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use stella_attest::digest::{Digest, Hasher};
use stella_attest::json::{self, Limits};
use stella_attest::key::{KeyError, VerifyingKey};
use stella_attest::policy::{Policy, PolicyError};
use stella_attest::report::Report;
use stella_attest::slice::{self, SliceReport};
use stella_attest::timestamp::Timestamp;
use stella_attest::trust::{ConfiguredKey, Purpose, SigstoreRoots, TrustError, TrustRoots};
use stella_attest::verify::{self, Request};

/// Exit code of a refused evidence.
pub const REFUSED: u8 = 3;
/// Exit code when a file is not there.
pub const NOT_FOUND: u8 = 4;

/// What is to be verified, and against what.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
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
    /// The tenant for whom the key must be allowed to sign; default: any
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// How to print the report
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// The canonical report, one line.
    Json,
}

/// Why no verdict was reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {what} `{path}`", path = .path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The trust roots do not parse.
    #[error("the trust roots `{path}` are refused", path = .path.display())]
    TrustRoots {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TrustError,
    },
    /// A key does not parse.
    #[error("the key `{path}` is refused", path = .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// The policy does not parse.
    #[error("the policy `{path}` is refused", path = .path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PolicyError,
    },
    /// An argument does not parse.
    #[error("`--{name}` {rule}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl Error {
    /// 2 for a wrong argument or policy, 4 for a file that is not there, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            Self::Argument { .. } | Self::Policy { .. } | Self::Key { .. } => 2,
            Self::Read { .. } | Self::TrustRoots { .. } => 1,
        }
    }
}

/// A verdict.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// On a bundle or an envelope.
    Evidence(Report),
    /// On a slice.
    Slice(SliceReport),
}

impl Verdict {
    /// True if everything that was asked for holds.
    pub fn verified(&self) -> bool {
        match self {
            Self::Evidence(report) => report.verified(),
            Self::Slice(report) => report.verified(),
        }
    }

    /// The report's canonical bytes.
    pub fn to_canonical(&self) -> Vec<u8> {
        match self {
            Self::Evidence(report) => report.to_canonical(),
            Self::Slice(report) => report.to_canonical(),
        }
    }
}

/// Reads the files and reaches a verdict.
///
/// # Errors
/// [`Error`] if there is nothing to judge, or nothing to judge it by.
pub fn verify(arguments: &Arguments) -> Result<Verdict, Error> {
    let roots = trust_roots(arguments)?;
    let policy = match &arguments.policy {
        None => None,
        Some(path) => {
            let yaml = read("the policy", path)?;
            Some(Policy::parse(&yaml).map_err(|source| Error::Policy {
                path: path.clone(),
                source,
            })?)
        }
    };
    let subject = arguments.subject.as_deref().map(subject_digest).transpose()?;
    let at: Option<Timestamp> = match &arguments.at {
        None => None,
        Some(text) => {
            let rule = "is a time as in RFC 3339, such as 2025-11-11T12:00:00Z";
            Some(text.parse().map_err(|_| Error::Argument { name: "at", rule })?)
        }
    };
    let bytes = read("the evidence", &arguments.bundle)?;
    if is_slice(&bytes) {
        let options = slice::Options {
            subject,
            at,
            policy: policy.as_ref(),
        };
        return Ok(Verdict::Slice(slice::verify(&bytes, &options, &roots)));
    }
    let request = Request {
        subject,
        at,
        policy: policy.as_ref(),
        tenant: arguments.tenant.as_deref(),
        ..Request::default()
    };
    Ok(Verdict::Evidence(verify::verify(&bytes, &request, &roots).report))
}

/// The trust roots, of either format, and the keys of the arguments, which may sign anything for anybody.
fn trust_roots(arguments: &Arguments) -> Result<TrustRoots, Error> {
    let path = &arguments.trust_roots;
    let bytes = read("trust roots", path)?;
    let parsed = if SigstoreRoots::is_one(&bytes) {
        let none = || TrustRoots::new(Vec::new(), None, Vec::new(), Vec::new(), Vec::new());
        SigstoreRoots::parse(&bytes).map(|sigstore| none().with_sigstore(sigstore))
    } else {
        TrustRoots::parse(&bytes)
    };
    let roots = parsed.map_err(|source| Error::TrustRoots {
        path: path.clone(),
        source,
    })?;
    let mut keys = Vec::with_capacity(arguments.keys.len());
    for path in &arguments.keys {
        let pem = read("the key", path)?;
        let key = VerifyingKey::from_spki_pem(&String::from_utf8_lossy(&pem));
        keys.push(ConfiguredKey {
            key: key.map_err(|source| Error::Key {
                path: path.clone(),
                source,
            })?,
            purpose: Purpose::Attestation,
            issuer: path.display().to_string(),
            tenants: vec!["*".into()],
            predicate_types: vec!["*".into()],
        });
    }
    Ok(roots.with_keys(keys))
}

/// A slice is told by its first member, which canonical form puts there; only then is it parsed to be sure.
fn is_slice(bytes: &[u8]) -> bool {
    bytes.starts_with(b"{\"events\":")
        || json::parse(
            bytes,
            &Limits {
                bytes: slice::MAX_BYTES,
                values: slice::MAX_VALUES,
                ..Limits::default()
            },
        )
        .is_ok_and(|document| slice::is_slice(&document))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    // One byte more than anything may have: who parses it then sees that it is too large.
    let mut bytes = Vec::new();
    file.take(slice::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// The digest of a subject: stated as `sha256:HEX`, or of a file, which is read in pieces.
///
/// # Errors
/// [`Error::Argument`] for a malformed digest, [`Error::Read`] for a file that cannot be read.
pub fn subject_digest(subject: &str) -> Result<Digest, Error> {
    if subject.starts_with("sha256:") {
        let rule = "is a file, or `sha256:` and 64 lower-case hex digits";
        return subject.parse().map_err(|_| Error::Argument {
            name: "subject",
            rule,
        });
    }
    let failed = |source| Error::Read {
        what: "the subject",
        path: subject.into(),
        source,
    };
    let mut file = std::fs::File::open(subject).map_err(failed)?;
    let mut hasher = Writing(Hasher::new());
    io::copy(&mut file, &mut hasher).map_err(failed)?;
    Ok(hasher.0.finish())
}

struct Writing(Hasher);

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Verifies, prints the report to `out` and errors to standard error.
pub fn run(arguments: &Arguments, out: &mut dyn Write) -> ExitCode {
    let verdict = match verify(arguments) {
        Ok(verdict) => verdict,
        Err(error) => {
            let source = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            // That nobody reads it is no failure.
            let _ = writeln!(io::stderr(), "error: {error}{}", source.unwrap_or_default());
            return ExitCode::from(error.exit_code());
        }
    };
    let text = match arguments.output {
        Output::Json => [verdict.to_canonical(), b"\n".to_vec()].concat(),
        Output::Table => table(&verdict).into_bytes(),
    };
    // A reader that went away has seen what it wanted; the exit code still tells the verdict.
    let written = out.write_all(&text).and_then(|()| out.flush());
    if written.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        return ExitCode::FAILURE;
    }
    if verdict.verified() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    }
}

/// The report for people.
pub fn table(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Evidence(report) => evidence_table(report),
        Verdict::Slice(report) => slice_table(report),
    }
}

fn headline(verified: bool) -> &'static str {
    if verified { "VERIFIED\n" } else { "REFUSED\n" }
}

fn evidence_table(report: &Report) -> String {
    let mut text = headline(report.verified()).to_owned();
    for check in report.checks() {
        let (name, status) = (check.name.as_str(), check.status);
        let words = [status.reason(), check.detail.as_str()].map(str::to_owned);
        let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
        text.push_str(&format!(
            "  {name:<14} {:<15} {}\n",
            status.as_str(),
            words.join(": ")
        ));
    }
    text.push_str(&format!("  trust roots    {}\n", report.trust_root_digest()));
    text
}

fn slice_table(report: &SliceReport) -> String {
    let mut text = headline(report.verified()).to_owned();
    for reason in &report.reasons {
        text.push_str(&format!("  {reason}\n"));
    }
    for event in &report.events {
        let reasons = event.reasons.join(", ");
        text.push_str(&format!(
            "  {:<40} {:<9} {reasons}\n",
            event.id,
            event.verdict.as_str()
        ));
    }
    text
}
