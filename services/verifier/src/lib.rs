//! stella-verifier
