//! All four services together, as processes, over real sockets.

mod audit_log;
mod bad_input;
mod cli;
mod cosign;
mod crash;
mod demo;
mod doors;
mod interop;
mod log_face;
mod mongo;
mod readme;
mod real_logs;
mod shell;
mod telemetry;
mod trust;
