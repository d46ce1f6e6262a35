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
struct Params {
    #[serde(rename = "N")]
    cost: u64,
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
        .find(|log2| sealed.kdf.params.cost == 1 << log2);
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
pub(super) mod tests {
    use serde_json::{Value, json};
    use stella_attest::key::Algorithm;

    use super::*;

    /// The JSON of a plaintext that is encrypted under `password`, as cosign writes it.
    pub(crate) fn seal(plaintext: &[u8], password: &[u8]) -> Value {
        let (salt, nonce) = ([3; SALT_BYTES], [4; NONCE_BYTES]);
        let params = scrypt::Params::new(LOG2_COSTS[0], 8, 1, 32).expect("parameters");
        let mut key = [0; 32];
        scrypt::scrypt(password, &salt, &params, &mut key).expect("derives");
        let cipher = XSalsa20Poly1305::new(Key::from_slice(&key));
        let ciphertext = cipher
            .encrypt(Nonce::from_slice(&nonce), plaintext)
            .expect("encrypts");
        json!({
            "kdf": {
                "name": "scrypt", "params": {"N": 32768, "r": 8, "p": 1}, "salt": BASE64_STANDARD.encode(salt),
            },
            "cipher": {"name": "nacl/secretbox", "nonce": BASE64_STANDARD.encode(nonce)},
            "ciphertext": BASE64_STANDARD.encode(ciphertext),
        })
    }

    pub(crate) fn to_pem(label: &str, json: &Value) -> String {
        let json = serde_json::to_vec(json).expect("JSON");
        pem::encode_string(label, pem::LineEnding::LF, &json).expect("PEM")
    }

    /// A key file, as cosign writes it.
    pub(crate) fn key_file(key: &SigningKey, password: &[u8]) -> String {
        let (_, der) = pem::decode_vec(key.to_pkcs8_pem().as_bytes())
            .map(|(label, der)| (label.to_owned(), der))
            .expect("PEM");
        to_pem(LABELS[0], &seal(&der, password))
    }

    #[test]
    fn a_key_under_either_label_is_read_with_its_password_alone() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let file = key_file(&key, b"correct horse");
        for text in [
            file.clone(),
            file.replace("SIGSTORE", "COSIGN"),
            format!("\n{file}\n"),
        ] {
            assert!(is_encrypted(&text));
            let read = read(&text, Some(b"correct horse")).expect("a key");
            assert_eq!(read.verifying_key(), key.verifying_key());
        }
        for (case, password, want) in [
            (
                "another",
                Some(&b"correct house"[..]),
                CosignKeyError::WrongPassword,
            ),
            (
                "with a newline",
                Some(b"correct horse\n"),
                CosignKeyError::WrongPassword,
            ),
            ("an empty one", Some(b""), CosignKeyError::WrongPassword),
            ("none", None, CosignKeyError::NoPassword),
        ] {
            let refused = read(&file, password).map(|key| key.verifying_key().clone());
            assert_eq!(refused, Err(want), "{case}");
        }
        let empty = read(&key_file(&key, b""), Some(b"")).expect("an empty password is one");
        assert_eq!(empty.verifying_key(), key.verifying_key());
    }

