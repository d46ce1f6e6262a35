//! FerretDB v1 on SQLite: MongoDB's wire protocol with updates that are not atomic.

use super::home::Home;
use super::ports;
use super::process::{Process, program};
use super::wire;
use crate::tools::tool;

/// A running FerretDB v1. A test of a guarded update that passes here has no teeth.
pub struct FerretV1 {
    _process: Process,
    _home: Home,
    port: u16,
}

impl FerretV1 {
    /// Starts one; `None`, said aloud, where it is not brought.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start() -> Option<Self> {
        let server = tool("ferretdb-v1")?;
        let home = Home::new();
        let port = ports::free();
        let mut ferret = program(server);
        ferret
            .arg(format!("127.0.0.1:{port}"))
            .arg(home.folder("databases"));
        let mut process = Process::start(ferret, &home.file("ferretdb-v1.log"));
        process.wait_until(|| wire::connect(port).and_then(wire::hello).is_ok());
        Some(Self {
            _process: process,
            _home: home,
            port,
        })
    }

    /// The connection string that names `database`.
    pub fn uri(&self, database: &str) -> String {
        format!(
            "mongodb://127.0.0.1:{}/{database}?directConnection=true",
            self.port
        )
    }
}
