//! What every store promises, run against the real thing by each adapter.

use std::sync::Arc;

use prost::bytes::Bytes;
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::event::Event;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::statement::{self, Kind};
use stella_attest::timestamp::Timestamp;
use stella_attest::{canonical, receipt};

use super::*;

/// One empty store and the ways to open it.
pub(crate) trait Fixture: Sized {
    /// `None`, and a line that says what is missing, where the store's server is not to be had.
    async fn new() -> Option<Self>;
    async fn open(&self) -> Arc<dyn Store>;
    /// Takes away what the promise wrote.
    async fn end(self);
}

/// Writes one test per promise for an adapter.
macro_rules! promises {
    ($fixture:ty) => {
        conformance::promises!($fixture:
            an_event_is_inserted_once, an_id_belongs_to_one_document, a_proof_needs_the_revision_it_was_made_for,
            one_of_sixteen_racing_writers_wins, one_of_sixteen_racing_batches_wins, an_id_is_won_by_one_of_many,
            pages_are_stable_under_inserts, pages_are_filtered, a_page_ends_at_its_byte_limit,
            unproven_events_are_counted_and_listed, tenants_are_apart, what_was_answered_survives_a_restart,
            fields_and_receipts_survive_the_round_trip, an_attestation_is_found_by_both_digests,
            only_logged_evidence_takes_a_place_and_only_that_of_unlogged, evidence_in_use_stays,
            one_of_many_pieces_of_evidence_is_kept_for_a_proof, subjects_find_attestations,
            evidence_is_kept_no_later_than_its_event);
    };
    ($fixture:ty: $($promise:ident),+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let fixture = <$fixture as conformance::Fixture>::new().await;
            if let Some(fixture) = fixture {
                conformance::$promise(&fixture).await;
                conformance::Fixture::end(fixture).await;
            }
        })+
    };
}
pub(crate) use promises;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn event(id: &str, kind: Kind, subject: &str) -> NewEvent {
    let subject = digest(subject);
    let doc = format!(
        r#"{{"_id":"{id}","kind":"{kind}","subject":{{"digest":{{"sha256":"{}"}}}},"ts":"2025-11-11T12:00:00Z"}}"#,
        subject.hex()
    );
    NewEvent {
        id: id.to_owned(),
        kind,
        subject,
        written: Bytes::from(doc.clone()),
        doc,
        proof: None,
        evidence: Vec::new(),
    }
}

