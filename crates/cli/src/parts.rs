//! Real servers in place of what a development directory brings itself: MongoDB for the store, a Rekor for the log, a
//! timestamp authority.
//!
//! What a directory was made with is kept in it, so that the next start needs no flag; another choice needs another
//! directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use stella_attest::trust::TrustedLog;
use stella_attest::tsa::Authority;
use stella_serve::install_provider;
use stella_tlog::rekor::{Generation, RekorConfig};

use crate::failure::{Failure, read_file};
use crate::output::say;

/// Longest wait for a server to name its key.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Largest key or chain of certificates.
const MAX_PEM: usize = 256 * 1024;

/// Real servers to run on
#[derive(Args, Clone, Default)]
pub struct Flags {
    /// Keeps events and attestations in the MongoDB database that URI names
    #[arg(long, value_name = "URI", env = "STELLA_MONGODB_URI", hide_env_values = true)]
    pub mongodb_uri: Option<String>,
    /// Logs in the Rekor at URL, not in a log of its own
    #[arg(long, value_name = "URL")]
    rekor: Option<String>,
    /// Generation of that Rekor, 1 or 2 [default: that of the directory, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2), requires = "rekor")]
    rekor_version: Option<u8>,
    /// Its public key (PEM); a version 1 is asked for it if this is left out
    #[arg(long, value_name = "FILE", requires = "rekor")]
    rekor_key: Option<PathBuf>,
    /// Where a version 2 is read, if not below URL/api/v2
    #[arg(long, value_name = "URL", requires = "rekor")]
    rekor_tiles: Option<String>,
    /// Has every signature dated by the timestamp authority (RFC 3161) at URL
    #[arg(long, value_name = "URL")]
    tsa: Option<String>,
    /// Its certificates (PEM), its own first; it is asked for them at URL/certchain if this is left out
    #[arg(long, value_name = "FILE", requires = "tsa")]
    tsa_chain: Option<PathBuf>,
}

/// What a directory was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// True if events lie in a MongoDB.
    pub mongodb: bool,
    /// The log, if it is elsewhere.
    pub rekor: Option<Rekor>,
    /// The timestamp authority.
    pub tsa: Option<Tsa>,
}

/// A Rekor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekor {
    /// 1 or 2.
    pub version: u8,
    /// Base URL.
    pub url: String,
    /// Where a version 2 is read.
    pub tiles: Option<String>,
    /// Its public key (PEM).
    pub key: String,
}

/// A timestamp authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tsa {
    /// Where it is asked.
    pub url: String,
    /// Its certificates (PEM).
    pub chain: String,
}

impl Rekor {
    /// The log as trust roots name it: a version 2 by its host, a version 1 by its key alone.
    pub fn trusted(&self) -> anyhow::Result<TrustedLog> {
        let generation = if self.version == 1 {
            Generation::V1
        } else {
            Generation::V2
        };
        let named = RekorConfig::named(&self.url, &self.key, None, generation);
        Ok(named.context("--rekor-key")?.log)
    }
}

impl Tsa {
    /// The authority as trust roots name it.
    pub fn authority(&self) -> anyhow::Result<Authority> {
        let name = host(&self.url).context("--tsa")?;
        Authority::from_pem(&name, &self.chain).context("--tsa-chain: no chain of certificates")
    }
}

/// Where Sigstore's timestamp authority tells its certificates: below the path at which it is asked.
fn certchain(url: &str) -> anyhow::Result<String> {
    let mut parsed = reqwest::Url::parse(url).with_context(|| format!("--tsa: `{url}` is not a URL"))?;
    parsed.set_query(None);
    let path = format!("{}/certchain", parsed.path().trim_end_matches('/'));
    parsed.set_path(&path);
    Ok(parsed.into())
}

fn host(url: &str) -> anyhow::Result<String> {
    let parsed = reqwest::Url::parse(url).with_context(|| format!("`{url}` is not a URL"))?;
    let host = parsed
        .host_str()
        .with_context(|| format!("`{url}` names no host"))?;
    Ok(host.to_owned())
}

impl Flags {
    /// What a directory runs on that was made with `kept`, or is new.
    ///
    /// # Errors
    /// The flags name something else than the directory was made with; a server does not name its key.
    pub async fn settle(&self, kept: Option<Parts>) -> Result<Parts, Failure> {
        match kept {
            Some(kept) => {
                self.agree(&kept)?;
                Ok(kept)
            }
            None => self.ask().await,
        }
    }

