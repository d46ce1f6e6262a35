//! FerretDB v2 on PostgreSQL with DocumentDB: MongoDB's wire protocol, the nearest thing to a MongoDB that can be
//! brought.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::home::Home;
use super::ports;
use super::process::{Process, program};
use super::wire;
use crate::tools::{folder, is_root, is_there, part_of, root, tool};

/// Whom the server lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, in plain text.
    Open,
    /// Who has a certificate of the server's CA, over TLS only.
    MutualTls,
    /// User `stella` with the password `s3cret`, by SCRAM-SHA-256, in plain text.
    Scram,
}

/// The files of [`Access::MutualTls`].
#[derive(Clone, Debug)]
pub struct MutualTls {
    /// The certificate of the CA of both sides (PEM).
    pub ca: PathBuf,
    /// A client's certificate and key in one file (PEM), as `tlsCertificateKeyFile` wants it.
    pub client: PathBuf,
}

/// A running FerretDB v2 with a PostgreSQL of its own.
pub struct FerretV2 {
    ferret: Process,
    postgres: Process,
    home: Home,
    place: Place,
    access: Access,
}

/// Where everything is, before and after a restart.
struct Place {
    server: PathBuf,
    root: PathBuf,
    port: u16,
    postgres_port: u16,
}

impl FerretV2 {
    /// Starts one with empty databases; `None`, said aloud, where FerretDB or DocumentDB is not brought, and
    /// without root (it needs namespaces and chroot).
    ///
    /// # Panics
    /// It does not come up.
    pub fn start(access: Access) -> Option<Self> {
        let (server, root) = brought()?;
        Some(Self::start_programs(server, root, access))
    }

    /// What the machine lacks to start one; nothing is said.
    pub fn lacks() -> Option<&'static str> {
        if !is_there("ferretdb") {
            return Some("ferretdb (cargo xtask peers ferretdb)");
        }
        if !folder().join(SYSTEM).exists() {
            return Some("documentdb (cargo xtask peers documentdb)");
        }
        (!is_root()).then_some("root (PostgreSQL runs in namespaces of its own)")
    }

    /// One that is open to everybody, for all tests of this program.
    ///
    /// # Panics
    /// It does not come up.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<FerretV2> = OnceLock::new();
        let (server, root) = brought()?;
        Some(SHARED.get_or_init(|| Self::start_programs(server, root, Access::Open)))
    }

    fn start_programs(server: PathBuf, root: PathBuf, access: Access) -> Self {
        let home = Home::new();
        let template = root.join("pg/data");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&template)
            .arg(home.folder("pg"))
            .status();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "{} cannot be copied",
            template.display()
        );
        std::os::unix::fs::chown(home.file("pg"), Some(POSTGRES), Some(POSTGRES)).expect("needs root");
        let place = Place {
            server,
            root,
            port: ports::free(),
            postgres_port: ports::free(),
        };
        if access == Access::MutualTls {
            write_certificates(&home);
        }
        let mut postgres = launch_postgres(&place, &home);
        if access == Access::Scram {
            let role = "create role stella login superuser password 's3cret'";
            postgres.wait_until(|| query(&place, role));
        }
        Self {
            ferret: launch_ferret(&place, &home, access),
            postgres,
            home,
            place,
            access,
        }
    }

    /// The connection string that names `database`, with what [`Access`] asks for.
    pub fn uri(&self, database: &str) -> String {
        let port = self.place.port;
        let user = if self.access == Access::Scram {
            "stella:s3cret@"
        } else {
            ""
        };
        let uri = format!("mongodb://{user}127.0.0.1:{port}/{database}?directConnection=true");
        match self.access {
            Access::Open => uri,
            Access::Scram => format!("{uri}&authSource=admin&authMechanism=SCRAM-SHA-256"),
            Access::MutualTls => {
                let files = self.mutual_tls();
                format!(
                    "{uri}&tls=true&tlsCAFile={}&tlsCertificateKeyFile={}",
                    files.ca.display(),
                    files.client.display()
                )
            }
        }
    }

    /// The port on the loopback.
    pub fn port(&self) -> u16 {
        self.place.port
    }

    /// The certificates; files that are there only with [`Access::MutualTls`].
    pub fn mutual_tls(&self) -> MutualTls {
        MutualTls {
            ca: self.home.file("ca.pem"),
            client: self.home.file("client.pem"),
        }
    }

    /// Ends FerretDB and every process of PostgreSQL at once (kill -9).
    pub fn kill9(&mut self) {
        self.postgres.kill();
        self.ferret.kill();
    }

    /// Starts both again on the same ports and the same databases, after a [`kill9`](Self::kill9) of its own.
    ///
    /// # Panics
    /// They do not come up.
    pub fn restart(&mut self) {
        self.kill9();
        // The process that it names is gone with its namespace, but another may bear its number now.
        let _ = std::fs::remove_file(self.home.file("pg/data/postmaster.pid"));
        self.postgres = launch_postgres(&self.place, &self.home);
        self.ferret = launch_ferret(&self.place, &self.home, self.access);
    }
}

