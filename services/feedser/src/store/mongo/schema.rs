//! Collections and indexes: which there must be, and how they are made.
//!
//! `deploy/mongo/` has the same as scripts; a test holds the two together.

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Database;
use mongodb::error::ErrorKind;

/// Where events lie.
pub(super) const EVENTS: &str = "events";

/// Where attestations lie.
pub(super) const ATTESTATIONS: &str = "attestations";

/// A collection of this name is there already.
const NAMESPACE_EXISTS: i32 = 48;

/// An index: where it lies, and the fields that it orders by, all upwards.
struct Index {
    collection: &'static str,
    fields: &'static [&'static str],
}

impl Index {
    /// Its name: the one that servers give by default.
    fn name(&self) -> String {
        let fields: Vec<String> = self.fields.iter().map(|field| format!("{field}_1")).collect();
        fields.join("_")
    }

    fn key(&self) -> Document {
        self.fields
            .iter()
            .map(|field| ((*field).to_owned(), Bson::Int32(1)))
            .collect()
    }
}

const INDEXES: [Index; 9] = [
    // An auditor's questions.
    Index {
        collection: EVENTS,
        fields: &["subject.digest.sha256", "kind", "provenance.dsse.rekor.logIndex"],
    },
    Index {
        collection: EVENTS,
        fields: &["kind", "trust.verified", "provenance.dsse.rekor.logIndex"],
    },
    Index {
        collection: EVENTS,
        fields: &["provenance.dsse.rekor.logIndex"],
    },
    // The service's own: pages of a tenant, of one subject, and of what lacks a proof.
    Index {
        collection: EVENTS,
        fields: &["tenant", "_id"],
    },
    Index {
        collection: EVENTS,
        fields: &["tenant", "subject.digest.sha256", "_id"],
    },
    Index {
        collection: EVENTS,
        fields: &["tenant", "provenance.dsse.rekor.logIndex", "_id"],
    },
    Index {
        collection: EVENTS,
        fields: &["tenant", "trust.receipt.payloadType", "_id"],
    },
    // Attestations by the digests of their envelopes, and by subject.
    Index {
        collection: ATTESTATIONS,
        fields: &["tenant", "digests"],
    },
    Index {
        collection: ATTESTATIONS,
        fields: &["tenant", "subjects"],
    },
];

/// What a migration did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Collections that were made, by name.
    pub collections: Vec<String>,
    /// Indexes that were made, as `collection.index`.
    pub indexes: Vec<String>,
    /// Events that were given the tenant.
    pub events: u64,
    /// Events whose `_id` is no text: the service neither lists nor proves them.
    pub without_id: u64,
}

/// Why a migration ended early.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The server cannot be reached, or refused.
    #[error("the database cannot be migrated")]
    Server(#[from] mongodb::error::Error),
    /// An index of ours has other keys.
    #[error("the index `{0}` has other keys than this program needs; drop it and migrate again")]
    OtherIndex(String),
}

