//! stella-signer
