//! Real servers of others, started for tests.
//!
//! Each runs on free ports of the loopback in a temporary directory, is ready when its `start` returns, and ends (by
//! process id) with the value that stands for it. It also ends, and its directory goes, when the test program dies.
//! `start` returns `None`, said aloud (see [`needs`](crate::needs)), where the machine lacks the peer; everything else
//! that goes wrong panics with the end of the peer's log. `shared` gives one for all tests of a test program: they must
//! keep apart by names of their own (a database, an envelope) and leave its faults alone.

mod ferret_v1;
mod ferret_v2;
mod home;
mod http;
mod java_mongo;
mod ports;
mod process;
mod rekor_v2;
mod tiles;
mod wire;

pub use ferret_v1::FerretV1;
pub use ferret_v2::{Access, FerretV2, MutualTls};
pub use java_mongo::{JavaMongo, Keeps};
pub use rekor_v2::{RekorV2, RekorV2Options};
