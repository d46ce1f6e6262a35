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
    use super::Config;

    #[test]
    fn the_sample_holds_every_key() {
        let sample =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/verifier.toml");
        let config: Config = stella_serve::config::load(&sample).expect("the sample is a configuration");
        assert_eq!(config.receipt.verifier, "Authority@stella");
        assert_eq!(config.witness.name, "stella.local/witness");
    }
}
