//! stella-e2e
