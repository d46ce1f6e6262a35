//! Tests and benchmarks of all services together; they stand in `tests` and `benches`.
