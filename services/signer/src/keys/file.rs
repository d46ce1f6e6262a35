//! Keys in PEM files, one folder for each slot: `<dir>/<slot>/*.pem` and `*.key`, readable by their owner alone.
//!
//! A file is PKCS#8, or one of cosign's encrypted keys. Those need a password, which lies in a file of its own, and a
//! tenth of a second each: what was decrypted is kept by the file's digest, so that only a new file costs that again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use stella_attest::digest::Digest;
use stella_attest::key::{KeyId, SigningKey};
use stella_serve::fs::{FsError, read_secret, read_secret_text};
use tokio::runtime::{Handle, RuntimeFlavor};
use zeroize::Zeroizing;

use super::cosign::{self, CosignKeyError};
use super::{BackendKey, KeyBackend, KeyBackendError};

struct Held {
    slot: String,
    key: Arc<SigningKey>,
}

/// The outcomes for encrypted files, by the digest of the file, and the password that they are for.
#[derive(Default)]
struct Decrypted {
    password: Option<Zeroizing<Vec<u8>>>,
    keys: BTreeMap<Digest, Result<Arc<SigningKey>, CosignKeyError>>,
}

/// The keys below one directory.
pub struct FileBackend {
    dir: PathBuf,
    cosign_password_file: Option<PathBuf>,
    held: ArcSwap<BTreeMap<KeyId, Held>>,
    decrypted: Mutex<Decrypted>,
}

impl FileBackend {
    /// Reads every key file. `cosign_password_file` holds the password of cosign's encrypted keys; an empty one is one.
    ///
    /// # Errors
    /// One cannot be used: others may read it, it is encrypted in another way or with another password, or it holds no
    /// key. Or the password cannot be read.
    pub fn open(dir: &Path, cosign_password_file: Option<&Path>) -> Result<Self, KeyBackendError> {
        let backend = Self {
            dir: dir.to_owned(),
            cosign_password_file: cosign_password_file.map(Path::to_owned),
            held: ArcSwap::default(),
            decrypted: Mutex::default(),
        };
        backend.refresh()?;
        Ok(backend)
    }

    fn read_all(&self) -> Result<(), KeyBackendError> {
        // What it holds is whole after every step.
        let mut decrypted = self.decrypted.lock().unwrap_or_else(PoisonError::into_inner);
        let password = match &self.cosign_password_file {
            Some(file) => Some(read_password(file)?),
            None => None,
        };
        if decrypted.password != password {
            *decrypted = Decrypted {
                password,
                keys: BTreeMap::new(),
            };
        }
        let mut seen = Vec::new();
        let held = read_slots(&self.dir, &mut decrypted, &mut seen)?;
        decrypted.keys.retain(|digest, _| seen.contains(digest));
        self.held.store(Arc::new(held));
        Ok(())
    }
}

#[async_trait]
impl KeyBackend for FileBackend {
    async fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Vec<u8>, KeyBackendError> {
        self.sign_blocking(id, message)
    }

    fn sign_blocking(&self, id: &KeyId, message: &[u8]) -> Result<Vec<u8>, KeyBackendError> {
        let held = self.held.load();
        let key = held
            .get(id)
            .ok_or_else(|| KeyBackendError::NotFound(id.clone()))?;
        key.key.sign(message).map_err(|_| KeyBackendError::Signing)
    }

    fn keys(&self) -> Vec<BackendKey> {
        let held = self.held.load();
        held.values()
            .map(|held| BackendKey {
                slot: held.slot.clone(),
                key: held.key.verifying_key().clone(),
            })
            .collect()
    }

    fn refresh(&self) -> Result<(), KeyBackendError> {
        // A worker of the runtime hands its other tasks on before it reads files and derives keys.
        let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
        match flavor {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.read_all()),
            _ => self.read_all(),
        }
    }
}

