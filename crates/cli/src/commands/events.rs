//! `stella events`: appends, lists and shows events.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stella_proto::feedser::v1 as pb;
use stella_proto::feedser::v1::append_events_result::Outcome;

use crate::client::Connection;
use crate::failure::{Failure, read_file};
use crate::output::{print, print_json, say, table};

/// Documents of one message.
const BATCH: usize = 256;
/// Largest input, in bytes.
const MAX_INPUT: u64 = 1 << 30;

/// Appends, lists and shows events
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Appends one document, or many as NDJSON; prints a result for each
    Append {
        /// The file; - is standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Lists events
    List(Filter),
    /// Shows the stored document of an event
    Get {
        /// The event's id
        id: String,
    },
}

/// Which events
#[derive(Args, Debug, Default)]
pub struct Filter {
    /// Only of this kind; may be given several times
    #[arg(long, value_name = "KIND")]
    pub kind: Vec<String>,
    /// Only those without a proof
    #[arg(long)]
    pub unproven: bool,
    /// Only about this subject
    #[arg(long, value_name = "sha256:HEX", default_value = "")]
    pub digest: String,
}

/// Every event of a filter, page by page, given to `take`.
///
/// # Errors
/// Feedser refused, or `take` did.
pub async fn each_event(
    connection: &Connection,
    kinds: Vec<String>,
    digest: &str,
    proven: pb::ProvenFilter,
    mut take: impl FnMut(pb::StoredEvent) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut feedser = connection.feedser().await?;
    let mut page_token = String::new();
    loop {
        let request = pb::ListEventsRequest {
            kinds: kinds.clone(),
            subject_digest: digest.to_owned(),
            proven: proven.into(),
            page_size: 1_000,
            page_token,
        };
        let page = feedser
            .list_events(connection.request(request))
            .await?
            .into_inner();
        for event in page.events {
            take(event)?;
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        page_token = page.next_page_token;
    }
}

/// The document of a stored event.
///
/// # Errors
/// Feedser sent no JSON.
pub fn document(event: &pb::StoredEvent) -> Result<Value, Failure> {
    serde_json::from_slice(&event.event)
        .map_err(|error| Failure::new(format!("Feedser sent no JSON: {error}")))
}

/// Prints events: JSON is the list of their documents.
///
/// # Errors
/// The output cannot be written.
pub fn print_events(connection: &Connection, events: &[pb::StoredEvent]) -> Result<(), Failure> {
    let documents: Vec<Value> = events.iter().map(document).collect::<Result<_, _>>()?;
    if connection.is_json() {
        return print_json(&Value::Array(documents));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows: Vec<Vec<String>> = documents
        .iter()
        .zip(events)
        .map(|(document, event)| {
            let state = if event.proven {
                "proven".to_owned()
            } else {
                event.reason.clone()
            };
            let rekor = &document["provenance"]["dsse"]["rekor"];
            let index = rekor["logIndex"]
                .as_u64()
                .map(|index| index.to_string())
                .unwrap_or_default();
            let subject: String = text(&document["subject"]["digest"]["sha256"])
                .chars()
                .take(12)
                .collect();
            vec![
                text(&document["_id"]),
                text(&document["kind"]),
                subject,
                text(&document["ts"]),
                index,
                state,
            ]
        })
        .collect();
    print(table(&["ID", "KIND", "SUBJECT", "TS", "LOG INDEX", "PROOF"], &rows).as_bytes())
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Append { file } => append(&file, connection).await,
        Command::List(filter) => list(filter, connection).await,
        Command::Get { id } => {
            let request = pb::GetEventRequest { event_id: id };
            let answer = connection
                .feedser()
                .await?
                .get_event(connection.request(request))
                .await?
                .into_inner();
            let event = answer
                .event
                .ok_or_else(|| Failure::new("Feedser sent no event"))?;
            if !event.proven && !connection.is_json() {
                say(&format!("unproven: {}", event.reason));
            }
            print_json(&document(&event)?)
        }
    }
}

async fn list(filter: Filter, connection: &Connection) -> Result<(), Failure> {
    let proven = if filter.unproven {
        pb::ProvenFilter::Unproven
    } else {
        pb::ProvenFilter::Unspecified
    };
    let mut events = Vec::new();
    each_event(connection, filter.kind, &filter.digest, proven, |event| {
        events.push(event);
        Ok(())
    })
    .await?;
    print_events(connection, &events)
}

/// One document, or one on each line.
fn documents(input: &[u8]) -> Vec<(String, Vec<u8>)> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(input).is_ok() {
        return vec![("1".to_owned(), input.to_vec())];
    }
    let lines = input.split(|byte| *byte == b'\n').enumerate();
    let filled = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    filled
        .map(|(number, line)| ((number + 1).to_string(), line.to_vec()))
        .collect()
}

async fn append(file: &std::path::Path, connection: &Connection) -> Result<(), Failure> {
    let input = if file.as_os_str() == "-" {
        let mut input = Vec::new();
        std::io::stdin().take(MAX_INPUT).read_to_end(&mut input)?;
        input
    } else {
        read_file("the events", file)?
    };
    let documents = documents(&input);
    if documents.is_empty() {
        return Err(Failure::usage("there is no event in the input"));
    }
    let messages: Vec<pb::AppendEventsRequest> = documents
        .chunks(BATCH)
        .map(|part| {
            let items = part.iter().map(|(line, document)| pb::AppendEventsItem {
                reference: line.clone(),
                event: document.clone().into(),
                ..pb::AppendEventsItem::default()
            });
            pb::AppendEventsRequest {
                items: items.collect(),
            }
        })
        .collect();
    let request = connection.request(tokio_stream::iter(messages));
    let mut answers = connection
        .feedser()
        .await?
        .append_events(request)
        .await?
        .into_inner();
    let (mut results, mut refused) = (Vec::new(), 0);
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            let (id, state, detail) = match result.outcome {
                Some(Outcome::Appended(done)) if done.existed => (done.event_id, "existed", String::new()),
                Some(Outcome::Appended(done)) => (done.event_id, "appended", String::new()),
                Some(Outcome::Error(error)) => {
                    refused += 1;
                    let field = if error.field.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", error.field)
                    };
                    (
                        String::new(),
                        "refused",
                        format!("{}{field}: {}", error.reason, error.message),
                    )
                }
                None => return Err(Failure::new("Feedser gave no answer to an event")),
            };
            results.push([result.reference, id, state.to_owned(), detail]);
        }
    }
    if connection.is_json() {
        let list = results.iter().map(|[line, id, state, detail]| {
            json!({"detail": detail, "eventId": id, "line": line, "result": state})
        });
        print_json(&list.collect())?;
    } else {
        let rows: Vec<Vec<String>> = results.iter().map(|row| row.to_vec()).collect();
        print(table(&["LINE", "ID", "RESULT", "DETAIL"], &rows).as_bytes())?;
    }
    match refused {
        0 => Ok(()),
        refused => Err(Failure::new(format!(
            "{refused} of {} events were refused",
            results.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn the_input_is_one_document_or_one_on_each_line() {
        let lines = |input: &str| {
            documents(input.as_bytes())
                .into_iter()
                .map(|(line, _)| line)
                .collect::<Vec<_>>()
        };
        for (input, want) in [
            ("{\n \"_id\": \"a\"\n}\n", vec!["1"]),
            ("{\"a\":1}\n\n{\"b\":2}\n", vec!["1", "3"]),
            ("{\"a\":1}\nbroken\n", vec!["1", "2"]),
            ("", vec![]),
        ] {
            assert_eq!(lines(input), want, "{input}");
        }
    }
}