fn proof(name: &str, log_index: u64) -> Proof {
    Proof {
        provenance: format!(r#"{{"dsse":{{"rekor":{{"logIndex":{log_index}}}}},"p":"{name}"}}"#),
        trust: format!(r#"{{"receipt":{{"payloadType":"of a test"}},"t":"{name}"}}"#),
        log_index,
    }
}

fn update(event: &NewEvent, rev: u64, proof: Proof) -> ProofUpdate {
    ProofUpdate {
        id: event.id.clone(),
        rev,
        subject: event.subject,
        proof,
        evidence: Vec::new(),
    }
}

/// What the store has to return for `event`.
fn stored(event: &NewEvent, rev: u64, proof: Option<&Proof>) -> StoredEvent {
    StoredEvent {
        id: event.id.clone(),
        kind: Some(event.kind),
        subject: Some(event.subject),
        rev,
        log_index: proof.map(|proof| proof.log_index),
        has_receipt: proof.is_some(),
        unproven: Some(proof.is_none()),
        doc: event.doc.clone(),
        provenance: proof.map(|proof| proof.provenance.clone()),
        trust: proof.map(|proof| proof.trust.clone()),
    }
}

fn attestation(envelope: &str, evidence: &str, log: Option<u64>, subjects: &[&str]) -> Arc<Attestation> {
    Arc::new(Attestation {
        info: AttestationInfo {
            received: digest(&format!("{envelope} as received")),
            canonical: digest(envelope),
            predicate_type: "https://cyclonedx.org/bom".to_owned(),
            log: log.map(|index| ([7; 32], index)),
            time: Some(Timestamp::from_unix(1_762_862_400)),
        },
        subjects: subjects.iter().map(|subject| digest(subject)).collect(),
        evidence: Bytes::copy_from_slice(evidence.as_bytes()),
        in_use: false,
    })
}

fn returned(attestation: &Attestation) -> Option<Arc<Attestation>> {
    Some(Arc::new(Attestation {
        subjects: Vec::new(),
        ..attestation.clone()
    }))
}

async fn ids(store: &dyn Store, filter: Filter, after: Option<String>, rows: usize) -> (Vec<String>, bool) {
    let page = store
        .page("a", filter, after, PageLimit { rows, bytes: 1 << 20 })
        .await
        .unwrap();
    (page.events.into_iter().map(|event| event.id).collect(), page.more)
}

pub(crate) async fn an_event_is_inserted_once(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let (plain, proven) = (event("e1", Kind::Sbom, "s1"), event("e2", Kind::Vex, "s1"));
    let proven = NewEvent {
        proof: Some(proof("x", 9)),
        ..proven
    };
    let batch = vec![plain.clone(), proven.clone(), plain.clone()];
    let first = store.insert_events("a", batch.clone()).await.unwrap();
    let existed = |event: StoredEvent| Inserted::Existed(Box::new(event));
    let (one, two) = (stored(&plain, 1, None), stored(&proven, 1, proven.proof.as_ref()));
    assert_eq!(first, [Inserted::New, Inserted::New, existed(one.clone())]);
    let again = store.insert_events("a", batch).await.unwrap();
    assert_eq!(
        again,
        [existed(one.clone()), existed(two.clone()), existed(one.clone())]
    );
    let read = store
        .events("a", ["e2", "nothing", "e1"].map(str::to_owned).to_vec())
        .await
        .unwrap();
    assert_eq!(read, [Some(two), None, Some(one)]);
}

pub(crate) async fn an_id_belongs_to_one_document(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let first = event("e1", Kind::Sbom, "s1");
    store.insert_events("a", vec![first.clone()]).await.unwrap();
    for (case, tenant, other) in [
        ("another document", "a", event("e1", Kind::Sbom, "s2")),
        (
            "another document of another tenant",
            "b",
            event("e1", Kind::Vex, "s2"),
        ),
        ("the same document of another tenant", "b", first.clone()),
    ] {
        assert_eq!(
            store.insert_events(tenant, vec![other]).await.unwrap(),
            [Inserted::IdTaken],
            "{case}"
        );
    }
    let read = store.events("a", vec!["e1".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(&first, 1, None))]);
}

pub(crate) async fn a_proof_needs_the_revision_it_was_made_for(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let first = event("e1", Kind::Sbom, "s1");
    store.insert_events("a", vec![first.clone()]).await.unwrap();
    let elsewhere = ProofUpdate {
        subject: digest("s2"),
        ..update(&first, 1, proof("x", 1))
    };
    let nobody = ProofUpdate {
        id: "e2".to_owned(),
        ..update(&first, 1, proof("x", 1))
    };
    for (case, tenant, change) in [
        ("no such event", "a", nobody),
        ("another tenant", "b", update(&first, 1, proof("x", 1))),
        ("another subject", "a", elsewhere),
        ("an older revision", "a", update(&first, 0, proof("x", 1))),
        ("a newer revision", "a", update(&first, 2, proof("x", 1))),
    ] {
        assert_eq!(
            store.set_proofs(tenant, vec![change]).await.unwrap(),
            [ProofSet::Missed],
            "{case}"
        );
        let read = store.events("a", vec!["e1".to_owned()]).await.unwrap();
        assert_eq!(read, [Some(stored(&first, 1, None))], "{case}");
    }
    let changes = vec![
        update(&first, 1, proof("x", 1)),
        update(&first, 1, proof("y", 2)),
        update(&first, 2, proof("z", 3)),
    ];
    let set = store.set_proofs("a", changes).await.unwrap();
    assert_eq!(set, [ProofSet::Set, ProofSet::Missed, ProofSet::Set]);
    let read = store.events("a", vec!["e1".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(&first, 3, Some(&proof("z", 3))))]);
}

