//! cosign's encrypted private keys, as `cosign generate-key-pair` and `cosign import-key-pair` write them.
//!
//! PEM holds JSON, the JSON names how a key is derived from the password (scrypt, RFC 7914) and holds the PKCS#8 form
//! of the private key under it (NaCl's secretbox: XSalsa20 and Poly1305). What the file asks for is compared with what
//! cosign can have written before any of it is done: a file cannot make the derivation cost more than it does there.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use crypto_secretbox::aead::Aead as _;
use crypto_secretbox::{Key, KeyInit as _, Nonce, XSalsa20Poly1305};
use p256::pkcs8::der::pem;
use serde::Deserialize;
use stella_attest::key::{KeyError, SigningKey};
use zeroize::Zeroizing;

/// Largest key file that is read, in bytes. One of RSA with 4096 bits has 4,400.
const MAX_FILE_BYTES: usize = 64 * 1024;
/// The labels of today's cosign and of the older one.
const LABELS: [&str; 2] = ["ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"];
/// log2 of the costs N that go-securesystemslib writes and reads; r is 8 and p is 1. 32, 64 and 128 MiB of memory.
const LOG2_COSTS: [u8; 3] = [15, 16, 17];
const SALT_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// What secretbox adds to its plaintext.
const TAG_BYTES: usize = 16;

/// Why an encrypted key was not read. None has any part of the key or of the password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CosignKeyError {
    /// Not PEM with one of cosign's labels, or not the JSON in it; the field that is wrong.
    #[error("not one of cosign's encrypted keys: {0}")]
    Malformed(&'static str),
    /// The file asks for another derivation or another cipher than cosign uses.
    #[error("encrypted in a way that cosign does not: {0}")]
    Unsupported(&'static str),
    /// The key is encrypted, and no password is configured.
    #[error("the key is encrypted, and no password is given for cosign's keys")]
    NoPassword,
    /// The password is another one, or the ciphertext was altered: the cipher cannot tell.
    #[error("the password is wrong, or the file was altered")]
    WrongPassword,
    /// What was encrypted is no private key that can be used.
    #[error("what is encrypted is no usable key: {0}")]
    Key(KeyError),
}

impl CosignKeyError {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed(_) => "BAD_KEY",
            Self::Unsupported(_) => "KEY_ENCRYPTION_UNSUPPORTED",
            Self::NoPassword => "KEY_PASSWORD_MISSING",
            Self::WrongPassword => "KEY_PASSWORD_WRONG",
            Self::Key(error) => error.reason(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(non_snake_case, reason = "as the file and RFC 7914 have it")]
struct Params {
    N: u64,
    r: u64,
    p: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cipher {
    name: String,
    nonce: String,
}

/// True if the text is labelled as one of cosign's encrypted keys, whether it is a whole one or not.
pub fn is_encrypted(text: &str) -> bool {
    let text = text.trim_start();
    LABELS
        .iter()
        .any(|label| text.starts_with(&format!("-----BEGIN {label}-----")))
}

/// Reads an encrypted key. Takes a tenth of a second or more, and 32 MiB or more, on purpose.
///
/// # Errors
/// [`CosignKeyError`].
pub fn read(text: &str, password: Option<&[u8]>) -> Result<SigningKey, CosignKeyError> {
    SigningKey::from_pkcs8_der(&decrypt(text, password)?).map_err(CosignKeyError::Key)
}

/// What is encrypted in a key file: the private key as PKCS#8.
///
/// # Errors
/// [`CosignKeyError`].
pub fn decrypt(text: &str, password: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, CosignKeyError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(CosignKeyError::Malformed("the file is too large"));
    }
    let (label, json) = pem::decode_vec(text.trim().as_bytes())
        .map_err(|_| CosignKeyError::Malformed("no whole PEM block"))?;
    if !LABELS.contains(&label) {
        return Err(CosignKeyError::Malformed("the PEM label is another one"));
    }
    open(&json, password)
}

/// What is encrypted in the JSON of a key file.
///
/// # Errors
/// [`CosignKeyError`].
pub fn open(json: &[u8], password: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, CosignKeyError> {
    let sealed: Sealed =
        serde_json::from_slice(json).map_err(|_| CosignKeyError::Malformed("the JSON is another one"))?;
    if sealed.kdf.name != "scrypt" {
        return Err(CosignKeyError::Unsupported("`kdf.name` is not `scrypt`"));
    }
    let cost = LOG2_COSTS
        .into_iter()
        .find(|log2| sealed.kdf.params.N == 1 << log2);
    let params = cost.filter(|_| sealed.kdf.params.r == 8 && sealed.kdf.params.p == 1);
    let params = params.and_then(|cost| scrypt::Params::new(cost, 8, 1, 32).ok());
    let params = params.ok_or(CosignKeyError::Unsupported(
        "`kdf.params` are not N = 32768, 65536 or 131072, r = 8, p = 1",
    ))?;
    if sealed.cipher.name != "nacl/secretbox" {
        return Err(CosignKeyError::Unsupported(
            "`cipher.name` is not `nacl/secretbox`",
        ));
    }
    let salt: [u8; SALT_BYTES] = bytes(&sealed.kdf.salt, "`kdf.salt` is not 32 bytes in base64")?;
    let nonce: [u8; NONCE_BYTES] = bytes(&sealed.cipher.nonce, "`cipher.nonce` is not 24 bytes in base64")?;
    let ciphertext = BASE64_STANDARD.decode(&sealed.ciphertext).ok();
    let ciphertext = ciphertext
        .filter(|ciphertext| ciphertext.len() > TAG_BYTES)
        .ok_or(CosignKeyError::Malformed(
            "`ciphertext` is not base64, or too short",
        ))?;
    let password = password.ok_or(CosignKeyError::NoPassword)?;
    let mut key = Zeroizing::new([0; 32]);
    scrypt::scrypt(password, &salt, &params, &mut *key).expect("the key's length is one that scrypt makes");
    let cipher = XSalsa20Poly1305::new(Key::from_slice(&*key));
    let plaintext = cipher
        .decrypt(Nonce::from_slice(&nonce), ciphertext.as_slice())
        .map_err(|_| CosignKeyError::WrongPassword)?;
    Ok(Zeroizing::new(plaintext))
}

fn bytes<const N: usize>(base64: &str, refused: &'static str) -> Result<[u8; N], CosignKeyError> {
    let bytes = BASE64_STANDARD.decode(base64).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(CosignKeyError::Malformed(refused))
}

#[cfg(test)]
pub(super) mod tests;
