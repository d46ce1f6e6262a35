//! The head: the number and hash of the last durable record, under a MAC that only the holder of the audit key can make.
//!
//! Inside the log every record is held by the one after it; the head holds the last one, and tells a log whose end was
//! cut off from one that ends there. It is written after each batch and not synced: after a power cut it may be older
//! than the log, never newer. Without the head the log is taken as it is, and the next start record says so for ever.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::{constant_time, hmac};
use stella_attest::digest::Digest;
use stella_attest::key::SigningKey;

use super::AuditError;

/// Twenty digits, the hash and the MAC in hex, two spaces and a newline.
const LENGTH: usize = 20 + 1 + 64 + 1 + 64 + 1;

/// What the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: Digest,
}

/// The file of the head.
pub(super) struct HeadFile {
    file: File,
    path: PathBuf,
    mac: hmac::Key,
}

impl HeadFile {
    /// Opens the file and reads what it says; `None` if there was none or it never was written.
    pub(super) fn open(dir: &Path, key: &SigningKey) -> Result<(Self, Option<Head>), AuditError> {
        let path = dir.join("head");
        let failed = |source| AuditError::io(&path, source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let opened = Self {
            mac: mac_key(key),
            file,
            path: path.clone(),
        };
        if length == 0 {
            return Ok((opened, None));
        }
        let mut text = [0; LENGTH];
        let read = if length == LENGTH as u64 {
            opened.file.read_exact_at(&mut text, 0).map_err(failed)
        } else {
            Ok(())
        };
        read?;
        match opened.parse(&text) {
            Some(head) => Ok((opened, Some(head))),
            None => Err(AuditError::Head { path }),
        }
    }

    /// Says that `seq` is the last record.
    pub(super) fn write(&self, seq: u64, hash: &Digest) {
        let said = format!("{seq:020} {}", hash.hex());
        let tag = hmac::sign(&self.mac, said.as_bytes());
        let text = format!("{said} {}\n", hex::encode(tag));
        if let Err(error) = self.file.write_all_at(text.as_bytes(), 0) {
            // An older head is still true of the log; only less of it is held.
            tracing::warn!(path = %self.path.display(), %error, "the head of the audit log was not written");
        }
    }

    fn parse(&self, text: &[u8]) -> Option<Head> {
        let text = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
        let (said, tag) = text.rsplit_once(' ')?;
        let made = hmac::sign(&self.mac, said.as_bytes());
        constant_time::verify_slices_are_equal(made.as_ref(), &hex::decode(tag).ok()?).ok()?;
        let (seq, hash) = said.split_once(' ')?;
        Some(Head {
            seq: seq.parse().ok()?,
            hash: Digest::from_hex(hash).ok()?,
        })
    }
}

/// The MAC's key, made from the audit key's private half.
fn mac_key(key: &SigningKey) -> hmac::Key {
    let secret = key.to_pkcs8_pem();
    let root = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let derived = hmac::sign(&root, b"stella audit log: head");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}
