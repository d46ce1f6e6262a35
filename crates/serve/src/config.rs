//! The parts of a configuration that every service has, and how a file becomes a value.
//!
//! The format is TOML. A key that nobody knows stops the start, and so does a value that makes no sense: what
//! was loaded is valid. Secrets never stand in the file, only their paths; a relative path counts from the
//! folder of the file.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::access::SpiffeId;
use crate::fs::{self, FsError};

/// Why a configuration was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("the configuration could not be read")]
    Read(#[from] FsError),
    /// The file is not what the service understands; the cause names line and key.
    #[error("`{}` is not a valid configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
}

impl ConfigError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read(error) => error.reason(),
            Self::Parse { .. } => "CONFIG_INVALID",
        }
    }

    /// What whoever starts the service can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Read(_) => "name a file that this user can read with --config",
            Self::Parse { .. } => {
                "correct the line that is shown; the samples in deploy/config explain every key of every service"
            }
        }
    }

    /// The error with all its causes, on as many lines as it takes: file, line, key and reason.
    pub fn whole(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(cause.to_string().trim_end());
            next = cause.source();
        }
        text
    }
}

thread_local! {
    /// The folder that relative paths count from while a file is being loaded.
    static BASE: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Loads a service's configuration. Its relative [`ConfigPath`]s are resolved against the file's folder.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = fs::read_text(path)?;
    let base = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    let outer = BASE.replace(Some(base));
    let parsed = toml::from_str(&text);
    BASE.set(outer);
    parsed.map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// A path in a configuration; already resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigPath(PathBuf);

impl ConfigPath {
    /// A path that is used as it is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl std::ops::Deref for ConfigPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for ConfigPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl<'de> Deserialize<'de> for ConfigPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(deserializer)?;
        if path.as_os_str().is_empty() {
            return Err(serde::de::Error::custom("an empty path"));
        }
        Ok(Self(BASE.with_borrow(|base| match base {
            Some(base) => base.join(path),
            None => path,
        })))
    }
}

/// `[server]`: the doors of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address of the mTLS listener for gRPC and REST. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the plain HTTP listener for `/healthz`, `/readyz` and `/metrics`. Absent: a free loopback port.
    #[serde(default = "ServerConfig::default_ops")]
    pub ops_listen: SocketAddr,
    /// Own certificate chain, PEM, leaf first: shown to callers and to the services that are called.
    pub certificate: ConfigPath,
    /// Its private key, PKCS#8 PEM, mode 0600.
    pub key: ConfigPath,
    /// Certificates of the authorities whose callers are let in, PEM.
    pub client_ca: ConfigPath,
    /// Certificates of the authorities that the called services must have theirs from. Absent: `client_ca`.
    pub server_ca: Option<ConfigPath>,
    /// Longest TLS handshake, and longest wait after it for the first bytes of HTTP.
    #[serde(default = "ServerConfig::default_handshake_timeout")]
    pub handshake_timeout_ms: NonZeroU64,
    /// Most connections at a time; one more is closed at once. Half of them, from one address, may be such as have not
    /// proven yet who they are.
    #[serde(default = "ServerConfig::default_max_connections")]
    pub max_connections: NonZeroUsize,
    /// Most calls at a time over all connections; one more is `UNAVAILABLE` / `OVERLOADED`.
    #[serde(default = "ServerConfig::default_max_calls")]
    pub max_concurrent_calls: NonZeroUsize,
    /// Most calls at a time over one connection.
    #[serde(default = "ServerConfig::default_max_streams")]
    pub max_concurrent_streams: NonZeroU32,
    /// Largest message or REST body, in bytes; a larger one is `RESOURCE_EXHAUSTED` / `MESSAGE_TOO_LARGE` (413).
    #[serde(default = "ServerConfig::default_max_message")]
    pub max_message_bytes: NonZeroUsize,
    /// Longest unary call, whatever its caller asked for; `DEADLINE_EXCEEDED` after it. Streams have their caller's
    /// deadline alone.
    #[serde(default = "ServerConfig::default_call_timeout")]
    pub call_timeout_ms: NonZeroU64,
    /// How long calls that run may go on after the signal to end.
    #[serde(default = "ServerConfig::default_drain_timeout")]
    pub drain_timeout_ms: NonZeroU64,
    /// How often a silent HTTP/2 connection is asked whether it still lives; it has as long to answer, at most 20
    /// seconds. An HTTP/1.1 connection is closed that has no whole request head for so long.
    #[serde(default = "ServerConfig::default_keepalive")]
    pub keepalive_ms: NonZeroU64,
}

const fn millis(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).expect("a default is not zero")
}

const fn count(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("a default is not zero")
}

