//! Opens the SQLite file of a service's store, and no other file.
//!
//! A file is ours if it carries the service's mark (`PRAGMA application_id`) and a schema that this program knows
//! (`PRAGMA user_version`); an empty one becomes ours. What is refused is left as it was.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

/// What a service keeps in its file.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Marks the file as the service's (`PRAGMA application_id`).
    pub application_id: i32,
    /// The schema that this program writes (`PRAGMA user_version`).
    pub version: i32,
    /// The SQL that makes it.
    pub tables: &'static str,
}

/// Who else may use the file while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: the lock is taken now and kept.
    Alone,
    /// Other connections and processes.
    Shared,
}

/// Why a file cannot be opened as the service's store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not an SQLite database at all.
    #[error("`{}` is not a database", .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// It is a database of another program.
    #[error("`{}` is a database, but not a store of this service", .path.display())]
    OtherStore {
        /// The file.
        path: PathBuf,
    },
    /// A newer program has written it.
    #[error("`{}` has schema version {found}; this program knows {known}", .path.display())]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i32,
        /// The newest that this program knows.
        known: i32,
    },
    /// Another process has it open, and keeps it longer than was waited.
    #[error("`{}` is used by another process", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// SQLite or the file system refused.
    #[error("`{}` cannot be opened", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What was refused.
        source: rusqlite::Error,
    },
}

/// Opens the store at `path` for writing, or makes a new one; each commit is durable (WAL, `synchronous=FULL`).
///
/// Whenever others hold the file, now and later, they are waited for at most `patience`.
///
/// # Errors
/// [`OpenError`]; nothing is changed in a file that is refused.
pub fn open(
    path: &Path,
    schema: &Schema,
    sharing: Sharing,
    patience: Duration,
) -> Result<Connection, OpenError> {
    let refused = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase {
            path: path.to_owned(),
        },
        Some(ErrorCode::DatabaseBusy) => OpenError::InUse {
            path: path.to_owned(),
        },
        _ => OpenError::Sqlite {
            path: path.to_owned(),
            source,
        },
    };
    let mut connection = Connection::open(path).map_err(refused)?;
    connection.busy_timeout(patience).map_err(refused)?;
    if sharing == Sharing::Alone {
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .map_err(refused)?;
    }
    let pragma = |name: &str| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
            .map_err(refused)
    };
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
        .map_err(refused)?;
    let application = pragma("application_id")?;
    if application != schema.application_id && (tables > 0 || application != 0) {
        return Err(OpenError::OtherStore {
            path: path.to_owned(),
        });
    }
    let found = pragma("user_version")?;
    if found > schema.version {
        return Err(OpenError::NewerSchema {
            path: path.to_owned(),
            found,
            known: schema.version,
        });
    }
    configure(&mut connection, schema, sharing, tables == 0).map_err(refused)?;
    Ok(connection)
}

fn configure(
    connection: &mut Connection,
    schema: &Schema,
    sharing: Sharing,
    is_new: bool,
) -> rusqlite::Result<()> {
    if is_new {
        connection.pragma_update(None, "page_size", 8192)?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(64);
    // The first write takes the lock, which is then kept if nobody else may use the file.
    if is_new || sharing == Sharing::Alone {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if is_new {
            transaction.execute_batch(schema.tables)?;
            transaction.pragma_update(None, "application_id", schema.application_id)?;
            transaction.pragma_update(None, "user_version", schema.version)?;
        }
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema {
        application_id: 0x5374_5465,
        version: 1,
        tables: "CREATE TABLE ours (id INTEGER)",
    };

    fn opened(path: &Path, sharing: Sharing) -> Result<Connection, OpenError> {
        open(path, &SCHEMA, sharing, Duration::from_millis(10))
    }

    #[test]
    fn only_a_store_of_ours_opens_and_alone_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(
            path("text"),
            "this is no database, but long enough to look like a file".repeat(40),
        )
        .unwrap();
        Connection::open(path("other"))
            .unwrap()
            .execute_batch("CREATE TABLE jobs (id INTEGER)")
            .unwrap();
        let marked = Connection::open(path("marked")).unwrap();
        marked.pragma_update(None, "application_id", 7).unwrap();
        drop(marked);
        drop(opened(&path("newer"), Sharing::Shared).unwrap());
        Connection::open(path("newer"))
            .unwrap()
            .pragma_update(None, "user_version", 2)
            .unwrap();
        let _open = opened(&path("open"), Sharing::Alone).unwrap();
        for sharing in [Sharing::Alone, Sharing::Shared] {
            for (name, want) in [
                ("text", "is not a database"),
                ("other", "is a database, but not a store of this service"),
                ("marked", "is a database, but not a store of this service"),
                ("newer", "has schema version 2; this program knows 1"),
                ("open", "is used by another process"),
                ("no/such/folder", "cannot be opened"),
            ] {
                let before = std::fs::read(path(name)).ok();
                let error = opened(&path(name), sharing).err().unwrap().to_string();
                assert_eq!(error, format!("`{}` {want}", path(name).display()), "{name}");
                assert_eq!(std::fs::read(path(name)).ok(), before, "{name} is left as it was");
            }
        }
    }

    #[test]
    fn a_shared_store_opens_beside_another_connection_and_keeps_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        let first = opened(&path, Sharing::Shared).unwrap();
        first.execute("INSERT INTO ours VALUES (7)", ()).unwrap();
        let second = opened(&path, Sharing::Shared).unwrap();
        let found: i64 = second
            .query_row("SELECT id FROM ours", (), |row| row.get(0))
            .unwrap();
        assert_eq!(found, 7);
    }
}
