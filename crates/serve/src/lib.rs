//! stella-serve
