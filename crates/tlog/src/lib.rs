//! stella-tlog
