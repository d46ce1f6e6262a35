//! One file for each group of commands. What the demo does too is a public function there.

pub mod attest;
pub mod audit;
pub mod backfill;
pub mod events;
pub mod feedser;
pub mod keys;
pub mod pki;
pub mod policy;
pub mod publish;
pub mod trust;
pub mod up;
pub mod verify;
