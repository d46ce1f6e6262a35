//! The Signer dies between any two steps of a call.

use std::path::Path;

use serde_json::Value;
use stella_proto::signer::v1 as pb;
use stella_proto::signer::v1::sign_batch_result::Outcome;
use stella_proto::status::reason;
use stella_testkit::stack::Stack;
use stella_testkit::tools::tool;
use tonic::Status;

use super::trap::{Place, Trap};
use super::{Caller, Held, is_dead, order, records, settled, signal, supervisor, until};
use crate::audit_log::segments;

/// Deaths after which the supervisor is restarted, so that its pauses stay short.
const DEATHS: usize = 5;

/// What stands on the disk of a dead Signer, of the one call that ran. `None`: the death does not say.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// The kinds of records of the call.
    records: &'static [&'static str],
    /// The log's journal has its entry.
    journal: bool,
    /// The witness has cosigned a checkpoint that covers it.
    witnessed: Option<bool>,
    /// The cosigned checkpoint is kept.
    kept: Option<bool>,
}

const NOTHING: Left = Left {
    records: &[],
    journal: false,
    witnessed: Some(false),
    kept: Some(false),
};
const SIGNED: Left = Left {
    records: &["intent", "outcome"],
    ..NOTHING
};
const INTEGRATED: Left = Left {
    journal: true,
    ..SIGNED
};
const PUBLISHING: Left = Left {
    witnessed: None,
    kept: None,
    ..INTEGRATED
};
const WITNESSED: Left = Left {
    witnessed: Some(true),
    ..INTEGRATED
};
const KEPT: Left = Left {
    kept: Some(true),
    ..WITNESSED
};
const LOGGED: Left = Left {
    records: &["intent", "outcome", "logged"],
    ..KEPT
};

/// How a Signer dies.
#[derive(Clone, Copy)]
enum Death {
    /// At a call of its own.
    At(Place),
    /// At a call of its own, in a log that had so many entries.
    AtSize(u64, Place),
    /// While it waits for a witness that does not answer.
    Unwitnessed,
    /// When it has answered.
    Answered,
    /// Before what it wrote was durable; the power failed too, and so much of it is gone.
    Torn(Place, Tear),
}

/// What of an unacknowledged write did not arrive.
#[derive(Clone, Copy)]
enum Tear {
    /// The outcome.
    Outcome,
    /// The end of the outcome.
    EndOfOutcome,
    /// The end of the intent, and all behind it.
    EndOfIntent,
    /// The end of the log's journal.
    EndOfJournal,
}

const fn at(thread: &'static str, call: &'static str, nth: u32) -> Death {
    Death::At(Place { thread, call, nth })
}

const fn at_size(size: u64, thread: &'static str, call: &'static str, nth: u32) -> Death {
    Death::AtSize(size, Place { thread, call, nth })
}

const fn torn(thread: &'static str, tear: Tear) -> Death {
    Death::Torn(
        Place {
            thread,
            call: "fdatasync",
            nth: 1,
        },
        tear,
    )
}

