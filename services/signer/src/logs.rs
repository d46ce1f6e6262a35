//! The logs that a signature goes into (the embedded one, Rekor v1, Rekor v2, or several at once), and the timestamp
//! authority that dates it besides.
//!
//! A signature counts as logged when every configured log has it and the authority has dated it; the bundle then bears
//! one entry of each log, in the order of the configuration. Logging again what is in a log already gives the same
//! entry, so a retry after one of them failed makes nothing twice.

use std::sync::Arc;

use futures_util::future::{join, join_all};
use stella_attest::evidence::LogEntry;
use stella_attest::key::VerifyingKey;
use stella_tlog::tsa::{Stamped, TimestampAuthority};
use stella_tlog::{Forks, LogError, Submission, TransparencyLog};

use crate::error::Error;

/// Every configured log, and the timestamp authority if there is one.
#[derive(Default)]
pub struct Logs {
    logs: Vec<Arc<dyn TransparencyLog>>,
    /// The embedded log's id: the audit log keeps its last checkpoint.
    embedded: Option<[u8; 32]>,
    authority: Option<TimestampAuthority>,
}

/// Where a signature is logged, and when it was dated.
#[derive(Debug)]
pub(crate) struct Logged {
    /// One entry of each log.
    pub(crate) entries: Vec<LogEntry>,
    /// The authority's word.
    pub(crate) stamp: Option<Stamped>,
}

impl Logs {
    /// The logs in the order in which bundles bear their entries; `embedded` is the id of the one in this process.
    pub fn new(
        logs: Vec<Arc<dyn TransparencyLog>>,
        embedded: Option<[u8; 32]>,
        authority: Option<TimestampAuthority>,
    ) -> Self {
        Self {
            logs,
            embedded,
            authority,
        }
    }

    /// Logs a signature everywhere and has it dated.
    ///
    /// # Errors
    /// [`Error::NoLog`] if no log is configured, else what the first log that failed says, or the authority.
    pub(crate) async fn submit(&self, submission: Submission) -> Result<Logged, Error> {
        let Some(authority) = &self.authority else {
            let entries = self.enter(submission).await?;
            return Ok(Logged { entries, stamp: None });
        };
        let signature = submission.signature.clone();
        let (entries, stamp) = join(self.enter(submission), authority.timestamp(&signature)).await;
        Ok(Logged {
            entries: entries?,
            stamp: Some(stamp?),
        })
    }

    /// Logs a signature everywhere; one entry of each log.
    ///
    /// # Errors
    /// [`Error::NoLog`] if none is configured, else what the first log that failed says.
    pub(crate) async fn enter(&self, submission: Submission) -> Result<Vec<LogEntry>, Error> {
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

    /// True if one of the logs takes whole envelopes: what a crash leaves unlogged must then be kept as a whole.
    pub(crate) fn take_envelopes(&self) -> bool {
        self.logs.iter().any(|log| log.takes_envelopes())
    }

    /// The logs elsewhere whose history is watched, by their ids.
    pub(crate) fn forks(&self) -> Vec<([u8; 32], Forks)> {
        let watched = self.logs.iter();
        watched
            .filter_map(|log| Some((log.log_id(), log.forks()?)))
            .collect()
    }

    /// True if the entry is of the log in this process.
    pub(crate) fn is_embedded(&self, entry: &LogEntry) -> bool {
        self.embedded == Some(entry.log_id)
    }
}