pub(crate) async fn one_of_sixteen_racing_writers_wins(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events: Vec<_> = (0..64)
        .map(|n| event(&format!("e{n}"), Kind::Scan, "s"))
        .collect();
    store.insert_events("a", events.clone()).await.unwrap();
    let mut writers = Vec::new();
    for writer in 0..16 {
        let store = Arc::clone(&store);
        let events = events.clone();
        writers.push(tokio::spawn(async move {
            let mut won = Vec::new();
            for event in events {
                let change = update(&event, 1, proof(&format!("w{writer}"), writer));
                if store.set_proofs("a", vec![change]).await.unwrap() == [ProofSet::Set] {
                    won.push((event.id, format!("w{writer}")));
                }
            }
            won
        }));
    }
    let mut won = Vec::new();
    for writer in writers {
        won.extend(writer.await.unwrap());
    }
    won.sort();
    let mut found = Vec::new();
    for event in store
        .events("a", events.iter().map(|event| event.id.clone()).collect())
        .await
        .unwrap()
    {
        let event = event.unwrap();
        assert_eq!(event.rev, 2, "{}", event.id);
        let writer = format!("w{}", event.log_index.unwrap());
        assert_eq!(event.trust, Some(proof(&writer, 0).trust));
        found.push((event.id, writer));
    }
    found.sort();
    assert_eq!(won, found);
}

pub(crate) async fn pages_are_stable_under_inserts(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let kinds = [Kind::Sbom, Kind::Vex, Kind::Derived];
    let events: Vec<_> = (0..50)
        .map(|n| event(&format!("e{n:03}"), kinds[n % 3], "s"))
        .collect();
    let (early, late) = events.split_at(30);
    store.insert_events("a", early.to_vec()).await.unwrap();
    let (mut seen, mut late) = (Vec::<String>::new(), late.iter());
    loop {
        let (page, more) = ids(&*store, Filter::default(), seen.last().cloned(), 7).await;
        seen.extend(page);
        if !more {
            break;
        }
        // A write to a page that was read, and two that come after all pages.
        store
            .set_proofs("a", vec![update(&early[0], seen.len() as u64, proof("x", 1))])
            .await
            .unwrap();
        store
            .insert_events("a", late.by_ref().take(2).cloned().collect())
            .await
            .unwrap();
    }
    store.insert_events("a", late.cloned().collect()).await.unwrap();
    let (rest, _) = ids(&*store, Filter::default(), seen.last().cloned(), 100).await;
    seen.extend(rest);
    assert_eq!(
        seen,
        events.iter().map(|event| event.id.clone()).collect::<Vec<_>>()
    );
}

pub(crate) async fn pages_are_filtered(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events = vec![
        event("e1", Kind::Sbom, "s1"),
        NewEvent {
            proof: Some(proof("x", 0)),
            ..event("e2", Kind::Vex, "s1")
        },
        event("e3", Kind::Vex, "s2"),
        NewEvent {
            proof: Some(proof("y", 1)),
            ..event("e4", Kind::Sbom, "s2")
        },
    ];
    store.insert_events("a", events).await.unwrap();
    for (kinds, subject, proven, want) in [
        (vec![], None, None, vec!["e1", "e2", "e3", "e4"]),
        (vec![Kind::Vex], None, None, vec!["e2", "e3"]),
        (
            vec![Kind::Vex, Kind::Vex, Kind::Sbom],
            None,
            None,
            vec!["e1", "e2", "e3", "e4"],
        ),
        (vec![Kind::Ingest], None, None, vec![]),
        (vec![], Some("s1"), None, vec!["e1", "e2"]),
        (vec![], Some("s3"), None, vec![]),
        (vec![], None, Some(true), vec!["e2", "e4"]),
        (vec![], None, Some(false), vec!["e1", "e3"]),
        (vec![Kind::Vex], Some("s1"), Some(true), vec!["e2"]),
        (vec![Kind::Vex], Some("s1"), Some(false), vec![]),
    ] {
        let filter = Filter {
            kinds,
            subject: subject.map(digest),
            proven,
        };
        let (found, more) = ids(&*store, filter.clone(), None, 10).await;
        assert_eq!(
            (found, more),
            (want.iter().map(|id| (*id).to_owned()).collect(), false),
            "{filter:?}"
        );
    }
}

