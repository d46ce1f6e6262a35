//! What every store promises, run against the real thing by each adapter.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::bytes::Bytes;
use stella_attest::digest::Digest;
use stella_attest::statement::Kind;
use stella_attest::timestamp::Timestamp;

use super::*;

/// One empty store and the ways to open it.
pub(crate) trait Fixture {
    fn new() -> Self;
    fn open(&self) -> Arc<dyn Store>;
}

/// Writes one test per promise for an adapter.
macro_rules! promises {
    ($fixture:ty) => {
        $crate::store::conformance::promises!($fixture:
            an_event_is_inserted_once, an_id_belongs_to_one_document, a_proof_needs_the_revision_it_was_made_for,
            one_of_sixteen_racing_writers_wins, pages_are_stable_under_inserts, pages_are_filtered,
            a_page_ends_at_its_byte_limit, unproven_events_are_counted_and_listed, tenants_are_apart,
            what_was_answered_survives_a_restart, an_attestation_is_found_by_both_digests,
            only_logged_evidence_takes_a_place_and_only_that_of_unlogged, evidence_in_use_stays, subjects_find_attestations,
            evidence_is_kept_with_its_event_only);
    };
    ($fixture:ty: $($promise:ident),+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            $crate::store::conformance::$promise(<$fixture as $crate::store::conformance::Fixture>::new()).await;
        })+
    };
}
pub(crate) use promises;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn event(id: &str, kind: Kind, subject: &str) -> NewEvent {
    let doc = format!(r#"{{"_id":"{id}","kind":"{kind}","of":"{subject}","ts":"2025-11-11T12:00:00Z"}}"#);
    NewEvent {
        id: id.to_owned(),
        kind,
        subject: digest(subject),
        doc,
        proof: None,
        evidence: Vec::new(),
    }
}

fn proof(name: &str, log_index: u64) -> Proof {
    Proof {
        provenance: format!(r#"{{"p":"{name}"}}"#),
        trust: format!(r#"{{"t":"{name}"}}"#),
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
fn stored(position: u64, event: &NewEvent, rev: u64, proof: Option<&Proof>) -> StoredEvent {
    StoredEvent {
        position: Position(position),
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

async fn ids(
    store: &dyn Store,
    filter: Filter,
    after: Position,
    rows: usize,
) -> (Vec<String>, Position, bool) {
    let page = store
        .page("a", filter, after, PageLimit { rows, bytes: 1 << 20 })
        .await
        .unwrap();
    let last = page.events.last().map_or(after, |event| event.position);
    (
        page.events.into_iter().map(|event| event.id).collect(),
        last,
        page.more,
    )
}

pub(crate) async fn an_event_is_inserted_once(fixture: impl Fixture) {
    let store = fixture.open();
    let (plain, proven) = (event("e1", Kind::Sbom, "s1"), event("e2", Kind::Vex, "s1"));
    let proven = NewEvent {
        proof: Some(proof("x", 9)),
        ..proven
    };
    let batch = vec![plain.clone(), proven.clone(), plain.clone()];
    let first = store.insert_events("a", batch.clone()).await.unwrap();
    let existed = |event: StoredEvent| Inserted::Existed(Box::new(event));
    let (one, two) = (
        stored(1, &plain, 1, None),
        stored(2, &proven, 1, proven.proof.as_ref()),
    );
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

pub(crate) async fn an_id_belongs_to_one_document(fixture: impl Fixture) {
    let store = fixture.open();
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
    assert_eq!(read, [Some(stored(1, &first, 1, None))]);
}

pub(crate) async fn a_proof_needs_the_revision_it_was_made_for(fixture: impl Fixture) {
    let store = fixture.open();
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
        assert_eq!(read, [Some(stored(1, &first, 1, None))], "{case}");
    }
    let changes = vec![
        update(&first, 1, proof("x", 1)),
        update(&first, 1, proof("y", 2)),
        update(&first, 2, proof("z", 3)),
    ];
    let set = store.set_proofs("a", changes).await.unwrap();
    assert_eq!(set, [ProofSet::Set, ProofSet::Missed, ProofSet::Set]);
    let read = store.events("a", vec!["e1".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(1, &first, 3, Some(&proof("z", 3))))]);
}

pub(crate) async fn one_of_sixteen_racing_writers_wins(fixture: impl Fixture) {
    let store = fixture.open();
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

pub(crate) async fn pages_are_stable_under_inserts(fixture: impl Fixture) {
    let store = fixture.open();
    let kinds = [Kind::Sbom, Kind::Vex, Kind::Derived];
    let events: Vec<_> = (0..50)
        .map(|n| event(&format!("e{n:03}"), kinds[n % 3], "s"))
        .collect();
    let (early, late) = events.split_at(30);
    store.insert_events("a", early.to_vec()).await.unwrap();
    let (mut seen, mut after, mut late) = (Vec::new(), Position::default(), late.iter());
    loop {
        let (page, last, more) = ids(&*store, Filter::default(), after, 7).await;
        seen.extend(page);
        after = last;
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
    let (rest, ..) = ids(&*store, Filter::default(), after, 100).await;
    seen.extend(rest);
    assert_eq!(
        seen,
        events.iter().map(|event| event.id.clone()).collect::<Vec<_>>()
    );
}

pub(crate) async fn pages_are_filtered(fixture: impl Fixture) {
    let store = fixture.open();
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
        let (found, _, more) = ids(&*store, filter.clone(), Position::default(), 10).await;
        assert_eq!(
            (found, more),
            (want.iter().map(|id| (*id).to_owned()).collect(), false),
            "{filter:?}"
        );
    }
}

pub(crate) async fn a_page_ends_at_its_byte_limit(fixture: impl Fixture) {
    let store = fixture.open();
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
            .page(
                "a",
                Filter::default(),
                Position::default(),
                PageLimit { rows, bytes },
            )
            .await
            .unwrap();
        assert_eq!((page.events.len(), page.more), want, "{rows} rows, {bytes} bytes");
    }
}

pub(crate) async fn unproven_events_are_counted_and_listed(fixture: impl Fixture) {
    let store = fixture.open();
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
    let whole = |position: u64| {
        let event = &events[position as usize - 1];
        let (id, kind, ts) = (event.id.clone(), event.kind, "2025-11-11T12:00:00Z".to_owned());
        Unproven {
            position: Position(position),
            id,
            kind,
            subject: event.subject,
            ts,
        }
    };
    for (kinds, after, rows, want) in [
        (vec![], 0, 10, vec![1, 3, 5, 6, 7, 8]),
        (vec![], 3, 2, vec![5, 6]),
        (vec![Kind::Vex, Kind::Scan], 0, 10, vec![3, 6, 7, 8]),
        (vec![Kind::Ingest], 0, 10, vec![]),
        (vec![], 8, 10, vec![]),
    ] {
        let found = store
            .unproven("a", kinds.clone(), Position(after), rows)
            .await
            .unwrap();
        assert_eq!(
            found,
            want.into_iter().map(whole).collect::<Vec<_>>(),
            "{kinds:?} after {after}"
        );
    }
}

pub(crate) async fn tenants_are_apart(fixture: impl Fixture) {
    let store = fixture.open();
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
        let page = store
            .page(tenant, Filter::default(), Position::default(), limit)
            .await
            .unwrap();
        assert_eq!(
            page,
            Page {
                events: vec![],
                more: false
            }
        );
        assert_eq!(store.counts(tenant).await.unwrap(), []);
        assert_eq!(
            store
                .unproven(tenant, vec![], Position::default(), 10)
                .await
                .unwrap(),
            []
        );
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

pub(crate) async fn what_was_answered_survives_a_restart(fixture: impl Fixture) {
    let store = fixture.open();
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
    let store = fixture.open();
    let read = store.events("a", vec!["e1".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(1, &first, 2, Some(&proof("x", 5))))]);
    assert_eq!(
        store.attestations("a", vec![digest("env")]).await.unwrap(),
        [returned(&bundle)]
    );
    assert_eq!(
        store.insert_events("a", vec![second.clone()]).await.unwrap(),
        [Inserted::New]
    );
    let read = store.events("a", vec!["e2".to_owned()]).await.unwrap();
    assert_eq!(read, [Some(stored(2, &second, 1, None))]);
}

pub(crate) async fn an_attestation_is_found_by_both_digests(fixture: impl Fixture) {
    let store = fixture.open();
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

pub(crate) async fn only_logged_evidence_takes_a_place_and_only_that_of_unlogged(fixture: impl Fixture) {
    let store = fixture.open();
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

pub(crate) async fn evidence_in_use_stays(fixture: impl Fixture) {
    let store = fixture.open();
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
        .insert_events("a", vec![insert("e2", &forged), insert("e2", &verified)])
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

pub(crate) async fn subjects_find_attestations(fixture: impl Fixture) {
    let store = fixture.open();
    let one = attestation("one", "1", Some(1), &["s1", "s2", "s1"]);
    let two = attestation("two", "2", None, &["s2"]);
    store
        .put_attestations("a", vec![Arc::clone(&one), Arc::clone(&two)])
        .await
        .unwrap();
    let subjects = vec![digest("s2"), digest("s3"), digest("s1")];
    let found = store.find("a", subjects.clone(), 3).await.unwrap();
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

pub(crate) async fn evidence_is_kept_with_its_event_only(fixture: impl Fixture) {
    let store = fixture.open();
    let first = event("e1", Kind::Sbom, "s1");
    let evidence = |name: &str| attestation(name, name, Some(1), &["s1"]);
    let new = NewEvent {
        proof: Some(proof("x", 1)),
        evidence: vec![evidence("one"), evidence("two")],
        ..first.clone()
    };
    let taken = NewEvent {
        evidence: vec![evidence("three")],
        ..event("e1", Kind::Vex, "s1")
    };
    let missed = ProofUpdate {
        evidence: vec![evidence("four")],
        ..update(&first, 7, proof("x", 1))
    };
    assert_eq!(
        store.insert_events("a", vec![new, taken]).await.unwrap(),
        [Inserted::New, Inserted::IdTaken]
    );
    assert_eq!(
        store.set_proofs("a", vec![missed]).await.unwrap(),
        [ProofSet::Missed]
    );
    let found = store.find("a", vec![digest("s1")], 10).await.unwrap().concat();
    let found: BTreeSet<_> = found.into_iter().map(|info| info.canonical).collect();
    assert_eq!(found, BTreeSet::from([digest("one"), digest("two")]));
}
