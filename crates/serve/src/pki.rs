//! A certificate authority for development and tests: one root, a certificate for each service and caller.
//!
//! The root's key lies in a folder of its own, `root/ca.key`, so that no service's folder or configuration leads to
//! it. Every certificate has exactly one URI SAN, the SPIFFE ID; services may be asked and may ask
//! (serverAuth + clientAuth) and carry the names they are reached by, callers may only ask (clientAuth).
//! Keys are ECDSA P-256.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;

use crate::access::SpiffeId;
use crate::fs::{self, Access, FsError};

/// Why the authority could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("a file of the development PKI could not be read or written")]
    File(#[from] FsError),
    /// A folder could not be made.
    #[error("cannot make `{}`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is an authority already; another one would cut off everybody it certified.
    #[error("`{}` holds an authority already", path.display())]
    Exists {
        /// The authority's folder.
        path: PathBuf,
    },
    /// A certificate could not be made.
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// A name for a service is neither a DNS name nor an IP address.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Name(String),
}

impl PkiError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => error.reason(),
            Self::Folder { .. } => "FILE_NOT_WRITTEN",
            Self::Exists { .. } => "PKI_EXISTS",
            Self::Certificate(_) => "CERTIFICATE_NOT_MADE",
            Self::Name(_) => "BAD_NAME",
        }
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A service: answers and asks.
    Service,
    /// An operator or a CI job: asks only.
    Client,
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Lifetime {
    /// From five minutes ago (clocks differ) until so long from now.
    pub fn of(length: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now - Duration::from_secs(300),
            not_after: now + length,
        }
    }

    /// So many days from now.
    pub fn days(days: u32) -> Self {
        Self::of(Duration::from_secs(u64::from(days) * 86_400))
    }

    /// One that ended an hour ago.
    pub fn expired() -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now - Duration::from_secs(86_400),
            not_after: now - Duration::from_secs(3_600),
        }
    }
}

/// A certificate that is wanted.
#[derive(Clone, Debug)]
pub struct Order {
    /// Whose.
    pub id: SpiffeId,
    /// What for.
    pub usage: Usage,
    /// How long.
    pub lifetime: Lifetime,
    /// DNS names and IP addresses that a service is reached by.
    pub names: Vec<String>,
}

impl Order {
    /// A service on this machine: `localhost`, `127.0.0.1` and `::1`, for a year.
    pub fn service(id: SpiffeId) -> Self {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        Self {
            id,
            usage: Usage::Service,
            lifetime: Lifetime::days(365),
            names,
        }
    }

    /// An operator or CI job, for a year.
    pub fn client(id: SpiffeId) -> Self {
        Self {
            id,
            usage: Usage::Client,
            lifetime: Lifetime::days(365),
            names: Vec::new(),
        }
    }
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PKCS#8 PEM. A secret.
    pub key: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("certificate", &self.certificate)
            .field("key", &"****")
            .finish()
    }
}

