//! TLS in both directions: what we show, whom we let in, and whom we expect to answer.
//!
//! A certificate is judged by the whole chain, its validity and its extended key usage, which must be stated:
//! a certificate without one could be used for anything. The identity is the certificate's single URI SAN; with none
//! or several the handshake fails. A client also checks the server's identity against the one it was told.
//!
//! Sessions are never resumed: a resumed one would skip the check of the certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::access::{SpiffeId, SpiffeIdError};
use crate::config;
use crate::fs::{self, FsError};

/// Why keys and certificates were not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read, or a key is not its owner's alone.
    #[error("a key or certificate could not be read")]
    File(#[from] FsError),
    /// The file holds no PEM certificate.
    #[error("`{}` holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file holds no private key that can be used.
    #[error("`{}` holds no private key (PKCS#8 PEM)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The certificate is not for this key, or one of the two cannot be used.
    #[error("the certificate and the key do not fit")]
    Mismatch(#[source] rustls::Error),
    /// The own certificate has no identity.
    #[error("the own certificate has no identity")]
    Identity(#[from] IdentityError),
    /// An authority's certificate cannot be used.
    #[error("the authorities cannot be used")]
    Authorities(#[from] VerifierBuilderError),
    /// TLS could not be set up.
    #[error("TLS could not be set up")]
    Setup(#[from] rustls::Error),
}

impl TlsError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => error.reason(),
            Self::NoCertificate { .. } => "CERTIFICATE_INVALID",
            Self::NoKey { .. } => "KEY_INVALID",
            Self::Mismatch(_) => "KEY_MISMATCH",
            Self::Identity(_) => "CERTIFICATE_IDENTITY",
            Self::Authorities(_) => "CERTIFICATE_INVALID",
            Self::Setup(_) => "TLS_SETUP",
        }
    }
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not an X.509 certificate.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// No URI SAN.
    #[error("the certificate has no URI name")]
    NoIdentity,
    /// More than one URI SAN.
    #[error("the certificate has several URI names")]
    SeveralIdentities,
    /// The URI is not a SPIFFE ID.
    #[error("the certificate's URI name is no SPIFFE ID")]
    NotSpiffe(#[from] SpiffeIdError),
}

/// Somebody else answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{expected}` was expected, `{found}` answered")]
pub struct PeerNotExpected {
    /// Who was expected.
    pub expected: SpiffeId,
    /// Who answered.
    pub found: SpiffeId,
}

/// Whom a verified certificate names, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) identity: SpiffeId,
    /// End of validity, Unix seconds.
    pub(crate) not_after: i64,
}

impl Peer {
    /// Reads the identity. That the certificate may be believed is the verifier's matter.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|_| IdentityError::NotACertificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::NotACertificate)?;
        let mut found = None;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name
                && found.replace(*uri).is_some()
            {
                return Err(IdentityError::SeveralIdentities);
            }
        }
        let identity = found.ok_or(IdentityError::NoIdentity)?.parse()?;
        Ok(Self {
            identity,
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// The one provider of cryptography in this process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .clone()
}

/// Makes aws-lc-rs the provider for every library in this process; doing so twice does no harm.
pub fn install_provider() {
    // An error means that it has been installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The files as they are on disk, to notice a change.
#[derive(PartialEq, Eq)]
pub(crate) struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
    server_ca: Vec<u8>,
}

impl Files {
    pub(crate) fn read(config: &config::ServerConfig) -> Result<Self, FsError> {
        Ok(Self {
            certificate: fs::read(&config.certificate, fs::FILE_LIMIT)?,
            key: fs::read_secret(&config.key)?,
            client_ca: fs::read(&config.client_ca, fs::FILE_LIMIT)?,
            server_ca: fs::read(config.upstream_ca(), fs::FILE_LIMIT)?,
        })
    }

    pub(crate) fn same_callers(&self, other: &Self) -> bool {
        self.client_ca == other.client_ca
    }
}

/// What a server needs for its own door and for asking others.
pub(crate) struct Material {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) own: Peer,
}

impl Material {
    pub(crate) fn build(files: &Files, config: &config::ServerConfig) -> Result<Self, TlsError> {
        let key = certified_key(&files.certificate, &config.certificate, &files.key, &config.key)?;
        let own = Peer::of(&key.cert[0])?;
        let callers = roots(&files.client_ca, &config.client_ca)?;
        let verifier = CallerVerifier {
            inner: WebPkiClientVerifier::builder_with_provider(Arc::new(callers), provider()).build()?,
        };
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let servers = Arc::new(roots(&files.server_ca, config.upstream_ca())?);
        Ok(Self {
            server: Arc::new(server),
            credentials: Arc::new(Credentials { key, servers }),
            own,
        })
    }
}

/// What a client shows, and the authorities whose servers it believes.
pub(crate) struct Credentials {
    key: Arc<CertifiedKey>,
    servers: Arc<RootCertStore>,
}

impl Credentials {
    /// From files: the authorities, the own certificate, its key.
    pub(crate) fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let servers = Arc::new(roots(&fs::read(ca, fs::FILE_LIMIT)?, ca)?);
        let chain = fs::read(certificate, fs::FILE_LIMIT)?;
        let secret = fs::read_secret(key)?;
        Ok(Self {
            key: certified_key(&chain, certificate, &secret, key)?,
            servers,
        })
    }

    /// TLS towards a server that must be `expected`; with `None` any identity will do.
    pub(crate) fn client_config(&self, expected: Option<SpiffeId>) -> Result<ClientConfig, TlsError> {
        let inner = WebPkiServerVerifier::builder_with_provider(self.servers.clone(), provider()).build()?;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PeerVerifier { inner, expected }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        Ok(client)
    }
}

