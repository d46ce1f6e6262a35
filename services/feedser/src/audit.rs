//! The questions of an auditor: what is there, what is unproven, and the evidence in one file.
//!
//! Counts and filters read the stored columns; what each event's proof is worth is judged when it is read.

use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::event::Event;
use stella_attest::slice;
use stella_attest::statement::Kind;
use stella_serve::access::Tenant;

use crate::error::Error;
use crate::feedser::{Feedser, blocking};
use crate::page_token::Question;
use crate::record::{Record, named_envelopes};
use crate::store::{Filter, KindCount, PageLimit, StoreError, Unproven};

/// Most events of one page.
pub const MAX_PAGE: usize = 1_000;

/// Events of a page when the caller does not say.
const DEFAULT_PAGE: usize = 100;

/// Most bytes of documents of one page, so that every gRPC client takes the answer.
const PAGE_BYTES: usize = 3 << 20;

/// Events of one message of a stream of unproven events.
pub(crate) const STREAM_PAGE: usize = 500;

/// The kinds that decisions rest on.
const DECIDING: [Kind; 3] = [Kind::Vex, Kind::Sbom, Kind::Scan];

/// An unproven event, and the cursor that goes on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnprovenEvent {
    /// The event.
    pub event: Unproven,
    /// Goes on after it.
    pub cursor: String,
}

impl Feedser {
    /// Returns one event.
    pub async fn event(&self, tenant: &Tenant, id: &str) -> Result<Record, Error> {
        let found = self.store.events(tenant.as_str(), vec![id.to_owned()]).await?;
        let stored = found.into_iter().flatten().collect();
        let record = self.read(tenant, stored).await?.pop();
        record.ok_or_else(|| Error::EventNotFound(id.to_owned()))
    }

    /// Returns a page of events, and the token of the next one if there is one.
    pub async fn events(
        &self,
        tenant: &Tenant,
        filter: Filter,
        page_size: usize,
        page_token: &str,
    ) -> Result<(Vec<Record>, Option<String>), Error> {
        let rows = match page_size {
            0 => DEFAULT_PAGE,
            size if size <= MAX_PAGE => size,
            _ => {
                return Err(Error::BadValue {
                    field: "page_size",
                    rule: "must be at most 1000",
                });
            }
        };
        let question = question(tenant, &filter);
        let after = question.after(page_token, "page_token")?;
        let page = self
            .store
            .page(
                tenant.as_str(),
                filter,
                after,
                PageLimit {
                    rows,
                    bytes: PAGE_BYTES,
                },
            )
            .await?;
        let next = page
            .events
            .last()
            .filter(|_| page.more)
            .map(|event| question.token(&event.id));
        Ok((self.read(tenant, page.events).await?, next))
    }

    /// Returns the next unproven events after a cursor, in the store's stable order; none at the end.
    pub async fn unproven(
        &self,
        tenant: &Tenant,
        kinds: &[Kind],
        cursor: &str,
        rows: usize,
    ) -> Result<Vec<UnprovenEvent>, Error> {
        let question = Question::new(&["unproven", tenant.as_str()]);
        let after = question.after(cursor, "cursor")?;
        let found = self
            .store
            .unproven(tenant.as_str(), kinds.to_vec(), after, rows)
            .await
            .map_err(|error| match error {
                StoreError::NoPlace => Error::BadPageToken { field: "cursor" },
                other => other.into(),
            })?;
        let with_cursor = |event: Unproven| UnprovenEvent {
            cursor: question.token(&event.id),
            event,
        };
        Ok(found.into_iter().map(with_cursor).collect())
    }

    /// Counts events and unproven events of these kinds (all if empty), by kind.
    pub async fn counts(&self, tenant: &Tenant, kinds: &[Kind]) -> Result<Vec<KindCount>, Error> {
        let mut counts = self.store.counts(tenant.as_str()).await?;
        counts.retain(|count| kinds.is_empty() || kinds.contains(&count.kind));
        Ok(counts)
    }

    /// Counts, by kind, the unproven events that decisions rest on; kinds without a gap are left out.
    pub async fn gap(&self, tenant: &Tenant) -> Result<Vec<KindCount>, Error> {
        let mut counts = self.counts(tenant, &DECIDING).await?;
        counts.retain(|count| count.unproven > 0);
        Ok(counts)
    }

