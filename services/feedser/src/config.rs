//! `feedser.toml`: what the service is told when it starts. `deploy/config/feedser.toml` shows every key.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use crate::store::mongo;
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
    /// Logs that evidence without a log entry is completed from, in the order in which they are asked.
    #[serde(default, rename = "log")]
    pub logs: Vec<LogConfig>,
    /// How much is taken and given at once.
    #[serde(default)]
    pub limits: Limits,
}

/// How a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// By the interface of a Rekor v1.
    #[serde(rename = "rekor-v1")]
    RekorV1,
    /// By its tiles: a Rekor v2, or the Signer's own log.
    Tiles,
}

/// `[[log]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// How it is read.
    pub kind: LogKind,
    /// Base URL of a Rekor v1; of tiles, where `checkpoint` and `tile/…` lie.
    pub url: String,
    /// The log's public key (PEM, SubjectPublicKeyInfo).
    pub public_key: ConfigPath,
    /// The name in its checkpoints. Without it, a Rekor v1 may bear any and a log in tiles is named as its host.
    pub origin: Option<String>,
    /// Folder in which the last checkpoint seen is kept; several logs may share it, processes may not.
    pub state_dir: ConfigPath,
    /// How long one entry may take to be read, with all attempts.
    #[serde(default = "LogConfig::default_timeout_ms")]
    pub timeout_ms: NonZeroU64,
}

impl LogConfig {
    const fn default_timeout_ms() -> NonZeroU64 {
        NonZeroU64::new(20_000).expect("not zero")
    }
}

/// `[store]`: one of the two stores.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "StoreTable")]
pub enum StoreConfig {
    /// A file on this machine.
    Sqlite {
        /// The file; made if it is not there.
        path: PathBuf,
        /// Threads that read.
        readers: NonZeroUsize,
    },
    /// The database that a MongoDB URI names.
    Mongo {
        /// Where the URI stands; `None`: in `STELLA_MONGODB_URI`.
        uri_file: Option<PathBuf>,
        /// How its servers are used.
        options: mongo::Options,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreTable {
    path: Option<ConfigPath>,
    readers: Option<NonZeroUsize>,
    mongodb_uri_file: Option<ConfigPath>,
    mongodb_timeout_ms: Option<NonZeroU64>,
    mongodb_connections: Option<NonZeroU32>,
}

impl TryFrom<StoreTable> for StoreConfig {
    type Error = &'static str;

    fn try_from(table: StoreTable) -> Result<Self, Self::Error> {
        let is_mongo = table.mongodb_uri_file.is_some()
            || table.mongodb_timeout_ms.is_some()
            || table.mongodb_connections.is_some();
        match table.path {
            Some(_) if is_mongo => Err("`path` is of SQLite, `mongodb_…` of MongoDB: a store is one of them"),
            Some(path) => Ok(Self::Sqlite {
                path: path.to_path_buf(),
                readers: table.readers.unwrap_or(DEFAULT_READERS),
            }),
            None if table.readers.is_some() => Err("`readers` is of SQLite and needs `path`"),
            None => {
                let timeout = table
                    .mongodb_timeout_ms
                    .map_or(DEFAULT_TIMEOUT_MS, NonZeroU64::get);
                Ok(Self::Mongo {
                    uri_file: table.mongodb_uri_file.map(|file| file.to_path_buf()),
                    options: mongo::Options {
                        timeout: Duration::from_millis(timeout),
                        connections: table
                            .mongodb_connections
                            .map_or(DEFAULT_CONNECTIONS, NonZeroU32::get),
                    },
                })
            }
        }
    }
}

const DEFAULT_READERS: NonZeroUsize = count(4);
const DEFAULT_TIMEOUT_MS: u64 = 10_000;
const DEFAULT_CONNECTIONS: u32 = 32;

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
        let StoreConfig::Sqlite { path: file, readers } = config.store else {
            panic!("the sample shows SQLite");
        };
        assert_eq!(file, path.parent().unwrap().join("feedser.db"));
        assert_eq!(readers, DEFAULT_READERS);
        let kinds: Vec<LogKind> = config.logs.iter().map(|log| log.kind).collect();
        assert_eq!(kinds, [LogKind::RekorV1, LogKind::Tiles]);
    }

    #[test]
    fn the_sample_shows_the_other_store_in_comments() {
        let text = SAMPLE.replace("# mongodb_", "mongodb_");
        let text = text
            .replace("path = \"feedser.db\"\n", "")
            .replace("readers = 4\n", "");
        let config: Config = toml::from_str(&text).unwrap();
        let StoreConfig::Mongo { uri_file, options } = config.store else {
            panic!("the comments show MongoDB");
        };
        assert_eq!(uri_file, Some(PathBuf::from("mongodb.uri")));
        assert_eq!(options.timeout, Duration::from_millis(DEFAULT_TIMEOUT_MS));
        assert_eq!(options.connections, DEFAULT_CONNECTIONS);
    }

    #[test]
    fn a_store_is_one_of_two() {
        for (table, want) in [
            ("path = 'a'\nmongodb_uri_file = 'b'", "a store is one of them"),
            ("path = 'a'\nmongodb_connections = 1", "a store is one of them"),
            ("readers = 1", "`readers` is of SQLite and needs `path`"),
            ("mongodb_timeout_ms = 0", "nonzero"),
        ] {
            let error = toml::from_str::<StoreConfig>(table).unwrap_err().to_string();
            assert!(error.contains(want), "{table}: {error}");
        }
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
