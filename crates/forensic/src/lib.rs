//! stella-forensic-verify
