//! `stella keys`: the Signer's keys. No private key ever crosses the wire: new ones are files in its key directory.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};
use stella_attest::key::{Algorithm, SigningKey, VerifyingKey};
use stella_proto::signer::v1 as pb;
use stella_serve::fs::{Access, FsError, read_secret_text, write_atomic};
use stella_signer::keys::cosign::{self, CosignKeyError};

use crate::client::{Connection, idempotency_key};
use crate::failure::{Failure, write_file};
use crate::output::{print, print_json, print_line, table};

/// Lists, makes and rotates the Signer's keys
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Lists the keys of every slot
    List,
    /// Writes a public key (PEM SubjectPublicKeyInfo)
    Export {
        /// The key's id; default: the active key of the slot
        id: Option<String>,
        /// The slot, if no id is given
        #[arg(long, value_name = "SLOT", default_value = "")]
        slot: String,
        /// Where it goes
        #[arg(short = 'o', long = "out", value_name = "FILE")]
        out: PathBuf,
    },
    /// Makes a P-256 key in the Signer's key directory; it is prepared until it is rotated to
    Generate {
        /// The Signer's key directory
        #[arg(long, value_name = "DIR")]
        key_dir: PathBuf,
        /// The slot
        #[arg(long, value_name = "SLOT", default_value = "default")]
        slot: String,
    },
    /// Puts a key of another tool into the Signer's key directory, as PKCS#8
    ///
    /// Takes PKCS#8, SEC 1 and PKCS#1 PEM files and cosign's encrypted keys; COSIGN_PASSWORD holds the password of those.
    Import {
        /// The Signer's key directory
        #[arg(long, value_name = "DIR")]
        key_dir: PathBuf,
        /// The slot
        #[arg(long, value_name = "SLOT", default_value = "default")]
        slot: String,
        /// The key (PEM, mode 0600)
        file: PathBuf,
    },
    /// Activates a prepared key and retires the active one
    Rotate {
        /// The key to activate; default: the only prepared one
        #[arg(long, value_name = "ID", default_value = "")]
        to: String,
        /// The slot
        #[arg(long, value_name = "SLOT", default_value = "")]
        slot: String,
    },
}

/// Makes a key file for a slot, readable by its owner alone.
///
/// # Errors
/// The directory cannot be written.
pub fn place(key_dir: &Path, slot: &str, key: &SigningKey) -> Result<PathBuf, Failure> {
    let well_formed = !slot.is_empty()
        && slot
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !well_formed {
        return Err(Failure::usage(format!(
            "`{slot}` is no name of a slot: use letters, digits, - and _"
        )));
    }
    let folder = key_dir.join(slot);
    std::fs::create_dir_all(&folder)
        .map_err(|error| Failure::new(format!("cannot make `{}`: {error}", folder.display())))?;
    let name = stella_attest::digest::Digest::of(key.verifying_key().spki()).hex();
    let path = folder.join(format!("{}.pem", &name[..16]));
    write_atomic(&path, key.to_pkcs8_pem().as_bytes(), Access::Owner)
        .map_err(|error| Failure::new(format!("{error}")))?;
    Ok(path)
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::List => list(connection).await,
        Command::Export { id, slot, out } => {
            let request = pb::GetKeyRequest {
                key_id: id.unwrap_or_default(),
                slot,
            };
            let answer = connection
                .call(async || {
                    let request = connection.request(request.clone());
                    Ok(connection.signer().await?.get_key(request).await?.into_inner())
                })
                .await?;
            let key = answer.key.unwrap_or_default();
            let public = VerifyingKey::from_spki_der(&key.spki)
                .map_err(|error| Failure::new(format!("the Signer sent no usable key: {error}")))?;
            write_file(&out, public.to_pem().as_bytes())?;
            match connection.is_json() {
                true => print_json(&json!({"file": out, "keyId": key.key_id})),
                false => print_line(&format!("wrote {} ({})", out.display(), key.key_id)),
            }
        }
        Command::Generate { key_dir, slot } => {
            let key = SigningKey::generate(Algorithm::EcdsaP256)
                .map_err(|error| Failure::new(error.to_string()))?;
            placed(connection, &key_dir, &slot, &key)
        }
        Command::Import { key_dir, slot, file } => {
            let password = std::env::var_os("COSIGN_PASSWORD").map(OsString::into_encoded_bytes);
            let pem = read_secret_text(&file).map_err(unreadable)?;
            let key = parse_foreign(&file, &pem, password.as_deref())?;
            if !key.verifying_key().is_loggable() {
                let message = format!("`{}` is refused: its signatures cannot be logged", file.display());
                return Err(Failure::new(message).hint("use a P-256, P-384 or RSA key"));
            }
            placed(connection, &key_dir, &slot, &key)
        }
        Command::Rotate { to, slot } => {
            let request = pb::RotateKeyRequest {
                slot,
                to_key_id: to,
                idempotency_key: idempotency_key()?,
            };
            let answer = connection
                .call(async || {
                    let request = connection.request(request.clone());
                    Ok(connection.signer().await?.rotate_key(request).await?.into_inner())
                })
                .await?;
            let (active, retired) = (
                answer.active.unwrap_or_default(),
                answer.retired.unwrap_or_default(),
            );
            if connection.is_json() {
                return print_json(&json!({
                    "active": to_json(&active), "historyVersion": answer.history_version, "retired": to_json(&retired),
                }));
            }
            print_line(&format!("active  {}", active.key_id))?;
            print_line(&format!("retired {} at {}", retired.key_id, retired.retired_at))
        }
    }
}

