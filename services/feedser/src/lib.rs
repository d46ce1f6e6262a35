//! stella-feedser
