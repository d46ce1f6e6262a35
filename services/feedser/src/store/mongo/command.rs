//! Batches of `insert` and `update` statements as commands of their own.
//!
//! One command carries as many statements as fit, because a round trip with its wait for the disks costs far more
//! than a statement. The driver does nothing for such a command: it splits no batch, adds no write concern, and takes
//! an answer for a success although statements of it failed. All of that is done here.

use bson::raw::{RawArrayBuf, cstr};
use bson::{Document, RawDocumentBuf, rawdoc};

use super::super::StoreError;
use super::{Connection, MAX_DOCUMENT};

/// Most bytes of the statements of one command; servers take commands of 16,793,600 bytes.
const MAX_BYTES: usize = 16_000_000;

/// Most statements of one command that every server takes.
const MAX_STATEMENTS: usize = 100_000;

/// Bytes that a statement's place in the array costs at most: type, number, end of the number.
const PLACE: usize = 8;

/// A unique key is there already.
const DUPLICATE_KEY: i64 = 11_000;

/// The document would be larger than the server takes.
const TOO_LARGE: [i64; 3] = [10_334, 17_419, 17_420];

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Insert,
    Update,
}

/// What the server said of a batch.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// How many statements were carried out: inserted a document, or found the one that they guard.
    pub(super) done: usize,
    /// Those that failed. A statement that failed for another reason than a taken key may have been carried out.
    pub(super) failed: Vec<Failed>,
}

/// A statement that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// Its number in the batch.
    pub(super) number: usize,
    /// Whether its key is taken.
    pub(super) is_taken: bool,
    /// What the server said.
    pub(super) error: WriteError,
}

/// Why a server did not carry out a statement, or did not make sure that it lasts.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the server answered with error {code}: {message}")]
pub(super) struct WriteError {
    code: i64,
    message: String,
}

