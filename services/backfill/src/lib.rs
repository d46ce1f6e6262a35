//! stella-backfill
