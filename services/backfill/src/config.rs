//! `backfill.toml`: what the service is told when it starts. `deploy/config/backfill.toml` shows every key.

use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
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
    /// Where jobs lie.
    pub store: StoreConfig,
    /// Feedser, which has the events and the attestations.
    pub feedser: UpstreamConfig,
    /// How much is done at once.
    #[serde(default)]
    pub limits: Limits,
}

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite file; made if it is not there.
    pub path: ConfigPath,
}

/// `[limits]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most jobs of one tenant that run at a time.
    pub jobs_per_tenant: NonZeroU64,
    /// Events of one page: what is counted in one step, and at most done again after a crash.
    pub page_events: NonZeroU16,
    /// Pages of one job that are worked on at a time.
    pub pages_in_flight: NonZeroUsize,
    /// Longest wait for the next message of Feedser's streams.
    pub answer_timeout_ms: NonZeroU64,
}

impl Limits {
    pub(crate) fn answer_timeout(&self) -> Duration {
        Duration::from_millis(self.answer_timeout_ms.get())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            jobs_per_tenant: NonZeroU64::new(4).expect("a default is not zero"),
            page_events: NonZeroU16::new(500).expect("a default is not zero"),
            pages_in_flight: NonZeroUsize::new(2).expect("a default is not zero"),
            answer_timeout_ms: NonZeroU64::new(120_000).expect("a default is not zero"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SAMPLE: &str = include_str!("../../../deploy/config/backfill.toml");

    #[test]
    fn the_sample_parses_and_shows_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/backfill.toml");
        let config: Config = stella_serve::config::load(&path).unwrap();
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
        assert_eq!(&*config.store.path, path.parent().unwrap().join("backfill.db"));
        assert_eq!(config.feedser.identity.as_str(), "spiffe://stella.local/feedser");
    }

    #[test]
    fn a_key_that_nobody_knows_stops_the_start() {
        for section in [
            "[server]",
            "[access]",
            "[telemetry]",
            "[store]",
            "[feedser]",
            "[limits]",
        ] {
            let text = SAMPLE.replacen(section, &format!("{section}\nsurprise = 1"), 1);
            assert_ne!(text, SAMPLE, "{section}");
            let error = toml::from_str::<Config>(&text).unwrap_err().to_string();
            assert!(error.contains("unknown field `surprise`"), "{section}: {error}");
        }
        let error = toml::from_str::<Config>(&format!("surprise = 1\n{SAMPLE}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `surprise`"), "{error}");
    }

    #[test]
    fn a_job_needs_room_to_work() {
        for name in [
            "jobs_per_tenant",
            "page_events",
            "pages_in_flight",
            "answer_timeout_ms",
        ] {
            let keep = SAMPLE
                .lines()
                .filter(|line| !line.starts_with(name))
                .collect::<Vec<_>>()
                .join("\n");
            let error = toml::from_str::<Config>(&format!("{keep}\n{name} = 0\n"))
                .unwrap_err()
                .to_string();
            assert!(error.contains("a nonzero"), "{name}: {error}");
        }
    }
}
