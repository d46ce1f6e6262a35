//! The races have teeth: on a server whose updates are not atomic they fail.

use std::sync::Arc;

use stella_feedser::store::Store;
use stella_testkit::peers::FerretV1;

use crate::conformance;
use crate::database::Database;

struct Fixture(Database);

impl conformance::Fixture for Fixture {
    async fn new() -> Option<Self> {
        unreachable!("made from a server of the test's own")
    }

    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.0.open().await)
    }

    async fn end(self) {}
}

/// What the promise panics with on a new database of `server`; empty if it holds.
macro_rules! broken {
    ($promise:ident, $server:expr) => {{
        let uri = $server.uri("test");
        let run = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let fixture = Fixture(Database::on(&uri).await);
                conformance::$promise(&fixture).await;
            });
        };
        match std::thread::spawn(run).join() {
            Ok(()) => String::new(),
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
        }
    }};
}

/// Chances that a race has to go wrong: it does so nearly every time, not each time.
const CHANCES: usize = 20;

/// What a race panicked with the first time that it went wrong; empty if it never did.
macro_rules! broken_once {
    ($promise:ident, $server:expr) => {{
        let mut said = String::new();
        for _ in 0..CHANCES {
            said = broken!($promise, $server);
            if !said.is_empty() {
                break;
            }
        }
        said
    }};
}

#[test]
fn a_server_without_atomic_updates_fails_the_race_for_a_proof() {
    let Some(server) = FerretV1::start() else { return };
    assert_eq!(broken!(an_event_is_inserted_once, server), "");
    let said = broken_once!(one_of_sixteen_racing_writers_wins, server);
    assert!(said.starts_with("assertion `left == right` failed"), "{said}");
}

#[test]
fn a_server_without_atomic_updates_fails_the_race_for_evidence() {
    let Some(server) = FerretV1::start() else { return };
    assert_eq!(broken!(evidence_in_use_stays, server), "");
    let said = broken_once!(one_of_many_pieces_of_evidence_is_kept_for_a_proof, server);
    assert!(said.starts_with("assertion `left == right` failed"), "{said}");
}