/// Why a handshake failed, as the counter and the log name it.
pub(crate) fn handshake_reason(error: &io::Error) -> &'static str {
    let Some(error) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return "other";
    };
    match error {
        rustls::Error::NoCertificatesPresented => "no_certificate",
        rustls::Error::InvalidCertificate(error) => match error {
            // A foreign authority may bear the name of ours: then it is the signature that does not fit.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "unknown_ca",
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => "expired",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "wrong_usage"
            }
            _ => "other",
        },
        _ => "other",
    }
}

fn certified_key(
    chain: &[u8],
    chain_path: &Path,
    key: &[u8],
    key_path: &Path,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(chain, chain_path)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey {
        path: key_path.to_owned(),
    })?;
    Ok(Arc::new(
        CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Mismatch)?,
    ))
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = || TlsError::NoCertificate {
        path: path.to_owned(),
    };
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| refused())?;
    if found.is_empty() {
        Err(refused())
    } else {
        Ok(found)
    }
}

fn roots(pem: &[u8], path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        store.add(certificate)?;
    }
    Ok(store)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Server,
    Client,
}

/// Reads the identity of a certificate whose chain is verified, and requires that its usage is stated.
fn identify(certificate: &CertificateDer<'_>, role: Role) -> Result<SpiffeId, rustls::Error> {
    let refused = |error: IdentityError| CertificateError::Other(OtherError(Arc::new(error)));
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let usage = parsed
        .extended_key_usage()
        .map_err(|_| CertificateError::BadEncoding)?;
    let fits = usage.is_some_and(|usage| match role {
        Role::Server => usage.value.server_auth,
        Role::Client => usage.value.client_auth,
    });
    if !fits {
        return Err(CertificateError::InvalidPurpose.into());
    }
    Ok(Peer::of(certificate).map_err(refused)?.identity)
}

/// Lets in whom our authorities certified as a client and who has one identity.
#[derive(Debug)]
struct CallerVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        identify(end_entity, Role::Client)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Believes a server that our authorities certified for this name, and only if it is the one expected.
#[derive(Debug)]
struct PeerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    expected: Option<SpiffeId>,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let found = identify(end_entity, Role::Server)?;
        match &self.expected {
            Some(expected) if *expected != found => {
                let error = PeerNotExpected {
                    expected: expected.clone(),
                    found,
                };
                Err(CertificateError::Other(OtherError(Arc::new(error))).into())
            }
            _ => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn an_identity_is_the_one_uri_name() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let dns = SanType::DnsName("localhost".try_into().unwrap());
        let id = "spiffe://s/a";
        for (case, names, want) in [
            ("one", vec![uri(id)], Ok(id.parse().unwrap())),
            (
                "one beside a name",
                vec![dns.clone(), uri(id)],
                Ok(id.parse().unwrap()),
            ),
            ("none", vec![dns], Err(IdentityError::NoIdentity)),
            ("no names at all", vec![], Err(IdentityError::NoIdentity)),
            (
                "two",
                vec![uri(id), uri("spiffe://s/b")],
                Err(IdentityError::SeveralIdentities),
            ),
            (
                "the same twice",
                vec![uri(id), uri(id)],
                Err(IdentityError::SeveralIdentities),
            ),
            (
                "not SPIFFE",
                vec![uri("https://s/a")],
                Err(IdentityError::NotSpiffe(
                    "https://s/a".parse::<SpiffeId>().unwrap_err(),
                )),
            ),
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = names;
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(
                Peer::of(certificate.der()).map(|peer| peer.identity),
                want,
                "{case}"
            );
        }
        let noise = CertificateDer::from(vec![0x30, 0x82]);
        assert_eq!(Peer::of(&noise), Err(IdentityError::NotACertificate));
    }
}
