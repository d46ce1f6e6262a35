//! stella-testkit