pub(crate) async fn a_page_ends_at_its_byte_limit(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events: Vec<_> = (0..3).map(|n| event(&format!("e{n}"), Kind::Sbom, "s")).collect();
    let one = events[0].doc.len();
    store.insert_events("a", events).await.unwrap();
    for (rows, bytes, want) in [
        (3, 3 * one, (3, false)),
        (3, 3 * one - 1, (2, true)),
        (3, 1, (1, true)),
        (1, 3 * one, (1, true)),
    ] {
        let page = store
            .page("a", Filter::default(), None, PageLimit { rows, bytes })
            .await
            .unwrap();
        assert_eq!((page.events.len(), page.more), want, "{rows} rows, {bytes} bytes");
    }
}

pub(crate) async fn unproven_events_are_counted_and_listed(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let kinds = [Kind::Sbom, Kind::Vex, Kind::Vex, Kind::Scan];
    let events: Vec<_> = (0..8)
        .map(|n| event(&format!("e{n}"), kinds[n % 4], "s"))
        .collect();
    store.insert_events("a", events.clone()).await.unwrap();
    store
        .set_proofs(
            "a",
            vec![
                update(&events[1], 1, proof("x", 0)),
                update(&events[3], 1, proof("y", 1)),
            ],
        )
        .await
        .unwrap();
    let count = |kind, unproven, events| KindCount {
        kind,
        unproven,
        events,
    };
    let counts = store.counts("a").await.unwrap();
    assert_eq!(
        counts,
        [
            count(Kind::Sbom, 2, 2),
            count(Kind::Vex, 3, 4),
            count(Kind::Scan, 1, 2)
        ]
    );
    let whole = |number: usize| {
        let event = &events[number];
        let (id, kind, ts) = (event.id.clone(), event.kind, "2025-11-11T12:00:00Z".to_owned());
        Unproven {
            id,
            kind,
            subject: event.subject,
            ts,
        }
    };
    for (kinds, after, rows, want) in [
        (vec![], None, 10, vec![0, 2, 4, 5, 6, 7]),
        (vec![], Some("e2"), 2, vec![4, 5]),
        (vec![Kind::Vex, Kind::Scan], None, 10, vec![2, 5, 6, 7]),
        (vec![Kind::Ingest], None, 10, vec![]),
        (vec![], Some("e7"), 10, vec![]),
    ] {
        let found = store
            .unproven("a", kinds.clone(), after.map(str::to_owned), rows)
            .await
            .unwrap();
        assert_eq!(
            found,
            want.into_iter().map(whole).collect::<Vec<_>>(),
            "{kinds:?} after {after:?}"
        );
    }
}

