//! What is malformed, oversized, reserved, forged or about something else is refused by its name, and nothing of it is
//! stored.
//!
//! The tests share one stack and take turns on it, so that each can count what is stored before and after.

use std::fmt::Debug;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::evidence::Evidence;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::statement::{self, PAYLOAD_TYPE};
use stella_proto::backfill::v1 as backfill;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::feedser::v1 as feedser;
use stella_proto::feedser::v1::append_events_result::Outcome as Appended;
use stella_proto::feedser::v1::attach_provenance_batch_result::Outcome as Attached;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer;
use stella_proto::signer::v1::sign_batch_result::Outcome as Signed;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::status;
use stella_proto::types::v1::{CheckStatus, ItemError};
use stella_proto::verifier::v1 as verifier;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_serve::upstream::UpstreamChannel;
use stella_testkit::rest::Body;
use stella_testkit::stack::Stack;
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tonic::{Code, Status};

/// Largest message that a service takes.
const MAX_MESSAGE: usize = 32 << 20;
/// Largest evidence that Feedser takes.
const MAX_EVIDENCE: usize = 16 << 20;

/// Code, reason, and field at fault (empty if none is named).
type Refusal = (Code, String, String);

fn refusal(code: Code, reason: &str, field: &str) -> Refusal {
    (code, reason.to_owned(), field.to_owned())
}

fn invalid(reason: &str, field: &str) -> Refusal {
    refusal(Code::InvalidArgument, reason, field)
}

fn of_status(refused: &Status) -> Refusal {
    let reason = status::reason(refused).unwrap_or_default();
    (refused.code(), reason, status::field(refused).unwrap_or_default())
}

fn of_item(error: ItemError) -> Refusal {
    (Code::from(error.code), error.reason, error.field)
}

fn refused<T: Debug>(answer: Result<tonic::Response<T>, Status>) -> Refusal {
    of_status(&answer.expect_err("a refusal"))
}

/// The stack and attestations to be bad with.
struct World {
    stack: Stack,
    /// About `APP`: logged and witnessed.
    sbom: Vec<u8>,
    /// The same again, signed anew.
    sbom_again: Vec<u8>,
    vex: Vec<u8>,
    /// Of a predicateType that no link of a chain can have.
    note: Vec<u8>,
    /// An SBOM of something else.
    foreign: Vec<u8>,
    /// Two signatures of one SBOM, which prove nothing elsewhere.
    fresh: [Vec<u8>; 4],
    /// A bundle without a log entry.
    unlogged: Vec<u8>,
}

const APP: &[u8] = b"the application";
const OTHER: &[u8] = b"another application";

static WORLD: OnceCell<Mutex<World>> = OnceCell::const_new();

async fn world() -> MutexGuard<'static, World> {
    let world = WORLD.get_or_init(|| async { Mutex::new(World::new().await) });
    world.await.lock().await
}

impl World {
    async fn new() -> Self {
        let stack = Stack::start_for_all();
        let app = stack.write("app", APP);
        let other = stack.write("other", OTHER);
        let cyclonedx = json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1});
        let openvex = json!({"@context": "https://openvex.dev/ns/v0.2.0", "statements": [], "version": 1});
        let read = |bundle: PathBuf| std::fs::read(bundle).expect("a bundle");
        let [sbom, sbom_again, foreign] = [("sbom", &app), ("sbom-again", &app), ("foreign", &other)]
            .map(|(name, subject)| read(stack.attest("sbom", subject, &cyclonedx, name)));
        let vex = read(stack.attest("vex", &app, &openvex, "vex"));
        let note = read(stack.attest("https://example.com/note", &app, &json!({}), "note"));
        let fresh = json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 2});
        let names = ["fresh", "fresh-2", "fresh-3", "fresh-4"];
        let fresh = names.map(|name| read(stack.attest("sbom", &app, &fresh, name)));
        let unlogged = unlogged(&stack).await;
        Self {
            stack,
            sbom,
            sbom_again,
            vex,
            note,
            foreign,
            fresh,
            unlogged,
        }
    }

    async fn feedser(&self) -> FeedserServiceClient<UpstreamChannel> {
        FeedserServiceClient::new(self.stack.channel("feedser").await)
    }

    async fn signer(&self) -> SignerServiceClient<UpstreamChannel> {
        SignerServiceClient::new(self.stack.channel("signer").await)
    }

    async fn verifier(&self) -> VerifierServiceClient<UpstreamChannel> {
        VerifierServiceClient::new(self.stack.channel("verifier").await)
    }

    fn database(&self) -> rusqlite::Connection {
        let database =
            rusqlite::Connection::open(self.stack.dir().join("feedser/feedser.db")).expect("opens");
        database
            .busy_timeout(std::time::Duration::from_secs(5))
            .expect("a timeout");
        database
    }

    /// Events, their revisions, and attestations, of all tenants, as the database counts them.
    fn stored(&self) -> (i64, i64, i64) {
        let count = "SELECT (SELECT count(*) FROM events), (SELECT coalesce(sum(rev), 0) FROM events),
            (SELECT count(*) FROM attestations)";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.database().query_row(count, [], row).expect("counts")
    }

    /// Appends the items in one message; a result for each.
    async fn append(
        &self,
        items: Vec<feedser::AppendEventsItem>,
    ) -> Vec<Result<feedser::AppendedEvent, ItemError>> {
        let references: Vec<String> = items.iter().map(|item| item.reference.clone()).collect();
        let request = self
            .stack
            .request(tokio_stream::once(feedser::AppendEventsRequest { items }));
        let mut answers = self
            .feedser()
            .await
            .append_events(request)
            .await
            .expect("a stream")
            .into_inner();
        let answer = answers.message().await.expect("an answer").expect("one message");
        let answered: Vec<String> = answer
            .results
            .iter()
            .map(|result| result.reference.clone())
            .collect();
        assert_eq!(answered, references, "each result bears the caller's reference");
        let outcome = |result: feedser::AppendEventsResult| match result.outcome.expect("an outcome") {
            Appended::Appended(done) => Ok(done),
            Appended::Error(error) => Err(error),
        };
        answer.results.into_iter().map(outcome).collect()
    }

    async fn append_one(&self, item: feedser::AppendEventsItem) -> Result<feedser::AppendedEvent, ItemError> {
        self.append(vec![item]).await.remove(0)
    }

    /// An unproven event about the application, stored.
    async fn event(&self, id: &str, kind: &str) -> String {
        self.append_one(item(&event(id, kind))).await.expect("appended");
        id.to_owned()
    }

    /// Puts evidence into the repository and returns its envelope's digest.
    async fn put(&self, evidence: &[u8]) -> String {
        let request = self.stack.request(feedser::PutAttestationRequest {
            evidence: evidence.to_vec().into(),
        });
        self.feedser()
            .await
            .put_attestation(request)
            .await
            .expect("stored")
            .into_inner()
            .envelope_digest
    }

    async fn attach(
        &self,
        event_id: &str,
        envelope_digest: &str,
        chain: &[String],
    ) -> Result<feedser::AttachProvenanceResponse, Status> {
        let request = attach_request(event_id, envelope_digest, chain);
        let answer = self
            .feedser()
            .await
            .attach_provenance(self.stack.request(request))
            .await;
        answer.map(tonic::Response::into_inner)
    }

    async fn get(&self, id: &str) -> feedser::StoredEvent {
        let request = self.stack.request(feedser::GetEventRequest {
            event_id: id.to_owned(),
        });
        self.feedser()
            .await
            .get_event(request)
            .await
            .expect("the event")
            .into_inner()
            .event
            .expect("one")
    }

    async fn sign(&self, request: signer::SignRequest) -> Result<signer::SignResponse, Status> {
        let answer = self.signer().await.sign(self.stack.request(request)).await;
        answer.map(tonic::Response::into_inner)
    }

    fn claim(&self, event_id: &str, body: &Value) -> stella_testkit::rest::Answer {
        let path = format!("/events/statements/{event_id}/provenance");
        self.stack
            .rest("POST", &path, Body::Whole(body.to_string().as_bytes()))
    }
}

async fn unlogged(stack: &Stack) -> Vec<u8> {
    let payload = statement::build(
        "app",
        &Digest::of(APP),
        statement::CYCLONEDX,
        json!({"bomFormat": "CycloneDX"}),
    );
    let request = signer::SignRequest {
        payload: payload.into(),
        transparency: signer::Transparency::None.into(),
        ..signer::SignRequest::default()
    };
    let mut signer = SignerServiceClient::new(stack.channel("signer").await);
    let signed = signer.sign(stack.request(request)).await.expect("signed");
    signed.into_inner().bundle.to_vec()
}

