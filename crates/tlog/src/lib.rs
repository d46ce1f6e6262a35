//! Transparency logs: the port through which entries are logged, and the log that lives in this process.
//!
//! A [`Submission`] goes into a [`TransparencyLog`] and comes back as a `LogEntry`: index, body, and what the log gives
//! as proof, which is an inclusion proof with a signed checkpoint, or the promise of a Rekor v1. [`embedded`] is a
//! Rekor v2 without another process; its checkpoints are cosigned by [`Witness`]es before the signer is answered. [`face`]
//! opens it to others over HTTP. [`rekor`] are the clients of logs elsewhere, Rekor v1 and v2, and the readers of their
//! entries; [`tsa`] asks an authority for timestamps. What a server answers is verified before it is passed on. A fork
//! that is seen stops its log, and [`forks`] shows the proof to the Verifier.
//!
//! Whoever reads the answers believes none of this: `stella_attest::verify` checks them.

pub mod embedded;
pub mod face;
pub mod forks;
mod http;
mod port;
pub mod rekor;
pub mod tsa;

pub use port::{Forks, LogError, Submission, TransparencyLog, Witness, WitnessError};
