//! `feedser.toml`: what the service is told when it starts. `deploy/config/feedser.toml` shows every key.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;
use stella_serve::config::{AccessConfig, ConfigPath, ServerConfig, TelemetryConfig, UpstreamConfig};

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
    /// Where events and attestations lie.
    pub store: StoreConfig,
    /// The Verifier, which judges and seals.
    pub verifier: UpstreamConfig,
    /// The Signer, which signs the manifests of exports.
    pub signer: UpstreamConfig,
    /// Whose receipts count.
    pub trust: TrustConfig,
    /// How much is taken and given at once.
    #[serde(default)]
    pub limits: Limits,
}

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite file; made if it is not there.
    pub path: ConfigPath,
    /// Threads that read.
    #[serde(default = "StoreConfig::default_readers")]
    pub readers: NonZeroUsize,
}

impl StoreConfig {
    const fn default_readers() -> NonZeroUsize {
        count(4)
    }
}

/// `[trust]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// Public keys (PEM SubjectPublicKeyInfo) whose receipts count; at least one.
    pub receipt_keys: Vec<ConfigPath>,
}

/// `[limits]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest piece of evidence, in bytes.
    pub max_evidence_bytes: NonZeroUsize,
    /// Batches of one stream that are worked on at the same time.
    pub batches_in_flight: NonZeroUsize,
    /// Most events in one replay slice.
    pub max_slice_events: NonZeroUsize,
    /// Most bytes of one replay slice; it is built in memory.
    pub max_slice_bytes: NonZeroUsize,
    /// Longest wait for the verdicts of one batch, or for one signature.
    pub upstream_timeout_ms: NonZeroU64,
}

impl Limits {
    pub(crate) fn upstream_timeout(&self) -> Duration {
        Duration::from_millis(self.upstream_timeout_ms.get())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_evidence_bytes: count(16 << 20),
            batches_in_flight: count(4),
            max_slice_events: count(10_000),
            max_slice_bytes: count(64 << 20),
            upstream_timeout_ms: NonZeroU64::new(60_000).expect("a default is not zero"),
        }
    }
}

const fn count(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("a default is not zero")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SAMPLE: &str = include_str!("../../../deploy/config/feedser.toml");

    #[test]
    fn the_sample_parses_and_shows_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/feedser.toml");
        let config: Config = stella_serve::config::load(&path).unwrap();
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
        assert_eq!(config.store.readers, StoreConfig::default_readers());
        assert_eq!(&*config.store.path, path.parent().unwrap().join("feedser.db"));
    }

    #[test]
    fn a_key_that_nobody_knows_stops_the_start() {
        for (section, names) in [
            ("[store]", "surprise"),
            ("[trust]", "surprise"),
            ("[limits]", "surprise"),
            ("[verifier]", "surprise"),
        ] {
            let text = SAMPLE.replacen(section, &format!("{section}\nsurprise = 1"), 1);
            assert_ne!(text, SAMPLE, "{section}");
            let error = toml::from_str::<Config>(&text).unwrap_err().to_string();
            assert!(error.contains(names), "{section}: {error}");
        }
    }
}