fn event(id: &str, kind: &str) -> Value {
    json!({
        "_id": id, "kind": kind, "own": {"kept": [1, 2.5, null]},
        "subject": {"digest": {"sha256": Digest::of(APP).hex()}}, "ts": "2025-11-11T12:00:00Z",
    })
}

fn item(event: &Value) -> feedser::AppendEventsItem {
    raw_item(event.to_string().into_bytes())
}

fn raw_item(event: Vec<u8>) -> feedser::AppendEventsItem {
    feedser::AppendEventsItem {
        event: event.into(),
        ..feedser::AppendEventsItem::default()
    }
}

fn attach_request(event_id: &str, digest: &str, chain: &[String]) -> feedser::AttachProvenanceRequest {
    feedser::AttachProvenanceRequest {
        event_id: event_id.to_owned(),
        envelope_digest: digest.to_owned(),
        chain: chain.to_vec(),
        ..feedser::AttachProvenanceRequest::default()
    }
}

fn set(mut document: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    document.pointer_mut(parent).expect("the place is there")[name] = value;
    document
}

/// `own` nested so deep that the whole document has `depth` levels.
fn nested(id: &str, depth: usize) -> Vec<u8> {
    let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
    let text = event(id, "SBOM").to_string();
    text.replace(
        r#""own":{"kept":[1,2.5,null]}"#,
        &format!(r#""own":{open}{close}"#),
    )
    .into_bytes()
}

/// The event `id` with `own` written as `text`.
fn with_own(id: &str, text: &str) -> Vec<u8> {
    let document = event(id, "SBOM").to_string();
    let replaced = document.replace(r#"{"kept":[1,2.5,null]}"#, text);
    assert_ne!(document, replaced, "`own` is there");
    replaced.into_bytes()
}

#[tokio::test]
async fn a_malformed_event_is_refused_by_its_field() {
    let world = world().await;
    let before = world.stored();
    let document = |pointer: &str, value: Value| {
        set(event("evt_bad", "SBOM"), pointer, value)
            .to_string()
            .into_bytes()
    };
    let mut utf8 = event("evt_bad", "SBOM").to_string().into_bytes();
    let place = utf8
        .windows(3)
        .position(|bytes| bytes == b"SBO")
        .expect("the kind");
    utf8[place] = 0xff;
    let too_deep = format!("event/own{}", "/0".repeat(63));
    let mut rows = vec![
        ("nothing", Vec::new(), invalid("BAD_JSON", "event")),
        (
            "cut short",
            br#"{"_id":"evt_bad","#.to_vec(),
            invalid("BAD_JSON", "event"),
        ),
        ("two documents", b"{} {}".to_vec(), invalid("BAD_JSON", "event")),
        ("a list", b"[]".to_vec(), invalid("BAD_JSON", "event")),
        ("invalid UTF-8", utf8, invalid("BAD_JSON", "event")),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{}".to_vec(),
            invalid("BAD_JSON", "event"),
        ),
        (
            "a lone surrogate",
            with_own("evt_bad", r#""\ud800""#),
            invalid("BAD_JSON", "event"),
        ),
        (
            "no number",
            with_own("evt_bad", "NaN"),
            invalid("BAD_JSON", "event"),
        ),
        (
            "beyond a double",
            with_own("evt_bad", "1e400"),
            invalid("BAD_JSON", "event"),
        ),
        (
            "a leading zero",
            with_own("evt_bad", "01"),
            invalid("BAD_JSON", "event"),
        ),
        ("65 levels", nested("evt_bad", 65), invalid("TOO_DEEP", &too_deep)),
        (
            "200 levels",
            nested("evt_bad", 200),
            invalid("TOO_DEEP", &too_deep),
        ),
        (
            "too large",
            with_own("evt_bad", &format!(r#""{}""#, "x".repeat(1 << 20))),
            invalid("EVENT_TOO_LARGE", "event"),
        ),
    ];
    for (case, own, field) in [
        ("a key twice", r#"{"a":1,"a":1}"#, "event/own/a"),
        (
            "a key twice, deep down",
            r#"{"x":[{"a":1,"a":2}]}"#,
            "event/own/x/0/a",
        ),
        (
            "a key twice, once escaped",
            r#"{"a":1,"\u0061":2}"#,
            "event/own/a",
        ),
    ] {
        rows.push((case, with_own("evt_bad", own), invalid("DUPLICATE_KEY", field)));
    }
    let twice = event("evt_bad", "SBOM")
        .to_string()
        .replacen('{', r#"{"kind":"VEX","#, 1);
    rows.push((
        "a kind twice",
        twice.into_bytes(),
        invalid("DUPLICATE_KEY", "event/kind"),
    ));
    for number in [
        "9007199254740992",
        "-9007199254740992",
        "9007199254740993",
        "18446744073709551615",
        "18446744073709551616",
        "1e17",
        "-1e20",
        "123456789012345678901234567890",
    ] {
        rows.push((
            number,
            with_own("evt_bad", &format!("[{number}]")),
            invalid("NUMBER_RANGE", "event/own/0"),
        ));
    }
    for (pointer, value, reason, field) in [
        (
            "/provenance",
            json!({"dsse": {}}),
            "RESERVED_FIELD",
            "event.provenance",
        ),
        (
            "/trust",
            json!({"verified": true}),
            "RESERVED_FIELD",
            "event.trust",
        ),
        ("/trust", json!(null), "RESERVED_FIELD", "event.trust"),
        ("/tenant", json!("other"), "RESERVED_FIELD", "event.tenant"),
        ("/rev", json!(7), "RESERVED_FIELD", "event.rev"),
        ("/trust.verified", json!(true), "BAD_KEY", "event/trust.verified"),
        ("/own/a.b", json!(1), "BAD_KEY", "event/own/a.b"),
        ("/$where", json!("1"), "BAD_KEY", "event/$where"),
        ("/own/$set", json!({}), "BAD_KEY", "event/own/$set"),
        ("/own/", json!(1), "BAD_KEY", "event/own/"),
        ("/own/\0", json!(1), "BAD_KEY", "event/own/\0"),
        ("/_id", json!(""), "BAD_ID", "event._id"),
        ("/_id", json!("a b"), "BAD_ID", "event._id"),
        ("/_id", json!("é"), "BAD_ID", "event._id"),
        ("/_id", json!(7), "BAD_ID", "event._id"),
        ("/_id", json!("x".repeat(201)), "BAD_ID", "event._id"),
        ("/kind", json!("sbom"), "BAD_KIND", "event.kind"),
        ("/kind", json!(null), "BAD_KIND", "event.kind"),
        ("/ts", json!("yesterday"), "BAD_TIME", "event.ts"),
        ("/ts", json!(1_762_862_400), "BAD_TIME", "event.ts"),
        (
            "/subject",
            json!({}),
            "BAD_SUBJECT",
            "event.subject.digest.sha256",
        ),
        (
            "/subject/digest/sha256",
            json!("ab"),
            "BAD_SUBJECT",
            "event.subject.digest.sha256",
        ),
        (
            "/subject/digest/sha256",
            json!("AB".repeat(32)),
            "BAD_SUBJECT",
            "event.subject.digest.sha256",
        ),
        (
            "/evidence",
            json!({"digest": "ab".repeat(32)}),
            "BAD_EVIDENCE",
            "event.evidence.digest",
        ),
    ] {
        rows.push((pointer, document(pointer, value), invalid(reason, field)));
    }
    // All in one batch, then each alone: a refusal does not depend on its neighbours.
    let batch = rows.iter().map(|(case, bytes, _)| feedser::AppendEventsItem {
        reference: (*case).to_owned(),
        ..raw_item(bytes.clone())
    });
    let results = world.append(batch.collect()).await;
    for ((case, bytes, want), result) in rows.into_iter().zip(results) {
        assert_eq!(result.map_err(of_item), Err(want.clone()), "{case}");
        let alone = world.append_one(raw_item(bytes)).await;
        assert_eq!(alone.map_err(of_item), Err(want), "{case}, alone");
    }
    assert_eq!(world.stored(), before);
}

#[tokio::test]
async fn a_bad_item_does_not_spoil_its_batch() {
    let world = world().await;
    let (events, revs, attestations) = world.stored();
    let results = world
        .append(vec![
            item(&event("evt_batch_1", "SBOM")),
            raw_item(b"{".to_vec()),
            item(&event("evt_batch_2", "VEX")),
            item(&set(event("evt_batch_1", "SBOM"), "/own", json!("else"))),
            item(&event("evt_batch_1", "SBOM")),
            raw_item(nested("evt_batch_3", 64)),
            raw_item(with_own(
                "evt_batch_4",
                "[1E30,2e-3,9007199254740991,-9007199254740991]",
            )),
        ])
        .await;
    let results: Vec<_> = results
        .into_iter()
        .map(|result| result.map_err(of_item))
        .collect();
    let appended = |id: &str, existed: bool| {
        Ok(feedser::AppendedEvent {
            event_id: id.to_owned(),
            rev: 1,
            proven: false,
            existed,
        })
    };
    let taken = refusal(Code::AlreadyExists, "EVENT_ID_TAKEN", "event._id");
    assert_eq!(
        results,
        vec![
            appended("evt_batch_1", false),
            Err(invalid("BAD_JSON", "event")),
            appended("evt_batch_2", false),
            Err(taken),
            appended("evt_batch_1", true),
            appended("evt_batch_3", false),
            appended("evt_batch_4", false),
        ]
    );
    assert_eq!(world.stored(), (events + 4, revs + 4, attestations));
    // What was taken is read back, the numbers at the edge as well.
    for id in ["evt_batch_1", "evt_batch_2", "evt_batch_3", "evt_batch_4"] {
        assert_eq!(world.get(id).await.reason, "NO_PROVENANCE", "{id}");
    }
    let read: Value = serde_json::from_slice(&world.get("evt_batch_4").await.event).expect("JSON");
    assert_eq!(
        read["own"],
        json!([1e30, 0.002, 9_007_199_254_740_991_u64, -9_007_199_254_740_991_i64])
    );
}

#[tokio::test]
async fn an_event_id_belongs_to_one_document() {
    let world = world().await;
    let bundle = |event: &Value| feedser::AppendEventsItem {
        evidence: world.sbom.clone().into(),
        ..item(event)
    };
    let first = event("evt_id", "SBOM");
    world.append_one(bundle(&first)).await.expect("appended");
    let before = world.stored();
    // The same members in another order, with white space: the same document.
    let text = serde_json::to_string_pretty(&first).expect("JSON");
    let stored = feedser::AppendedEvent {
        event_id: "evt_id".into(),
        rev: 1,
        proven: true,
        existed: true,
    };
    for (case, same) in [
        ("the same", item(&first)),
        ("pretty", raw_item(text.into())),
        ("with its evidence", bundle(&first)),
    ] {
        assert_eq!(world.append_one(same).await, Ok(stored.clone()), "{case}");
    }
    let taken = refusal(Code::AlreadyExists, "EVENT_ID_TAKEN", "event._id");
    for (pointer, value) in [
        ("/kind", json!("VEX")),
        ("/ts", json!("2025-11-11T12:00:00.0Z")),
        ("/own/kept", json!([1, 2.5])),
        ("/subject/digest/sha256", json!(Digest::of(OTHER).hex())),
        ("/new", json!(null)),
    ] {
        let other = world.append_one(item(&set(first.clone(), pointer, value))).await;
        assert_eq!(other.map_err(of_item), Err(taken.clone()), "{pointer}");
    }
    let again = feedser::AppendEventsItem {
        evidence: world.sbom_again.clone().into(),
        ..item(&first)
    };
    let conflict = refusal(Code::AlreadyExists, "ENVELOPE_CONFLICT", "envelope_digest");
    assert_eq!(world.append_one(again).await.map_err(of_item), Err(conflict));
    assert_eq!(world.stored(), before);
}

#[tokio::test]
async fn an_item_that_contradicts_itself_is_refused() {
    let world = world().await;
    let before = world.stored();
    let good = || item(&event("evt_item", "SBOM"));
    let some = Digest::of(b"some").to_string();
    for (case, item, want) in [
        (
            "evidence and a digest",
            feedser::AppendEventsItem {
                evidence: world.sbom.clone().into(),
                envelope_digest: some.clone(),
                ..good()
            },
            invalid("EVIDENCE_AMBIGUOUS", "evidence"),
        ),
        (
            "a chain without evidence",
            feedser::AppendEventsItem {
                chain: vec![some.clone()],
                ..good()
            },
            invalid("CHAIN_WITHOUT_EVIDENCE", "chain"),
        ),
        (
            "a digest without its algorithm",
            feedser::AppendEventsItem {
                envelope_digest: "ab".repeat(32),
                ..good()
            },
            invalid("BAD_DIGEST", "envelope_digest"),
        ),
        (
            "a link in upper case",
            feedser::AppendEventsItem {
                evidence: world.sbom.clone().into(),
                chain: vec![some.clone(), some.to_uppercase()],
                ..good()
            },
            invalid("BAD_DIGEST", "chain[1]"),
        ),
        (
            "a chain too long",
            feedser::AppendEventsItem {
                evidence: world.sbom.clone().into(),
                chain: vec![some.clone(); 33],
                ..good()
            },
            invalid("TOO_MANY_ITEMS", "chain"),
        ),
        (
            "evidence that is not here",
            feedser::AppendEventsItem {
                envelope_digest: some.clone(),
                ..good()
            },
            refusal(Code::FailedPrecondition, "EVIDENCE_NOT_FOUND", "envelope_digest"),
        ),
        (
            "evidence too large",
            feedser::AppendEventsItem {
                evidence: vec![b' '; MAX_EVIDENCE + 1].into(),
                ..good()
            },
            invalid("EVIDENCE_TOO_LARGE", "evidence"),
        ),
    ] {
        assert_eq!(world.append_one(item).await.map_err(of_item), Err(want), "{case}");
    }
    let items = vec![good(); 1_001];
    let request = world
        .stack
        .request(tokio_stream::once(feedser::AppendEventsRequest { items }));
    let mut answers = world
        .feedser()
        .await
        .append_events(request)
        .await
        .expect("a stream")
        .into_inner();
    let too_many = answers.message().await.expect_err("refused");
    assert_eq!(of_status(&too_many), invalid("TOO_MANY_ITEMS", "items"));
    assert_eq!(world.stored(), before);
}

fn envelope(payload: &[u8], payload_type: &str, signatures: Value) -> Value {
    json!({"payload": BASE64_STANDARD.encode(payload), "payloadType": payload_type, "signatures": signatures})
}

/// Evidence that cannot be read, and the reason of its refusal.
fn unreadable(world: &World) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let payload = statement::build("app", &Digest::of(APP), statement::CYCLONEDX, json!({}));
    let one = || json!([{"sig": "AAAA"}]);
    let of = |payload: &[u8]| envelope(payload, PAYLOAD_TYPE, one());
    let good = of(&payload);
    let bundle: Value = serde_json::from_slice(&world.sbom).expect("JSON");
    let stating = |pointer: &str, value: Value| {
        let statement: Value = serde_json::from_slice(&payload).expect("JSON");
        of(set(statement, pointer, value).to_string().as_bytes())
    };
    let mut rows = vec![
        ("nothing", Vec::new(), "BAD_JSON"),
        ("no JSON", b"hello".to_vec(), "BAD_JSON"),
        ("invalid UTF-8", b"{\"payload\":\"\xff\"}".to_vec(), "BAD_JSON"),
        (
            "a key twice",
            br#"{"payload":"","payload":""}"#.to_vec(),
            "DUPLICATE_KEY",
        ),
        (
            "a number that is rounded",
            br#"{"n":9007199254740993}"#.to_vec(),
            "NUMBER_RANGE",
        ),
    ];
    let mut row =
        |case, document: Value, reason| rows.push((case, document.to_string().into_bytes(), reason));
    row("no envelope", json!({}), "ENVELOPE_MALFORMED");
    row(
        "no signatures",
        set(good.clone(), "/signatures", json!([])),
        "NO_SIGNATURES",
    );
    row(
        "null signatures",
        set(good.clone(), "/signatures", json!(null)),
        "NO_SIGNATURES",
    );
    row(
        "an empty signature",
        set(good.clone(), "/signatures", json!([{"sig": ""}])),
        "EMPTY_SIGNATURE",
    );
    row(
        "an empty one among others",
        set(good.clone(), "/signatures", json!([{"sig": "AAAA"}, {"sig": ""}])),
        "EMPTY_SIGNATURE",
    );
    row(
        "no sig",
        set(good.clone(), "/signatures", json!([{"keyid": "k"}])),
        "ENVELOPE_MALFORMED",
    );
    row(
        "too many signatures",
        set(
            good.clone(),
            "/signatures",
            vec![json!({"sig": "AAAA"}); 33].into(),
        ),
        "TOO_MANY_SIGNATURES",
    );
    row(
        "no base64",
        set(good.clone(), "/payload", json!("*")),
        "ENVELOPE_MALFORMED",
    );
    row(
        "another payloadType",
        envelope(&payload, "application/json", one()),
        "PAYLOAD_TYPE_UNKNOWN",
    );
    row("a payload that is no JSON", of(b"hello"), "BAD_JSON");
    row(
        "a payload with a key twice",
        of(br#"{"_type":1,"_type":1}"#),
        "DUPLICATE_KEY",
    );
    row(
        "another statement type",
        stating("/_type", json!("https://in-toto.io/Statement/v2")),
        "STATEMENT_TYPE_UNKNOWN",
    );
    row(
        "no statement type",
        stating("/_type", json!(null)),
        "STATEMENT_TYPE_UNKNOWN",
    );
    row("no subject", stating("/subject", json!([])), "NO_SUBJECT");
    row(
        "a subject without digest",
        stating("/subject", json!([{"name": "app"}])),
        "NO_SUBJECT",
    );
    row(
        "a short digest",
        stating("/subject", json!([{"digest": {"sha256": "ab"}}])),
        "BAD_DIGEST",
    );
    row(
        "no predicateType",
        stating("/predicateType", json!("")),
        "STATEMENT_MALFORMED",
    );
    row(
        "an unknown bundle",
        set(bundle.clone(), "/mediaType", json!("application/zip")),
        "BUNDLE_TYPE_UNKNOWN",
    );
    row(
        "a message signature",
        json!({
            "mediaType": bundle["mediaType"],
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode([7; 32])},
                "signature": "AQ==",
            },
        }),
        "NOT_AN_ATTESTATION",
    );
    row(
        "a bundle without signatures",
        set(bundle.clone(), "/dsseEnvelope/signatures", json!([])),
        "NO_SIGNATURES",
    );
    row(
        "a bundle without an envelope",
        set(bundle.clone(), "/dsseEnvelope", json!(null)),
        "ENVELOPE_MALFORMED",
    );
    row(
        "an entry that is none",
        set(bundle, "/verificationMaterial/tlogEntries", json!([1])),
        "BUNDLE_MALFORMED",
    );
    rows
}

#[tokio::test]
async fn unreadable_evidence_is_refused_at_every_door() {
    let world = world().await;
    world.event("evt_unreadable", "SBOM").await;
    let before = world.stored();
    let (mut feedser, mut verifier) = (world.feedser().await, world.verifier().await);
    for (case, evidence, reason) in unreadable(&world) {
        let put = feedser::PutAttestationRequest {
            evidence: evidence.clone().into(),
        };
        let put = feedser.put_attestation(world.stack.request(put)).await;
        assert_eq!(
            refused(put),
            invalid(reason, "evidence"),
            "PutAttestation: {case}"
        );

        let answer = world.stack.rest("POST", "/attestations", Body::Whole(&evidence));
        assert_eq!(
            answer.problem(),
            (400, reason.to_owned(), "evidence".to_owned()),
            "REST: {case}"
        );

        if !evidence.is_empty() {
            let appended = feedser::AppendEventsItem {
                evidence: evidence.clone().into(),
                ..item(&event("evt_unreadable_new", "SBOM"))
            };
            let appended = world.append_one(appended).await.map_err(of_item);
            assert_eq!(appended, Err(invalid(reason, "evidence")), "AppendEvents: {case}");
        }
        // The Verifier judges whatever comes: refused evidence is its answer. A signature over an artifact is evidence to
        // it; this one names no key.
        let verdict_reason = if reason == "NOT_AN_ATTESTATION" {
            "KEY_UNKNOWN"
        } else {
            reason
        };
        if !evidence.is_empty() {
            let verify = verifier::VerifyRequest {
                evidence: evidence.into(),
                ..verifier::VerifyRequest::default()
            };
            let verdict = verifier
                .verify(world.stack.request(verify))
                .await
                .expect("a verdict")
                .into_inner();
            let failed: Vec<&str> = verdict
                .checks
                .iter()
                .filter(|check| check.status() == CheckStatus::Failed)
                .map(|check| check.reason.as_str())
                .collect();
            assert_eq!(
                (verdict.verified, failed),
                (false, vec![verdict_reason]),
                "Verify: {case}"
            );
        }
    }
    let nothing = verifier
        .verify(world.stack.request(verifier::VerifyRequest::default()))
        .await;
    assert_eq!(refused(nothing), invalid("FIELD_MISSING", "evidence"));
    let large = feedser::PutAttestationRequest {
        evidence: vec![b' '; MAX_EVIDENCE + 1].into(),
    };
    let large = feedser.put_attestation(world.stack.request(large)).await;
    assert_eq!(refused(large), invalid("EVIDENCE_TOO_LARGE", "evidence"));
    assert_eq!(world.stored(), before);
}

/// Evidence that can be read, and why it does not prove an SBOM event about the application.
fn unproving(world: &World) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let thief = SigningKey::generate(Algorithm::EcdsaP256).expect("a key");
    let sbom: Value = serde_json::from_slice(&world.sbom).expect("JSON");
    // Of one statement, each by a signature of its own.
    let [one, two, three, four]: [Value; 4] = world
        .fresh
        .each_ref()
        .map(|bundle| serde_json::from_slice(bundle).expect("JSON"));
    let payload = Evidence::parse(&world.sbom).expect("evidence").envelope.payload;
    // Two, because of an envelope only the first evidence is kept.
    let [forged, slipped_in] =
        [(); 2].map(|()| Envelope::sign(PAYLOAD_TYPE, &payload, &thief).expect("signs"));
    let entries = "/verificationMaterial/tlogEntries";
    let mut promised = four;
    promised["verificationMaterial"]["tlogEntries"][0]["inclusionPromise"] =
        json!({"signedEntryTimestamp": BASE64_STANDARD.encode("promised")});
    let other = statement::build(
        "app",
        &Digest::of(APP),
        statement::CYCLONEDX,
        json!({"other": true}),
    );
    vec![
        (
            "an unknown key",
            forged.canonical_bytes(),
            "SIGNATURE:KEY_UNKNOWN",
        ),
        (
            "a signature by another key in a good bundle",
            set(sbom.clone(), "/dsseEnvelope", slipped_in.to_value())
                .to_string()
                .into_bytes(),
            "SIGNATURE:SIGNATURE_INVALID",
        ),
        (
            "another payload under a good signature",
            set(
                sbom.clone(),
                "/dsseEnvelope/payload",
                json!(BASE64_STANDARD.encode(&other)),
            )
            .to_string()
            .into_bytes(),
            "SIGNATURE:SIGNATURE_INVALID",
        ),
        ("no log entry", world.unlogged.clone(), "LOG_ENTRY:NOT_LOGGED"),
        (
            "another attestation's log entry",
            set(one, entries, sbom.pointer(entries).expect("entries").clone())
                .to_string()
                .into_bytes(),
            "LOG_ENTRY:ENTRY_DIGEST_MISMATCH",
        ),
        (
            "another signature's log entry",
            set(two, entries, three.pointer(entries).expect("entries").clone())
                .to_string()
                .into_bytes(),
            "LOG_ENTRY:ENTRY_SIGNATURE_MISMATCH",
        ),
        (
            "a time that nobody signed",
            set(three, &format!("{entries}/0/integratedTime"), json!("1"))
                .to_string()
                .into_bytes(),
            "TIME:SET_MISSING",
        ),
        (
            "a promise of no log that is known",
            promised.to_string().into_bytes(),
            "TIME:SET_UNKNOWN",
        ),
        (
            "about another subject",
            world.foreign.clone(),
            "SUBJECT:SUBJECT_MISMATCH",
        ),
        ("a VEX for an SBOM event", world.vex.clone(), "KIND:KIND_MISMATCH"),
    ]
}

#[tokio::test]
async fn evidence_that_does_not_verify_proves_nothing() {
    let world = world().await;
    world.event("evt_unproving", "SBOM").await;
    let failed = refusal(Code::FailedPrecondition, "VERIFICATION_FAILED", "");
    for (case, evidence, failure) in unproving(&world) {
        let before = world.stored();
        let given = feedser::AppendEventsItem {
            evidence: evidence.clone().into(),
            ..item(&event("evt_unproving_new", "SBOM"))
        };
        let error = world.append_one(given).await.expect_err(case);
        assert_eq!(error.message, format!("verification failed: {failure}"), "{case}");
        assert_eq!(of_item(error), failed, "{case}");
        assert_eq!(world.stored(), before, "{case}");

        // Stored it may be; believed it is not.
        let digest = world.put(&evidence).await;
        let before = world.stored();
        let refused = world
            .attach("evt_unproving", &digest, &[])
            .await
            .expect_err("refused");
        assert_eq!(
            refused.message(),
            format!("verification failed: {failure}"),
            "{case}"
        );
        assert_eq!(of_status(&refused), failed, "{case}");
        let stored = feedser::AppendEventsItem {
            envelope_digest: digest.clone(),
            ..item(&event("evt_unproving_new", "SBOM"))
        };
        assert_eq!(
            world.append_one(stored).await.map_err(of_item),
            Err(failed.clone()),
            "{case}"
        );
        let claim = json!({"dsse": {"envelopeDigest": digest}, "trust": {"verified": true}});
        let answer = world.claim("evt_unproving", &claim);
        assert_eq!(
            answer.problem(),
            (400, "VERIFICATION_FAILED".into(), String::new()),
            "{case}"
        );
        assert_eq!(
            answer.json()["detail"],
            format!("verification failed: {failure}"),
            "{case}"
        );
        assert_eq!(world.stored(), before, "{case}");
    }
    // An SBOM attestation does not prove a VEX event either.
    world.event("evt_unproving_vex", "VEX").await;
    let digest = world.put(&world.sbom).await;
    let kind = world
        .attach("evt_unproving_vex", &digest, &[])
        .await
        .expect_err("refused");
    assert_eq!(kind.message(), "verification failed: KIND:KIND_MISMATCH");
    // The event names a document that the attestation is not of.
    let named = set(
        event("evt_unproving_named", "SBOM"),
        "/evidence",
        json!({"digest": Digest::of(b"x").to_string()}),
    );
    let named = feedser::AppendEventsItem {
        evidence: world.sbom.clone().into(),
        ..item(&named)
    };
    let error = world.append_one(named).await.expect_err("refused");
    assert_eq!(error.message, "verification failed: EVIDENCE:EVIDENCE_MISMATCH");
    for id in ["evt_unproving", "evt_unproving_vex"] {
        let event = world.get(id).await;
        assert_eq!(
            (event.proven, event.reason.as_str()),
            (false, "NO_PROVENANCE"),
            "{id}"
        );
    }
}

#[tokio::test]
async fn a_link_of_a_chain_must_be_there_proven_of_a_type_and_of_the_subject() {
    let world = world().await;
    world.event("evt_chain", "VEX").await;
    let vex = world.put(&world.vex).await;
    let late = {
        let payload = statement::build(
            "app",
            &Digest::of(APP),
            statement::CYCLONEDX,
            json!({"bomFormat": "CycloneDX"}),
        );
        world
            .sign(signer::SignRequest {
                payload: payload.into(),
                ..Default::default()
            })
            .await
            .expect("signed")
            .bundle
    };
    let mut links = Vec::new();
    for evidence in [
        &world.unlogged[..],
        &world.note,
        &world.foreign,
        &late,
        &world.sbom,
    ] {
        links.push(world.put(evidence).await);
    }
    let [unlogged, note, foreign, late, sbom] = <[String; 5]>::try_from(links).expect("five");
    let absent = Digest::of(b"absent").to_string();
    let before = world.stored();
    for (chain, reason, field) in [
        (vec![absent.clone()], "CHAIN_MISSING", "chain[0]"),
        (vec![sbom.clone(), absent], "CHAIN_MISSING", "chain[1]"),
        (vec![unlogged], "CHAIN_UNPROVEN", ""),
        (vec![note], "CHAIN_TYPE", ""),
        (vec![foreign], "CHAIN_SUBJECT", ""),
        (vec![late], "CHAIN_ORDER", ""),
        (vec![sbom.clone(), sbom.clone()], "CHAIN_ORDER", ""),
    ] {
        let want = refusal(Code::FailedPrecondition, reason, field);
        let attached = world
            .attach("evt_chain", &vex, &chain)
            .await
            .map_err(|refused| of_status(&refused));
        assert_eq!(attached.map(|_| ()), Err(want.clone()), "{reason}");
        let appended = feedser::AppendEventsItem {
            envelope_digest: vex.clone(),
            chain: chain.clone(),
            ..item(&event("evt_chain_new", "VEX"))
        };
        assert_eq!(
            world.append_one(appended).await.map_err(of_item),
            Err(want),
            "{reason}"
        );
        let links: Vec<Value> = chain.iter().map(|digest| json!({"digest": digest})).collect();
        let claim = json!({"dsse": {"chain": links, "envelopeDigest": vex}, "trust": {"verified": true}});
        assert_eq!(
            world.claim("evt_chain", &claim).problem(),
            (400, reason.to_owned(), field.to_owned())
        );
    }
    assert_eq!(world.stored(), before);
    let attached = world
        .attach("evt_chain", &vex, &[sbom])
        .await
        .expect("a chain that holds");
    assert_eq!(
        (attached.outcome(), attached.rev),
        (feedser::AttachOutcome::Attached, 2)
    );
}

#[tokio::test]
async fn items_of_an_attaching_batch_are_refused_one_by_one() {
    let world = world().await;
    let (first, second) = (
        world.event("evt_attach_1", "SBOM").await,
        world.event("evt_attach_2", "SBOM").await,
    );
    let (sbom, vex) = (world.put(&world.sbom).await, world.put(&world.vex).await);
    let (events, revs, attestations) = world.stored();
    let some = Digest::of(b"some").to_string();
    let rows = [
        (attach_request(&first, &sbom, &[]), Ok(2)),
        (
            attach_request("evt_nowhere", &sbom, &[]),
            Err(refusal(Code::NotFound, "EVENT_NOT_FOUND", "event_id")),
        ),
        (
            attach_request(&second, "sha256:ab", &[]),
            Err(invalid("BAD_DIGEST", "envelope_digest")),
        ),
        (
            attach_request(&second, &sbom, &["x".into()]),
            Err(invalid("BAD_DIGEST", "chain[0]")),
        ),
        (
            attach_request(&second, &some, &[]),
            Err(refusal(
                Code::FailedPrecondition,
                "EVIDENCE_NOT_FOUND",
                "envelope_digest",
            )),
        ),
        (
            attach_request(&second, &vex, &[]),
            Err(refusal(Code::FailedPrecondition, "VERIFICATION_FAILED", "")),
        ),
        (
            feedser::AttachProvenanceRequest {
                supersede: some.clone(),
                ..attach_request(&second, &sbom, &[])
            },
            Err(refusal(
                Code::FailedPrecondition,
                "SUPERSEDE_MISMATCH",
                "supersede",
            )),
        ),
        (
            feedser::AttachProvenanceRequest {
                supersede: "x".into(),
                ..attach_request(&second, &sbom, &[])
            },
            Err(invalid("BAD_DIGEST", "supersede")),
        ),
        (
            feedser::AttachProvenanceRequest {
                job: "j".repeat(129),
                ..attach_request(&second, &sbom, &[])
            },
            Err(invalid("BAD_VALUE", "job")),
        ),
        (
            feedser::AttachProvenanceRequest {
                log_entry: Some(feedser::LogEntryPlace {
                    index: Some(0),
                    ..feedser::LogEntryPlace::default()
                }),
                ..attach_request(&second, &sbom, &[])
            },
            Err(invalid("BAD_VALUE", "log_entry")),
        ),
    ];
    let items = rows
        .iter()
        .enumerate()
        .map(|(number, (request, _))| feedser::AttachProvenanceBatchItem {
            reference: number.to_string(),
            request: Some(request.clone()),
        });
    let message = feedser::AttachProvenanceBatchRequest {
        items: items.collect(),
    };
    let request = world.stack.request(tokio_stream::once(message));
    let mut answers = world
        .feedser()
        .await
        .attach_provenance_batch(request)
        .await
        .expect("a stream")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one message");
    for ((number, (request, want)), result) in rows.into_iter().enumerate().zip(answer.results) {
        let outcome = match result.outcome.expect("an outcome") {
            Attached::Attached(done) => Ok(done.rev),
            Attached::Error(error) => Err(of_item(error)),
        };
        assert_eq!(
            (result.reference, outcome),
            (number.to_string(), want),
            "{request:?}"
        );
    }
    assert_eq!(world.stored(), (events, revs + 1, attestations));
}

#[tokio::test]
async fn a_claim_over_rest_must_say_what_is_verified() {
    let world = world().await;
    let id = world.event("evt_claim", "SBOM").await;
    let other_id = world.event("evt_claim_other", "VEX").await;
    let (sbom, again) = (world.put(&world.sbom).await, world.put(&world.sbom_again).await);
    let claim =
        |dsse: Value| json!({"dsse": dsse, "trust": {"verified": true, "verifier": "Authority@stella"}});
    let least = claim(json!({"envelopeDigest": sbom}));
    // What is verified is learnt from another event with the same evidence.
    world
        .append_one(feedser::AppendEventsItem {
            envelope_digest: sbom.clone(),
            ..item(&event("evt_claim_truth", "SBOM"))
        })
        .await
        .expect("appended");
    let truth: Value = serde_json::from_slice(&world.get("evt_claim_truth").await.event).expect("JSON");
    let whole = claim(truth["provenance"]["dsse"].clone());
    let before = world.stored();

    let bad = |reason: &str, field: &str| (400, reason.to_owned(), field.to_owned());
    for (pointer, value) in [
        ("payloadType", json!("application/json")),
        ("key/keyId", json!("cosign:SHA256-PKIX:AAAA")),
        ("key/issuer", json!("fulcio")),
        ("key/algo", json!("RSA")),
        ("rekor/logIndex", json!(4_711)),
        (
            "rekor/logIndex",
            json!(whole["dsse"]["rekor"]["logIndex"].to_string()),
        ),
        ("rekor/uuid", json!("ab")),
        ("rekor/integratedTime", json!(1_731_081_600)),
        ("rekor/integratedTime", json!(null)),
        ("rekor/logId", json!("ab")),
        ("rekor/kind", json!("dsse/0.0.1")),
        ("rekor/treeSize", json!(1_000_000)),
        ("rekor/rootHash", json!("ab")),
        (
            "trustedTime",
            json!({"source": "rekor-set", "time": "2025-11-11T12:00:00Z"}),
        ),
    ] {
        let altered = set(whole.clone(), &format!("/dsse/{pointer}"), value);
        let field = format!("dsse.{}", pointer.replace('/', "."));
        assert_eq!(
            world.claim(&id, &altered).problem(),
            bad("CLAIM_MISMATCH", &field),
            "{pointer}"
        );
    }
    for (case, body, want) in [
        (
            "verified: false",
            set(least.clone(), "/trust/verified", json!(false)),
            bad("CLAIM_NOT_VERIFIED", "trust.verified"),
        ),
        (
            "verified as text",
            set(least.clone(), "/trust/verified", json!("true")),
            bad("CLAIM_NOT_VERIFIED", "trust.verified"),
        ),
        (
            "no trust",
            set(least.clone(), "/trust", json!(null)),
            bad("CLAIM_NOT_VERIFIED", "trust.verified"),
        ),
        (
            "no dsse",
            set(least.clone(), "/dsse", json!(null)),
            bad("BAD_VALUE", "dsse"),
        ),
        (
            "no digest",
            claim(json!({})),
            bad("BAD_DIGEST", "dsse.envelopeDigest"),
        ),
        (
            "bare hex",
            claim(json!({"envelopeDigest": sbom.strip_prefix("sha256:")})),
            bad("BAD_DIGEST", "dsse.envelopeDigest"),
        ),
        (
            "a chain that is no list",
            set(least.clone(), "/dsse/chain", json!({})),
            bad("BAD_VALUE", "dsse.chain"),
        ),
        (
            "a link without digest",
            set(least.clone(), "/dsse/chain", json!([{}])),
            bad("BAD_DIGEST", "dsse.chain[0].digest"),
        ),
        (
            "evidence not here",
            claim(json!({"envelopeDigest": Digest::of(b"x").to_string()})),
            bad("EVIDENCE_NOT_FOUND", "envelope_digest"),
        ),
        (
            "a bundle of another envelope",
            set(
                least.clone(),
                "/bundle",
                serde_json::from_slice(&world.sbom_again).expect("JSON"),
            ),
            bad("CLAIM_MISMATCH", "dsse.envelopeDigest"),
        ),
        (
            "a bundle that is none",
            set(least.clone(), "/bundle", json!({"mediaType": "x"})),
            bad("BUNDLE_TYPE_UNKNOWN", "evidence"),
        ),
    ] {
        assert_eq!(world.claim(&id, &body).problem(), want, "{case}");
    }
    let path = format!("/events/statements/{id}/provenance");
    for (body, reason) in [
        (&b"{"[..], "BAD_JSON"),
        (b"\xff", "BAD_JSON"),
        (br#"{"dsse":{},"dsse":{}}"#, "DUPLICATE_KEY"),
        (br#"{"n":9007199254740993}"#, "NUMBER_RANGE"),
    ] {
        let answer = world.stack.rest("POST", &path, Body::Whole(body));
        assert_eq!(
            answer.problem(),
            bad(reason, ""),
            "{}",
            String::from_utf8_lossy(body)
        );
    }
    let lost = world.claim("evt_nowhere", &least).problem();
    assert_eq!(lost, (404, "EVENT_NOT_FOUND".into(), "event_id".into()));
    assert_eq!(world.stored(), before);

    // The truth is taken, once, whoever repeats it; then another envelope is a conflict, and a lie still a lie.
    for outcome in ["ATTACHED", "ALREADY_ATTACHED"] {
        let answer = world.claim(&id, &whole);
        let mut document = answer.json();
        let (dsse, trust) = (document["dsse"].take(), document["trust"].take());
        let want = json!({
            "dsse": null, "envelopeDigest": sbom, "eventId": id, "outcome": outcome, "rev": 2, "trust": null,
        });
        assert_eq!((answer.status, document), (202, want));
        assert_eq!(dsse["rekor"]["logIndex"], whole["dsse"]["rekor"]["logIndex"]);
        assert_eq!(trust, json!({"verified": true, "verifier": "Authority@stella"}));
    }
    let before = world.stored();
    let conflict = world
        .claim(&id, &claim(json!({"envelopeDigest": again})))
        .problem();
    assert_eq!(
        conflict,
        (409, "ENVELOPE_CONFLICT".into(), "envelope_digest".into())
    );
    let lie = set(whole, "/dsse/rekor/logIndex", json!(4_711));
    assert_eq!(
        world.claim(&id, &lie).problem(),
        bad("CLAIM_MISMATCH", "dsse.rekor.logIndex")
    );
    let kind = world.claim(&other_id, &least).problem();
    assert_eq!(kind, bad("VERIFICATION_FAILED", ""));
    assert_eq!(world.stored(), before);
}

#[tokio::test]
async fn a_forged_trust_block_is_never_believed_nor_attached_to() {
    let world = world().await;
    let sbom = world.put(&world.sbom).await;
    let proven = feedser::AppendEventsItem {
        envelope_digest: sbom.clone(),
        ..item(&event("evt_forged_source", "SBOM"))
    };
    world.append_one(proven).await.expect("appended");
    for (id, forgery, reason) in [
        ("evt_forged_claim", r#"trust = '{"verified":true}'"#, "NO_RECEIPT"),
        (
            "evt_forged_receipt",
            r#"trust = '{"receipt":{},"verified":true}', has_receipt = 1, log_index = 7, unproven = 0,
               provenance = '{"dsse":{"rekor":{"logIndex":7}}}'"#,
            "RECEIPT_MALFORMED",
        ),
        (
            "evt_forged_copy",
            "(provenance, trust, log_index, has_receipt, unproven) = (SELECT provenance, trust, log_index,
               has_receipt, unproven FROM events WHERE id = 'evt_forged_source')",
            "RECEIPT_EVENT",
        ),
    ] {
        world.event(id, "SBOM").await;
        let sql = format!("UPDATE events SET {forgery} WHERE id = '{id}'");
        assert_eq!(world.database().execute(&sql, []).expect("written"), 1, "{id}");
        let before = world.stored();
        let event = world.get(id).await;
        assert_eq!((event.proven, event.reason.as_str()), (false, reason), "{id}");
        let refused = world.attach(id, &sbom, &[]).await.expect_err("refused");
        let no_receipt = refusal(Code::FailedPrecondition, "NO_RECEIPT", "");
        assert_eq!(of_status(&refused), no_receipt, "{id}");
        let claim = json!({"dsse": {"envelopeDigest": sbom}, "trust": {"verified": true}});
        let conflict = (409, "NO_RECEIPT".into(), String::new());
        assert_eq!(world.claim(id, &claim).problem(), conflict, "{id}");
        assert_eq!(world.stored(), before, "{id}");
    }
}

fn statement_with(pointer: &str, value: Value) -> Vec<u8> {
    let payload = statement::build(
        "app",
        &Digest::of(APP),
        statement::CYCLONEDX,
        json!({"bomFormat": "CycloneDX"}),
    );
    let document: Value = serde_json::from_slice(&payload).expect("JSON");
    set(document, pointer, value).to_string().into_bytes()
}

#[tokio::test]
async fn what_cannot_be_signed_is_refused_and_not_logged() {
    let world = world().await;
    let payload = |bytes: Vec<u8>| signer::SignRequest {
        payload: bytes.into(),
        ..signer::SignRequest::default()
    };
    let good = || payload(statement_with("/predicate/n", json!(1)));
    let first = world
        .sign(good())
        .await
        .expect("signed")
        .log
        .expect("logged")
        .log_index;
    let typed = |text: &str| payload(statement_with("/predicateType", json!(text)));
    let mut rows = vec![
        ("nothing", payload(Vec::new()), invalid("BAD_JSON", "payload")),
        (
            "no JSON",
            payload(b"hello".to_vec()),
            invalid("BAD_JSON", "payload"),
        ),
        (
            "invalid UTF-8",
            payload(b"{\"_type\":\"\xff\"}".to_vec()),
            invalid("BAD_JSON", "payload"),
        ),
        (
            "a key twice",
            payload(br#"{"_type":1,"_type":1}"#.to_vec()),
            invalid("DUPLICATE_KEY", "payload/_type"),
        ),
        (
            "a number that is rounded",
            payload(br#"{"n":1e17}"#.to_vec()),
            invalid("NUMBER_RANGE", "payload/n"),
        ),
        (
            "65 levels",
            payload(format!("{}{}", "[".repeat(65), "]".repeat(65)).into_bytes()),
            invalid("TOO_DEEP", &format!("payload{}", "/0".repeat(64))),
        ),
        (
            "another type",
            payload(statement_with("/_type", json!("x"))),
            invalid("STATEMENT_TYPE_UNKNOWN", "payload._type"),
        ),
        (
            "no subject",
            payload(statement_with("/subject", json!([]))),
            invalid("NO_SUBJECT", "payload.subject"),
        ),
        (
            "a subject of null",
            payload(statement_with("/subject", json!(null))),
            invalid("NO_SUBJECT", "payload.subject"),
        ),
        (
            "no digest",
            payload(statement_with("/subject", json!([{"name": "a"}]))),
            invalid("NO_SUBJECT", "payload.subject.digest"),
        ),
        (
            "no sha256",
            payload(statement_with("/subject", json!([{"digest": {"sha1": "aa"}}]))),
            invalid("NO_SUBJECT", "payload.subject"),
        ),
        (
            "a short digest",
            payload(statement_with("/subject", json!([{"digest": {"sha256": "ab"}}]))),
            invalid("BAD_DIGEST", "payload.subject.digest"),
        ),
        (
            "no predicateType",
            typed(""),
            invalid("STATEMENT_MALFORMED", "payload.predicateType"),
        ),
        (
            "a predicate that is a list",
            payload(statement_with("/predicate", json!([]))),
            invalid("STATEMENT_MALFORMED", "payload.predicate"),
        ),
        (
            "another payloadType",
            signer::SignRequest {
                payload_type: "text/plain".into(),
                ..good()
            },
            invalid("PAYLOAD_TYPE_NOT_ALLOWED", "payload_type"),
        ),
        (
            "an unknown transparency",
            signer::SignRequest {
                transparency: 9,
                ..good()
            },
            invalid("BAD_TRANSPARENCY", "transparency"),
        ),
        (
            "an unknown slot",
            signer::SignRequest {
                key_slot: "nobody".into(),
                ..good()
            },
            refusal(Code::NotFound, "KEY_NOT_FOUND", "key_slot"),
        ),
        (
            "an idempotency key with a space",
            signer::SignRequest {
                idempotency_key: "a b".into(),
                ..good()
            },
            invalid("BAD_IDEMPOTENCY_KEY", "idempotency_key"),
        ),
        (
            "an idempotency key too long",
            signer::SignRequest {
                idempotency_key: "k".repeat(129),
                ..good()
            },
            invalid("BAD_IDEMPOTENCY_KEY", "idempotency_key"),
        ),
    ];
    for reserved in statement::RESERVED
        .iter()
        .chain(&["stella.ops/receipt@v2", "stella.ops/Slice@v1"])
    {
        rows.push((
            *reserved,
            typed(reserved),
            invalid("RESERVED_PREDICATE_TYPE", "payload.predicateType"),
        ));
    }
    let items = rows.iter().map(|(case, request, _)| signer::SignBatchItem {
        reference: (*case).to_owned(),
        request: Some(request.clone()),
    });
    let message = signer::SignBatchRequest {
        items: items.collect(),
    };
    let request = world.stack.request(tokio_stream::once(message));
    let mut answers = world
        .signer()
        .await
        .sign_batch(request)
        .await
        .expect("a stream")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one message");
    for ((case, request, want), result) in rows.into_iter().zip(answer.results) {
        let alone = world
            .sign(request)
            .await
            .map(|_| ())
            .map_err(|refused| of_status(&refused));
        assert_eq!(alone, Err(want.clone()), "{case}");
        let outcome = match result.outcome.expect("an outcome") {
            Signed::Signed(_) => Ok(()),
            Signed::Error(error) => Err(of_item(error)),
        };
        assert_eq!(
            (result.reference.as_str(), outcome),
            (case, Err(want)),
            "in a batch"
        );
    }
    // The manifest key is Feedser's, and signs nothing but manifests for it either.
    let as_feedser = world
        .stack
        .connect("signer", &world.stack.stolen("feedser"), None)
        .await;
    let mut as_feedser = SignerServiceClient::new(as_feedser.expect("let in"));
    let manifest = signer::SignManifestRequest {
        payload: statement_with("/predicate/n", json!(1)).into(),
    };
    let manifest = as_feedser.sign_manifest(world.stack.request(manifest)).await;
    assert_eq!(
        refused(manifest),
        invalid("NOT_A_MANIFEST", "payload.predicateType")
    );
    let last = world
        .sign(payload(statement_with("/predicate/n", json!(2))))
        .await
        .expect("signed");
    assert_eq!(
        last.log.expect("logged").log_index,
        first + 1,
        "nothing else was logged"
    );
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_request() {
    let world = world().await;
    let keyed = |n: u64| signer::SignRequest {
        payload: statement_with("/predicate/idempotent", json!(n)).into(),
        idempotency_key: "bad-input-1".into(),
        ..signer::SignRequest::default()
    };
    let first = world.sign(keyed(1)).await.expect("signed");
    let reused = refusal(Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED", "idempotency_key");
    for (case, request) in [
        ("another payload", keyed(2)),
        (
            "another transparency",
            signer::SignRequest {
                transparency: signer::Transparency::None.into(),
                ..keyed(1)
            },
        ),
    ] {
        let refused = world.sign(request).await.map_err(|refused| of_status(&refused));
        assert_eq!(refused, Err(reused.clone()), "{case}");
    }
    let again = world.sign(keyed(1)).await.expect("the first answer");
    let parts = |signed: signer::SignResponse| {
        (
            signed.envelope,
            signed.key_id,
            signed.log.expect("logged").log_index,
        )
    };
    assert_eq!(parts(again), parts(first));
}

#[tokio::test]
async fn bad_questions_are_refused_by_their_field() {
    let world = world().await;
    world.event("evt_page_1", "SBOM").await;
    world.event("evt_page_2", "SBOM").await;
    let mut feedser = world.feedser().await;
    let list = |kinds: &[&str], page_size: u32, page_token: &str| {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        world.stack.request(feedser::ListEventsRequest {
            kinds,
            page_size,
            page_token: page_token.to_owned(),
            ..feedser::ListEventsRequest::default()
        })
    };
    let token = feedser
        .list_events(list(&["SBOM"], 1, ""))
        .await
        .expect("a page")
        .into_inner()
        .next_page_token;
    assert!(!token.is_empty(), "there are two events");
    feedser
        .list_events(list(&["SBOM"], 1, &token))
        .await
        .expect("the next page");
    let token_of = |kinds: &[&str], token: &str| list(kinds, 1, token);
    for (case, request, want) in [
        (
            "no token",
            token_of(&["SBOM"], "%%%"),
            invalid("BAD_PAGE_TOKEN", "page_token"),
        ),
        (
            "a token cut short",
            token_of(&["SBOM"], &token[1..]),
            invalid("BAD_PAGE_TOKEN", "page_token"),
        ),
        (
            "a token of another question",
            token_of(&["VEX"], &token),
            invalid("BAD_PAGE_TOKEN", "page_token"),
        ),
        (
            "a token of a narrower question",
            token_of(&[], &token),
            invalid("BAD_PAGE_TOKEN", "page_token"),
        ),
        (
            "a page too large",
            list(&[], 1_001, ""),
            invalid("BAD_VALUE", "page_size"),
        ),
        (
            "a page much too large",
            list(&[], u32::MAX, ""),
            invalid("BAD_VALUE", "page_size"),
        ),
        (
            "an unknown kind",
            list(&["sbom"], 0, ""),
            invalid("BAD_KIND", "kinds"),
        ),
    ] {
        assert_eq!(refused(feedser.list_events(request).await), want, "{case}");
    }
    for text in [
        "ab",
        "sha256:",
        "sha256:AB",
        "sha1:abab",
        &"ab".repeat(32),
        &format!("sha256:{}", "AB".repeat(32)),
    ] {
        let bad = |field: &str| invalid("BAD_DIGEST", field);
        let request = feedser::ListEventsRequest {
            subject_digest: text.into(),
            ..feedser::ListEventsRequest::default()
        };
        assert_eq!(
            refused(feedser.list_events(world.stack.request(request)).await),
            bad("subject_digest"),
            "{text}"
        );
        let request = feedser::GetAttestationRequest {
            envelope_digest: text.into(),
        };
        assert_eq!(
            refused(feedser.get_attestation(world.stack.request(request)).await),
            bad("envelope_digest"),
            "{text}"
        );
        let request = feedser::FindAttestationsRequest {
            subject_digests: vec![Digest::of(APP).to_string(), text.into()],
        };
        assert_eq!(
            refused(feedser.find_attestations(world.stack.request(request)).await),
            bad("subject_digests"),
            "{text}"
        );
        let request = feedser::ReplaySliceRequest {
            subject_digest: text.into(),
            kinds: Vec::new(),
        };
        assert_eq!(
            refused(feedser.replay_slice(world.stack.request(request)).await),
            bad("subject_digest"),
            "{text}"
        );
        assert_eq!(
            of_status(&world.attach("evt_page_1", text, &[]).await.expect_err("refused")),
            bad("envelope_digest")
        );
        let request = verifier::VerifyRequest {
            evidence: world.sbom.clone().into(),
            subject_digest: text.into(),
            ..verifier::VerifyRequest::default()
        };
        let verified = world.verifier().await.verify(world.stack.request(request)).await;
        assert_eq!(refused(verified), bad("subject_digest"), "{text}");
    }
    let request = feedser::FindAttestationsRequest {
        subject_digests: vec![Digest::of(APP).to_string(); 1_001],
    };
    let found = feedser.find_attestations(world.stack.request(request)).await;
    assert_eq!(refused(found), invalid("TOO_MANY_ITEMS", "items"));
    let request = feedser::ListUnprovenRequest {
        cursor: "?".into(),
        ..feedser::ListUnprovenRequest::default()
    };
    let listed = feedser.list_unproven(world.stack.request(request)).await;
    assert_eq!(
        of_status(&listed.map(|_| ()).expect_err("refused")),
        invalid("BAD_PAGE_TOKEN", "cursor")
    );
    let request = feedser::CountUnprovenRequest {
        kinds: vec!["".into()],
    };
    assert_eq!(
        refused(feedser.count_unproven(world.stack.request(request)).await),
        invalid("BAD_KIND", "kinds")
    );
    let request = feedser::GetEventRequest {
        event_id: "evt_nowhere".into(),
    };
    let missing = refusal(Code::NotFound, "EVENT_NOT_FOUND", "event_id");
    assert_eq!(
        refused(feedser.get_event(world.stack.request(request)).await),
        missing
    );
    let request = feedser::GetAttestationRequest {
        envelope_digest: Digest::of(b"nowhere").to_string(),
    };
    let missing = refusal(Code::NotFound, "ATTESTATION_NOT_FOUND", "envelope_digest");
    assert_eq!(
        refused(feedser.get_attestation(world.stack.request(request)).await),
        missing
    );
    let request = verifier::VerifyRequest {
        evidence: world.sbom.clone().into(),
        at: "yesterday".into(),
        ..verifier::VerifyRequest::default()
    };
    assert_eq!(
        refused(world.verifier().await.verify(world.stack.request(request)).await),
        invalid("BAD_TIME", "at")
    );
}

#[tokio::test]
async fn a_bad_backfill_is_not_begun() {
    let world = world().await;
    let before = world.stored();
    let mut backfill = BackfillServiceClient::new(world.stack.channel("backfill").await);
    let order = |kinds: &[&str], key: &str| {
        world.stack.request(backfill::StartBackfillRequest {
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            idempotency_key: key.to_owned(),
            ..backfill::StartBackfillRequest::default()
        })
    };
    for (case, request, want) in [
        (
            "an unknown kind",
            order(&["SBOM", "sbom"], ""),
            invalid("BAD_KIND", "kinds"),
        ),
        (
            "too many kinds",
            order(&["SBOM"; 100], ""),
            invalid("TOO_MANY_ITEMS", "kinds"),
        ),
        (
            "a key with a space",
            order(&[], "a b"),
            invalid("BAD_IDEMPOTENCY_KEY", "idempotency_key"),
        ),
    ] {
        assert_eq!(refused(backfill.start_backfill(request).await), want, "{case}");
    }
    let mut ids = Vec::new();
    for _ in 0..2 {
        let started = backfill
            .start_backfill(order(&["INGEST"], "backfill-1"))
            .await
            .expect("started");
        ids.push(started.into_inner().backfill.expect("a job").id);
    }
    assert_eq!(ids[0], ids[1], "the same key and request: the same job");
    let reused = refusal(Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED", "idempotency_key");
    let other = backfill.start_backfill(order(&["DERIVED"], "backfill-1")).await;
    assert_eq!(refused(other), reused);
    let missing = refusal(Code::NotFound, "BACKFILL_NOT_FOUND", "id");
    for (id, page_size, page_token, want) in [
        ("", 0, "", missing.clone()),
        ("bf_nowhere", 0, "", missing),
        (ids[0].as_str(), 1_001, "", invalid("BAD_VALUE", "page_size")),
        (ids[0].as_str(), 0, "%%%", invalid("BAD_PAGE_TOKEN", "page_token")),
    ] {
        let request = backfill::GetBackfillRequest {
            id: id.to_owned(),
            page_size,
            page_token: page_token.to_owned(),
        };
        assert_eq!(
            refused(backfill.get_backfill(world.stack.request(request)).await),
            want,
            "{id:?}"
        );
    }
    let request = backfill::CountUnprovenRequest {
        kinds: vec!["x".into()],
    };
    let counted = backfill.count_unproven(world.stack.request(request)).await;
    assert_eq!(refused(counted), invalid("BAD_KIND", "kinds"));
    assert_eq!(world.stored(), before);
}

#[tokio::test]
async fn a_message_larger_than_is_taken_is_refused_by_its_name() {
    let world = world().await;
    let before = world.stored();
    let too_large = refusal(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", "");
    let bytes = blank(MAX_MESSAGE + 1);
    let put = feedser::PutAttestationRequest {
        evidence: bytes.clone().into(),
    };
    let put = world
        .feedser()
        .await
        .put_attestation(world.stack.request(put))
        .await;
    assert_eq!(refused(put), too_large, "PutAttestation");
    let sign = world
        .sign(signer::SignRequest {
            payload: bytes.clone().into(),
            ..Default::default()
        })
        .await;
    assert_eq!(of_status(&sign.expect_err("refused")), too_large, "Sign");
    let verify = verifier::VerifyRequest {
        evidence: bytes.clone().into(),
        ..verifier::VerifyRequest::default()
    };
    let verify = world.verifier().await.verify(world.stack.request(verify)).await;
    assert_eq!(refused(verify), too_large, "Verify");
    let items = vec![raw_item(bytes)];
    let request = world
        .stack
        .request(tokio_stream::once(feedser::AppendEventsRequest { items }));
    let ended = match world.feedser().await.append_events(request).await {
        Ok(answers) => answers.into_inner().message().await.map(|_| ()),
        Err(refused) => Err(refused),
    };
    assert_eq!(of_status(&ended.expect_err("refused")), too_large, "AppendEvents");

    let claim = "/events/statements/evt_large/provenance";
    for (case, path, body, reason) in [
        (
            "a body said to be too large",
            "/attestations",
            Body::Announced(MAX_MESSAGE as u64 + 1),
            "MESSAGE_TOO_LARGE",
        ),
        (
            "the same for a claim",
            claim,
            Body::Announced(1 << 40),
            "MESSAGE_TOO_LARGE",
        ),
        (
            "a body that turns out too large",
            "/attestations",
            Body::Chunked(MAX_MESSAGE + 1),
            "MESSAGE_TOO_LARGE",
        ),
        (
            "the same for a claim",
            claim,
            Body::Chunked(MAX_MESSAGE + 1),
            "MESSAGE_TOO_LARGE",
        ),
        (
            "evidence too large",
            "/attestations",
            Body::Chunked(MAX_EVIDENCE + 1),
            "EVIDENCE_TOO_LARGE",
        ),
    ] {
        let (status, found, _) = world.stack.rest("POST", path, body).problem();
        assert_eq!((status, found.as_str()), (413, reason), "{case} ({path})");
    }
    assert_eq!(world.stored(), before);
}

/// So many bytes.
fn blank(length: usize) -> Vec<u8> {
    vec![b' '; length]
}

#[tokio::test]
async fn other_http_methods_and_paths_are_refused() {
    let world = world().await;
    let before = world.stored();
    for method in ["TRACE", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"] {
        for path in ["/attestations", "/events/statements/evt_x/provenance"] {
            let answer = world.stack.rest(method, path, Body::Whole(b""));
            assert_eq!(
                answer.problem(),
                (405, "HTTP_METHOD_NOT_ALLOWED".into(), String::new()),
                "{method} {path}"
            );
            assert_eq!(answer.header("allow"), Some("POST"), "{method} {path}");
        }
    }
    for path in [
        "/",
        "/attestations/",
        "/events",
        "/events/statements//provenance",
        "/events/statements/a/b/provenance",
    ] {
        let answer = world.stack.rest("POST", path, Body::Whole(b"{}"));
        assert_eq!(
            answer.problem(),
            (404, "NO_SUCH_ROUTE".into(), String::new()),
            "{path}"
        );
    }
    assert_eq!(world.stored(), before);
}
