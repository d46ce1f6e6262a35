//! The shell around every service: configuration, telemetry, mTLS, who may call what, health, and a graceful end.
//!
//! A service loads its configuration ([`config::load`]), starts its [`Shell`], gets from it the [`Upstream`]s that it calls,
//! and hands it its gRPC services and REST routes with [`Shell::serve`]. A request's way in: `listener` (TCP, TLS, the
//! peer's identity) → `door` (method table, tenant, deadline, size; log and metrics on the way out) → the service.
//! What the service sees of the caller is [`access::Caller`].
//!
//! [`Upstream`]: upstream::Upstream

pub mod access;
pub mod client;
pub mod config;
mod door;
pub mod forks;
pub mod fs;
pub mod idempotency;
mod listener;
mod ops;
pub mod pki;
pub mod problem;
mod reload;
pub mod shell;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod telemetry;
mod tls;
pub mod upstream;

/// A call allocates on one thread and frees on another; this allocator takes half the system's time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use door::RestMethod;
pub use reload::LoadError;
pub use shell::{Rest, ServiceSet, Shell, ShellError};
pub use telemetry::TelemetryError;
pub use tls::{IdentityError, PeerNotExpected, TlsError, install_provider};
