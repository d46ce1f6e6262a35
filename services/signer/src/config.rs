//! `signer.toml`: what the service is told when it starts. `deploy/config/signer.toml` shows every key.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;
use stella_serve::access::SpiffeId;
use stella_serve::config::{AccessConfig, ConfigPath, ServerConfig, TelemetryConfig, UpstreamConfig};
use stella_tlog::face::FaceConfig;

use crate::policy::Rule;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The service's doors.
    pub server: ServerConfig,
    /// Who may call what.
    pub access: AccessConfig,
    /// Logs and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// The keys.
    pub keys: KeysConfig,
    /// The embedded transparency log; there is none without this.
    pub log: Option<LogConfig>,
    /// Logs elsewhere; a signature goes into each of them, after the embedded one.
    #[serde(default)]
    pub rekor: Vec<RekorLogConfig>,
    /// The timestamp authority that dates signatures; none does without this.
    pub tsa: Option<TsaConfig>,
    /// The audit log.
    pub audit: AuditConfig,
    /// Who may have what signed.
    pub policy: PolicyConfig,
    /// The Verifier, which witnesses the log.
    pub verifier: UpstreamConfig,
}

/// `[keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// Folder of the attestation keys, one folder in it for each slot.
    pub dir: ConfigPath,
    /// Password of the keys in it that cosign encrypted.
    pub cosign_password_file: Option<ConfigPath>,
    /// Private key of manifests.
    pub manifest_key: ConfigPath,
    /// Who may have manifests signed: Feedser.
    pub manifest_caller: SpiffeId,
    /// Private key of the key history.
    pub history_key: ConfigPath,
    /// Folder of the key history's versions.
    pub history_dir: ConfigPath,
    /// What the keys of a slot are for; a slot that is not named is for everybody and everything.
    #[serde(default, rename = "slot")]
    pub slots: Vec<SlotConfig>,
}

/// `[[keys.slot]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotConfig {
    /// The slot's name.
    pub name: String,
    /// Who stands behind its keys.
    #[serde(default = "SlotConfig::default_issuer")]
    pub issuer: String,
    /// Tenants that its keys may sign for.
    #[serde(default = "SlotConfig::anything")]
    pub tenants: Vec<String>,
    /// PredicateTypes that its keys may sign.
    #[serde(default = "SlotConfig::anything")]
    pub predicate_types: Vec<String>,
}

impl SlotConfig {
    fn default_issuer() -> String {
        "stella".into()
    }

    fn anything() -> Vec<String> {
        vec!["*".into()]
    }

    /// The scope of a slot that the file does not name.
    pub(crate) fn unnamed(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            issuer: Self::default_issuer(),
            tenants: Self::anything(),
            predicate_types: Self::anything(),
        }
    }
}

/// `[log]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Folder of the log.
    pub dir: ConfigPath,
    /// Private Ed25519 key of the checkpoints.
    pub key: ConfigPath,
    /// The log's origin: the host name of its base URL. Fixed from the first start.
    pub origin: String,
    /// Witnesses that must have cosigned before an answer is given (C2SP verifier keys). None is allowed.
    #[serde(default)]
    pub required_witnesses: Vec<String>,
    /// Its HTTP face; there is none without this.
    pub http: Option<LogHttpConfig>,
}

/// `[log.http]`: the log's HTTP face. What is left out is as in [`FaceConfig::new`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHttpConfig {
    /// A loopback address; another one stops the start with `LOG_FACE_NOT_LOOPBACK`. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest request body, in bytes; a larger one is refused with 400, as Rekor does.
    pub max_body_bytes: Option<NonZeroUsize>,
    /// How long a request's head may take, then its body (408), then its answer (504).
    pub request_timeout_ms: Option<NonZeroU64>,
    /// Most connections at a time; one more is closed at once.
    pub max_connections: Option<NonZeroUsize>,
    /// Writes that may come in each second; more are refused with 429.
    pub writes_per_second: Option<NonZeroU32>,
    /// Writes that may come at once after a pause.
    pub write_burst: Option<NonZeroU32>,
}