pub(crate) async fn tenants_are_apart(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let first = event("e1", Kind::Sbom, "s1");
    store.insert_events("a", vec![first.clone()]).await.unwrap();
    let bundle = attestation("env", "bundle", Some(1), &["s1"]);
    store
        .put_attestations("a", vec![Arc::clone(&bundle)])
        .await
        .unwrap();
    for tenant in ["b", "", "A"] {
        assert_eq!(store.events(tenant, vec!["e1".to_owned()]).await.unwrap(), [None]);
        let limit = PageLimit {
            rows: 10,
            bytes: 1 << 20,
        };
        let page = store.page(tenant, Filter::default(), None, limit).await.unwrap();
        assert_eq!(
            page,
            Page {
                events: vec![],
                more: false
            }
        );
        assert_eq!(store.counts(tenant).await.unwrap(), []);
        assert_eq!(store.unproven(tenant, vec![], None, 10).await.unwrap(), []);
        assert_eq!(
            store.attestations(tenant, vec![digest("env")]).await.unwrap(),
            [None]
        );
        assert_eq!(
            store.find(tenant, vec![digest("s1")], 10).await.unwrap(),
            [vec![]]
        );
    }
    let mine = attestation("env", "another bundle", Some(2), &["s1"]);
    assert_eq!(
        store
            .put_attestations("b", vec![Arc::clone(&mine)])
            .await
            .unwrap(),
        [false]
    );
    assert_eq!(
        store.attestations("a", vec![digest("env")]).await.unwrap(),
        [returned(&bundle)]
    );
    assert_eq!(
        store.attestations("b", vec![digest("env")]).await.unwrap(),
        [returned(&mine)]
    );
}

pub(crate) async fn what_was_answered_survives_a_restart(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let (first, second) = (event("e1", Kind::Sbom, "s1"), event("e2", Kind::Derived, "s1"));
    let bundle = attestation("env", "bundle", Some(1), &["s1"]);
    store.insert_events("a", vec![first.clone()]).await.unwrap();
    store
        .set_proofs("a", vec![update(&first, 1, proof("x", 5))])
        .await
        .unwrap();
    store
        .put_attestations("a", vec![Arc::clone(&bundle)])
        .await
        .unwrap();
    drop(store);
    let store = fixture.open().await;
    let read = store.events("a", vec!["e1".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(&first, 2, Some(&proof("x", 5))))]);
    assert_eq!(
        store.attestations("a", vec![digest("env")]).await.unwrap(),
        [returned(&bundle)]
    );
    assert_eq!(
        store.insert_events("a", vec![second.clone()]).await.unwrap(),
        [Inserted::New]
    );
    let read = store.events("a", vec!["e2".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(&second, 1, None))]);
}

pub(crate) async fn an_attestation_is_found_by_both_digests(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let received = attestation("env", "envelope with spaces", None, &["s1"]);
    let mut canonical = (*received).clone();
    canonical.info.received = canonical.info.canonical;
    canonical.evidence = Bytes::from_static(b"envelope");
    let canonical = Arc::new(canonical);
    let put = store
        .put_attestations("a", vec![Arc::clone(&received), Arc::clone(&received), canonical])
        .await
        .unwrap();
    assert_eq!(put, [false, true, true]);
    let other = attestation("other", "x", None, &[]);
    let digests = vec![
        received.info.received,
        digest("nothing"),
        received.info.canonical,
        other.info.received,
    ];
    let found = store.attestations("a", digests).await.unwrap();
    let one = found[0].clone().unwrap();
    assert_eq!(
        (one.info.canonical, &one.evidence[..]),
        (received.info.canonical, &received.evidence[..])
    );
    assert_eq!(found, [Some(Arc::clone(&one)), None, Some(one), None]);
    assert_eq!(
        store
            .find("a", vec![digest("s1")], 10)
            .await
            .unwrap()
            .concat()
            .len(),
        1
    );
}

pub(crate) async fn only_logged_evidence_takes_a_place_and_only_that_of_unlogged(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let bare = attestation("env", "bare", None, &["s1"]);
    let other = attestation("env", "written otherwise", None, &["s1"]);
    let (bundle, newer) = (
        attestation("env", "bundle", Some(1), &["s1"]),
        attestation("env", "newer", Some(2), &["s1"]),
    );
    for (case, put, existed, want) in [
        ("the first", &bare, false, &bare),
        ("another unlogged one", &other, true, &bare),
        ("a logged one", &bundle, true, &bundle),
        ("an unlogged one", &bare, true, &bundle),
        ("another logged one", &newer, true, &bundle),
    ] {
        assert_eq!(
            store.put_attestations("a", vec![Arc::clone(put)]).await.unwrap(),
            [existed],
            "{case}"
        );
        assert_eq!(
            store.attestations("a", vec![digest("env")]).await.unwrap(),
            [returned(want)],
            "{case}"
        );
    }
    let found = store.find("a", vec![digest("s1")], 10).await.unwrap();
    assert_eq!(found, [vec![bundle.info.clone()]]);
}

