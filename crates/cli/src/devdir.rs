//! A development directory: everything that the four services need on one machine, made once.
//!
//! A root authority whose key no service can reach, an identity for each service and for the operator, a key for each
//! purpose, configurations, the method table and the trust roots. All of it stands before any service starts.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use stella_attest::checkpoint::LogKey;
use stella_attest::history::{HistoryKey, KeyHistory, KeyState};
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::note::NoteKey;
use stella_attest::trust::{ConfiguredKey, Purpose, TrustRoots, TrustedLog, Validity};
use stella_serve::access::{Grant, MethodTable, Methods, SpiffeId, Tenant, Tenants};
use stella_serve::fs::{Access, write_atomic};
use stella_serve::pki::{DevCa, Order};

use crate::commands::keys;
use crate::failure::Failure;
use crate::parts::{Flags, Parts};

/// The tenant of a development directory.
pub const TENANT: &str = "dev";
/// The log's origin: the host of its URL.
pub const ORIGIN: &str = "127.0.0.1";
/// The witness's name.
pub const WITNESS: &str = "stella.local/witness";
/// The method table; made last.
const ACCESS: &str = "access.toml";
/// What the directory was made with.
const PARTS: &str = "parts.json";
/// The URI of Feedser's database, if it is a MongoDB.
const MONGODB_URI: &str = "mongodb.uri";
/// The public key of a Rekor, for the Signer.
const REKOR_KEY: &str = "rekor.pub.pem";
/// The log's public key, for Feedser.
const LOG_KEY: &str = "log.pub.pem";
/// The certificates of a timestamp authority, for the Signer.
const TSA_CHAIN: &str = "tsa.pem";
/// Says that a directory is one of ours, and of which command.
const MARKER: &str = ".stella";

/// One of the four services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Service {
    /// Signs, and owns the log.
    Signer,
    /// Judges, seals and witnesses.
    Verifier,
    /// Keeps events and attestations.
    Feedser,
    /// Proves history.
    Backfill,
}

impl Service {
    /// All four, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Signer, Self::Verifier, Self::Feedser, Self::Backfill];

    /// The service's name in paths, identities and configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signer => "signer",
            Self::Verifier => "verifier",
            Self::Feedser => "feedser",
            Self::Backfill => "backfill",
        }
    }

    /// The full name of its gRPC service.
    pub const fn grpc_name(self) -> &'static str {
        match self {
            Self::Signer => "stella.signer.v1.SignerService",
            Self::Verifier => "stella.verifier.v1.VerifierService",
            Self::Feedser => "stella.feedser.v1.FeedserService",
            Self::Backfill => "stella.backfill.v1.BackfillService",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The ports of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// gRPC and REST.
    pub main: u16,
    /// Health and metrics.
    pub ops: u16,
    /// The log's HTTP face: the Signer's alone, and not in directories that were made without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<u16>,
}

/// The listening sockets of one service, kept by the supervisor so that a restart keeps the port.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC and REST.
    pub main: TcpListener,
    /// Health and metrics.
    pub ops: TcpListener,
    /// The log's HTTP face.
    pub log: Option<TcpListener>,
}

impl Listeners {
    fn bind(ports: Option<Ports>, has_log: bool) -> anyhow::Result<Self> {
        let bind = |port: u16| {
            TcpListener::bind(("127.0.0.1", port))
                .with_context(|| format!("port {port} of an earlier start is in use"))
        };
        let new = Ports {
            main: 0,
            ops: 0,
            log: has_log.then_some(0),
        };
        let ports = ports.unwrap_or(new);
        Ok(Self {
            main: bind(ports.main)?,
            ops: bind(ports.ops)?,
            log: ports.log.map(bind).transpose()?,
        })
    }

    fn ports(&self) -> anyhow::Result<Ports> {
        Ok(Ports {
            main: self.main.local_addr()?.port(),
            ops: self.ops.local_addr()?.port(),
            log: match &self.log {
                Some(log) => Some(log.local_addr()?.port()),
                None => None,
            },
        })
    }
}

