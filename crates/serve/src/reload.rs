//! Takes up keys, certificates, authorities and the method table when their files change.
//!
//! A thread reads them once a second and compares: that sees every way of replacing a file, also a mounted secret
//! that is a link to a link. What does not make sense is logged and counted once, and what was in force stays so.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::{MethodTable, Resolved, TableError};
use crate::config::{AccessConfig, ServerConfig};
use crate::fs;
use crate::tls::{Credentials, Files, Material, TlsError};

const INTERVAL: Duration = Duration::from_secs(1);

/// What can change while the server runs.
pub(crate) struct Live {
    server: ServerConfig,
    access: AccessConfig,
    pub(crate) material: Arc<ArcSwap<Material>>,
    pub(crate) credentials: Arc<ArcSwap<Credentials>>,
    callers: watch::Sender<u64>,
    table: Mutex<Tabled>,
}

/// The table and what was worked out from it.
struct Tabled {
    table: MethodTable,
    methods: Vec<String>,
    resolved: Arc<ArcSwap<Resolved>>,
}

/// What the files held when they were read last, whether it was taken or not.
pub(crate) struct Seen {
    tls: Option<Files>,
    table: Option<String>,
}

impl Live {
    /// Reads everything for the first time: here an error stops the start.
    pub(crate) fn load(server: &ServerConfig, access: &AccessConfig) -> Result<(Self, Seen), LoadError> {
        let files = Files::read(server).map_err(TlsError::from)?;
        let material = Material::build(&files, server)?;
        let text = fs::read_text(&access.table).map_err(TableError::from)?;
        let table = MethodTable::parse(&text, &access.table)?;
        let resolved = Arc::new(ArcSwap::from_pointee(table.resolve(&[])));
        let live = Self {
            server: server.clone(),
            access: access.clone(),
            credentials: Arc::new(ArcSwap::new(material.credentials.clone())),
            material: Arc::new(ArcSwap::from_pointee(material)),
            callers: watch::Sender::new(0),
            table: Mutex::new(Tabled {
                table,
                methods: Vec::new(),
                resolved,
            }),
        };
        Ok((
            live,
            Seen {
                tls: Some(files),
                table: Some(text),
            },
        ))
    }

    /// Works the table out for these methods, now and after each change.
    pub(crate) fn resolve(&self, methods: &[&str]) -> Arc<ArcSwap<Resolved>> {
        let mut tabled = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        tabled.methods = methods.iter().map(|path| (*path).to_owned()).collect();
        tabled.resolved.store(Arc::new(tabled.table.resolve(methods)));
        tabled.resolved.clone()
    }

    /// Tells when other authorities certify the callers.
    pub(crate) fn callers(&self) -> watch::Receiver<u64> {
        self.callers.subscribe()
    }

    fn check(&self, seen: &mut Seen) {
        self.check_tls(seen);
        self.check_table(seen);
    }

    fn check_tls(&self, seen: &mut Seen) {
        let files = match Files::read(&self.server) {
            Ok(files) => files,
            Err(error) => {
                if seen.tls.take().is_some() {
                    failed(
                        "tls",
                        &self.server.certificate,
                        error.reason(),
                        &TlsError::from(error),
                    );
                }
                return;
            }
        };
        if seen.tls.as_ref() == Some(&files) {
            return;
        }
        match Material::build(&files, &self.server) {
            Ok(material) => {
                let same_callers = seen.tls.as_ref().is_some_and(|old| old.same_callers(&files));
                info!(identity = %material.own.identity, not_after = material.own.not_after, "certificates reloaded");
                self.credentials.store(material.credentials.clone());
                self.material.store(Arc::new(material));
                if !same_callers {
                    self.callers.send_modify(|version| *version += 1);
                }
                metrics::counter!("stella_reloads_total", "what" => "tls", "outcome" => "ok").increment(1);
            }
            Err(error) => failed("tls", &self.server.certificate, error.reason(), &error),
        }
        seen.tls = Some(files);
    }

    fn check_table(&self, seen: &mut Seen) {
        let text = match fs::read_text(&self.access.table) {
            Ok(text) => text,
            Err(error) => {
                if seen.table.take().is_some() {
                    failed(
                        "access",
                        &self.access.table,
                        error.reason(),
                        &TableError::from(error),
                    );
                }
                return;
            }
        };
        if seen.table.as_ref() == Some(&text) {
            return;
        }
        match MethodTable::parse(&text, &self.access.table) {
            Ok(table) => {
                let mut tabled = self.table.lock().unwrap_or_else(PoisonError::into_inner);
                let methods: Vec<_> = tabled.methods.iter().map(String::as_str).collect();
                let resolved = table.resolve(&methods);
                tabled.resolved.store(Arc::new(resolved));
                info!(grants = table.grants().len(), "method table reloaded");
                tabled.table = table;
                metrics::counter!("stella_reloads_total", "what" => "access", "outcome" => "ok").increment(1);
            }
            Err(error) => failed("access", &self.access.table, error.reason(), &error),
        }
        seen.table = Some(text);
    }
}

/// Why the server could not start with the files it was given.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Keys and certificates.
    #[error("keys and certificates cannot be used")]
    Tls(#[from] TlsError),
    /// The method table.
    #[error("the method table cannot be used")]
    Table(#[from] TableError),
}

impl LoadError {
    /// The contract name of this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Tls(error) => error.reason(),
            Self::Table(error) => error.reason(),
        }
    }
}

/// Starts the thread. It ends with the server.
pub(crate) fn watch(live: Weak<Live>, mut seen: Seen, stop: CancellationToken) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("reload".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(INTERVAL);
                match live.upgrade() {
                    Some(live) if !stop.is_cancelled() => live.check(&mut seen),
                    _ => return,
                }
            }
        })?;
    Ok(())
}

fn failed(what: &'static str, path: &Path, reason: &'static str, error: &dyn std::error::Error) {
    metrics::counter!("stella_reloads_total", "what" => what, "outcome" => "failed").increment(1);
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    warn!(what, path = %path.display(), reason, error = text, "reload refused; the former stays in force");
}