pub(crate) async fn evidence_in_use_stays(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let first = event("e1", Kind::Sbom, "s1");
    store.insert_events("a", vec![first.clone()]).await.unwrap();
    let verified = attestation("env", "verified", Some(1), &["s1"]);
    let forged = attestation("env", "forged", Some(2), &["s1"]);
    // What is stored does not verify; what does came with the call, and the update rests on it.
    store
        .put_attestations("a", vec![Arc::clone(&forged)])
        .await
        .unwrap();
    let change = |rev, evidence: &Arc<Attestation>| ProofUpdate {
        evidence: vec![Arc::clone(evidence)],
        ..update(&first, rev, proof("x", 1))
    };
    let set = store
        .set_proofs(
            "a",
            vec![change(1, &verified), change(2, &forged), change(2, &verified)],
        )
        .await
        .unwrap();
    assert_eq!(set, [ProofSet::Set, ProofSet::Missed, ProofSet::Set]);
    assert_eq!(
        store
            .put_attestations("a", vec![Arc::clone(&forged)])
            .await
            .unwrap(),
        [true]
    );
    let insert = |id, evidence: &Arc<Attestation>| NewEvent {
        proof: Some(proof("y", 2)),
        evidence: vec![Arc::clone(evidence)],
        ..event(id, Kind::Sbom, "s1")
    };
    let inserted = store
        .insert_events("a", vec![insert("e2", &forged), insert("e3", &verified)])
        .await
        .unwrap();
    assert_eq!(inserted, [Inserted::EvidenceChanged, Inserted::New]);
    let kept = Arc::new(Attestation {
        in_use: true,
        subjects: Vec::new(),
        ..(*verified).clone()
    });
    assert_eq!(
        store.attestations("a", vec![digest("env")]).await.unwrap(),
        [Some(kept)]
    );
    assert_eq!(
        store.find("a", vec![digest("s1")], 10).await.unwrap(),
        [vec![verified.info.clone()]]
    );
}

pub(crate) async fn subjects_find_attestations(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let one = attestation("one", "1", Some(1), &["s1", "s2", "s1"]);
    let two = attestation("two", "2", None, &["s2"]);
    store
        .put_attestations("a", vec![Arc::clone(&one), Arc::clone(&two)])
        .await
        .unwrap();
    let subjects = vec![digest("s2"), digest("s3"), digest("s1")];
    let mut found = store.find("a", subjects.clone(), 3).await.unwrap();
    found[0].sort_by_key(|info| info.log.is_none());
    assert_eq!(
        found,
        [
            vec![one.info.clone(), two.info.clone()],
            vec![],
            vec![one.info.clone()]
        ]
    );
    let refused = store.find("a", subjects, 2).await.unwrap_err();
    assert_eq!(refused.to_string(), "more than 2 rows would be needed");
}

pub(crate) async fn evidence_is_kept_no_later_than_its_event(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let first = event("e1", Kind::Sbom, "s1");
    let evidence = |name: &str| attestation(name, name, Some(1), &["s1"]);
    let new = NewEvent {
        proof: Some(proof("x", 1)),
        evidence: vec![evidence("one"), evidence("two")],
        ..first.clone()
    };
    let changed = ProofUpdate {
        evidence: vec![evidence("two"), evidence("three")],
        ..update(&first, 1, proof("y", 1))
    };
    assert_eq!(
        store.insert_events("a", vec![new]).await.unwrap(),
        [Inserted::New]
    );
    assert_eq!(
        store.set_proofs("a", vec![changed]).await.unwrap(),
        [ProofSet::Set]
    );
    let digests = ["one", "two", "three"].map(digest).to_vec();
    let found = store.attestations("a", digests).await.unwrap();
    let kept = |name: &str| {
        Some(Arc::new(Attestation {
            in_use: true,
            subjects: Vec::new(),
            ..(*evidence(name)).clone()
        }))
    };
    assert_eq!(found, [kept("one"), kept("two"), kept("three")]);
}

