//! What every store promises, on real servers that speak MongoDB's protocol: DocumentDB with FerretDB v2 (open, with
//! SCRAM, over mTLS), mongo-java-server, and the one that `STELLA_MONGODB_URI` names.
//!
//! What none of the servers that can be brought shows is in [`NOT_SHOWN`], and printed.

#[path = "../../src/store/conformance.rs"]
mod conformance;
mod database;
mod faults;
mod foreign;
mod teeth;

use std::sync::{Arc, OnceLock};

use database::{Database, OPTIONS};
use stella_feedser::store::mongo::MongoStore;
use stella_feedser::store::*;
use stella_testkit::peers::{Access, FerretV2, JavaMongo, Keeps};

/// What no server shows that the tests can bring.
const NOT_SHOWN: [&str; 7] = [
    "a primary that steps down, and writes that are rolled back",
    "a majority that does not answer in time",
    "that `j: true` outlives a loss of power",
    "sharding",
    "authentication by X.509",
    "the query planner of MongoDB: which index it takes",
    "retries that a server recognises (txnNumber) and `bulkWrite`: the store uses neither",
];

/// Runs the suite in databases of their own on the server whose URI `$uri` gives.
macro_rules! suite {
    ($name:ident, $uri:expr) => {
        mod $name {
            use super::*;

            struct Fixture(Database);

            impl conformance::Fixture for Fixture {
                async fn new() -> Option<Self> {
                    let uri: Option<String> = $uri;
                    Some(Self(Database::on(&uri?).await))
                }

                async fn open(&self) -> Arc<dyn Store> {
                    Arc::new(MongoStore::connect(self.0.uri(), OPTIONS).await.unwrap())
                }

                async fn end(self) {
                    self.0.drop().await;
                }
            }

            conformance::promises!(Fixture);

            #[tokio::test]
            async fn fields_of_others_are_kept() {
                let uri: Option<String> = $uri;
                if let Some(uri) = uri {
                    foreign::fields_of_others_are_kept(&uri).await;
                }
            }
        }
    };
}

suite!(named, {
    let uri = std::env::var("STELLA_MONGODB_URI").ok();
    if uri.is_none() {
        println!("STELLA_MONGODB_URI names no server: the suite runs on those that are brought");
    }
    uri
});
suite!(documentdb, FerretV2::shared().map(|server| server.uri("test")));
suite!(documentdb_with_scram, {
    static SERVER: OnceLock<Option<FerretV2>> = OnceLock::new();
    let server = SERVER.get_or_init(|| FerretV2::start(Access::Scram));
    server.as_ref().map(|server| server.uri("test"))
});
suite!(documentdb_over_mutual_tls, {
    static SERVER: OnceLock<Option<FerretV2>> = OnceLock::new();
    let server = SERVER.get_or_init(|| FerretV2::start(Access::MutualTls));
    server.as_ref().map(|server| server.uri("test"))
});
suite!(mongo_java_server, {
    static SERVER: OnceLock<Option<JavaMongo>> = OnceLock::new();
    let server = SERVER.get_or_init(|| JavaMongo::start(Keeps::Durably));
    server.as_ref().map(|server| server.uri("test"))
});

#[test]
fn what_these_servers_cannot_show_is_said() {
    println!("not shown by any server that the tests bring:");
    for what in NOT_SHOWN {
        println!("- {what}");
    }
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    for what in NOT_SHOWN {
        assert!(readme.contains(what), "the README does not say: {what}");
    }
}
