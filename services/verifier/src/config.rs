//! `verifier.toml`: what the service is told when it starts. `deploy/config/verifier.toml` shows every key.

use serde::Deserialize;
use stella_serve::access::SpiffeId;
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
    /// What verdicts may believe.
    pub trust: TrustConfig,
    /// The seal on verdicts.
    pub receipt: ReceiptConfig,
    /// The witness of the logs.
    pub witness: WitnessConfig,
    /// The Signer, whose key history is followed.
    pub signer: UpstreamConfig,
}

/// `[trust]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// Trust roots in the format `stella`; read again when the file changes.
    pub roots: ConfigPath,
    /// A Sigstore `trusted_root.json`, whose logs and timestamp authorities count besides; read again when it changes.
    pub sigstore_roots: Option<ConfigPath>,
    /// Where the key history and what the witness has seen are kept.
    pub state_dir: ConfigPath,
    /// PredicateTypes that prove an INGEST event.
    #[serde(default)]
    pub ingest_predicate_types: Vec<String>,
}

/// `[receipt]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptConfig {
    /// Private key of the receipts (PKCS#8 PEM, mode 0600).
    pub key: ConfigPath,
    /// What events call the authority that verified them.
    #[serde(default = "ReceiptConfig::default_verifier")]
    pub verifier: String,
    /// Who may have verdicts sealed: Feedser.
    pub sealer: SpiffeId,
}

impl ReceiptConfig {
    fn default_verifier() -> String {
        "Authority@stella".into()
    }
}

/// `[witness]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// Private Ed25519 key of the cosignatures (PKCS#8 PEM, mode 0600).
    pub key: ConfigPath,
    /// The witness's name in its signature lines.
    pub name: String,
    /// Who may have checkpoints cosigned: the Signer.
    pub caller: SpiffeId,
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use stella_serve::config::{ConfigError, load};

    use super::Config;

    fn sample() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/verifier.toml")
    }

    #[test]
    fn the_sample_holds_every_key() {
        let config: Config = load(&sample()).expect("the sample is a configuration");
        let base = sample().parent().expect("a folder").to_owned();
        let read = (
            config.trust.roots.to_path_buf(),
            config.trust.state_dir.to_path_buf(),
            config.trust.ingest_predicate_types,
            config.receipt.verifier,
            config.receipt.sealer.to_string(),
            config.witness.name,
            config.witness.caller.to_string(),
            config.signer.identity.to_string(),
        );
        let want = (
            base.join("trust-roots.json"),
            base.join("state"),
            vec!["https://example.com/ingest".to_owned()],
            "Authority@stella".to_owned(),
            "spiffe://stella.local/feedser".to_owned(),
            "stella.local/witness".to_owned(),
            "spiffe://stella.local/signer".to_owned(),
            "spiffe://stella.local/signer".to_owned(),
        );
        assert_eq!(read, want);
        assert_eq!(config.receipt.key.to_path_buf(), base.join("receipt.pem"));
        assert_eq!(config.witness.key.to_path_buf(), base.join("witness.pem"));
    }

    #[test]
    fn a_key_that_is_unknown_missing_or_senseless_stops_the_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let whole = std::fs::read_to_string(sample()).expect("the sample");
        for (case, from, to, want) in [
            (
                "unknown",
                "[receipt]",
                "[receipt]\nkeys = 1",
                "unknown field `keys`",
            ),
            (
                "unknown section",
                "[witness]",
                "[gates]\n[witness]",
                "unknown field `gates`",
            ),
            (
                "missing",
                "name = \"stella.local/witness\"",
                "",
                "missing field `name`",
            ),
            (
                "no identity",
                "sealer = \"spiffe://stella.local/feedser\"",
                "sealer = \"feedser\"",
                "SPIFFE ID",
            ),
            (
                "an empty path",
                "roots = \"trust-roots.json\"",
                "roots = \"\"",
                "an empty path",
            ),
        ] {
            assert!(whole.contains(from), "{case}");
            let path = dir.path().join("verifier.toml");
            std::fs::write(&path, whole.replacen(from, to, 1)).expect("writes");
            match load::<Config>(&path) {
                Err(ConfigError::Parse { source, .. }) => {
                    assert!(source.to_string().contains(want), "{case}: {source}");
                }
                other => panic!("{case}: {other:?}"),
            }
        }
    }
}