fn read_slots(
    dir: &Path,
    decrypted: &mut Decrypted,
    seen: &mut Vec<Digest>,
) -> Result<BTreeMap<KeyId, Held>, KeyBackendError> {
    let mut held = BTreeMap::new();
    for folder in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let slot = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for file in entries(&folder)? {
            let extension = file.extension().and_then(|extension| extension.to_str());
            if !matches!(extension, Some("pem" | "key")) {
                continue;
            }
            let text = read_secret_file(&file)?;
            let key = match cosign::is_encrypted(&text) {
                true => decrypt(&file, &text, decrypted, seen)?,
                false => Arc::new(parse(&file, &text)?),
            };
            held.insert(
                key.verifying_key().key_id().clone(),
                Held {
                    slot: slot.clone(),
                    key,
                },
            );
        }
    }
    Ok(held)
}

/// The key in one of cosign's encrypted files. A refusal is kept, too: asking again costs nothing.
fn decrypt(
    path: &Path,
    text: &str,
    decrypted: &mut Decrypted,
    seen: &mut Vec<Digest>,
) -> Result<Arc<SigningKey>, KeyBackendError> {
    let digest = Digest::of(text.as_bytes());
    seen.push(digest);
    let password = decrypted.password.as_ref().map(|password| password.as_slice());
    let outcome = decrypted
        .keys
        .entry(digest)
        .or_insert_with(|| cosign::read(text, password).map(Arc::new));
    match outcome {
        Ok(key) => Ok(key.clone()),
        Err(error) => Err(refused(path, format!("{error} [{}]", error.reason()))),
    }
}

