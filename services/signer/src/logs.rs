//! The logs that a signature goes into: the embedded one, Rekor v1, Rekor v2, or several at once.
//!
//! A signature counts as logged when every configured log has it; the bundle then bears one entry of each, in the order
//! of the configuration. Logging again what is in a log already gives the same entry, so a retry after one of them failed
//! makes nothing twice.

use std::sync::Arc;

use futures_util::future::join_all;
use stella_attest::evidence::LogEntry;
use stella_attest::key::VerifyingKey;
use stella_tlog::{LogError, Submission, TransparencyLog};

use crate::error::Error;

/// Every configured log.
pub struct Logs {
    logs: Vec<Arc<dyn TransparencyLog>>,
    /// The embedded log's id: the audit log keeps its last checkpoint.
    embedded: Option<[u8; 32]>,
}

impl Logs {
    /// The logs in the order in which bundles bear their entries; `embedded` is the id of the one in this process.
    pub fn new(logs: Vec<Arc<dyn TransparencyLog>>, embedded: Option<[u8; 32]>) -> Self {
        Self { logs, embedded }
    }

    /// Logs a signature everywhere; one entry of each log.
    ///
    /// # Errors
    /// [`Error::NoLog`] if none is configured, else what the first log that failed says.
    pub(crate) async fn submit(&self, submission: Submission) -> Result<Vec<LogEntry>, Error> {
        if let [only] = &self.logs[..] {
            return Ok(vec![only.submit(submission).await?]);
        }
        if self.logs.is_empty() {
            return Err(Error::NoLog);
        }
        let answers = self.logs.iter().map(|log| log.submit(submission.clone()));
        let entries = join_all(answers)
            .await
            .into_iter()
            .collect::<Result<_, LogError>>()?;
        Ok(entries)
    }

    /// Refuses a key whose signatures one of the logs cannot hold.
    pub(crate) fn accepts(&self, key: &VerifyingKey) -> Result<(), LogError> {
        for log in &self.logs {
            log.accepts(key)?;
        }
        Ok(())
    }

    /// True if the entry is of the log in this process.
    pub(crate) fn is_embedded(&self, entry: &LogEntry) -> bool {
        self.embedded == Some(entry.log_id)
    }
}
