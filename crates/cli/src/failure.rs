//! How a command fails: what is said, and the exit code that scripts read.
//!
//! 0 ok, 2 wrong usage, 3 verification failed, 4 not found, 1 anything else.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;
use stella_proto::status;
use stella_serve::config::ConfigError;
use tonic::{Code, Status};

/// Exit code of wrong usage.
pub const USAGE: u8 = 2;
/// Exit code of refused evidence.
pub const REFUSED: u8 = 3;
/// Exit code of what is not there.
pub const NOT_FOUND: u8 = 4;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    reason: String,
    field: String,
    message: String,
    hint: Option<String>,
    is_transient: bool,
}

impl Failure {
    /// Anything that has no exit code of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            reason: String::new(),
            field: String::new(),
            message: message.into(),
            hint: None,
            is_transient: false,
        }
    }

    /// The command was used wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            ..Self::new(message)
        }
    }

    /// Evidence was refused; its reasons are printed already or stand in the message.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            code: REFUSED,
            ..Self::new(message)
        }
    }

    /// Something is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: NOT_FOUND,
            ..Self::new(message)
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says that the same call may succeed later.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.is_transient = true;
        self
    }

    /// Whether the same call may succeed later: the service was away or busy, or still works on it.
    pub fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// The contract reason, empty if there is none.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    /// What goes to standard error.
    pub fn text(&self, as_json: bool) -> String {
        if as_json {
            let error = json!({
                "field": self.field, "hint": self.hint.as_deref().unwrap_or_default(), "message": self.message,
                "reason": self.reason,
            });
            return format!("{}\n", json!({ "error": error }));
        }
        let mut text = format!("error: {}", self.message);
        if !self.reason.is_empty() {
            let _ = write!(text, " [{}]", self.reason);
        }
        if !self.field.is_empty() {
            let _ = write!(text, "\n  field: {}", self.field);
        }
        if let Some(hint) = &self.hint {
            let _ = write!(text, "\n  help: {hint}");
        }
        text.push('\n');
        text
    }
}

impl From<Status> for Failure {
    fn from(refused: Status) -> Self {
        let refused = stella_serve::upstream::explain(refused);
        let reason = status::reason(&refused).unwrap_or_default();
        let code = match (refused.code(), reason.as_str()) {
            (_, "VERIFICATION_FAILED") => REFUSED,
            (Code::NotFound, _) => NOT_FOUND,
            (Code::InvalidArgument, _) => USAGE,
            _ => 1,
        };
        let hint = match reason.as_str() {
            "UPSTREAM_UNAVAILABLE" => Some("is the service running? `stella status` tells".to_owned()),
            "PEER_NOT_EXPECTED" => {
                Some("another service answers at this address; check the STELLA_* URLs".to_owned())
            }
            "METHOD_NOT_ALLOWED" => {
                Some("the method table does not allow it; see `stella access grant`".to_owned())
            }
            "TENANT_REQUIRED" | "TENANT_NOT_ALLOWED" => {
                Some("name one of your tenants with --tenant".to_owned())
            }
            "NO_PREPARED_KEY" => Some("make one with `stella keys generate`".to_owned()),
            _ => None,
        };
        let is_transient = stella_serve::upstream::is_transient(&refused) && reason != "PEER_NOT_EXPECTED";
        Self {
            code,
            reason,
            is_transient,
            field: status::field(&refused).unwrap_or_default(),
            message: refused.message().to_owned(),
            hint,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            reason: error.reason().to_owned(),
            ..Self::new(error.whole()).hint(error.help())
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Reads a file that a command was given; one that is not there is exit code 4.
///
/// # Errors
/// The file cannot be read.
pub fn read_file(what: &str, path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot read {what} `{}`: {error}", path.display());
        match error.kind() {
            std::io::ErrorKind::NotFound => Failure::not_found(message),
            _ => Failure::new(message),
        }
    };
    std::fs::read(path).map_err(failed)
}

/// Writes a file that a command was asked for.
///
/// # Errors
/// The file cannot be written.
pub fn write_file(path: &std::path::Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot write `{}`: {error}", path.display()));
    std::fs::write(path, bytes).map_err(failed)
}

/// Tells whether [`write_file`] could write; what is there stays as it is.
///
/// # Errors
/// The file cannot be written.
pub fn try_to_write(path: &std::path::Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot write `{}`: {error}", path.display()));
    let is_new = !path.exists();
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed)?;
    if is_new {
        std::fs::remove_file(path).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stella_proto::status::{refuse, refuse_field};

    #[test]
    fn a_refusal_keeps_its_reason_and_field_and_has_its_exit_code() {
        for (refused, code, text) in [
            (
                refuse(Code::NotFound, "EVENT_NOT_FOUND", "no event `x`"),
                4,
                "error: no event `x` [EVENT_NOT_FOUND]\n",
            ),
            (
                refuse(
                    Code::FailedPrecondition,
                    "VERIFICATION_FAILED",
                    "verification failed: SIGNATURE:KEY_UNKNOWN",
                ),
                3,
                "error: verification failed: SIGNATURE:KEY_UNKNOWN [VERIFICATION_FAILED]\n",
            ),
            (
                refuse_field(Code::InvalidArgument, "BAD_DIGEST", "subject", "not a digest"),
                2,
                "error: not a digest [BAD_DIGEST]\n  field: subject\n",
            ),
            (
                refuse(Code::Aborted, "RUNNING", "still running"),
                1,
                "error: still running [RUNNING]\n",
            ),
        ] {
            let failure = Failure::from(refused);
            assert_eq!((failure.code, failure.text(false)), (code, text.to_owned()));
        }
    }
}