/// Sixteen writers send the same events in batches, each batch with proofs of its own; some statements of a batch find
/// their event and others do not.
pub(crate) async fn one_of_sixteen_racing_batches_wins(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events: Vec<_> = (0..64)
        .map(|n| event(&format!("e{n}"), Kind::Scan, "s"))
        .collect();
    store.insert_events("a", events.clone()).await.unwrap();
    let mut writers = Vec::new();
    for writer in 0..16_u64 {
        let store = Arc::clone(&store);
        let events = events.clone();
        writers.push(tokio::spawn(async move {
            let mut won = Vec::new();
            for number in 0..8 {
                // Each begins elsewhere, so that their batches overlap, and those of one writer do, too.
                let start = ((number + writer) % 8) * 8;
                let batch: Vec<_> = events.iter().cycle().skip(start as usize).take(12).collect();
                let own = writer * 8 + number;
                let changes = batch
                    .iter()
                    .map(|event| update(event, 1, proof(&format!("of batch {own}"), own)))
                    .collect();
                let set = store.set_proofs("a", changes).await.unwrap();
                for (event, set) in batch.iter().zip(set) {
                    if set == ProofSet::Set {
                        won.push((event.id.clone(), own));
                    }
                }
            }
            won
        }));
    }
    let mut won = Vec::new();
    for writer in writers {
        won.extend(writer.await.unwrap());
    }
    won.sort();
    let ids = events.iter().map(|event| event.id.clone()).collect();
    let mut found = Vec::new();
    for event in store.events("a", ids).await.unwrap() {
        let event = event.unwrap();
        assert_eq!(event.rev, 2, "{}", event.id);
        found.push((event.id, event.log_index.unwrap()));
    }
    found.sort();
    assert_eq!(won, found);
}

/// Sixteen writers insert the same ids, each with documents of its own.
pub(crate) async fn an_id_is_won_by_one_of_many(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ids: Vec<String> = (0..64).map(|n| format!("e{n:02}")).collect();
    let mut writers = Vec::new();
    for writer in 0..16 {
        let store = Arc::clone(&store);
        let ids = ids.clone();
        writers.push(tokio::spawn(async move {
            let subject = format!("of writer {writer}");
            let mut won = Vec::new();
            for ids in ids.chunks(16) {
                let batch = ids.iter().map(|id| event(id, Kind::Vex, &subject)).collect();
                for (id, inserted) in ids.iter().zip(store.insert_events("a", batch).await.unwrap()) {
                    match inserted {
                        Inserted::New => won.push((id.clone(), digest(&subject))),
                        other => assert_eq!(other, Inserted::IdTaken, "{id}"),
                    }
                }
            }
            won
        }));
    }
    let mut won = Vec::new();
    for writer in writers {
        won.extend(writer.await.unwrap());
    }
    won.sort();
    let found = store.events("a", ids).await.unwrap().into_iter().flatten();
    let found: Vec<_> = found.map(|event| (event.id, event.subject.unwrap())).collect();
    assert_eq!(won, found);
}

