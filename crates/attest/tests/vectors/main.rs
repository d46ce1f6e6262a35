//! Third-party test data with stated verdicts, read from the folder named by `STELLA_VECTORS`.

mod checkpoints;
mod dsse;
mod jcs;
mod merkle;
mod rekor_entries;
mod support;
