//! The port to private keys that never leave their backend.

use async_trait::async_trait;
use stella_attest::key::{KeyId, VerifyingKey};

pub mod cosign;
pub mod file;

/// Why a backend cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyBackendError {
    /// It has no such key.
    #[error("the backend has no key `{0}`")]
    NotFound(KeyId),
    /// A key file cannot be used; the text says which and what to do.
    #[error("{0}")]
    File(String),
    /// The key did not sign.
    #[error("the key did not sign")]
    Signing,
}

impl KeyBackendError {
    /// The reason code.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "KEY_NOT_FOUND",
            Self::File(_) => "KEY_FILE_UNUSABLE",
            Self::Signing => "KEY_FAILED",
        }
    }
}

/// A key that a backend holds.
#[derive(Clone, Debug)]
pub struct BackendKey {
    /// The slot that it is for.
    pub slot: String,
    /// Its public half.
    pub key: VerifyingKey,
}

/// Signs with private keys that never leave it.
#[async_trait]
pub trait KeyBackend: Send + Sync {
    /// Signs `message` with the key `id`.
    async fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Vec<u8>, KeyBackendError>;

    /// The same for callers that may block, such as those that sign a batch on every core.
    fn sign_blocking(&self, id: &KeyId, message: &[u8]) -> Result<Vec<u8>, KeyBackendError>;

    /// The keys that it holds now.
    fn keys(&self) -> Vec<BackendKey>;

    /// Looks again which keys there are; what cannot be used is said and left out.
    fn refresh(&self) -> Result<(), KeyBackendError>;
}