/// Makes what is not there, and gives `tenant` the events that have none.
pub(super) async fn migrate(database: &Database, tenant: Option<&str>) -> Result<Migrated, MigrateError> {
    let mut done = Migrated::default();
    let there = database.list_collection_names().await?;
    for name in [EVENTS, ATTESTATIONS] {
        if there.iter().any(|collection| collection == name) {
            continue;
        }
        match database.create_collection(name).await {
            Ok(()) => done.collections.push(name.to_owned()),
            // Somebody else makes the same at the same time.
            Err(error) if is_command(&error, NAMESPACE_EXISTS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for collection in [EVENTS, ATTESTATIONS] {
        let there = indexes(database, collection).await?;
        let mut missing = Vec::new();
        for index in INDEXES.iter().filter(|index| index.collection == collection) {
            match there.iter().find(|(name, _)| *name == index.name()) {
                Some((_, key)) if same(key, &index.key()) => {}
                Some((name, _)) => return Err(MigrateError::OtherIndex(format!("{collection}.{name}"))),
                None => missing.push(index),
            }
        }
        for index in missing {
            let wanted = doc! {"key": index.key(), "name": index.name()};
            database
                .run_command(doc! {"createIndexes": collection, "indexes": [wanted]})
                .await?;
            done.indexes.push(format!("{collection}.{}", index.name()));
        }
    }
    let events = database.collection::<Document>(EVENTS);
    if let Some(tenant) = tenant {
        let without = doc! {"tenant": {"$exists": false}};
        let written = events
            .update_many(without, doc! {"$set": {"tenant": tenant}})
            .await?;
        done.events = written.modified_count;
    }
    done.without_id = events
        .count_documents(doc! {"_id": {"$not": {"$type": "string"}}})
        .await?;
    Ok(done)
}

/// The collections and indexes that are not there, by name.
pub(super) async fn missing(database: &Database) -> Result<Vec<String>, mongodb::error::Error> {
    let mut missing = Vec::new();
    for collection in [EVENTS, ATTESTATIONS] {
        let there = indexes(database, collection).await?;
        for index in INDEXES.iter().filter(|index| index.collection == collection) {
            let is_there =
                |(name, key): &(String, Document)| *name == index.name() && same(key, &index.key());
            if !there.iter().any(is_there) {
                missing.push(format!("{collection}.{}", index.name()));
            }
        }
    }
    Ok(missing)
}

/// Name and key of each index of a collection, none if there is no such collection.
async fn indexes(
    database: &Database,
    collection: &str,
) -> Result<Vec<(String, Document)>, mongodb::error::Error> {
    const NO_SUCH_COLLECTION: i32 = 26;
    let cursor = database
        .run_cursor_command(doc! {"listIndexes": collection})
        .await;
    let found: Vec<Document> = match cursor {
        Ok(cursor) => cursor.try_collect().await?,
        Err(error) if is_command(&error, NO_SUCH_COLLECTION) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut indexes = Vec::new();
    for index in found {
        let name = index.get_str("name").unwrap_or_default().to_owned();
        indexes.push((name, index.get_document("key").cloned().unwrap_or_default()));
    }
    Ok(indexes)
}

/// True if the keys are the same fields in the same order, all upwards, however the server writes its numbers.
fn same(left: &Document, right: &Document) -> bool {
    let fields = |key: &Document| -> Vec<(String, bool)> {
        let upwards =
            |value: &Bson| matches!(value, Bson::Int32(1) | Bson::Int64(1)) || *value == Bson::Double(1.0);
        key.iter()
            .map(|(name, value)| (name.clone(), upwards(value)))
            .collect()
    };
    fields(left) == fields(right)
}

fn is_command(error: &mongodb::error::Error, code: i32) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if command.code == code)
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    const SCRIPT: &str = include_str!("../../../../../deploy/mongo/migrate.js");

    #[test]
    fn the_script_for_administrators_makes_the_same() {
        let list = |name: &str| {
            let (_, rest) = SCRIPT.split_once(&format!("const {name} = ")).unwrap();
            let (list, _) = rest.split_once(';').unwrap();
            let list = json::to_document(format!(r#"{{"list":{list}}}"#).as_bytes()).unwrap();
            Document::try_from(list).unwrap().remove("list").unwrap()
        };
        let collections = doc! {"names": [EVENTS, ATTESTATIONS]};
        assert_eq!(Some(&list("collections")), collections.get("names"));
        let Bson::Array(indexes) = list("indexes") else {
            panic!("a list")
        };
        assert_eq!(indexes.len(), INDEXES.len());
        for (scripted, index) in indexes.iter().zip(&INDEXES) {
            let scripted = scripted.as_document().unwrap();
            assert_eq!(scripted.get_str("collection").unwrap(), index.collection);
            let key = scripted.get_document("key").unwrap();
            assert!(same(key, &index.key()), "{key} is not {}", index.key());
        }
    }
}