    /// Exports the events of a subject, with the evidence of the proven ones, as one signed file.
    pub async fn slice(&self, tenant: &Tenant, subject: Digest, kinds: Vec<Kind>) -> Result<Vec<u8>, Error> {
        let max_bytes = self.limits.max_slice_bytes.get();
        let records = self.slice_events(tenant, subject, &kinds).await?;
        let mut digests: Vec<Digest> = Vec::new();
        for record in records.iter().filter(|record| record.proof().is_ok()) {
            digests.extend(record.event().map(named_envelopes).unwrap_or_default());
        }
        digests.sort_unstable();
        digests.dedup();
        let found = self.fetch(tenant, digests.clone()).await?;
        if let Some(lost) = digests.iter().find(|digest| !found.contains_key(digest)) {
            return Err(Error::EvidenceLost(*lost));
        }
        let evidence: usize = found.values().map(|attestation| attestation.evidence.len()).sum();
        if evidence > max_bytes {
            return Err(Error::SliceTooLarge {
                max: max_bytes,
                unit: "bytes",
            });
        }
        let tenant_name = tenant.clone();
        let draft = blocking(move || {
            let events: Vec<_> = records.iter().filter_map(|record| record.event()).collect();
            let checkpoint = newest_checkpoint(&events);
            // An altered event goes along as what is left of it: who reads the file sees which one it is.
            let values: Vec<_> = records.iter().map(Record::document).collect();
            let evidence: Vec<(Digest, &[u8])> = digests
                .iter()
                .map(|digest| (*digest, &found[digest].evidence[..]))
                .collect();
            let query = query(&tenant_name, &subject, &kinds);
            slice::build(&query, &values, &evidence, checkpoint)
        })
        .await?;
        let envelope = self
            .signer
            .sign_manifest(tenant, draft.statement().to_vec())
            .await?;
        let envelope = Envelope::parse(&envelope).map_err(|_| Error::ManifestInvalid)?;
        if envelope.payload != draft.statement() {
            return Err(Error::ManifestInvalid);
        }
        let file = blocking(move || draft.finish(&envelope)).await?;
        if file.len() > max_bytes {
            return Err(Error::SliceTooLarge {
                max: max_bytes,
                unit: "bytes",
            });
        }
        Ok(file)
    }

    async fn slice_events(
        &self,
        tenant: &Tenant,
        subject: Digest,
        kinds: &[Kind],
    ) -> Result<Vec<Record>, Error> {
        let filter = Filter {
            kinds: kinds.to_vec(),
            subject: Some(subject),
            proven: None,
        };
        let (max_events, max_bytes) = (
            self.limits.max_slice_events.get(),
            self.limits.max_slice_bytes.get(),
        );
        let mut after = None;
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        loop {
            let limit = PageLimit {
                rows: MAX_PAGE,
                bytes: PAGE_BYTES,
            };
            let page = self
                .store
                .page(tenant.as_str(), filter.clone(), after, limit)
                .await?;
            after = page.events.last().map(|event| event.id.clone());
            bytes += page.events.iter().map(|event| event.doc.len()).sum::<usize>();
            records.extend(self.read(tenant, page.events).await?);
            if records.len() > max_events {
                return Err(Error::SliceTooLarge {
                    max: max_events,
                    unit: "events",
                });
            }
            if bytes > max_bytes {
                return Err(Error::SliceTooLarge {
                    max: max_bytes,
                    unit: "bytes",
                });
            }
            if !page.more {
                break;
            }
        }
        Ok(records)
    }
}

/// The question that the pages of a listing answer.
fn question(tenant: &Tenant, filter: &Filter) -> Question {
    let mut kinds: Vec<String> = filter.kinds.iter().map(Kind::to_string).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let subject = filter
        .subject
        .map(|subject| subject.to_string())
        .unwrap_or_default();
    let proven = filter.proven.map(|proven| proven.to_string()).unwrap_or_default();
    Question::new(&["events", tenant.as_str(), &kinds.join(","), &subject, &proven])
}

/// What a slice says of the question that it answers.
fn query(tenant: &Tenant, subject: &Digest, kinds: &[Kind]) -> serde_json::Value {
    let mut kinds: Vec<String> = kinds.iter().map(Kind::to_string).collect();
    kinds.sort_unstable();
    kinds.dedup();
    serde_json::json!({"kinds": kinds, "subjectDigest": subject.to_string(), "tenant": tenant.as_str()})
}

/// The note of the largest tree that the events' proofs name.
fn newest_checkpoint<'a>(events: &[&'a Event]) -> Option<&'a str> {
    let mut newest = None;
    for event in events {
        let rekor = event.provenance().map(|block| &block["dsse"]["rekor"]);
        let place =
            rekor.and_then(|rekor| Some((rekor["treeSize"].as_u64()?, rekor["checkpoint"].as_str()?)));
        newest = newest.max(place);
    }
    newest.map(|(_, note)| note)
}
