//! Keys in PKCS#8 PEM files, one folder for each slot: `<dir>/<slot>/*.pem`, readable by their owner alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use stella_attest::key::{KeyId, SigningKey};
use stella_serve::fs::read_secret_text;

use super::{BackendKey, KeyBackend, KeyBackendError};

struct Held {
    slot: String,
    key: SigningKey,
}

/// The keys below one directory.
pub struct FileBackend {
    dir: PathBuf,
    held: ArcSwap<BTreeMap<KeyId, Held>>,
}

impl FileBackend {
    /// Reads every key file.
    ///
    /// # Errors
    /// One cannot be used: others may read it, it is encrypted, or it holds no key that can be logged.
    pub fn open(dir: &Path) -> Result<Self, KeyBackendError> {
        let held = read_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            held: ArcSwap::from_pointee(held),
        })
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
        self.held.store(std::sync::Arc::new(read_all(&self.dir)?));
        Ok(())
    }
}

fn read_all(dir: &Path) -> Result<BTreeMap<KeyId, Held>, KeyBackendError> {
    let mut held = BTreeMap::new();
    for folder in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let slot = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for file in entries(&folder)? {
            if file.extension().is_some_and(|extension| extension == "pem") {
                let key = read_key(&file)?;
                held.insert(
                    key.verifying_key().key_id().clone(),
                    Held {
                        slot: slot.clone(),
                        key,
                    },
                );
            }
        }
    }
    Ok(held)
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

/// Reads one private key.
///
/// # Errors
/// The file can be read by others, or holds no key that can be used here.
pub fn read_key(path: &Path) -> Result<SigningKey, KeyBackendError> {
    let pem = read_secret_text(path)
        .map_err(|error| KeyBackendError::File(format!("{error} [{}]", error.reason())))?;
    let refused = |what: String| KeyBackendError::File(format!("`{}` is refused: {what}", path.display()));
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| refused(format!("{error} [{}]", error.reason())))
}

#[cfg(test)]
mod tests {
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
            let refused = FileBackend::open(dir.path())
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
        let backend = FileBackend::open(dir.path()).expect("usable");
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
}