/// The authority.
pub struct DevCa {
    dir: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl DevCa {
    /// Makes an authority in `dir`: `ca.pem` and, readable by its owner alone, `root/ca.key`. Valid for ten years.
    pub fn create(dir: &Path) -> Result<Self, PkiError> {
        if certificate_path(dir).exists() || key_path(dir).exists() {
            return Err(PkiError::Exists { path: dir.to_owned() });
        }
        make_folder(dir, 0o755)?;
        make_folder(&dir.join("root"), 0o700)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let lifetime = Lifetime::days(3_650);
        let mut params = CertificateParams::default();
        params.not_before = lifetime.not_before;
        params.not_after = lifetime.not_after;
        params.distinguished_name = named("Stella development root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        fs::write_atomic(&key_path(dir), key.serialize_pem().as_bytes(), Access::Owner)?;
        fs::write_atomic(&certificate_path(dir), certificate.as_bytes(), Access::Everybody)?;
        Self::with(dir, certificate, key)
    }

    /// Opens the authority that [`DevCa::create`] made.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let certificate = fs::read_text(&certificate_path(dir))?;
        let key = KeyPair::from_pem(&fs::read_secret_text(&key_path(dir))?)?;
        Self::with(dir, certificate, key)
    }

    /// Path of the root's certificate: what services and callers trust.
    pub fn certificate_path(&self) -> PathBuf {
        certificate_path(&self.dir)
    }

    /// The root's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a certificate and its key in memory.
    pub fn issue(&self, order: &Order) -> Result<Issued, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.not_before = order.lifetime.not_before;
        params.not_after = order.lifetime.not_after;
        params.distinguished_name = named(order.id.as_str().rsplit('/').next().unwrap_or_default());
        params.subject_alt_names = vec![SanType::URI(order.id.as_str().try_into()?)];
        for name in &order.names {
            params.subject_alt_names.push(san(name)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match order.usage {
            Usage::Service => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Makes a certificate and writes it and its key (mode 0600) to these paths. The key comes first: a service that
    /// reloads in between sees a pair that does not match and keeps what it has.
    pub fn issue_to(&self, order: &Order, certificate: &Path, key: &Path) -> Result<(), PkiError> {
        let issued = self.issue(order)?;
        fs::write_atomic(key, issued.key.as_bytes(), Access::Owner)?;
        fs::write_atomic(certificate, issued.certificate.as_bytes(), Access::Everybody)?;
        Ok(())
    }

    fn with(dir: &Path, certificate: String, key: KeyPair) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self {
            dir: dir.to_owned(),
            certificate,
            issuer,
        })
    }
}

fn certificate_path(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

fn key_path(dir: &Path) -> PathBuf {
    dir.join("root").join("ca.key")
}

fn make_folder(path: &Path, mode: u32) -> Result<(), PkiError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| PkiError::Folder {
            path: path.to_owned(),
            source,
        })
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn san(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && label.len() < 64
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(PkiError::Name(name.to_owned()));
    }
    Ok(SanType::DnsName(name.try_into()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

    use super::*;

    /// What a certificate says: URIs, other names, server, client, whether it is an authority.
    fn read(pem: &str) -> (Vec<String>, usize, bool, bool, bool) {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let usage = certificate.extended_key_usage().unwrap().unwrap();
        let uris: Vec<_> = uris.collect();
        let others = names.value.general_names.len() - uris.len();
        (
            uris,
            others,
            usage.value.server_auth,
            usage.value.client_auth,
            certificate.is_ca(),
        )
    }

    #[test]
    fn a_certificate_has_one_identity_and_the_usage_that_was_ordered() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::create(dir.path()).unwrap();
        let id: SpiffeId = "spiffe://stella.local/signer".parse().unwrap();
        let service = ca.issue(&Order::service(id.clone())).unwrap();
        let client = DevCa::open(dir.path())
            .unwrap()
            .issue(&Order::client(id.clone()))
            .unwrap();
        assert_eq!(
            read(&service.certificate),
            (vec![id.to_string()], 3, true, true, false)
        );
        assert_eq!(
            read(&client.certificate),
            (vec![id.to_string()], 0, false, true, false)
        );
        assert!(!format!("{service:?}").contains("PRIVATE"));
    }

    #[test]
    fn keys_are_their_owners_alone_and_an_authority_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::create(dir.path()).unwrap();
        let order = Order::client("spiffe://stella.local/ci".parse().unwrap());
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        ca.issue_to(&order, &certificate, &key).unwrap();
        for (path, mode) in [
            (dir.path().join("root"), 0o700),
            (dir.path().join("root/ca.key"), 0o600),
            (key.clone(), 0o600),
            (ca.certificate_path(), 0o644),
            (certificate.clone(), 0o644),
        ] {
            assert_eq!(
                path.metadata().unwrap().mode() & 0o777,
                mode,
                "{}",
                path.display()
            );
        }
        let before = std::fs::read(key_path(dir.path())).unwrap();
        assert_eq!(DevCa::create(dir.path()).err().unwrap().reason(), "PKI_EXISTS");
        assert_eq!(std::fs::read(key_path(dir.path())).unwrap(), before);
    }

    #[test]
    fn what_cannot_be_certified_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DevCa::open(dir.path()).err().unwrap().reason(), "FILE_UNREADABLE");
        let ca = DevCa::create(dir.path()).unwrap();
        for name in ["", "a b", "a..b", "*.example", "ex\u{e4}mple"] {
            let mut order = Order::service("spiffe://stella.local/signer".parse().unwrap());
            order.names = vec![name.to_owned()];
            assert_eq!(ca.issue(&order).unwrap_err().reason(), "BAD_NAME", "{name}");
        }
    }
}