    /// Whether what is given here is what the directory was made with.
    fn agree(&self, kept: &Parts) -> Result<(), Failure> {
        let differs = |flag: &str| {
            Err(Failure::usage(format!(
                "{flag}: the directory was made with another choice; name another --dir"
            )))
        };
        if self.mongodb_uri.is_some() && !kept.mongodb {
            return differs("--mongodb-uri");
        }
        let rekor = kept.rekor.as_ref().map(|rekor| &rekor.url);
        if self.rekor.is_some() && self.rekor.as_ref() != rekor {
            return differs("--rekor");
        }
        let kept_rekor = kept.rekor.as_ref();
        if let Some(version) = self.rekor_version
            && kept_rekor.is_none_or(|rekor| rekor.version != version)
        {
            return differs("--rekor-version");
        }
        if self.rekor_tiles.is_some() && kept_rekor.is_none_or(|rekor| rekor.tiles != self.rekor_tiles) {
            return differs("--rekor-tiles");
        }
        if let Some(file) = &self.rekor_key
            && kept_rekor.is_none_or(|rekor| !read("--rekor-key", file).is_ok_and(|key| key == rekor.key))
        {
            return differs("--rekor-key");
        }
        if let Some(file) = &self.tsa_chain
            && kept
                .tsa
                .as_ref()
                .is_none_or(|tsa| !read("--tsa-chain", file).is_ok_and(|chain| chain == tsa.chain))
        {
            return differs("--tsa-chain");
        }
        let tsa = kept.tsa.as_ref().map(|tsa| &tsa.url);
        if self.tsa.is_some() && self.tsa.as_ref() != tsa {
            return differs("--tsa");
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Parts, Failure> {
        let rekor = match &self.rekor {
            Some(url) => Some(self.rekor(url).await?),
            None => None,
        };
        let tsa = match &self.tsa {
            Some(url) => {
                let chain = match &self.tsa_chain {
                    Some(file) => read("--tsa-chain", file)?,
                    None => asked("--tsa-chain", &certchain(url)?).await?,
                };
                let tsa = Tsa {
                    url: url.clone(),
                    chain,
                };
                tsa.authority()?;
                Some(tsa)
            }
            None => None,
        };
        Ok(Parts {
            mongodb: self.mongodb_uri.is_some(),
            rekor,
            tsa,
        })
    }

    async fn rekor(&self, url: &str) -> Result<Rekor, Failure> {
        let version = self.rekor_version.unwrap_or(1);
        if version == 1 && self.rekor_tiles.is_some() {
            return Err(Failure::usage(
                "--rekor-tiles is for --rekor-version 2".to_owned(),
            ));
        }
        let key = match &self.rekor_key {
            Some(file) => read("--rekor-key", file)?,
            None if version == 1 => {
                asked(
                    "--rekor-key",
                    &format!("{}/api/v1/log/publicKey", url.trim_end_matches('/')),
                )
                .await?
            }
            None => {
                return Err(Failure::usage(
                    "--rekor-key is missing: a Rekor of version 2 does not tell its key".to_owned(),
                ));
            }
        };
        let rekor = Rekor {
            version,
            url: url.to_owned(),
            tiles: self.rekor_tiles.clone(),
            key,
        };
        rekor.trusted()?;
        Ok(rekor)
    }
}

fn read(what: &str, file: &Path) -> Result<String, Failure> {
    String::from_utf8(read_file(what, file)?)
        .map_err(|_| Failure::new(format!("{what}: `{}` is not text", file.display())))
}

/// Asks a server for what the flag would have given, and says so: what a server says of itself is believed this once.
async fn asked(flag: &str, url: &str) -> Result<String, Failure> {
    let text = fetch(url)
        .await
        .with_context(|| format!("cannot get `{url}`; {flag} would name a file"))?;
    say(&format!("{flag} is not given: `{url}` is believed"));
    Ok(text)
}

async fn fetch(url: &str) -> anyhow::Result<String> {
    install_provider();
    let client = reqwest::Client::builder()
        .timeout(ASK_WITHIN)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let mut answer = client.get(url).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        ensure!(body.len() + chunk.len() <= MAX_PEM, "more than {MAX_PEM} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_asked_for_below_the_path_of_the_authority() {
        for (url, want) in [
            ("http://tsa.example", "http://tsa.example/certchain"),
            (
                "http://tsa.example:8/api/v1/timestamp",
                "http://tsa.example:8/api/v1/timestamp/certchain",
            ),
            (
                "https://tsa.example/tsr/?a=b",
                "https://tsa.example/tsr/certchain",
            ),
        ] {
            assert_eq!(certchain(url).ok().as_deref(), Some(want), "{url}");
        }
    }

    #[test]
    fn a_flag_that_contradicts_the_directory_is_refused_by_its_name() {
        let url = || "http://127.0.0.1:9".to_owned();
        let kept = Parts {
            rekor: Some(Rekor {
                version: 2,
                url: url(),
                tiles: None,
                key: "kept".to_owned(),
            }),
            ..Parts::default()
        };
        let same = || Flags {
            rekor: Some(url()),
            rekor_version: Some(2),
            ..Flags::default()
        };
        assert!(same().agree(&kept).is_ok());
        assert!(Flags::default().agree(&kept).is_ok(), "no flag is needed");
        let unversioned = Flags {
            rekor_version: None,
            ..same()
        };
        assert!(
            unversioned.agree(&kept).is_ok(),
            "the directory knows the version"
        );
        let absent = PathBuf::from("absent.pem");
        for (flags, want) in [
            (
                Flags {
                    mongodb_uri: Some("mongodb://h/d".to_owned()),
                    ..same()
                },
                "--mongodb-uri: ",
            ),
            (
                Flags {
                    rekor: Some("http://127.0.0.1:8".to_owned()),
                    ..same()
                },
                "--rekor: ",
            ),
            (
                Flags {
                    rekor_version: Some(1),
                    ..same()
                },
                "--rekor-version: ",
            ),
            (
                Flags {
                    rekor_tiles: Some(url()),
                    ..same()
                },
                "--rekor-tiles: ",
            ),
            (
                Flags {
                    rekor_key: Some(absent.clone()),
                    ..same()
                },
                "--rekor-key: ",
            ),
            (
                Flags {
                    tsa: Some(url()),
                    ..same()
                },
                "--tsa: ",
            ),
            (
                Flags {
                    tsa: Some(url()),
                    tsa_chain: Some(absent),
                    ..same()
                },
                "--tsa-chain: ",
            ),
        ] {
            let refused = flags.agree(&kept).expect_err(want).text(false);
            assert!(refused.contains(want), "{want}{refused}");
        }
    }
}