impl ServerConfig {
    /// A configuration with every default, for tests and tools.
    pub fn new(listen: SocketAddr, certificate: &Path, key: &Path, client_ca: &Path) -> Self {
        Self {
            listen,
            ops_listen: Self::default_ops(),
            certificate: ConfigPath::new(certificate),
            key: ConfigPath::new(key),
            client_ca: ConfigPath::new(client_ca),
            server_ca: None,
            handshake_timeout_ms: Self::default_handshake_timeout(),
            max_connections: Self::default_max_connections(),
            max_concurrent_calls: Self::default_max_calls(),
            max_concurrent_streams: Self::default_max_streams(),
            max_message_bytes: Self::default_max_message(),
            call_timeout_ms: Self::default_call_timeout(),
            drain_timeout_ms: Self::default_drain_timeout(),
            keepalive_ms: Self::default_keepalive(),
        }
    }

    /// The authorities of the services that are called.
    pub(crate) fn upstream_ca(&self) -> &Path {
        self.server_ca.as_deref().unwrap_or(&self.client_ca)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms.get())
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms.get())
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.call_timeout_ms.get())
    }

    pub(crate) fn keepalive(&self) -> Duration {
        Duration::from_millis(self.keepalive_ms.get())
    }

    fn default_ops() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    const fn default_handshake_timeout() -> NonZeroU64 {
        millis(10_000)
    }

    const fn default_max_connections() -> NonZeroUsize {
        count(1_024)
    }

    const fn default_max_calls() -> NonZeroUsize {
        count(1_024)
    }

    const fn default_max_streams() -> NonZeroU32 {
        NonZeroU32::new(256).expect("a default is not zero")
    }

    const fn default_max_message() -> NonZeroUsize {
        count(32 << 20)
    }

    const fn default_call_timeout() -> NonZeroU64 {
        millis(60_000)
    }

    const fn default_drain_timeout() -> NonZeroU64 {
        millis(10_000)
    }

    const fn default_keepalive() -> NonZeroU64 {
        millis(30_000)
    }
}

/// `[access]`: who may call what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessConfig {
    /// The method table (see [`MethodTable`](crate::access::MethodTable)); read again when it changes.
    pub table: ConfigPath,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[telemetry]`: logs and traces. Metrics are always at `/metrics` of the ops listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Which lines are logged, in the syntax of `tracing_subscriber::filter::Targets`: `info`, `info,stella_serve=debug`.
    #[serde(default = "TelemetryConfig::default_log")]
    pub log: String,
    /// How lines look.
    #[serde(default)]
    pub format: LogFormat,
    /// OTLP/gRPC collector for traces, `http://host:port`. Absent: no traces.
    pub otlp_endpoint: Option<String>,
    /// Share of the calls that are traced when a caller did not decide, 0 to 1.
    #[serde(default = "TelemetryConfig::default_ratio")]
    pub trace_ratio: Ratio,
}

impl TelemetryConfig {
    fn default_log() -> String {
        "info".to_owned()
    }

    fn default_ratio() -> Ratio {
        Ratio(1.0)
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: Self::default_log(),
            format: LogFormat::default(),
            otlp_endpoint: None,
            trace_ratio: Self::default_ratio(),
        }
    }
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Ratio(f64);

impl Ratio {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err("not from 0 to 1")
        }
    }
}

/// A section such as `[feedser]`: a service that this one calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Where it listens, `https://host:port`.
    pub url: ServiceUrl,
    /// Who must answer there; anybody else is `PEER_NOT_EXPECTED`.
    pub identity: SpiffeId,
    /// Longest wait for a connection.
    #[serde(default = "UpstreamConfig::default_connect_timeout")]
    pub connect_timeout_ms: NonZeroU64,
    /// Longest unary call.
    #[serde(default = "UpstreamConfig::default_request_timeout")]
    pub request_timeout_ms: NonZeroU64,
    /// How many connections the calls are spread over.
    #[serde(default = "UpstreamConfig::default_connections")]
    pub connections: NonZeroU8,
    /// Largest message that is taken from it, in bytes.
    #[serde(default = "ServerConfig::default_max_message")]
    pub max_message_bytes: NonZeroUsize,
}

impl UpstreamConfig {
    /// A configuration with every default, for tests and tools.
    pub fn new(url: ServiceUrl, identity: SpiffeId) -> Self {
        Self {
            url,
            identity,
            connect_timeout_ms: Self::default_connect_timeout(),
            request_timeout_ms: Self::default_request_timeout(),
            connections: Self::default_connections(),
            max_message_bytes: ServerConfig::default_max_message(),
        }
    }

    const fn default_connect_timeout() -> NonZeroU64 {
        millis(5_000)
    }

    const fn default_request_timeout() -> NonZeroU64 {
        millis(30_000)
    }

    const fn default_connections() -> NonZeroU8 {
        NonZeroU8::MIN
    }
}

/// `https://host:port` of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUrl {
    uri: Uri,
    host: String,
    port: u16,
}

/// Why a text is not the URL of a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `https://host:port`")]
pub struct ServiceUrlError(String);

impl ServiceUrl {
    /// The name or address, without brackets: what the certificate must be for.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 443 if the URL names none.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }
}

impl FromStr for ServiceUrl {
    type Err = ServiceUrlError;

