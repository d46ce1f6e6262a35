//! Third-party test data with stated verdicts, read from the folder named by `STELLA_VECTORS`.

mod checkpoints;
mod merkle;
mod support;
