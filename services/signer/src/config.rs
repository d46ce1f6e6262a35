//! `signer.toml`: what the service is told when it starts. `deploy/config/signer.toml` shows every key.

use serde::Deserialize;
use stella_serve::access::SpiffeId;
use stella_serve::config::{AccessConfig, ConfigPath, ServerConfig, TelemetryConfig, UpstreamConfig};

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
    /// The embedded transparency log.
    pub log: LogConfig,
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
    use super::Config;

    #[test]
    fn the_sample_holds_every_key() {
        let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/signer.toml");
        let config: Config = stella_serve::config::load(&sample).expect("the sample is a configuration");
        assert_eq!((config.policy.allow.len(), config.keys.slots.len()), (1, 1));
        assert_eq!(config.log.origin, "127.0.0.1");
    }
}
