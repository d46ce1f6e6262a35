//! Key files as cosign writes them, and what it would not write.

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
