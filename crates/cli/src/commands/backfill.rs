//! `stella backfill`: proves history that was stored before.

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use stella_proto::backfill::v1 as pb;

use crate::client::{Connection, idempotency_key};
use crate::failure::Failure;
use crate::output::{print, print_json, print_line, table};

/// Proves history that was stored before
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Counts unproven events
    Count {
        /// Only of this kind; may be given several times; default SBOM, VEX and SCAN
        #[arg(long, value_name = "KIND")]
        kind: Vec<String>,
    },
    /// Starts a job
    Start {
        /// Only of this kind; may be given several times; default SBOM, VEX and SCAN
        #[arg(long, value_name = "KIND")]
        kind: Vec<String>,
        /// At most so many events; 0 is all
        #[arg(long, value_name = "N", default_value_t = 0)]
        limit: u64,
        /// Waits until it has ended, with a progress bar
        #[arg(long)]
        wait: bool,
    },
    /// Shows a job and what it could not prove
    Get {
        /// The job's id
        id: String,
    },
}

async fn start(connection: &Connection, kinds: Vec<String>, limit: u64) -> Result<pb::Backfill, Failure> {
    let order = pb::StartBackfillRequest {
        kinds,
        limit,
        idempotency_key: idempotency_key()?,
    };
    let started = connection
        .call(async || {
            let request = connection.request(order.clone());
            let mut service = connection.backfill().await?;
            Ok(service.start_backfill(request).await?.into_inner())
        })
        .await?;
    Ok(started.backfill.unwrap_or_default())
}

/// Starts a job and waits for its end; `progress` sees every state.
///
/// # Errors
/// The service refused.
pub async fn start_and_wait(
    connection: &Connection,
    kinds: Vec<String>,
    limit: u64,
    mut progress: impl FnMut(&pb::Backfill),
) -> Result<pb::Backfill, Failure> {
    let mut job = start(connection, kinds, limit).await?;
    let watch = pb::WatchBackfillRequest { id: job.id.clone() };
    let mut states = connection
        .backfill()
        .await?
        .watch_backfill(connection.request(watch))
        .await?
        .into_inner();
    while let Some(state) = states.message().await? {
        job = state.backfill.unwrap_or_default();
        progress(&job);
    }
    Ok(job)
}

/// Everything that a job could not prove.
///
/// # Errors
/// The service refused.
pub async fn unproven(connection: &Connection, id: &str) -> Result<Vec<pb::Unproven>, Failure> {
    let mut service = connection.backfill().await?;
    let (mut list, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::GetBackfillRequest {
            id: id.to_owned(),
            page_size: 1_000,
            page_token,
        };
        let page = service
            .get_backfill(connection.request(request))
            .await?
            .into_inner();
        list.extend(page.unproven);
        if page.next_page_token.is_empty() {
            return Ok(list);
        }
        page_token = page.next_page_token;
    }
}

/// A progress bar on standard error.
pub fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Count { kind } => count(kind, connection).await,
        Command::Start {
            kind,
            limit,
            wait: false,
        } => {
            let job = start(connection, kind, limit).await?;
            if connection.is_json() {
                print_json(&to_json(&job, &[]))
            } else {
                print_line(&job.id)
            }
        }
        Command::Start {
            kind,
            limit,
            wait: true,
        } => {
            let bar = bar();
            let job = start_and_wait(connection, kind, limit, |job| {
                bar.set_length(job.total);
                bar.set_position(job.processed);
                bar.set_message(job.message.clone());
            })
            .await?;
            bar.finish_and_clear();
            show(&job, connection).await
        }
        Command::Get { id } => {
            let request = pb::GetBackfillRequest {
                id,
                page_size: 1,
                page_token: String::new(),
            };
            let job = connection
                .call(async || {
                    let request = connection.request(request.clone());
                    Ok(connection
                        .backfill()
                        .await?
                        .get_backfill(request)
                        .await?
                        .into_inner())
                })
                .await?;
            show(&job.backfill.unwrap_or_default(), connection).await
        }
    }
}

async fn count(kinds: Vec<String>, connection: &Connection) -> Result<(), Failure> {
    let query = pb::CountUnprovenRequest { kinds };
    let answer = connection
        .call(async || {
            let request = connection.request(query.clone());
            let mut service = connection.backfill().await?;
            Ok(service.count_unproven(request).await?.into_inner())
        })
        .await?;
    if connection.is_json() {
        let counts: Vec<Value> = answer
            .counts
            .iter()
            .map(|count| json!({"kind": count.kind, "unproven": count.unproven}))
            .collect();
        return print_json(&json!({"counts": counts, "total": answer.total}));
    }
    let rows = answer
        .counts
        .iter()
        .map(|count| vec![count.kind.clone(), count.unproven.to_string()]);
    let mut rows: Vec<Vec<String>> = rows.collect();
    rows.push(vec!["total".into(), answer.total.to_string()]);
    print(table(&["KIND", "UNPROVEN"], &rows).as_bytes())
}

fn to_json(job: &pb::Backfill, unproven: &[pb::Unproven]) -> Value {
    let list = unproven.iter().map(|event| {
        json!({
            "eventId": event.event_id, "failedChecks": event.failed_checks, "kind": event.kind, "reason": event.reason,
            "subjectDigest": event.subject_digest,
        })
    });
    json!({
        "alreadyProven": job.already_proven, "endedAt": job.ended_at, "errors": job.errors, "id": job.id,
        "message": job.message, "notFound": job.not_found, "processed": job.processed, "proven": job.proven,
        "startedAt": job.started_at, "state": job.state().as_str_name(), "total": job.total,
        "unproven": list.collect::<Vec<_>>(),
    })
}

async fn show(job: &pb::Backfill, connection: &Connection) -> Result<(), Failure> {
    let unproven = unproven(connection, &job.id).await?;
    if connection.is_json() {
        return print_json(&to_json(job, &unproven));
    }
    print_line(&format!(
        "{}: {} proven, {} not found, {} errors, {} proven already, of {}",
        job.id, job.proven, job.not_found, job.errors, job.already_proven, job.processed
    ))?;
    if !job.message.is_empty() {
        print_line(&job.message)?;
    }
    let rows: Vec<Vec<String>> = unproven
        .iter()
        .map(|event| {
            let failed = event.failed_checks.join(", ");
            vec![
                event.event_id.clone(),
                event.kind.clone(),
                event.reason.clone(),
                failed,
            ]
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    print(table(&["EVENT", "KIND", "REASON", "FAILED CHECKS"], &rows).as_bytes())
}