/// FerretDB and the system with PostgreSQL; each that is lacking is said aloud.
fn brought() -> Option<(PathBuf, PathBuf)> {
    root()?;
    let server = tool("ferretdb");
    let root = part_of("documentdb", SYSTEM);
    Some((server?, root?))
}

/// The unpacked system with PostgreSQL, below the directory of the peers.
const SYSTEM: &str = "documentdb/root";

/// The user and group `postgres` in the unpacked system.
const POSTGRES: u32 = 70;

/// Runs PostgreSQL in namespaces of its own: all its processes die with the first one, its shared memory goes with them,
/// and the cluster `$1` appears in the unpacked system `$0` for it alone. `$2` is the port.
const IN_NAMESPACE: &str = r#"mount --bind "$1" "$0/pg"
chroot --userspec=70:70 "$0" env -i PATH=/usr/bin HOME=/pg LANG=C.UTF-8 \
    /usr/lib/postgresql/18/bin/postgres -D /pg/data -p "$2" &
wait"#;

fn launch_postgres(place: &Place, home: &Home) -> Process {
    let mut postgres = program("unshare");
    postgres.args([
        "--mount",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "sh",
        "-ec",
    ]);
    postgres.arg(IN_NAMESPACE).arg(&place.root);
    postgres.arg(home.file("pg")).arg(place.postgres_port.to_string());
    let mut process = Process::start(postgres, &home.file("postgres.log"));
    // DocumentDB builds indexes in jobs, which still name the port on which the template was made.
    let jobs = format!("update cron.job set nodeport = {}", place.postgres_port);
    process.wait_until(|| query(place, &jobs));
    process
}

/// Whether PostgreSQL runs `statement`.
fn query(place: &Place, statement: &str) -> bool {
    let output = Command::new("chroot")
        .arg("--userspec=70:70")
        .arg(&place.root)
        .args([
            "/usr/lib/postgresql/18/bin/psql",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-q",
        ])
        .args(["-p", &place.postgres_port.to_string(), "-c", statement])
        .output();
    output.expect("chroot starts").status.success()
}

fn launch_ferret(place: &Place, home: &Home, access: Access) -> Process {
    let port = place.port;
    let mut ferret = program(&place.server);
    ferret.args(["--telemetry=disable", "--debug-addr=-", "--log-level=error"]);
    ferret.arg(format!("--state-dir={}", home.folder("state").display()));
    ferret.arg(format!(
        "--postgresql-url=postgres://postgres@127.0.0.1:{}/postgres",
        place.postgres_port
    ));
    if access != Access::Scram {
        ferret.arg("--no-auth");
    }
    if access == Access::MutualTls {
        ferret
            .arg("--listen-addr=")
            .arg(format!("--listen-tls=127.0.0.1:{port}"));
        for (flag, file) in [("cert", "server.pem"), ("key", "server.key"), ("ca", "ca.pem")] {
            ferret.arg(format!("--listen-tls-{flag}-file={}", home.file(file).display()));
        }
    } else {
        ferret.arg(format!("--listen-addr=127.0.0.1:{port}"));
    }
    let mut process = Process::start(ferret, &home.file("ferretdb.log"));
    process.wait_until(|| {
        let stream = wire::connect(port);
        match access {
            Access::Open | Access::Scram => stream.and_then(wire::hello).is_ok(),
            Access::MutualTls => stream.and_then(|stream| wire::hello(tls(home, stream))).is_ok(),
        }
    });
    process
}

fn tls(home: &Home, stream: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
    let certificate =
        |file: &str| CertificateDer::from_pem_file(home.file(file)).expect("an own certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca.pem")).expect("an own CA");
    let key = PrivateKeyDer::from_pem_file(home.file("client.pem")).expect("an own key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate("client.pem")], key)
        .expect("an own certificate");
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let connection = ClientConnection::new(Arc::new(config), name).expect("a configuration of our own");
    StreamOwned::new(connection, stream)
}

/// A CA, a server for 127.0.0.1 and localhost, and a client.
fn write_certificates(home: &Home) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.distinguished_name = named("test CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
    home.write("ca.pem", ca_pem);
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate().expect("a key");
    let mut server = CertificateParams::default();
    server.distinguished_name = named("server");
    server.subject_alt_names = vec![
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::DnsName("localhost".try_into().expect("a name")),
    ];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    home.write(
        "server.pem",
        server.signed_by(&key, &issuer).expect("a certificate").pem(),
    );
    home.write("server.key", key.serialize_pem());

    let key = KeyPair::generate().expect("a key");
    let mut client = CertificateParams::default();
    client.distinguished_name = named("client");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let pem = client.signed_by(&key, &issuer).expect("a certificate").pem();
    home.write("client.pem", format!("{pem}{}", key.serialize_pem()));
}

/// A name of its own: a certificate that bears its issuer's name passes for self-signed.
fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}