/// A directory and the places in it.
#[derive(Clone, Debug)]
pub struct DevDir {
    root: PathBuf,
}

impl DevDir {
    /// Takes `root`, which must be of the command `purpose`, empty or not there. The path is made absolute.
    ///
    /// # Errors
    /// The directory holds something else, which is never touched.
    pub fn claim(root: &Path, purpose: &str) -> anyhow::Result<Self> {
        if root.exists() {
            ensure!(root.is_dir(), "`{}` is not a directory", root.display());
            let found = fs::read_to_string(root.join(MARKER)).unwrap_or_default();
            let is_empty = fs::read_dir(root)?.next().is_none();
            if !is_empty && found.trim() != purpose {
                bail!(
                    "`{}` is not empty and not of an earlier `stella {purpose}`; name another --dir",
                    root.display()
                );
            }
        }
        fs::create_dir_all(root).with_context(|| format!("cannot make `{}`", root.display()))?;
        let dir = Self {
            root: fs::canonicalize(root)?,
        };
        fs::write(dir.root.join(MARKER), format!("{purpose}\n"))?;
        Ok(dir)
    }

    /// Opens a directory of `stella up`.
    ///
    /// # Errors
    /// It is none.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        ensure!(
            root.join(MARKER).exists(),
            "`{}` is not a directory of `stella up`; --dir names one",
            root.display()
        );
        Ok(Self {
            root: fs::canonicalize(root)?,
        })
    }

    /// Removes all that is in it but the marker.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn empty(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == MARKER) {
                continue;
            }
            if path.is_dir() {
                fs::remove_dir_all(&path)?
            } else {
                fs::remove_file(&path)?
            }
        }
        Ok(())
    }

    /// A place in it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A place of a service.
    pub fn of(&self, service: Service, relative: &str) -> PathBuf {
        self.root.join(service.name()).join(relative)
    }

    /// The service's configuration.
    pub fn config(&self, service: Service) -> PathBuf {
        self.of(service, &format!("{service}.toml"))
    }

    /// What the services run on: as the directory was made, or as `flags` say if it is new.
    ///
    /// # Errors
    /// As [`Flags::settle`]; what was settled cannot be kept.
    pub async fn settle(&self, flags: &Flags) -> Result<Parts, Failure> {
        let file = self.path(PARTS);
        let kept = match fs::read(&file) {
            _ if !self.is_made() => None,
            Ok(bytes) => {
                let parts = serde_json::from_slice(&bytes);
                Some(parts.with_context(|| format!("`{}`", file.display()))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Parts::default()),
            Err(error) => return Err(Failure::new(format!("cannot read `{}`: {error}", file.display()))),
        };
        let parts = flags.settle(kept).await?;
        let bytes = serde_json::to_vec_pretty(&parts).map_err(anyhow::Error::from)?;
        write_atomic(&file, &bytes, Access::Everybody).map_err(anyhow::Error::from)?;
        if let Some(uri) = &flags.mongodb_uri {
            fs::create_dir_all(self.of(Service::Feedser, ""))?;
            let place = self.of(Service::Feedser, MONGODB_URI);
            write_atomic(&place, uri.as_bytes(), Access::Owner).map_err(anyhow::Error::from)?;
        }
        Ok(parts)
    }

    /// Binds every service's listeners: the ports of an earlier start, else free ones, which are kept.
    ///
    /// # Errors
    /// A kept port is in use.
    pub fn bind(&self, parts: &Parts) -> anyhow::Result<BTreeMap<Service, Listeners>> {
        let file = self.path("ports.json");
        let kept: BTreeMap<String, Ports> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("`{}`", file.display()))?,
            Err(_) => BTreeMap::new(),
        };
        let mut listeners = BTreeMap::new();
        let mut ports = BTreeMap::new();
        for service in Service::ALL {
            let has_log = service == Service::Signer && parts.rekor.is_none();
            let bound = Listeners::bind(kept.get(service.name()).copied(), has_log)?;
            ports.insert(service.name(), bound.ports()?);
            listeners.insert(service, bound);
        }
        write_atomic(&file, &serde_json::to_vec_pretty(&ports)?, Access::Everybody)?;
        Ok(listeners)
    }

    /// The ports that [`bind`](Self::bind) kept.
    ///
    /// # Errors
    /// None were kept.
    pub fn ports(&self) -> anyhow::Result<BTreeMap<String, Ports>> {
        let file = self.path("ports.json");
        let bytes = fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Whether keys, configurations and trust roots are there.
    pub fn is_made(&self) -> bool {
        self.path(ACCESS).exists()
    }

    /// Makes keys, certificates, configurations and trust roots, unless they are there.
    ///
    /// # Errors
    /// Something cannot be made.
    pub fn provision(&self, ports: &BTreeMap<String, Ports>, parts: &Parts) -> anyhow::Result<()> {
        if self.is_made() {
            return Ok(());
        }
        for service in Service::ALL {
            fs::create_dir_all(self.of(service, ""))?;
        }
        fs::create_dir_all(self.path("logs"))?;
        fs::create_dir_all(self.path("operator"))?;
        self.certificates()?;
        let witness = self.keys(ports, parts)?;
        if let Some(rekor) = &parts.rekor {
            fs::write(self.of(Service::Signer, REKOR_KEY), &rekor.key)?;
            fs::write(self.of(Service::Feedser, LOG_KEY), &rekor.key)?;
        }
        if let Some(tsa) = &parts.tsa {
            fs::write(self.of(Service::Signer, TSA_CHAIN), &tsa.chain)?;
        }
        for service in Service::ALL {
            fs::write(self.config(service), config(service, ports, &witness, parts)?)?;
        }
        // Last, because its presence says that all the rest is there.
        method_table()?.save(&self.path(ACCESS))?;
        Ok(())
    }

    fn certificates(&self) -> anyhow::Result<()> {
        let pki = self.path("pki");
        let ca = if pki.exists() {
            DevCa::open(&pki)?
        } else {
            DevCa::create(&pki)?
        };
        for service in Service::ALL {
            let order = Order::service(identity(service.name())?);
            ca.issue_to(
                &order,
                &self.of(service, "cert.pem"),
                &self.of(service, "key.pem"),
            )?;
        }
        let order = Order::client(identity("operator")?);
        ca.issue_to(
            &order,
            &self.path("operator/cert.pem"),
            &self.path("operator/key.pem"),
        )?;
        Ok(())
    }

    /// One key for each purpose, the first key history, and the trust roots that name their public halves.
    fn keys(&self, ports: &BTreeMap<String, Ports>, parts: &Parts) -> anyhow::Result<NoteKey> {
        let attestation = SigningKey::generate(Algorithm::EcdsaP256)?;
        keys::place(&self.of(Service::Signer, "keys"), "default", &attestation)
            .map_err(|failure| anyhow::anyhow!(failure.text(false)))?;
        let manifest = self.new_key(Service::Signer, "manifest.pem", Algorithm::EcdsaP256)?;
        let history = self.new_key(Service::Signer, "history.pem", Algorithm::EcdsaP256)?;
        let audit = self.new_key(Service::Signer, "audit.pem", Algorithm::Ed25519)?;
        let receipt = self.new_key(Service::Verifier, "receipt.pem", Algorithm::Ed25519)?;
        let witness = self.new_key(Service::Verifier, "witness.pem", Algorithm::Ed25519)?;
        let witness = NoteKey::cosignature(WITNESS, witness.verifying_key())?;
        let receipt_pem = receipt.verifying_key().to_pem();
        write_atomic(
            &self.of(Service::Feedser, "receipt.pub.pem"),
            receipt_pem.as_bytes(),
            Access::Everybody,
        )?;

        let first = self.first_history(&attestation, &history)?;
        fs::create_dir_all(self.of(Service::Signer, "history"))?;
        write_atomic(
            &self.of(Service::Signer, "history/000001.json"),
            &first,
            Access::Everybody,
        )?;
        let versions = KeyHistory::parse(&[first], &[history.verifying_key()])?;
        let configured = |key: &SigningKey, purpose: Purpose| ConfiguredKey {
            key: key.verifying_key().clone(),
            purpose,
            issuer: "stella.local".into(),
            tenants: vec!["*".into()],
            predicate_types: vec!["*".into()],
        };
        let trusted = match &parts.rekor {
            Some(rekor) => rekor.trusted()?,
            None => {
                let log = self.new_key(Service::Signer, "log.pem", Algorithm::Ed25519)?;
                write_atomic(
                    &self.of(Service::Feedser, LOG_KEY),
                    log.verifying_key().to_pem().as_bytes(),
                    Access::Everybody,
                )?;
                TrustedLog {
                    key: LogKey::new(ORIGIN, log.verifying_key().clone())?,
                    base_url: log_url(ports).unwrap_or_else(|| format!("https://{ORIGIN}")),
                    distrusted: false,
                    validity: Validity::default(),
                }
            }
        };
        let roots = TrustRoots::new(
            vec![
                configured(&history, Purpose::KeyHistory),
                configured(&manifest, Purpose::Manifest),
                configured(&audit, Purpose::Audit),
            ],
            Some(versions),
            vec![trusted],
            vec![witness.clone()],
            vec![receipt.verifying_key().clone()],
        );
        let roots = match &parts.tsa {
            Some(tsa) => roots.with_timestamp_authorities(vec![tsa.authority()?]),
            None => roots,
        };
        write_atomic(
            &self.of(Service::Verifier, "trust-roots.json"),
            roots.to_canonical(),
            Access::Everybody,
        )?;
        Ok(witness)
    }

    /// The first version of the key history, where the Signer looks for it.
    fn first_history(&self, attestation: &SigningKey, history: &SigningKey) -> anyhow::Result<Vec<u8>> {
        let key = HistoryKey {
            key: attestation.verifying_key().clone(),
            slot: "default".into(),
            issuer: "stella.local".into(),
            tenants: vec!["*".into()],
            predicate_types: vec!["*".into()],
            state: KeyState::Active,
            activated_at: None,
            retired_at: None,
            revoked_at: None,
            revocation_reason: None,
        };
        Ok(KeyHistory::sign_next(None, &[key], history)?)
    }

    fn new_key(&self, service: Service, name: &str, algorithm: Algorithm) -> anyhow::Result<SigningKey> {
        let key = SigningKey::generate(algorithm)?;
        write_atomic(
            &self.of(service, name),
            key.to_pkcs8_pem().as_bytes(),
            Access::Owner,
        )?;
        Ok(key)
    }

    /// What a shell needs to talk to the services.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_env(&self, ports: &BTreeMap<String, Ports>, parts: &Parts) -> anyhow::Result<PathBuf> {
        let url = |service: Service| format!("https://127.0.0.1:{}", ports[service.name()].main);
        let path = |relative: &str| self.path(relative).display().to_string();
        let mut text = String::new();
        for (name, value) in [
            ("STELLA_SIGNER", url(Service::Signer)),
            ("STELLA_VERIFIER", url(Service::Verifier)),
            ("STELLA_FEEDSER", url(Service::Feedser)),
            ("STELLA_BACKFILL", url(Service::Backfill)),
            ("STELLA_REST", url(Service::Feedser)),
            ("STELLA_CA", path("pki/ca.pem")),
            ("STELLA_CERT", path("operator/cert.pem")),
            ("STELLA_KEY", path("operator/key.pem")),
            ("STELLA_TENANT", TENANT.to_owned()),
        ] {
            text.push_str(&format!("{name}={}\n", quoted(&value)));
        }
        if parts.rekor.is_none() {
            text.push_str(&format!("STELLA_LOG_DIR={}\n", quoted(&path("signer/log"))));
        }
        if let Some(url) = log_url(ports) {
            text.push_str(&format!("STELLA_LOG_URL={}\n", quoted(&url)));
        }
        let file = self.path("stella.env");
        write_atomic(&file, text.as_bytes(), Access::Everybody)?;
        Ok(file)
    }
}