    fn from_str(text: &str) -> Result<Self, ServiceUrlError> {
        let refused = || ServiceUrlError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| refused())?;
        let authority = uri.authority().ok_or_else(refused)?;
        let bare = uri.scheme_str() == Some("https") && uri.path() == "/" && uri.query().is_none();
        if !bare || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(refused());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .ok_or_else(refused)?,
            None => return Err(refused()),
        };
        Ok(Self { host, port, uri })
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl<'de> Deserialize<'de> for ServiceUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        server: ServerConfig,
        access: AccessConfig,
        #[serde(default)]
        telemetry: TelemetryConfig,
        feedser: UpstreamConfig,
    }

    const GOOD: &str = r#"
[server]
listen = "127.0.0.1:7401"
certificate = "cert.pem"
key = "/run/secrets/key.pem"
client_ca = "../pki/ca.pem"
[access]
table = "access.toml"
[feedser]
url = "https://127.0.0.1:7403"
identity = "spiffe://stella.local/feedser"
"#;

    fn load_text(text: &str) -> Result<Sample, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.toml");
        std::fs::write(&path, text).unwrap();
        let mut loaded = load::<Sample>(&path);
        if let Ok(sample) = &mut loaded {
            // The folder's name is random; what counts is that it stands before relative paths only.
            for path in [
                &mut sample.server.certificate,
                &mut sample.server.client_ca,
                &mut sample.access.table,
            ] {
                *path = ConfigPath::new(path.strip_prefix(dir.path()).unwrap());
            }
        }
        loaded
    }

    #[test]
    fn a_small_file_is_enough_and_its_paths_count_from_its_folder() {
        let sample = load_text(GOOD).unwrap();
        assert_eq!(sample.server.certificate, ConfigPath::new("cert.pem"));
        assert_eq!(sample.server.key, ConfigPath::new("/run/secrets/key.pem"));
        assert_eq!(sample.server.client_ca, ConfigPath::new("../pki/ca.pem"));
        assert_eq!(sample.access.table, ConfigPath::new("access.toml"));
        assert_eq!(sample.server.call_timeout(), Duration::from_secs(60));
        assert_eq!(sample.telemetry.log, "info");
        assert_eq!(
            (sample.feedser.url.host(), sample.feedser.url.port()),
            ("127.0.0.1", 7403)
        );
    }

    #[test]
    fn a_file_with_an_error_names_the_key_and_stops_the_start() {
        for (case, from, to, names) in [
            ("unknown key", "[access]", "[access]\ncolour = 1", "colour"),
            ("unknown section", "[access]", "[acess]", "acess"),
            ("no address", "127.0.0.1:7401", "localhost", "listen"),
            (
                "no time at all",
                "listen =",
                "call_timeout_ms = 0\nlisten =",
                "call_timeout_ms",
            ),
            (
                "negative time",
                "listen =",
                "drain_timeout_ms = -1\nlisten =",
                "drain_timeout_ms",
            ),
            ("plain http", "https://", "http://", "https://host:port"),
            ("a path", ":7403", ":7403/x", "https://host:port"),
            (
                "no identity",
                "spiffe://stella.local/feedser",
                "feedser",
                "identity",
            ),
            ("empty path", "\"cert.pem\"", "\"\"", "certificate"),
            (
                "ratio over 1",
                "[access]",
                "[telemetry]\ntrace_ratio = 1.5\n[access]",
                "trace_ratio",
            ),
            ("not TOML", "[access]", "[access", "access"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{case}");
            let error = load_text(&text).unwrap_err();
            assert_eq!(error.reason(), "CONFIG_INVALID", "{case}");
            let cause = error.source().unwrap().to_string();
            assert!(cause.contains(names), "{case}: {cause}");
        }
        let absent = load::<Sample>(Path::new("/absent/service.toml")).unwrap_err();
        assert_eq!(absent.reason(), "FILE_UNREADABLE");
    }

    #[test]
    fn a_service_url_has_a_host_and_nothing_after_the_port() {
        for (text, want) in [
            ("https://127.0.0.1:7403", Ok(("127.0.0.1", 7403))),
            ("https://[::1]:1", Ok(("::1", 1))),
            ("https://feedser.example", Ok(("feedser.example", 443))),
            ("https://feedser.example/", Ok(("feedser.example", 443))),
            ("http://127.0.0.1:7403", Err(())),
            ("127.0.0.1:7403", Err(())),
            ("https://", Err(())),
            ("https://user@host:1", Err(())),
            ("https://host:99999", Err(())),
            ("https://host:", Err(())),
            ("https://host:1/path", Err(())),
            ("https://host:1?query", Err(())),
            ("", Err(())),
        ] {
            let got = text.parse::<ServiceUrl>();
            let got = got.as_ref().map(|url| (url.host(), url.port())).map_err(|error| {
                assert_eq!(*error, ServiceUrlError(text.to_owned()));
            });
            assert_eq!(got, want, "{text}");
        }
    }
}