/// The server's answer is not one that the protocol has.
#[derive(Debug, thiserror::Error)]
#[error("the server's answer has no valid `{0}`")]
struct BadAnswer(&'static str);

/// An `update` statement that changes one document, the one that `guard` finds.
pub(super) fn update(guard: &RawDocumentBuf, change: &RawDocumentBuf) -> RawDocumentBuf {
    let mut statement = RawDocumentBuf::new();
    statement.append(cstr!("q"), guard);
    statement.append(cstr!("u"), change);
    statement.append(cstr!("multi"), false);
    statement.append(cstr!("upsert"), false);
    statement
}

/// Carries a batch out, durably on a majority of the servers; statements are independent of each other.
///
/// # Errors
/// The outcome of some statements is unknown, or one of them is larger than a server takes.
pub(super) async fn write(
    connection: &Connection,
    verb: Verb,
    collection: &str,
    statements: Vec<RawDocumentBuf>,
) -> Result<Written, StoreError> {
    let mut written = Written::default();
    let mut first = 0;
    for batch in split(statements)? {
        let size = batch.len();
        let command = command(connection, verb, collection, batch);
        let answer = connection.run(command).await?;
        let before = (written.done, written.failed.len());
        read(&answer, first, size, &mut written)?;
        let is_whole = (written.done - before.0, written.failed.len() - before.1) == (size, 0);
        if verb == Verb::Insert && !is_whole && written.failed.len() == before.1 {
            // Without an error of its own each statement must count; one that does not may be there or not.
            return Err(StoreError::failed(BadAnswer("n")));
        }
        first += size;
    }
    Ok(written)
}

fn split(statements: Vec<RawDocumentBuf>) -> Result<Vec<Vec<RawDocumentBuf>>, StoreError> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for statement in statements {
        let size = statement.as_bytes().len() + PLACE;
        if size > MAX_DOCUMENT {
            return Err(StoreError::TooLarge {
                found: size,
                max: MAX_DOCUMENT,
            });
        }
        if !batch.is_empty() && (bytes + size > MAX_BYTES || batch.len() == MAX_STATEMENTS) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(statement);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    Ok(batches)
}

fn command(
    connection: &Connection,
    verb: Verb,
    collection: &str,
    batch: Vec<RawDocumentBuf>,
) -> RawDocumentBuf {
    let (name, list) = match verb {
        Verb::Insert => (cstr!("insert"), cstr!("documents")),
        Verb::Update => (cstr!("update"), cstr!("updates")),
    };
    let mut statements = RawArrayBuf::new();
    for statement in batch {
        statements.push(statement);
    }
    let mut command = RawDocumentBuf::new();
    command.append(name, collection);
    command.append(cstr!("ordered"), false);
    let wait = i64::try_from(connection.timeout.as_millis()).unwrap_or(i64::MAX);
    command.append(
        cstr!("writeConcern"),
        rawdoc! {"w": "majority", "j": true, "wtimeout": wait},
    );
    command.append(list, statements);
    command
}

/// Adds the answer to a command of `size` statements, whose first one is number `first` of the batch.
fn read(answer: &Document, first: usize, size: usize, written: &mut Written) -> Result<(), StoreError> {
    if let Ok(error) = answer.get_document("writeConcernError") {
        return Err(StoreError::failed(write_error(error)));
    }
    let bad = |name| StoreError::failed(BadAnswer(name));
    let done = number(answer, "n").and_then(|done| usize::try_from(done).ok());
    written.done += done.filter(|done| *done <= size).ok_or_else(|| bad("n"))?;
    let Ok(errors) = answer.get_array("writeErrors") else {
        return Ok(());
    };
    for error in errors {
        let error = error.as_document().ok_or_else(|| bad("writeErrors"))?;
        let index = number(error, "index").and_then(|index| usize::try_from(index).ok());
        let index = index
            .filter(|index| *index < size)
            .ok_or_else(|| bad("writeErrors"))?;
        let error = write_error(error);
        if TOO_LARGE.contains(&error.code) {
            return Err(StoreError::TooLarge {
                found: MAX_DOCUMENT + 1,
                max: MAX_DOCUMENT,
            });
        }
        written.failed.push(Failed {
            number: first + index,
            is_taken: error.code == DUPLICATE_KEY,
            error,
        });
    }
    Ok(())
}

fn write_error(document: &Document) -> WriteError {
    WriteError {
        code: number(document, "code").unwrap_or_default(),
        message: document.get_str("errmsg").unwrap_or_default().to_owned(),
    }
}

/// An integer, however the server writes it.
fn number(document: &Document, name: &str) -> Option<i64> {
    match document.get(name)? {
        bson::Bson::Int32(number) => Some(i64::from(*number)),
        bson::Bson::Int64(number) => Some(*number),
        bson::Bson::Double(number) if number.fract() == 0.0 => Some(*number as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn statement(bytes: usize) -> RawDocumentBuf {
        let mut statement = RawDocumentBuf::new();
        statement.append(cstr!("a"), "x".repeat(bytes));
        statement
    }

    #[test]
    fn a_batch_is_split_below_what_servers_take() {
        let sizes = |statements: Vec<RawDocumentBuf>| -> Vec<usize> {
            split(statements).unwrap().iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(Vec::new()), [0; 0]);
        assert_eq!(sizes((0..5).map(|_| statement(6_000_000)).collect()), [2, 2, 1]);
        assert_eq!(sizes(vec![statement(16_500_000), statement(1)]), [1, 1]);
        assert_eq!(
            sizes((0..100_001).map(|_| RawDocumentBuf::new()).collect()),
            [100_000, 1]
        );
        let refused = split(vec![statement(MAX_DOCUMENT)]).unwrap_err().to_string();
        assert!(
            refused.ends_with("larger than the store holds, which is 16777216"),
            "{refused}"
        );
    }

    #[test]
    fn an_answer_says_what_became_of_each_statement() {
        let mut written = Written::default();
        let answer = doc! {"ok": 1.0, "n": 1, "writeErrors": [
            {"index": 1, "code": 11_000, "errmsg": "taken"}, {"index": 2, "code": 16_908_292_i64, "errmsg": "deadlock"},
        ]};
        read(&answer, 10, 3, &mut written).unwrap();
        let failed: Vec<_> = written
            .failed
            .iter()
            .map(|failed| (failed.number, failed.is_taken))
            .collect();
        assert_eq!((written.done, failed), (1, vec![(11, true), (12, false)]));
    }

    #[test]
    fn an_answer_that_proves_nothing_is_no_success() {
        let said = |answer: Document| {
            let error = read(&answer, 0, 1, &mut Written::default()).unwrap_err();
            std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or(error.to_string())
        };
        for (answer, want) in [
            (
                doc! {"n": 1, "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
                "the server answered with error 64: waiting for replication timed out",
            ),
            (doc! {"ok": 1}, "the server's answer has no valid `n`"),
            (doc! {"n": 2}, "the server's answer has no valid `n`"),
            (
                doc! {"n": 0, "writeErrors": [{"index": 1}]},
                "the server's answer has no valid `writeErrors`",
            ),
            (
                doc! {"n": 0, "writeErrors": [{"index": 0, "code": 17_419}]},
                "a document of 16777217 bytes is larger than the store holds, which is 16777216",
            ),
        ] {
            assert_eq!(said(answer.clone()), want, "{answer}");
        }
    }
}
