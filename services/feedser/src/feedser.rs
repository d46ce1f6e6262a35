//! The domain: what may be appended, attached and exported.
//!
//! Every way into the store that bears a proof goes through [`seal`](crate::seal): the Verifier judges, and its
//! answer is checked against exactly what will be stored. Time is an argument.

use std::num::NonZero;
use std::sync::{Arc, LazyLock};

use stella_attest::key::VerifyingKey;
use stella_serve::access::Tenant;
use tokio::sync::Semaphore;

use crate::config::Limits;
use crate::error::Error;
use crate::logs::Logs;
use crate::record::Record;
use crate::remote::{Signer, Verifier};
use crate::store::{Store, StoredEvent};

/// The event graph and the attestation repository.
pub struct Feedser {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) verifier: Verifier,
    pub(crate) signer: Signer,
    pub(crate) receipt_keys: Arc<[VerifyingKey]>,
    pub(crate) logs: Logs,
    pub(crate) limits: Limits,
}

impl Feedser {
    /// Puts the parts together; receipts count if one of `receipt_keys` signed them.
    pub fn new(
        store: Arc<dyn Store>,
        verifier: Verifier,
        signer: Signer,
        receipt_keys: Vec<VerifyingKey>,
        logs: Logs,
        limits: Limits,
    ) -> Self {
        Self {
            store,
            verifier,
            signer,
            receipt_keys: receipt_keys.into(),
            logs,
            limits,
        }
    }

    /// Judges what the store returned, off the async threads: each receipt is a signature check.
    pub(crate) async fn read(&self, tenant: &Tenant, stored: Vec<StoredEvent>) -> Result<Vec<Record>, Error> {
        let (tenant, keys) = (tenant.clone(), Arc::clone(&self.receipt_keys));
        blocking(move || {
            stored
                .into_iter()
                .map(|event| Record::read(event, tenant.as_str(), &keys))
                .collect()
        })
        .await
    }
}

/// As many pieces of work at a time as there are cores: more would be no faster and hold more memory.
static CORES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get)));

/// Runs work that takes the CPU for longer than an async thread may; it waits while every core has some.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let core = CORES.acquire().await.map_err(|_| Error::Cancelled)?;
    // The core is taken until the work has ended, also where its caller has gone away.
    let work = move || {
        let _core = core;
        work()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Cancelled)
}