impl LogHttpConfig {
    /// What the face is told; it drains as long as the service does.
    pub(crate) fn face(&self, server: &ServerConfig) -> FaceConfig {
        let mut face = FaceConfig::new(self.listen);
        face.drain_timeout = Duration::from_millis(server.drain_timeout_ms.get());
        if let Some(bytes) = self.max_body_bytes {
            face.max_body_bytes = bytes.get();
        }
        if let Some(millis) = self.request_timeout_ms {
            face.request_timeout = Duration::from_millis(millis.get());
        }
        if let Some(connections) = self.max_connections {
            face.max_connections = connections.get();
        }
        if let Some(writes) = self.writes_per_second {
            face.writes_per_second = writes.get();
        }
        if let Some(writes) = self.write_burst {
            face.write_burst = writes.get();
        }
        face
    }
}

/// The generation of a Rekor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub enum RekorVersion {
    /// Takes envelopes, and promises their inclusion by a signed timestamp.
    V1,
    /// Takes signatures, and lies in tiles.
    V2,
}

impl TryFrom<u8> for RekorVersion {
    type Error = &'static str;

    fn try_from(version: u8) -> Result<Self, &'static str> {
        match version {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            _ => Err("a Rekor has version 1 or 2"),
        }
    }
}

/// `[[rekor]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekorLogConfig {
    /// Its generation.
    pub version: RekorVersion,
    /// Base URL; `/api/v1/…` or `/api/v2/…` follows.
    pub url: String,
    /// The log's public key (PEM, SubjectPublicKeyInfo).
    pub public_key: ConfigPath,
    /// The name in its checkpoints. Without it, a version 1 may bear any and a version 2 is named as its host.
    pub origin: Option<String>,
    /// Where a version 2 is read, if not below `<url>/api/v2`.
    pub tiles_url: Option<String>,
    /// Folder in which the last checkpoint seen is kept; several logs may share it.
    pub state_dir: ConfigPath,
    /// Witnesses that must have cosigned a version 2's checkpoint before an answer is given (C2SP verifier keys).
    #[serde(default)]
    pub required_witnesses: Vec<String>,
    /// How long one signature may take to be logged, with all attempts.
    #[serde(default = "RekorLogConfig::default_timeout_ms")]
    pub timeout_ms: NonZeroU64,
    /// How long one attempt may take.
    #[serde(default = "RekorLogConfig::default_attempt_timeout_ms")]
    pub attempt_timeout_ms: NonZeroU64,
}

impl RekorLogConfig {
    const fn default_timeout_ms() -> NonZeroU64 {
        NonZeroU64::new(45_000).expect("not zero")
    }

    const fn default_attempt_timeout_ms() -> NonZeroU64 {
        NonZeroU64::new(20_000).expect("not zero")
    }
}

/// `[tsa]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TsaConfig {
    /// Where it is asked (RFC 3161 over HTTP), whole.
    pub url: String,
    /// Its certificates (PEM): its own first, the root last. The Verifier's trust roots must name them, too.
    pub chain: ConfigPath,
}

/// `[audit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Folder of the audit log.
    pub dir: ConfigPath,
    /// Private key that holds the end of the log.
    pub key: ConfigPath,
    /// A segment of this many bytes is followed by a new one.
    #[serde(default = "AuditConfig::default_segment_bytes")]
    pub segment_bytes: u64,
    /// Folder of the envelopes that are not logged yet; a Rekor of version 1 needs it.
    pub spool_dir: Option<ConfigPath>,
}

impl AuditConfig {
    const fn default_segment_bytes() -> u64 {
        64 << 20
    }
}

/// `[policy]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// What is allowed; nothing else is.
    #[serde(default)]
    pub allow: Vec<Rule>,
}

#[cfg(test)]
mod tests {
    use stella_tlog::face::FaceConfig;

    use super::{Config, RekorVersion};

    #[test]
    fn the_sample_holds_every_key() {
        let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/signer.toml");
        let config: Config = stella_serve::config::load(&sample).expect("the sample is a configuration");
        assert_eq!((config.policy.allow.len(), config.keys.slots.len()), (1, 1));
        assert!(config.tsa.is_some() && config.audit.spool_dir.is_some());
        assert!(config.keys.cosign_password_file.is_some());
        let versions: Vec<RekorVersion> = config.rekor.iter().map(|rekor| rekor.version).collect();
        assert_eq!(versions, [RekorVersion::V1, RekorVersion::V2]);
        let log = config.log.expect("the log is in the sample");
        assert_eq!(log.origin, "127.0.0.1");
        let http = log.http.expect("the face is in the sample");
        // The sample shows the defaults.
        assert_eq!(http.face(&config.server), FaceConfig::new(http.listen));
    }
}
