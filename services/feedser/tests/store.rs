//! What every store promises, on real MongoDB servers: the one that `STELLA_MONGODB_URI` names.

#[path = "../src/store/conformance.rs"]
mod conformance;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mongodb::Client;
use mongodb::options::ClientOptions;
use stella_feedser::store::mongo::{MongoStore, Options};
use stella_feedser::store::*;

const OPTIONS: Options = Options {
    timeout: Duration::from_secs(60),
    connections: 32,
};

/// A database of its own on a server.
struct Database {
    uri: String,
}

impl Database {
    /// A new, empty one on the server of `uri`.
    async fn on(uri: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("stella_test_{}_{number}", std::process::id());
        let (scheme, rest) = uri.split_once("://").expect("a URI");
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let hosts = rest.split('/').next().unwrap_or_default();
        let database = Self {
            uri: format!("{scheme}://{hosts}/{name}?{options}"),
        };
        let store = MongoStore::connect(&database.uri, OPTIONS).await.unwrap();
        store.migrate(None).await.unwrap();
        database
    }

    async fn raw(&self) -> mongodb::Database {
        let options = ClientOptions::parse(&self.uri).await.unwrap();
        let client = Client::with_options(options).unwrap();
        client.default_database().unwrap()
    }
}

struct Named(Database);

impl conformance::Fixture for Named {
    async fn new() -> Option<Self> {
        let Ok(uri) = std::env::var("STELLA_MONGODB_URI") else {
            println!("not run: needs a server that STELLA_MONGODB_URI names");
            return None;
        };
        Some(Self(Database::on(&uri).await))
    }

    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(MongoStore::connect(&self.0.uri, OPTIONS).await.unwrap())
    }

    async fn end(self) {
        self.0.raw().await.drop().await.unwrap();
    }
}

mod named {
    use super::*;

    conformance::promises!(Named);
}
