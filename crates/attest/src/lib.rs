//! stella-attest
