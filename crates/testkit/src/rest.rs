//! REST calls as a CI job makes them: HTTP/1.1 over mTLS, one connection for each call.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::stack::{Identity, Stack};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent after the head.
#[derive(Clone, Copy, Debug)]
pub enum Body<'b> {
    /// These bytes, with their length in the head.
    Whole(&'b [u8]),
    /// A body whose length is said in the head and which is never sent.
    Announced(u64),
    /// So many bytes in chunks; the head does not say how many.
    Chunked(usize),
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The head's lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// It is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Of an error: status, reason, and the field at fault (empty if none is named).
    ///
    /// # Panics
    /// It is no `application/problem+json`.
    pub fn problem(&self) -> (u16, String, String) {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let document = self.json();
        assert_eq!(document["status"], self.status, "{document}");
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("reason"), text("field"))
    }
}

impl Stack {
    /// Calls Feedser's REST face as the operator, for the development tenant.
    ///
    /// # Panics
    /// There is no answer.
    pub fn rest(&self, method: &str, path: &str, body: Body<'_>) -> Answer {
        let headers = [("x-stella-tenant", self.env("STELLA_TENANT"))];
        self.rest_as(&self.operator(), method, path, &headers, body)
            .expect("Feedser answers")
    }

    /// Calls Feedser's REST face with these headers.
    ///
    /// # Errors
    /// The connection was refused or broken.
    ///
    /// # Panics
    /// The identity's files cannot be used.
    pub fn rest_as(
        &self,
        identity: &Identity,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> io::Result<Answer> {
        let url: http::Uri = self.env("STELLA_REST").parse().expect("a URL");
        let authority = url.authority().expect("host and port").as_str();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &match body {
            Body::Whole(bytes) => format!("Content-Length: {}\r\n\r\n", bytes.len()),
            Body::Announced(length) => format!("Content-Length: {length}\r\n\r\n"),
            Body::Chunked(_) => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        };
        let socket = TcpStream::connect(authority)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let host = ServerName::try_from(url.host().expect("a host").to_owned()).expect("a server's name");
        let client = ClientConnection::new(Arc::new(self.client_config(identity)), host);
        let mut stream = StreamOwned::new(client.map_err(io::Error::other)?, socket);
        stream.write_all(head.as_bytes())?;
        // A server that has seen enough answers and stops reading.
        let _ = send(&mut stream, body);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        read_answer(&answer).ok_or_else(|| ended.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
    }

    fn client_config(&self, identity: &Identity) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(self.env("STELLA_CA")).expect("the authority") {
            roots
                .add(certificate.expect("a certificate"))
                .expect("an authority's certificate");
        }
        let chain = CertificateDer::pem_file_iter(&identity.cert).expect("the certificate");
        let chain = chain
            .map(|certificate| certificate.expect("a certificate"))
            .collect();
        let key = PrivateKeyDer::from_pem_file(&identity.key).expect("the key");
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("key and certificate fit")
    }
}

fn send(stream: &mut impl io::Write, body: Body<'_>) -> io::Result<()> {
    match body {
        Body::Whole(bytes) => stream.write_all(bytes)?,
        Body::Announced(_) => {}
        Body::Chunked(length) => {
            let chunk = [b' '; 1 << 16];
            for start in (0..length).step_by(chunk.len()) {
                let size = chunk.len().min(length - start);
                stream.write_all(format!("{size:x}\r\n").as_bytes())?;
                stream.write_all(&chunk[..size])?;
                stream.write_all(b"\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")?;
        }
    }
    stream.flush()
}

/// `None` if the answer is cut short.
fn read_answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunk(&answer.body)?;
    } else if let Some(length) = answer.header("content-length") {
        let length = length.parse().ok()?;
        answer.body = answer.body.get(..length)?.to_vec();
    }
    Some(answer)
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(bytes.get(end + 2..end + 2 + size)?);
        bytes = bytes.get(end + 2 + size + 2..)?;
    }
}