/// Reads the text of a key file of another tool; `password` is that of cosign's encrypted keys.
fn parse_foreign(file: &Path, pem: &str, password: Option<&[u8]>) -> Result<SigningKey, Failure> {
    let refused =
        |error: String, reason| Failure::new(format!("`{}` is refused: {error} [{reason}]", file.display()));
    if !cosign::is_encrypted(pem) {
        return SigningKey::from_any_pem(pem).map_err(|error| refused(error.to_string(), error.reason()));
    }
    cosign::read(pem, password).map_err(|error| {
        let failure = refused(error.to_string(), error.reason());
        match error {
            CosignKeyError::NoPassword => failure.hint("set COSIGN_PASSWORD"),
            _ => failure,
        }
    })
}

/// A key file that cannot be read; one that is not there is exit code 4.
fn unreadable(error: FsError) -> Failure {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    let message = format!("{error}{}", cause.unwrap_or_default());
    match error {
        FsError::Read { source, .. } if source.kind() == ErrorKind::NotFound => Failure::not_found(message),
        _ => Failure::new(message),
    }
}

fn placed(connection: &Connection, key_dir: &Path, slot: &str, key: &SigningKey) -> Result<(), Failure> {
    let path = place(key_dir, slot, key)?;
    let id = key.verifying_key().key_id();
    match connection.is_json() {
        true => print_json(&json!({"file": path, "keyId": id.to_string(), "slot": slot})),
        false => print_line(&format!("{id}\nwrote {}", path.display())),
    }
}

fn state(key: &pb::Key) -> &'static str {
    match key.state() {
        pb::KeyState::Prepared => "prepared",
        pb::KeyState::Active => "active",
        pb::KeyState::Retired => "retired",
        pb::KeyState::Revoked => "revoked",
        pb::KeyState::Unspecified => "unknown",
    }
}

fn to_json(key: &pb::Key) -> Value {
    json!({
        "activatedAt": key.activated_at, "algorithm": key.algorithm, "keyId": key.key_id,
        "predicateTypes": key.predicate_types, "retiredAt": key.retired_at, "slot": key.slot, "state": state(key),
        "tenants": key.tenants,
    })
}

async fn list(connection: &Connection) -> Result<(), Failure> {
    let answer = connection
        .call(async || {
            let request = connection.request(pb::ListKeysRequest {});
            Ok(connection.signer().await?.list_keys(request).await?.into_inner())
        })
        .await?;
    let keys = answer.keys;
    if connection.is_json() {
        return print_json(&keys.iter().map(to_json).collect());
    }
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let until = key.retired_at.clone();
            vec![
                key.key_id.clone(),
                key.slot.clone(),
                state(key).to_owned(),
                key.algorithm.clone(),
                until,
            ]
        })
        .collect();
    print(table(&["KEY", "SLOT", "STATE", "ALGORITHM", "RETIRED AT"], &rows).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cosign writes, of a ciphertext of zeros, which nothing opens.
    const SEALED: &str = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjozMjc2OCwiciI6
OCwicCI6MX0sInNhbHQiOiJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB
QUFBQUFBQUFBQUFBPSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQSJ9LCJj
aXBoZXJ0ZXh0IjoiQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUEifQ==
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
";

    #[test]
    fn a_key_of_another_tool_is_taken_or_refused_by_name() {
        let file = Path::new("cosign.key");
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let read = parse_foreign(file, &key.to_pkcs8_pem(), None).expect("a key needs no password");
        assert_eq!(read.verifying_key(), key.verifying_key());

        let elsewhere = key.to_pkcs8_pem().replace("PRIVATE", "ENCRYPTED PRIVATE");
        for (case, text, password, want) in [
            ("no password", SEALED, None, "[KEY_PASSWORD_MISSING]"),
            (
                "another password",
                SEALED,
                Some(&b"x"[..]),
                "[KEY_PASSWORD_WRONG]",
            ),
            ("an empty password", SEALED, Some(b""), "[KEY_PASSWORD_WRONG]"),
            ("cut short", &SEALED[..200], Some(b"x"), "[BAD_KEY]"),
            (
                "encrypted by another tool",
                &elsewhere,
                Some(b"x"),
                "[KEY_ENCRYPTED]",
            ),
            ("a public key", &key.verifying_key().to_pem(), None, "[BAD_KEY]"),
            ("no key", "hello", None, "[BAD_KEY]"),
        ] {
            let refused = match parse_foreign(file, text, password) {
                Ok(_) => "not refused".to_owned(),
                Err(failure) => format!("{failure:?}"),
            };
            assert!(
                refused.contains("`cosign.key` is refused: ") && refused.contains(want),
                "{case}: {refused}"
            );
        }
    }
}
