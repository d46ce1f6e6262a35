//! Sigstore's timestamp authority (RFC 3161).

use std::path::Path;
use std::sync::OnceLock;

use super::home::Home;
use super::http;
use super::ports;
use super::process::{Process, program};
use crate::tools::tool;

const CHAIN: &str = "/api/v1/timestamp/certchain";

/// A running timestamp authority with a key that nobody else has.
pub struct Tsa {
    /// Where a query is posted (`application/timestamp-query`).
    pub url: String,
    /// Its certificates, the leaf first (PEM).
    pub chain_pem: String,
    _process: Process,
    _home: Home,
}

impl Tsa {
    /// Starts one; `None`, said aloud, where it is not brought.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start() -> Option<Self> {
        Some(Self::start_program(&tool("timestamp-server")?))
    }

    /// One for all tests of this program.
    ///
    /// # Panics
    /// It does not come up.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Tsa> = OnceLock::new();
        let server = tool("timestamp-server")?;
        Some(SHARED.get_or_init(|| Self::start_program(&server)))
    }

    fn start_program(server: &Path) -> Self {
        let home = Home::new();
        let port = ports::free();
        let mut authority = program(server);
        authority.arg(port.to_string());
        let mut process = Process::start(authority, &home.file("timestamp-server.log"));
        process.wait_until(|| http::is_ok(port, CHAIN));
        let (_, chain) = http::request("GET", port, CHAIN, b"").expect("just answered");
        Self {
            url: format!("http://127.0.0.1:{port}/api/v1/timestamp"),
            chain_pem: String::from_utf8(chain).expect("PEM"),
            _process: process,
            _home: home,
        }
    }
}