/// Where the log's HTTP face is, if it has one.
fn log_url(ports: &BTreeMap<String, Ports>) -> Option<String> {
    let port = ports[Service::Signer.name()].log?;
    Some(format!("http://{ORIGIN}:{port}"))
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The SPIFFE ID of a development identity.
///
/// # Errors
/// The name cannot stand in one.
pub fn identity(name: &str) -> anyhow::Result<SpiffeId> {
    Ok(format!("spiffe://stella.local/{name}").parse()?)
}

/// Operators may do everything for the development tenant; each service may do what its work needs.
fn method_table() -> anyhow::Result<MethodTable> {
    let tenant: Tenant = TENANT.parse()?;
    let mut table = MethodTable::default();
    let mut grant = |name: &str, methods: &[&str], tenants: Vec<Tenants>| -> anyhow::Result<()> {
        let methods = methods
            .iter()
            .map(|method| method.parse())
            .collect::<Result<_, _>>()?;
        table.add(Grant {
            identity: identity(name)?,
            methods,
            tenants,
        });
        Ok(())
    };
    grant("operator", &["*"], vec![Tenants::One(tenant)])?;
    grant(
        "signer",
        &[
            "stella.verifier.v1.VerifierService/CosignCheckpoint",
            "stella.verifier.v1.VerifierService/ReportFork",
        ],
        Vec::new(),
    )?;
    grant(
        "verifier",
        &["stella.signer.v1.SignerService/WatchKeys"],
        Vec::new(),
    )?;
    grant(
        "feedser",
        &[
            "stella.verifier.v1.VerifierService/ReportFork",
            "stella.verifier.v1.VerifierService/Verify",
            "stella.verifier.v1.VerifierService/VerifyBatch",
            "stella.signer.v1.SignerService/SignManifest",
        ],
        vec![Tenants::All],
    )?;
    grant(
        "backfill",
        &[
            "stella.feedser.v1.FeedserService/AttachProvenanceBatch",
            "stella.feedser.v1.FeedserService/CountUnproven",
            "stella.feedser.v1.FeedserService/FindAttestations",
            "stella.feedser.v1.FeedserService/ListUnproven",
        ],
        vec![Tenants::All],
    )?;
    Ok(table)
}

/// Methods of our services, as the method table names them.
///
/// # Errors
/// The text names none; the error names those that there are.
pub fn methods(text: &str) -> anyhow::Result<Methods> {
    let methods: Methods = text.parse()?;
    let known = Methods::named(&Service::ALL.map(Service::grpc_name));
    if !known.iter().any(|name| methods.covers(name)) {
        bail!(
            "no service has the method `{text}`; there are *, package.Service/*, {}",
            known.join(", ")
        );
    }
    Ok(methods)
}

/// The Signer's logs, and its timestamp authority.
fn logs(http: Option<u16>, witness: &NoteKey, parts: &Parts) -> String {
    let mut text = String::new();
    match &parts.rekor {
        None => {
            text.push_str(&format!(
                "[log]\ndir = \"log\"\nkey = \"log.pem\"\norigin = \"{ORIGIN}\"\nrequired_witnesses = [\"{witness}\"]\n"
            ));
            if let Some(port) = http {
                text.push_str(&format!("\n[log.http]\nlisten = \"127.0.0.1:{port}\"\n"));
            }
        }
        Some(rekor) => {
            text.push_str(&format!(
                "[[rekor]]\nversion = {}\nurl = {}\npublic_key = \"{REKOR_KEY}\"\nstate_dir = \"rekor\"\n",
                rekor.version,
                toml_text(&rekor.url)
            ));
            if rekor.version == 2 {
                text.push_str(&format!("required_witnesses = [\"{witness}\"]\n"));
            }
            if let Some(tiles) = &rekor.tiles {
                text.push_str(&format!("tiles_url = {}\n", toml_text(tiles)));
            }
        }
    }
    if let Some(tsa) = &parts.tsa {
        let url = toml_text(&tsa.url);
        text.push_str(&format!("\n[tsa]\nurl = {url}\nchain = \"{TSA_CHAIN}\"\n"));
    }
    text
}

/// The log that Feedser completes evidence from, if it can be read over HTTP.
fn read_log(ports: &BTreeMap<String, Ports>, parts: &Parts) -> anyhow::Result<String> {
    let (kind, url, origin) = match &parts.rekor {
        None => match log_url(ports) {
            Some(url) => ("tiles", url, Some(ORIGIN.to_owned())),
            None => return Ok(String::new()),
        },
        Some(rekor) if rekor.version == 1 => ("rekor-v1", rekor.url.clone(), None),
        Some(rekor) => {
            let below = || format!("{}/api/v2", rekor.url.trim_end_matches('/'));
            let origin = rekor.trusted()?.key.origin;
            ("tiles", rekor.tiles.clone().unwrap_or_else(below), Some(origin))
        }
    };
    let mut text = format!(
        "\n[[log]]\nkind = \"{kind}\"\nurl = {}\npublic_key = \"{LOG_KEY}\"\nstate_dir = \"logs\"\n",
        toml_text(&url)
    );
    if let Some(origin) = origin {
        text.push_str(&format!("origin = {}\n", toml_text(&origin)));
    }
    Ok(text)
}

/// `text` as a TOML string.
fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn config(
    service: Service,
    ports: &BTreeMap<String, Ports>,
    witness: &NoteKey,
    parts: &Parts,
) -> anyhow::Result<String> {
    let own = ports[service.name()];
    let head = format!(
        "[server]\nlisten = \"127.0.0.1:{}\"\nops_listen = \"127.0.0.1:{}\"\ncertificate = \"cert.pem\"\n\
         key = \"key.pem\"\nclient_ca = \"../pki/ca.pem\"\n\n[access]\ntable = \"../access.toml\"\n",
        own.main, own.ops
    );
    let upstream = |other: Service| {
        format!(
            "[{other}]\nurl = \"https://127.0.0.1:{}\"\nidentity = \"spiffe://stella.local/{other}\"\n",
            ports[other.name()].main
        )
    };
    let body = match service {
        Service::Signer => format!(
            "[keys]\ndir = \"keys\"\nmanifest_key = \"manifest.pem\"\nmanifest_caller = \"{}\"\n\
             history_key = \"history.pem\"\n\
             history_dir = \"history\"\n\n{}\n[audit]\ndir = \"audit\"\nkey = \"audit.pem\"\n{}\n\
             [[policy.allow]]\ncaller = \"spiffe://stella.local/*\"\ntenant = \"{TENANT}\"\npredicate_type = \"*\"\n\
             key_slot = \"*\"\n\n{}",
            identity("feedser")?,
            logs(own.log, witness, parts),
            if parts.rekor.is_some() {
                "spool_dir = \"spool\"\n"
            } else {
                ""
            },
            upstream(Service::Verifier)
        ),
        Service::Verifier => format!(
            "[trust]\nroots = \"trust-roots.json\"\nstate_dir = \"state\"\n\n[receipt]\nkey = \"receipt.pem\"\n\
             sealer = \"{}\"\n\n[witness]\nkey = \"witness.pem\"\nname = \"{WITNESS}\"\ncaller = \"{}\"\n\n{}",
            identity("feedser")?,
            identity("signer")?,
            upstream(Service::Signer)
        ),
        Service::Feedser => format!(
            "[store]\n{}\n\n[trust]\nreceipt_keys = [\"receipt.pub.pem\"]\n\n{}\n{}{}",
            if parts.mongodb {
                format!("mongodb_uri_file = \"{MONGODB_URI}\"")
            } else {
                "path = \"feedser.db\"".to_owned()
            },
            upstream(Service::Verifier),
            upstream(Service::Signer),
            read_log(ports, parts)?
        ),
        Service::Backfill => format!(
            "[store]\npath = \"backfill.db\"\n\n{}",
            upstream(Service::Feedser)
        ),
    };
    Ok(format!(
        "# Made by `stella`; deploy/config/{service}.toml explains every key.\n{head}\n{body}"
    ))
}
