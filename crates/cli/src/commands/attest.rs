//! `stella attest`: signs a predicate about a subject, has it logged and witnessed, and writes the bundle.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::evidence::Evidence;
use stella_attest::follows;
use stella_attest::json::{self, Limits};
use stella_attest::statement;
use stella_proto::signer::v1 as pb;

use crate::client::{Connection, idempotency_key};
use crate::failure::{Failure, read_file, try_to_write, write_file};
use crate::output::{print_json, print_line};

/// Signs a predicate about a subject, logs it and writes a Sigstore bundle
#[derive(Args, Debug)]
pub struct Arguments {
    /// sbom, vex, scan, build, or a predicateType URI
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: String,
    /// The artifact: a file, or its digest as sha256:HEX
    #[arg(long, value_name = "FILE|DIGEST")]
    pub subject: String,
    /// Name of the subject; default: the file's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The predicate (JSON)
    #[arg(long, value_name = "FILE")]
    pub predicate: PathBuf,
    /// Bundle of a predecessor, to be named in the signed predicate
    #[arg(long, value_name = "BUNDLE")]
    pub follows: Vec<PathBuf>,
    /// Key slot that signs
    #[arg(long, value_name = "SLOT", default_value = "")]
    pub slot: String,
    /// Where the bundle goes
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    /// Where the bare envelope goes too
    #[arg(long, value_name = "FILE")]
    pub envelope_out: Option<PathBuf>,
}

/// The predicateType that a short name means.
///
/// # Errors
/// Neither a short name nor a URI, or an SBOM in no known format.
pub fn predicate_type(kind: &str, predicate: &Value) -> Result<String, Failure> {
    let named = match kind {
        "sbom" if predicate.get("spdxVersion").is_some() => statement::SPDX,
        "sbom" if predicate["bomFormat"].as_str() == Some("CycloneDX") => statement::CYCLONEDX,
        "sbom" => {
            let message = "the predicate is neither CycloneDX (`bomFormat`) nor SPDX (`spdxVersion`)";
            return Err(Failure::usage(message).hint("name the predicateType itself with --type URI"));
        }
        "vex" => statement::OPENVEX,
        "scan" => statement::VULN_COSIGN,
        "build" => statement::SLSA_PROVENANCE,
        uri if uri.contains([':', '/']) => uri,
        other => {
            let message = format!("`{other}` is no type of attestation");
            return Err(Failure::usage(message).hint("give sbom, vex, scan, build, or a predicateType URI"));
        }
    };
    Ok(named.to_owned())
}

/// The statement's bytes, predecessors included.
///
/// # Errors
/// The predicate has no place for predecessors.
pub fn statement(
    name: &str,
    subject: &Digest,
    predicate_type: &str,
    mut predicate: Value,
    after: &[Digest],
) -> Result<Vec<u8>, Failure> {
    for digest in after {
        follows::add(&mut predicate, predicate_type, digest).map_err(|error| {
            Failure::usage(format!("--follows: {error}")).hint("link it with `publish --chain` alone")
        })?;
    }
    Ok(statement::build(name, subject, predicate_type, predicate))
}

/// Reads the evidence in a file.
///
/// # Errors
/// It cannot be read, or is neither bundle nor envelope.
pub fn read_evidence(path: &std::path::Path) -> Result<(Vec<u8>, Evidence), Failure> {
    let bytes = read_file("the bundle", path)?;
    let parsed = Evidence::parse(&bytes).map_err(|error| {
        Failure::new(format!(
            "`{}` is refused: {error} [{}]",
            path.display(),
            error.reason()
        ))
    })?;
    Ok((bytes, parsed))
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection) -> Result<(), Failure> {
    let predicate = read_file("the predicate", &arguments.predicate)?;
    let predicate = json::parse(&predicate, &Limits::default())
        .map_err(|error| Failure::usage(format!("the predicate is refused: {error} [{}]", error.reason())))?;
    if !predicate.is_object() {
        return Err(Failure::usage("the predicate is not a JSON object"));
    }
    let predicate_type = predicate_type(&arguments.kind, &predicate)?;
    let subject = super::verify::subject(&arguments.subject)?;
    let file_name = std::path::Path::new(&arguments.subject)
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = arguments
        .name
        .or(file_name)
        .unwrap_or_else(|| arguments.subject.clone());
    let mut after = Vec::new();
    for path in &arguments.follows {
        after.push(read_evidence(path)?.1.envelope_digest);
    }
    let payload = statement(&name, &subject, &predicate_type, predicate, &after)?;
    // What is signed and logged stays so: first see that it can be kept.
    for path in [Some(&arguments.out), arguments.envelope_out.as_ref()]
        .into_iter()
        .flatten()
    {
        try_to_write(path)?;
    }
    let order = pb::SignRequest {
        payload: payload.into(),
        key_slot: arguments.slot,
        transparency: pb::Transparency::Required.into(),
        idempotency_key: idempotency_key()?,
        ..pb::SignRequest::default()
    };
    let signed = connection
        .call(async || {
            let request = connection.request(order.clone());
            Ok(connection.signer().await?.sign(request).await?.into_inner())
        })
        .await?;
    write_file(&arguments.out, &signed.bundle)?;
    if let Some(path) = &arguments.envelope_out {
        write_file(path, &signed.envelope)?;
    }
    let index = signed.log.as_ref().map(|log| log.log_index);
    if connection.is_json() {
        return print_json(&json!({
            "bundle": arguments.out, "envelopeDigest": signed.envelope_digest, "keyId": signed.key_id,
            "logIndex": index, "predicateType": predicate_type, "subject": subject.to_string(),
        }));
    }
    let place = index
        .map(|index| format!(", log index {index}"))
        .unwrap_or_default();
    print_line(&format!(
        "signed {} by {}{place}",
        signed.envelope_digest, signed.key_id
    ))?;
    print_line(&format!("wrote {}", arguments.out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_stand_for_predicate_types() {
        for (kind, predicate, want) in [
            (
                "sbom",
                json!({"bomFormat": "CycloneDX"}),
                Some(statement::CYCLONEDX),
            ),
            ("sbom", json!({"spdxVersion": "SPDX-2.3"}), Some(statement::SPDX)),
            ("sbom", json!({}), None),
            ("vex", json!({}), Some(statement::OPENVEX)),
            ("scan", json!({}), Some(statement::VULN_COSIGN)),
            ("build", json!({}), Some(statement::SLSA_PROVENANCE)),
            ("https://example.com/x", json!({}), Some("https://example.com/x")),
            ("licence", json!({}), None),
        ] {
            assert_eq!(predicate_type(kind, &predicate).ok().as_deref(), want, "{kind}");
        }
    }
}
