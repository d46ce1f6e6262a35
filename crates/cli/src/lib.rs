//! stella-cli
