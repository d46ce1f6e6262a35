//! `stella trust`: the trust roots that the Verifier has in force, and the file that it reads them from.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use stella_attest::canonical;
use stella_attest::key::VerifyingKey;
use stella_attest::trust::{ConfiguredKey, Purpose, SigstoreRoots, TrustRoots};

use super::audit::trust_roots;
use crate::client::Connection;
use crate::failure::{Failure, read_file, write_file};
use crate::output::{print_json, print_line};

/// How the trust roots are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Our own format, for `stella forensic verify`.
    Stella,
    /// `trusted_root.json`, for any Sigstore client.
    Sigstore,
}

/// What is added to a file of trust roots.
#[derive(Args, Debug)]
pub struct Addition {
    /// The file, in the format `stella`; the Verifier reads it again when it changes
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// A public key (PEM) that may sign attestations, such as cosign.pub
    #[arg(long, value_name = "PEM")]
    public_key: Option<PathBuf>,
    /// Who stands behind the key
    #[arg(long, value_name = "NAME", requires = "public_key")]
    issuer: Option<String>,
    /// A tenant that the key may sign for; default: all
    #[arg(long = "key-tenant", value_name = "TENANT", requires = "public_key")]
    tenants: Vec<String>,
    /// A predicateType that the key may sign, * for any run of characters; default: all
    #[arg(long = "predicate-type", value_name = "PATTERN", requires = "public_key")]
    predicate_types: Vec<String>,
    /// Logs and timestamp authorities to believe: a Sigstore trusted_root.json
    #[arg(long, value_name = "FILE")]
    sigstore: Option<PathBuf>,
}

/// Shows what verdicts believe
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Adds a key, or what a Sigstore trusted root names, to a file of trust roots
    Add(Addition),
    /// Writes the trust roots to a file
    Export {
        /// How to write them
        #[arg(long, value_enum, default_value_t = Format::Stella)]
        format: Format,
        /// Where they go
        #[arg(short = 'o', long = "out", value_name = "FILE")]
        out: PathBuf,
    },
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    let (format, out) = match command {
        Command::Add(addition) => return add(&addition, connection),
        Command::Export { format, out } => (format, out),
    };
    let roots = trust_roots(connection).await?;
    match format {
        Format::Stella => write_file(&out, roots.to_canonical())?,
        Format::Sigstore => write_file(&out, &canonical::to_vec(&roots.to_sigstore()))?,
    }
    match connection.is_json() {
        true => print_json(&json!({"digest": roots.digest().to_string(), "file": out})),
        false => print_line(&format!(
            "wrote {} (trust roots {})",
            out.display(),
            roots.digest()
        )),
    }
}

/// Writes the file anew; what it names already is not added again.
fn add(addition: &Addition, connection: &Connection) -> Result<(), Failure> {
    if addition.public_key.is_none() && addition.sigstore.is_none() {
        return Err(Failure::usage("there is nothing to add").hint("give --public-key, --sigstore or both"));
    }
    let path = &addition.roots;
    let refused =
        |path: &Path, error: &dyn std::error::Error| Failure::usage(format!("`{}`: {error}", path.display()));
    let mut roots =
        TrustRoots::parse(&read_file("the trust roots", path)?).map_err(|error| refused(path, &error))?;
    if let Some(path) = &addition.public_key {
        let pem = String::from_utf8_lossy(&read_file("the key", path)?).into_owned();
        let key = VerifyingKey::from_spki_pem(&pem).map_err(|error| refused(path, &error))?;
        let is_known = roots.keys_for(Purpose::Attestation).contains(&&key);
        if !is_known {
            let any = |given: &[String]| {
                if given.is_empty() {
                    vec!["*".to_owned()]
                } else {
                    given.to_vec()
                }
            };
            roots = roots.with_keys(vec![ConfiguredKey {
                issuer: addition
                    .issuer
                    .clone()
                    .unwrap_or_else(|| key.key_id().to_string()),
                key,
                purpose: Purpose::Attestation,
                tenants: any(&addition.tenants),
                predicate_types: any(&addition.predicate_types),
            }]);
        }
    }
    if let Some(path) = &addition.sigstore {
        let sigstore = SigstoreRoots::parse(&read_file("the trusted root", path)?)
            .map_err(|error| refused(path, &error))?;
        roots = roots.with_sigstore(sigstore);
    }
    write_file(path, roots.to_canonical())?;
    match connection.is_json() {
        true => print_json(&json!({"digest": roots.digest().to_string(), "file": path})),
        false => print_line(&format!(
            "wrote {} (trust roots {})",
            path.display(),
            roots.digest()
        )),
    }
}
