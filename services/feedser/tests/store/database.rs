//! A database of its own on a server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mongodb::Client;
use stella_feedser::store::mongo::{MongoStore, Options};

/// Generous: the servers share two cores with all other tests.
pub(crate) const OPTIONS: Options = Options {
    timeout: Duration::from_secs(60),
    connections: 32,
};

/// A database that this test alone uses.
pub(crate) struct Database {
    uri: String,
}

impl Database {
    /// A new one, with collections and indexes, on the server of `uri`.
    pub(crate) async fn on(uri: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("stella_test_{}_{number}", std::process::id());
        let (scheme, rest) = uri.split_once("://").expect("a URI");
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let hosts = rest.split('/').next().unwrap_or_default();
        let uri = format!("{scheme}://{hosts}/{name}?{options}");
        MongoStore::connect(&uri, OPTIONS)
            .await
            .unwrap()
            .migrate(None)
            .await
            .unwrap();
        Self { uri }
    }

    /// The connection string that names it.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// The store in it.
    pub(crate) async fn open(&self) -> MongoStore {
        MongoStore::connect(&self.uri, OPTIONS).await.unwrap()
    }

    /// The same past the store.
    pub(crate) async fn raw(&self) -> mongodb::Database {
        let client = Client::with_uri_str(&self.uri).await.unwrap();
        client.default_database().unwrap()
    }

    pub(crate) async fn drop(self) {
        self.raw().await.drop().await.unwrap();
    }
}
