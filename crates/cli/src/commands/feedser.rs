//! `stella feedser`: looks after Feedser's database.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use stella_feedser::store::mongo::{Migrated, MongoStore, Options};
use stella_serve::access::Tenant;

use crate::client::Connection;
use crate::failure::Failure;
use crate::output::{print_json, print_line};

/// How a migration uses the servers. Building an index over long history takes its time.
const OPTIONS: Options = Options {
    timeout: Duration::from_secs(30),
    connections: 2,
};

/// Looks after Feedser's database
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Makes the collections and indexes of a MongoDB database that are not there; with --tenant (or STELLA_TENANT),
    /// gives that tenant the events that have none
    Migrate(Database),
}

/// Which database
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Database {
    /// Its URI
    #[arg(long, value_name = "URI", env = "STELLA_MONGODB_URI", hide_env_values = true)]
    mongodb_uri: Option<String>,
    /// The file that holds its URI
    #[arg(long, value_name = "FILE")]
    mongodb_uri_file: Option<PathBuf>,
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    let Command::Migrate(database) = command;
    let tenant = connection.tenant.as_ref();
    let uri = match (database.mongodb_uri, database.mongodb_uri_file) {
        (_, Some(file)) => {
            let bytes = stella_serve::fs::read_secret(&file).map_err(anyhow::Error::from)?;
            String::from_utf8_lossy(&bytes).trim().to_owned()
        }
        (uri, None) => uri.unwrap_or_default(),
    };
    let done = migrate(&uri, tenant).await?;
    if connection.is_json() {
        return print_json(&json!({
            "collections": done.collections, "events": done.events, "indexes": done.indexes,
            "withoutTextId": done.without_id,
        }));
    }
    for name in &done.collections {
        print_line(&format!("made collection {name}"))?;
    }
    for name in &done.indexes {
        print_line(&format!("made index {name}"))?;
    }
    if done.collections.is_empty() && done.indexes.is_empty() {
        print_line("collections and indexes were there")?;
    }
    if let Some(tenant) = tenant {
        print_line(&format!("gave {} events to tenant {tenant}", done.events))?;
    }
    if done.without_id > 0 {
        print_line(&format!(
            "left alone: {} events whose _id is no text, which Feedser neither lists nor proves",
            done.without_id
        ))?;
    }
    Ok(())
}

/// Makes what the database of `uri` lacks, and gives `tenant` the events that have none.
///
/// # Errors
/// The URI cannot be used, or the server refused.
pub async fn migrate(uri: &str, tenant: Option<&Tenant>) -> Result<Migrated, Failure> {
    let store = MongoStore::connect(uri, OPTIONS)
        .await
        .map_err(anyhow::Error::from)?;
    let done = store.migrate(tenant.map(Tenant::as_str)).await;
    Ok(done.map_err(anyhow::Error::from)?)
}