/// Every death of a call, in the order of its steps.
const DEATHS_OF_A_CALL: &[(&str, Death, Left)] = &[
    ("before anything is written", at("audit", "pwrite64", 1), NOTHING),
    (
        "before the outcome is durable",
        at("audit", "fdatasync", 1),
        SIGNED,
    ),
    ("the intent is torn", torn("audit", Tear::EndOfIntent), NOTHING),
    (
        "the outcome did not arrive",
        torn("audit", Tear::Outcome),
        Left {
            records: &["intent"],
            ..NOTHING
        },
    ),
    (
        "the outcome is torn",
        torn("audit", Tear::EndOfOutcome),
        Left {
            records: &["intent"],
            ..NOTHING
        },
    ),
    (
        "the outcome is durable, and nobody knows",
        at("audit", "pwrite64", 2),
        SIGNED,
    ),
    (
        "before the journal has the entry",
        at("log-write", "write", 1),
        SIGNED,
    ),
    (
        "before the entry is durable",
        at("log-write", "fdatasync", 1),
        INTEGRATED,
    ),
    ("the entry is torn", torn("log-write", Tear::EndOfJournal), SIGNED),
    (
        "before a tile is made",
        at("log-publish", "openat", 1),
        PUBLISHING,
    ),
    (
        "before a tile is filled",
        at("log-publish", "write", 1),
        PUBLISHING,
    ),
    ("between two tiles", at("log-publish", "openat", 2), PUBLISHING),
    (
        "before the checkpoint is published",
        at("log-publish", "pwrite64", 1),
        PUBLISHING,
    ),
    ("before the witness has cosigned", Death::Unwitnessed, INTEGRATED),
    (
        "the witness has cosigned",
        at("log-cosign", "openat", 1),
        WITNESSED,
    ),
    (
        "before its cosignature is written over the last one",
        at_size(20, "log-cosign", "pwrite64", 1),
        WITNESSED,
    ),
    (
        "before its cosignature is durable",
        at("log-cosign", "fdatasync", 1),
        KEPT,
    ),
    (
        "before a longer one takes the place of the last one",
        at_size(99, "log-cosign", "rename", 1),
        WITNESSED,
    ),
    (
        "before the log record is written",
        at("audit", "pwrite64", 3),
        KEPT,
    ),
    (
        "before the log record is durable",
        at("audit", "fdatasync", 2),
        LOGGED,
    ),
    (
        "the log record is durable, and nobody knows",
        at("audit", "pwrite64", 4),
        LOGGED,
    ),
    ("after the answer", Death::Answered, LOGGED),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_that_dies_between_any_two_steps_of_a_call_loses_nothing_and_signs_nothing_twice() {
    let Some(strace) = tool("strace") else { return };
    let mut stack = Stack::start();
    let mut caller = Caller::of(&stack).await;
    for (number, (case, death, left)) in DEATHS_OF_A_CALL.iter().enumerate() {
        if number % DEATHS == DEATHS - 1 {
            stack.restart();
            caller = Caller::of(&stack).await;
        }
        let size = match death {
            Death::AtSize(size, _) => *size,
            _ => 10,
        };
        fill(&stack, &caller, size).await;
        let order = order(&format!("{number}: {case}").replace([' ', ':'], "-"));
        let (first, recorded) = die(&stack, &caller, &strace, &order, *death, left, case).await;

        let answer = caller.sign_until_answered(&order).await;
        if let Some(first) = first {
            assert_eq!(answer, first, "{case}: what was answered stays");
        }
        match &recorded[..] {
            [] => {}
            [signature] => assert_eq!(
                &answer.signature, signature,
                "{case}: what was signed is taken up"
            ),
            several => panic!("{case}: {} signatures", several.len()),
        }
        assert_eq!(caller.sign_until_answered(&order).await, answer, "{case}: again");
        let books = settled(&stack).await;
        let kinds = books.records.of(&order.idempotency_key);
        let abandoned = left.records == ["intent"];
        let want: &[&str] = match abandoned {
            true => &["intent", "abandoned", "intent", "outcome", "logged"],
            false => &["intent", "outcome", "logged"],
        };
        assert_eq!(kinds, want, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_signer_left_is_logged_without_a_retry_as_soon_as_the_witness_is_back() {
    let stack = Stack::start();
    let caller = Caller::of(&stack).await;
    let roots = stack.dir().join("verifier/trust-roots.json");
    let away = roots.with_extension("away");
    // Without its trust roots the Verifier does not start.
    std::fs::rename(&roots, &away).expect("moves");
    stack.kill("verifier");
    let order = order("left");
    let refused = caller.sign(&order).await.map_err(|status| reason(&status));
    assert_eq!(refused, Err(Some("WITNESS_UNAVAILABLE".to_owned())));

    let from = stack.log("signer").len();
    stack.kill("signer");
    stack.wait_for_log("signer", from, "not logged yet");
    std::fs::rename(&away, &roots).expect("moves");
    let books = settled(&stack).await;
    assert_eq!(
        books.records.of(&order.idempotency_key),
        ["intent", "outcome", "logged"]
    );
    assert_eq!(books.entries(), 1);
}

/// Signs until the log has so many entries.
async fn fill(stack: &Stack, caller: &Caller, size: u64) {
    let found = settled(stack).await.entries();
    let orders = (found..size).map(|number| order(&format!("filling-{number}")));
    batch(caller, orders.collect()).await.expect("signs");
}

/// Signs orders as one message, without idempotency keys.
async fn batch(caller: &Caller, orders: Vec<pb::SignRequest>) -> Result<(), Status> {
    let items = orders.into_iter().map(|order| pb::SignBatchItem {
        reference: String::new(),
        request: Some(pb::SignRequest {
            idempotency_key: String::new(),
            ..order
        }),
    });
    let message = pb::SignBatchRequest {
        items: items.collect(),
    };
    let request = caller.request(tokio_stream::once(message));
    let mut answers = caller.signer.clone().sign_batch(request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            if let Some(Outcome::Error(error)) = result.outcome {
                return Err(stella_proto::status::from_item_error(&error));
            }
        }
    }
    Ok(())
}

/// Has `order` signed by a Signer that dies as `death` says, and looks at what it left. Returns the answer, if there was
/// one, and the signatures that were recorded. The Signer is started again.
async fn die(
    stack: &Stack,
    caller: &Caller,
    strace: &Path,
    order: &pb::SignRequest,
    death: Death,
    left: &Left,
    case: &str,
) -> (Option<super::Signed>, Vec<Vec<u8>>) {
    let size = settled(stack).await.entries();
    let signer = stack.pid("signer");
    let held = Held::hold(supervisor(stack));
    let witness = matches!(death, Death::Unwitnessed).then(|| Held::hold(stack.pid("verifier")));
    let trap = match death {
        Death::At(place) | Death::AtSize(_, place) | Death::Torn(place, _) => {
            Some(Trap::at(strace, signer, place))
        }
        Death::Unwitnessed | Death::Answered => None,
    };
    let call = {
        let (caller, order) = (caller.clone(), order.clone());
        tokio::spawn(async move { caller.sign(&order).await })
    };
    match death {
        Death::Answered => until("it is answered", || call.is_finished()).await,
        Death::Unwitnessed => {
            until("the entry is published", || {
                size_of(&stack.dir().join("signer/log/checkpoint")) > size
            })
            .await;
        }
        _ => {}
    }
    if trap.is_none() {
        signal(signer, "KILL");
    }
    until(case, || is_dead(signer)).await;
    drop(trap);
    if let Death::Torn(_, tear) = death {
        tear_off(stack, tear);
    }
    let first = call.await.expect("the call ends");
    let recorded = look(stack, order, size, left, case);
    drop((witness, held));
    (first.ok(), recorded)
}

/// Holds what a dead Signer left to what it must have left; returns the signatures that it recorded.
fn look(stack: &Stack, order: &pb::SignRequest, size: u64, left: &Left, case: &str) -> Vec<Vec<u8>> {
    let records = records(stack);
    let recorded = records.signatures(&order.idempotency_key);
    assert_eq!(
        records.of(&order.idempotency_key),
        left.records,
        "{case}: records"
    );
    let journal = stack.dir().join("signer/log/journal");
    let mut bytes = Vec::new();
    for segment in std::fs::read_dir(journal)
        .expect("the journal is a folder")
        .flatten()
    {
        bytes.extend(std::fs::read(segment.path()).expect("a segment"));
    }
    // The journal of a log holds checkpoints of a size from when that is durable: the last one is the newest.
    let note = format!("\n127.0.0.1\n{}\n", size + 1);
    let note = &note.as_bytes()[1..];
    let is_in_journal = bytes.windows(note.len()).any(|window| window == note);
    assert_eq!(is_in_journal, left.journal, "{case}: the journal");
    if let Some(witnessed) = left.witnessed {
        let heads = std::fs::read_dir(stack.dir().join("verifier/state/heads")).expect("heads");
        let heads = heads.flatten().map(|entry| entry.path());
        let mut heads = heads.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let head = std::fs::read(heads.next().expect("a head")).expect("a head");
        let head: Value = serde_json::from_slice(&head).expect("JSON");
        let seen = head["size"].as_str().and_then(|size| size.parse().ok());
        assert_eq!(seen > Some(size), witnessed, "{case}: the witness");
    }
    if let Some(kept) = left.kept {
        let cosigned = size_of(&stack.dir().join("signer/log/checkpoint.cosigned"));
        assert_eq!(cosigned > size, kept, "{case}: the cosigned checkpoint");
    }
    recorded
}

/// The size that a checkpoint states.
fn size_of(checkpoint: &Path) -> u64 {
    let note = std::fs::read_to_string(checkpoint).unwrap_or_default();
    note.lines()
        .nth(1)
        .and_then(|size| size.parse().ok())
        .unwrap_or(0)
}

/// Takes away the end of what was written last.
fn tear_off(stack: &Stack, tear: Tear) {
    let path = match tear {
        Tear::EndOfJournal => {
            let journal = std::fs::read_dir(stack.dir().join("signer/log/journal")).expect("a folder");
            journal
                .flatten()
                .map(|entry| entry.path())
                .max()
                .expect("a segment")
        }
        _ => {
            segments(&stack.dir().join("signer/audit"))
                .pop()
                .expect("a segment")
                .1
        }
    };
    let bytes = std::fs::read(&path).expect("a file");
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let last = |count: usize| {
        lines
            .iter()
            .rev()
            .take(count)
            .map(|line| line.len())
            .sum::<usize>()
    };
    let gone = match tear {
        // The new checkpoint, which stands at the end of its batch, and more.
        Tear::EndOfJournal => 200,
        Tear::Outcome => last(1),
        Tear::EndOfOutcome => 10,
        Tear::EndOfIntent => last(1) + 10,
    };
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("a file");
    file.set_len((bytes.len() - gone) as u64).expect("cuts");
}