/// Sixteen writers prove sixteen events, each with other evidence of one and the same envelope.
pub(crate) async fn one_of_many_pieces_of_evidence_is_kept_for_a_proof(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events: Vec<_> = (0..16)
        .map(|n| event(&format!("e{n:02}"), Kind::Sbom, "s1"))
        .collect();
    store.insert_events("a", events.clone()).await.unwrap();
    let mut writers = Vec::new();
    for (writer, event) in events.into_iter().enumerate() {
        let store = Arc::clone(&store);
        writers.push(tokio::spawn(async move {
            let evidence = attestation(
                "env",
                &format!("of writer {writer}"),
                Some(writer as u64),
                &["s1"],
            );
            store
                .put_attestations("a", vec![Arc::clone(&evidence)])
                .await
                .unwrap();
            let change = ProofUpdate {
                evidence: vec![evidence],
                ..update(&event, 1, proof("x", writer as u64))
            };
            (writer as u64, store.set_proofs("a", vec![change]).await.unwrap())
        }));
    }
    let mut won = Vec::new();
    for writer in writers {
        let (writer, set) = writer.await.unwrap();
        if set == [ProofSet::Set] {
            won.push(Some(([7; 32], writer)));
        }
    }
    let kept = store.attestations("a", vec![digest("env")]).await.unwrap();
    let kept = kept[0].clone().unwrap();
    assert_eq!((won, kept.in_use), (vec![kept.info.log], true));
}

/// What a caller may write, and the proof that is made over it.
pub(crate) async fn fields_and_receipts_survive_the_round_trip(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let written = format!(
        r#"{{"ts": "2025-11-11T12:00:00Z", "z": [1, 2.50, -0.0, 1e21, 2147483648, 9007199254740991, 5e-324, true, null],
            "kind": "SBOM", "own": {{"b": {{}}, "a": [[], ["\u00e9\n\ud83d\ude00", "", {{"id": "x", "date": 1.0}}]]}},
            "subject": {{"digest": {{"sha256": "{}"}}, "purl": "pkg:a/b@1"}}, "_id": "e1"}}"#,
        digest("s1").hex()
    );
    let parsed = Event::parse_new(written.as_bytes()).unwrap();
    let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
    let provenance =
        json!({"dsse": {"rekor": {"logIndex": 9_007_199_254_740_991_u64, "hashes": ["ab"]}, "chain": []}});
    let mut trust =
        json!({"verified": true, "policyScore": 0.92, "witnesses": 1, "checks": [{"name": "SIGNATURE"}]});
    let sealed = parsed.clone().stored_as("a", 2);
    let of = |value: &Value| Digest::of(&canonical::to_vec(value)).to_string();
    let predicate = json!({
        "tenant": "a", "rev": 2, "provenanceDigest": of(&provenance), "trustDigest": of(&trust), "verdict": "verified",
        "envelopeDigest": digest("env").to_string(), "trustRootDigest": digest("roots").to_string(),
    });
    let payload = statement::build("e1", &sealed.hash(), receipt::PREDICATE_TYPE, predicate);
    trust["receipt"] = Envelope::sign(statement::PAYLOAD_TYPE, &payload, &key)
        .unwrap()
        .to_value();
    let text = |value: &Value| String::from_utf8(canonical::to_vec(value)).unwrap();
    let new = NewEvent {
        doc: text(parsed.value()),
        written: Bytes::from(written),
        ..event("e1", Kind::Sbom, "s1")
    };
    let proof = Proof {
        provenance: text(&provenance),
        trust: text(&trust),
        log_index: 9_007_199_254_740_991,
    };
    store.insert_events("a", vec![new.clone()]).await.unwrap();
    let change = update(&new, 1, proof.clone());
    assert_eq!(
        store.set_proofs("a", vec![change]).await.unwrap(),
        [ProofSet::Set]
    );
    drop(store);
    let read = fixture
        .open()
        .await
        .events("a", vec!["e1".to_owned()])
        .await
        .unwrap();
    assert_eq!(read, [Some(stored(&new, 2, Some(&proof)))]);
    let read = read[0].clone().unwrap();
    let block = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let read = Event::parse_new(read.doc.as_bytes())
        .unwrap()
        .stored_as("a", read.rev)
        .with_proof(block(&read.provenance.unwrap()), block(&read.trust.unwrap()));
    let held = receipt::check(&read, &[key.verifying_key().clone()]).map(|receipt| receipt.envelope_digest);
    assert_eq!(held, Ok(digest("env")));
}
