//! mongo-java-server: MongoDB's wire protocol, implemented independently of MongoDB and of FerretDB.

use std::path::{Path, PathBuf};

use super::home::Home;
use super::ports;
use super::process::{Process, program};
use super::wire;
use crate::tools::part_of;

/// What the server does with what it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// In memory, until it ends.
    InMemory,
    /// In a file, before it answers.
    Durably,
    /// In a file, up to a second after it answered: a kill loses what was acknowledged.
    Lying,
}

/// A running mongo-java-server.
pub struct JavaMongo {
    process: Process,
    home: Home,
    port: u16,
    place: PathBuf,
    keeps: Keeps,
}

impl JavaMongo {
    /// Starts one; `None`, said aloud, where it is not brought.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start(keeps: Keeps) -> Option<Self> {
        let place = part_of("mongo-java-server", "mongo-java-server/classes")?;
        let home = Home::new();
        let port = ports::free();
        let place = place.parent().expect("a directory").to_owned();
        Some(Self {
            process: launch(&place, &home, port, keeps),
            home,
            port,
            place,
            keeps,
        })
    }

    /// The connection string that names `database`.
    pub fn uri(&self, database: &str) -> String {
        format!(
            "mongodb://127.0.0.1:{}/{database}?directConnection=true",
            self.port
        )
    }

    /// The port on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it at once (kill -9).
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port and the same file, after a [`kill9`](Self::kill9) of its own.
    ///
    /// # Panics
    /// It does not come up.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.place, &self.home, self.port, self.keeps);
    }
}

fn launch(place: &Path, home: &Home, port: u16, keeps: Keeps) -> Process {
    let mut java = program("java");
    java.args(["-Xmx1g", "-cp"])
        .arg(format!("{0}/lib/*:{0}/classes", place.display()))
        .args(["MongoJavaServer", &port.to_string()]);
    match keeps {
        Keeps::InMemory => {}
        Keeps::Durably => {
            java.arg("durable").arg(home.file("store.mv"));
        }
        Keeps::Lying => {
            java.arg("lying").arg(home.file("store.mv"));
        }
    }
    let mut process = Process::start(java, &home.file("mongo-java-server.log"));
    process.wait_until(|| wire::connect(port).and_then(wire::hello).is_ok());
    process
}