/// The password in its file: all bytes but one newline at the end.
fn read_password(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyBackendError> {
    let mut password = Zeroizing::new(read_secret(path).map_err(unreadable)?);
    if password.ends_with(b"\n") {
        password.pop();
        if password.ends_with(b"\r") {
            password.pop();
        }
    }
    Ok(password)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, KeyBackendError> {
    let failed =
        |error: std::io::Error| KeyBackendError::File(format!("cannot read `{}`: {error}", dir.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Reads one private key, which is PKCS#8.
///
/// # Errors
/// The file can be read by others, or holds no key that can be used here.
pub fn read_key(path: &Path) -> Result<SigningKey, KeyBackendError> {
    parse(path, &read_secret_file(path)?)
}

fn parse(path: &Path, pem: &str) -> Result<SigningKey, KeyBackendError> {
    SigningKey::from_pkcs8_pem(pem).map_err(|error| refused(path, format!("{error} [{}]", error.reason())))
}

fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, KeyBackendError> {
    Ok(Zeroizing::new(read_secret_text(path).map_err(unreadable)?))
}

fn unreadable(error: FsError) -> KeyBackendError {
    KeyBackendError::File(format!("{error} [{}]", error.reason()))
}

fn refused(path: &Path, what: String) -> KeyBackendError {
    KeyBackendError::File(format!("`{}` is refused: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::cosign::tests::{key_file, seal, to_pem};
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use stella_attest::key::Algorithm;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    }

    #[tokio::test]
    async fn a_file_that_others_may_read_or_that_holds_no_key_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let path = dir.path().join("default/a.pem");
        for (case, text, mode, want) in [
            (
                "group may read",
                key.to_pkcs8_pem(),
                0o640,
                "KEY_FILE_PERMISSIONS",
            ),
            ("all may read", key.to_pkcs8_pem(), 0o604, "KEY_FILE_PERMISSIONS"),
            ("a public key", key.verifying_key().to_pem(), 0o600, "BAD_KEY"),
            ("no PEM", "hello".to_owned(), 0o600, "BAD_KEY"),
            (
                "encrypted",
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
                    .to_owned(),
                0o600,
                "KEY_ENCRYPTED",
            ),
        ] {
            write(&path, &text, mode);
            let refused = FileBackend::open(dir.path(), None)
                .map(|_| ())
                .map_err(|error| error.to_string());
            assert!(
                refused
                    .as_ref()
                    .is_err_and(|text| text.contains(want) && text.contains("a.pem")),
                "{case}: {refused:?}"
            );
        }
        write(&path, &key.to_pkcs8_pem(), 0o600);
        let backend = FileBackend::open(dir.path(), None).expect("usable");
        let second = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let id = second.verifying_key().key_id();
        let missing = backend.sign(id, b"m").await.map_err(|error| error.reason());
        assert_eq!(missing, Err("KEY_NOT_FOUND"));
        write(&dir.path().join("release/b.pem"), &second.to_pkcs8_pem(), 0o600);
        backend.refresh().expect("usable");
        let slots: Vec<(String, KeyId)> = backend
            .keys()
            .into_iter()
            .map(|held| (held.slot, held.key.key_id().clone()))
            .collect();
        assert!(slots.contains(&("release".to_owned(), id.clone())), "{slots:?}");
        let signature = backend.sign(id, b"m").await.expect("signs");
        assert!(second.verifying_key().verify(b"m", &signature));
    }

    /// The text of a refusal.
    fn text_of(outcome: Result<FileBackend, KeyBackendError>) -> String {
        match outcome {
            Ok(_) => "not refused".to_owned(),
            Err(error) => {
                assert_eq!(error.reason(), "KEY_FILE_UNUSABLE");
                error.to_string()
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_cosign_encrypted_signs_beside_the_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let password = dir.path().join("password");
        let plain = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let (first, second) = (
            SigningKey::generate(Algorithm::EcdsaP256).expect("a key"),
            SigningKey::generate(Algorithm::Ed25519).expect("a key"),
        );
        let keys = dir.path().join("keys");
        write(&keys.join("default/plain.pem"), &plain.to_pkcs8_pem(), 0o600);
        write(
            &keys.join("release/cosign.key"),
            &key_file(&first, b"open sesame"),
            0o600,
        );
        write(
            &keys.join("release/cosign.pub"),
            &first.verifying_key().to_pem(),
            0o644,
        );
        write(&password, "open sesame\n", 0o600);
        let backend = FileBackend::open(&keys, Some(&password)).expect("usable");
        let mut slots = BTreeMap::new();
        for held in backend.keys() {
            slots.insert(held.key.key_id().clone(), held.slot);
        }
        let id = |key: &SigningKey| key.verifying_key().key_id().clone();
        let want = BTreeMap::from([(id(&plain), "default".into()), (id(&first), "release".into())]);
        assert_eq!(slots, want);

        let pae = stella_attest::dsse::pae("application/vnd.in-toto+json", b"{}");
        let signature = backend.sign(&id(&first), &pae).await.expect("signs");
        assert!(first.verifying_key().verify(&pae, &signature));
        assert!(!plain.verifying_key().verify(&pae, &signature));

        // A new password is for all files; a key whose file is gone is gone.
        write(&keys.join("release/cosign.key"), &key_file(&second, b""), 0o600);
        write(&password, "", 0o600);
        backend.refresh().expect("usable");
        let signature = backend.sign(&id(&second), &pae).await.expect("signs");
        assert!(second.verifying_key().verify(&pae, &signature));
        let gone = backend
            .sign(&id(&first), &pae)
            .await
            .map_err(|error| error.reason());
        assert_eq!(gone, Err("KEY_NOT_FOUND"));
    }

    #[test]
    fn an_encrypted_file_is_decrypted_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let password = dir.path().join("password");
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let keys = dir.path().join("keys");
        let file = keys.join("default/cosign.key");
        write(&file, &key_file(&key, b"p"), 0o600);
        write(&password, "p", 0o600);
        let backend = FileBackend::open(&keys, Some(&password)).expect("usable");
        let held = || {
            let held = backend.held.load();
            let only = held.values().next().expect("a key");
            (held.len(), only.key.clone())
        };
        let (_, first) = held();
        backend.refresh().expect("usable");
        assert!(
            Arc::ptr_eq(&first, &held().1),
            "the same key, not one decrypted again"
        );
        // Another name is no other file; another password is another question.
        std::fs::rename(&file, keys.join("default/renamed.pem")).expect("renamed");
        backend.refresh().expect("usable");
        assert!(Arc::ptr_eq(&first, &held().1));
        write(&password, "q", 0o600);
        let refused = backend.refresh().map_err(|error| error.to_string());
        assert!(
            refused
                .as_ref()
                .is_err_and(|text| text.contains("KEY_PASSWORD_WRONG")),
            "{refused:?}"
        );
        assert!(Arc::ptr_eq(&first, &held().1), "what was held is held on");
        write(&password, "p", 0o600);
        backend.refresh().expect("usable");
        assert_eq!(held().0, 1);
    }

    #[test]
    fn an_encrypted_file_or_a_password_that_cannot_be_used_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let (keys, password) = (dir.path().join("keys"), dir.path().join("password"));
        let file = keys.join("default/cosign.key");
        let key = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
        let good = key_file(&key, b"p");
        let mut costly = seal(b"a key", b"p");
        costly["kdf"]["params"]["N"] = (1_u64 << 20).into();
        let costly = to_pem("ENCRYPTED COSIGN PRIVATE KEY", &costly);
        let no_key = to_pem("ENCRYPTED COSIGN PRIVATE KEY", &seal(b"no key", b"p"));
        let cut = good[..good.len() / 2].to_owned();
        for (case, text, mode, secret, want) in [
            (
                "wrong password",
                &good,
                0o600,
                "q",
                "cosign.key` is refused: the password is wrong, or the file was altered [KEY_PASSWORD_WRONG]",
            ),
            ("empty password", &good, 0o600, "", "[KEY_PASSWORD_WRONG]"),
            ("a line before it", &good, 0o600, "\np", "[KEY_PASSWORD_WRONG]"),
            ("two newlines", &good, 0o600, "p\n\n", "[KEY_PASSWORD_WRONG]"),
            ("others may read it", &good, 0o640, "p", "[KEY_FILE_PERMISSIONS]"),
            ("cut short", &cut, 0o600, "p", "no whole PEM block [BAD_KEY]"),
            (
                "costs too much",
                &costly,
                0o600,
                "p",
                "[KEY_ENCRYPTION_UNSUPPORTED]",
            ),
            (
                "holds no key",
                &no_key,
                0o600,
                "p",
                "what is encrypted is no usable key: not a well-formed key [BAD_KEY]",
            ),
        ] {
            write(&file, text, mode);
            write(&password, secret, 0o600);
            let refused = text_of(FileBackend::open(&keys, Some(&password)));
            assert!(
                refused.contains(want) && refused.contains("cosign.key"),
                "{case}: {refused}"
            );
        }
        write(&file, &good, 0o600);
        for ending in ["", "\n", "\r\n"] {
            write(&password, &format!("p{ending}"), 0o600);
            assert!(FileBackend::open(&keys, Some(&password)).is_ok(), "{ending:?}");
        }
        let missing = text_of(FileBackend::open(&keys, None));
        assert!(
            missing.contains("cosign.key` is refused") && missing.contains("[KEY_PASSWORD_MISSING]"),
            "{missing}"
        );
        write(&password, "p", 0o604);
        let open_to_others = text_of(FileBackend::open(&keys, Some(&password)));
        assert!(
            open_to_others.contains("password` has mode 0604"),
            "{open_to_others}"
        );
        assert!(
            open_to_others.contains("[KEY_FILE_PERMISSIONS]"),
            "{open_to_others}"
        );
        // It is missed even if no key needs it yet: who names it means to use it.
        std::fs::remove_file(&file).expect("removed");
        std::fs::remove_file(&password).expect("removed");
        let absent = text_of(FileBackend::open(&keys, Some(&password)));
        assert!(absent.contains("password` [FILE_UNREADABLE]"), "{absent}");
    }
}
