//! Opens the logs and the timestamp authority that the configuration names.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use http::Uri;
use stella_attest::checkpoint::Checkpoint;
use stella_attest::key::SigningKey;
use stella_attest::note::NoteKey;
use stella_attest::tsa::Authority;
use stella_serve::upstream::Upstream;
use stella_tlog::embedded::{EmbeddedConfig, EmbeddedLog};
use stella_tlog::rekor::v1::RekorV1;
use stella_tlog::rekor::v2::{RekorV2, RekorV2Config};
use stella_tlog::rekor::{Generation, RekorConfig};
use stella_tlog::tsa::{TimestampAuthority, TsaConfig};
use stella_tlog::{TransparencyLog, Witness};

use crate::config::{Config, RekorLogConfig, RekorVersion};
use crate::logs::Logs;
use crate::witness::VerifierWitness;

/// What was opened.
pub(crate) struct Opened {
    pub(crate) logs: Logs,
    /// The log in this process.
    pub(crate) embedded: Option<Arc<EmbeddedLog>>,
    /// The keys of all witnesses.
    pub(crate) witnesses: Vec<NoteKey>,
}

/// Opens what `config` names: the log in this process with its key and the newest checkpoint that is remembered of it,
/// then those elsewhere. Blocks.
pub(crate) fn open(
    config: &Config,
    key: Option<SigningKey>,
    floor: Option<Checkpoint>,
    upstream: &Upstream,
) -> anyhow::Result<Opened> {
    let mut logs: Vec<Arc<dyn TransparencyLog>> = Vec::new();
    let (mut witnesses, mut embedded) = (Vec::new(), None);
    if let (Some(log), Some(key)) = (&config.log, key) {
        let asked = required("log.required_witnesses", &log.required_witnesses, upstream)?;
        witnesses.extend(asked.keys);
        let dir: &Path = &log.dir;
        let settings = EmbeddedConfig::new(dir, log.origin.clone());
        let opened = EmbeddedLog::open(settings, key, floor, asked.witnesses)
            .map_err(|error| anyhow!("{error} [{}]", error.reason()))?;
        let opened = Arc::new(opened);
        logs.push(Arc::clone(&opened) as Arc<dyn TransparencyLog>);
        embedded = Some(opened);
    }
    for (number, rekor) in config.rekor.iter().enumerate() {
        let field = format!("rekor[{number}]");
        let asked = required(
            &format!("{field}.required_witnesses"),
            &rekor.required_witnesses,
            upstream,
        )?;
        let opened = open_rekor(rekor, asked.witnesses).with_context(|| format!("`{field}`"))?;
        let is_known = logs.iter().any(|known| known.log_id() == opened.log_id());
        ensure!(!is_known, "`{field}` is a log that is configured already");
        logs.push(opened);
        witnesses.extend(asked.keys);
    }
    let authority = match &config.tsa {
        Some(tsa) => {
            let name = host(&tsa.url).unwrap_or_default();
            let chain = Authority::from_pem(&name, &text(&tsa.chain)?);
            let chain = chain.with_context(|| {
                format!(
                    "`tsa.chain` `{}` holds no chain of certificates",
                    tsa.chain.display()
                )
            })?;
            let asked = TsaConfig::new(tsa.url.clone(), vec![chain]);
            Some(TimestampAuthority::open(asked).context("`tsa`")?)
        }
        None => None,
    };
    let embedded_id = embedded.as_ref().map(|log| log.log_key().log_id);
    Ok(Opened {
        logs: Logs::new(logs, embedded_id, authority),
        embedded,
        witnesses,
    })
}

fn open_rekor(
    config: &RekorLogConfig,
    witnesses: Vec<Arc<dyn Witness>>,
) -> anyhow::Result<Arc<dyn TransparencyLog>> {
    let generation = match config.version {
        RekorVersion::V1 => Generation::V1,
        RekorVersion::V2 => Generation::V2,
    };
    let key = text(&config.public_key)?;
    let mut rekor = RekorConfig::named(&config.url, &key, config.origin.as_deref(), generation)?;
    rekor.state_dir = Some(config.state_dir.to_path_buf());
    rekor.budget = Duration::from_millis(config.timeout_ms.get());
    rekor.attempt_timeout = Duration::from_millis(config.attempt_timeout_ms.get());
    match config.version {
        RekorVersion::V1 => {
            ensure!(config.tiles_url.is_none(), "`tiles_url` is for version 2");
            ensure!(witnesses.is_empty(), "`required_witnesses` are for version 2");
            Ok(Arc::new(RekorV1::open(rekor)?))
        }
        RekorVersion::V2 => Ok(Arc::new(RekorV2::open(RekorV2Config {
            tiles_url: config.tiles_url.clone(),
            witnesses,
            ..RekorV2Config::new(rekor)
        })?)),
    }
}

/// The witnesses of a log, and their keys.
struct Required {
    witnesses: Vec<Arc<dyn Witness>>,
    keys: Vec<NoteKey>,
}

fn required(field: &str, verifier_keys: &[String], upstream: &Upstream) -> anyhow::Result<Required> {
    let (mut witnesses, mut keys): (Vec<Arc<dyn Witness>>, _) = (Vec::new(), Vec::new());
    for text in verifier_keys {
        let key = NoteKey::parse(text)
            .with_context(|| format!("`{field}` names no C2SP verifier key: `{text}`"))?;
        witnesses.push(Arc::new(VerifierWitness::new(upstream.clone(), key.clone())));
        keys.push(key);
    }
    Ok(Required { witnesses, keys })
}

fn host(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    Some(url.host()?.to_owned())
}

fn text(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))
}