    #[test]
    fn what_cosign_would_not_have_written_is_refused_before_anything_is_derived() {
        const PARAMS: &str = "`kdf.params` are not N = 32768, 65536 or 131072, r = 8, p = 1";
        let good = seal(b"plaintext", b"p");
        let short = BASE64_STANDARD.encode([0; TAG_BYTES]);
        for (case, at, value, want) in [
            (
                "a cost of memory",
                "/kdf/params/N",
                json!(1_u64 << 40),
                Err(PARAMS),
            ),
            ("a cost below", "/kdf/params/N", json!(16384), Err(PARAMS)),
            ("no power of two", "/kdf/params/N", json!(32769), Err(PARAMS)),
            ("no cost", "/kdf/params/N", json!(0), Err(PARAMS)),
            ("large blocks", "/kdf/params/r", json!(16), Err(PARAMS)),
            ("no blocks", "/kdf/params/r", json!(0), Err(PARAMS)),
            ("in parallel", "/kdf/params/p", json!(u32::MAX), Err(PARAMS)),
            (
                "negative",
                "/kdf/params/N",
                json!(-32768),
                Ok("the JSON is another one"),
            ),
            (
                "another kdf",
                "/kdf/name",
                json!("argon2"),
                Err("`kdf.name` is not `scrypt`"),
            ),
            (
                "another cipher",
                "/cipher/name",
                json!("aes"),
                Err("`cipher.name` is not `nacl/secretbox`"),
            ),
            (
                "a short salt",
                "/kdf/salt",
                json!("AAAA"),
                Ok("`kdf.salt` is not 32 bytes in base64"),
            ),
            (
                "no base64",
                "/kdf/salt",
                json!("%"),
                Ok("`kdf.salt` is not 32 bytes in base64"),
            ),
            (
                "a long nonce",
                "/cipher/nonce",
                json!(BASE64_STANDARD.encode([0; 25])),
                Ok("`cipher.nonce` is not 24 bytes in base64"),
            ),
            (
                "a tag alone",
                "/ciphertext",
                json!(short),
                Ok("`ciphertext` is not base64, or too short"),
            ),
            (
                "cut base64",
                "/ciphertext",
                json!("A"),
                Ok("`ciphertext` is not base64, or too short"),
            ),
            (
                "no ciphertext",
                "/ciphertext",
                Value::Null,
                Ok("the JSON is another one"),
            ),
            (
                "a member that is not known",
                "/cipher",
                json!({"name": "nacl/secretbox", "nonce": "", "iv": ""}),
                Ok("the JSON is another one"),
            ),
        ] {
            let mut json = good.clone();
            *json.pointer_mut(at).expect("a member") = value;
            let want = match want {
                Ok(malformed) => CosignKeyError::Malformed(malformed),
                Err(unsupported) => CosignKeyError::Unsupported(unsupported),
            };
            // There is no password: what is wrong with the file comes first.
            let refused = decrypt(&to_pem(LABELS[0], &json), None).map(|_| ());
            assert_eq!(refused, Err(want), "{case}");
        }
        let mut altered = good.clone();
        altered["ciphertext"] = json!(BASE64_STANDARD.encode([7; 25]));
        assert_eq!(
            decrypt(&to_pem(LABELS[0], &altered), Some(b"p")).map(|_| ()),
            Err(CosignKeyError::WrongPassword)
        );
        assert_eq!(
            read(&to_pem(LABELS[0], &good), Some(b"p")).map(|_| ()),
            Err(CosignKeyError::Key(KeyError::Malformed)),
            "no key"
        );
    }

    #[test]
    fn what_is_no_whole_file_of_cosign_is_refused_by_what_is_wrong_with_it() {
        let good = seal(b"plaintext", b"p");
        let file = to_pem(LABELS[0], &good);
        let twice = String::from_utf8(serde_json::to_vec(&good).expect("JSON")).expect("UTF-8");
        let twice = twice.replace("\"r\":8", "\"r\":8,\"r\":8");
        let twice = pem::encode_string(LABELS[0], pem::LineEnding::LF, twice.as_bytes()).expect("PEM");
        for (case, text, want) in [
            (
                "cut short",
                file[..file.len() / 2].to_owned(),
                "no whole PEM block",
            ),
            ("nothing", String::new(), "no whole PEM block"),
            ("two blocks", format!("{file}{file}"), "no whole PEM block"),
            (
                "too large",
                " ".repeat(MAX_FILE_BYTES) + &file,
                "the file is too large",
            ),
            (
                "another label",
                file.replace(LABELS[0], "ENCRYPTED PRIVATE KEY"),
                "the PEM label is another one",
            ),
            (
                "other JSON",
                to_pem(LABELS[0], &json!({})),
                "the JSON is another one",
            ),
            ("a member twice", twice, "the JSON is another one"),
        ] {
            let refused = decrypt(&text, Some(b"p")).map(|_| ());
            assert_eq!(refused, Err(CosignKeyError::Malformed(want)), "{case}");
        }
    }
}
