//! What an append leaves in the store, as the floor of appending: the raw signature work behind those rows, and the raw
//! insertion of the same rows.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};
use stella_attest::dsse::Envelope;
use stella_attest::evidence::Evidence;
use stella_attest::key::{SigningKey, VerifyingKey};
use stella_attest::note::Note;
use stella_attest::trust::TrustRoots;
use tempfile::TempDir;

use super::cores;
use super::row::in_turn;

/// The tables that an append writes to, and the column that says which event or attestation a row belongs to.
const TABLES: [(&str, &str); 5] = [
    ("events", "seq"),
    ("attestations", "seq"),
    ("attestation_digests", "attestation"),
    ("attestation_subjects", "attestation"),
    ("attestations_in_use", "attestation"),
];

/// The store of the services, and one of ours with the same schema.
pub struct Stored {
    source: Connection,
    floor: Connection,
    _dir: TempDir,
    keys: Keys,
    /// The last row of each table that was there before.
    seen: [i64; TABLES.len()],
}

/// The rows of one table, each with its place in the order of appends.
struct Rows {
    insert: String,
    rows: Vec<(usize, Vec<Value>)>,
}

impl Stored {
    /// Opens the store of the services in `up`.
    pub fn open(up: &Path) -> anyhow::Result<Self> {
        let path = up.join("feedser/feedser.db");
        let source = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let dir = tempfile::tempdir()?;
        let floor = Connection::open(dir.path().join("floor.db"))?;
        floor.pragma_update(None, "page_size", 8192)?;
        floor.pragma_update(None, "journal_mode", "WAL")?;
        floor.pragma_update(None, "synchronous", "FULL")?;
        floor.pragma_update(None, "cache_size", -65_536)?;
        floor.pragma_update(None, "wal_autocheckpoint", 4096)?;
        floor.pragma_update(None, "temp_store", "MEMORY")?;
        {
            let mut schema = source.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
            for sql in schema.query_map((), |row| row.get::<_, String>(0))? {
                floor.execute_batch(&sql?)?;
            }
        }
        Ok(Self {
            source,
            floor,
            _dir: dir,
            keys: Keys::read(up)?,
            seen: [0; TABLES.len()],
        })
    }

    /// Passes over all rows that are there now.
    pub fn skip(&mut self) -> anyhow::Result<()> {
        for ((table, number), seen) in TABLES.iter().zip(&mut self.seen) {
            let query = format!("SELECT coalesce(max({number}), 0) FROM {table}");
            *seen = self.source.query_row(&query, (), |row| row.get(0))?;
        }
        Ok(())
    }

    /// Events a second, if the rows that came since [`skip`](Self::skip) cost nothing but their signature checks and
    /// receipts, on all cores, and their insertion, `batch` of them at a time.
    pub fn raw_rate(&mut self, batch: usize) -> anyhow::Result<f64> {
        let work = self.signature_work()?;
        let checks = cores::rate(work.len(), |number| self.keys.repeat(&work[number]));
        let mut tables = Vec::new();
        for index in 0..TABLES.len() {
            tables.push(self.new_rows(index)?);
        }
        let start = Instant::now();
        for first in (0..work.len()).step_by(batch) {
            let transaction = self.floor.transaction()?;
            for Rows { insert, rows } in &mut tables {
                let mut insert = transaction.prepare_cached(insert)?;
                let end = rows.partition_point(|(number, _)| *number < first + batch);
                for (_, values) in rows.drain(..end) {
                    insert.execute(params_from_iter(values))?;
                }
            }
            transaction.commit()?;
        }
        let inserts = work.len() as f64 / start.elapsed().as_secs_f64();
        Ok(in_turn(checks, inserts))
    }

    fn new_rows(&self, index: usize) -> anyhow::Result<Rows> {
        let ((table, number), seen) = (TABLES[index], self.seen[index]);
        // `table_info` leaves out what SQLite computes.
        let mut info = self.source.prepare("SELECT name FROM pragma_table_info(?1)")?;
        let columns = info
            .query_map([table], |row| row.get(0))?
            .collect::<Result<Vec<String>, _>>()?;
        let (list, places) = (columns.join(", "), vec!["?"; columns.len()].join(", "));
        let query = format!("SELECT {number}, {list} FROM {table} WHERE {number} > ?1 ORDER BY {number}");
        let mut statement = self.source.prepare(&query)?;
        let mut found = statement.query([seen])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let values = (1..=columns.len())
                .map(|column| row.get(column))
                .collect::<Result<_, _>>()?;
            rows.push((usize::try_from(row.get::<_, i64>(0)? - seen - 1)?, values));
        }
        Ok(Rows {
            insert: format!("INSERT INTO {table} ({list}) VALUES ({places})"),
            rows,
        })
    }

    fn signature_work(&self) -> anyhow::Result<Vec<Work>> {
        let mut events = self
            .source
            .prepare("SELECT trust FROM events WHERE seq > ?1 ORDER BY seq")?;
        let trust = events
            .query_map([self.seen[0]], |row| row.get(0))?
            .collect::<Result<Vec<String>, _>>()?;
        let mut attestations = self
            .source
            .prepare("SELECT evidence FROM attestations WHERE seq > ?1 ORDER BY seq")?;
        let evidence = attestations.query_map([self.seen[1]], |row| row.get(0))?;
        let evidence = evidence.collect::<Result<Vec<Vec<u8>>, _>>()?;
        anyhow::ensure!(
            !trust.is_empty() && trust.len() == evidence.len(),
            "an event lacks its attestation"
        );
        evidence
            .iter()
            .zip(&trust)
            .map(|(evidence, trust)| Work::read(evidence, trust))
            .collect()
    }
}

/// Whose signatures an event bears.
struct Keys {
    attestation: VerifyingKey,
    log: VerifyingKey,
    witness: VerifyingKey,
    receipt: SigningKey,
}

/// A message and its signature.
type Pair = (Vec<u8>, Vec<u8>);

/// The signatures of one event.
struct Work {
    envelope: Pair,
    checkpoint: Pair,
    cosignature: Pair,
    receipt: Pair,
}

impl Keys {
    fn read(up: &Path) -> anyhow::Result<Self> {
        let roots = TrustRoots::parse(&fs::read(up.join("verifier/trust-roots.json"))?)?;
        let attestation = roots
            .attestation_keys()
            .next()
            .context("no attestation key")?
            .key
            .clone();
        let log = roots.logs().first().context("no log")?.key.key.clone();
        let witness = roots.witnesses().first().context("no witness")?.key().clone();
        let receipt = SigningKey::from_pkcs8_pem(&fs::read_to_string(up.join("verifier/receipt.pem"))?)?;
        Ok(Self {
            attestation,
            log,
            witness,
            receipt,
        })
    }

    /// Makes every check that the event was put to, and its receipt.
    fn repeat(&self, work: &Work) {
        let holds = |key: &VerifyingKey, (message, signature): &Pair| key.verify(message, signature);
        assert!(
            holds(&self.attestation, &work.envelope),
            "the envelope's signature"
        );
        assert!(holds(&self.log, &work.checkpoint), "the log's signature");
        assert!(holds(&self.witness, &work.cosignature), "the witness's signature");
        let signature = self.receipt.sign(&work.receipt.0).expect("a receipt key signs");
        assert_eq!(signature, work.receipt.1, "Ed25519 is deterministic");
        assert!(
            holds(self.receipt.verifying_key(), &work.receipt),
            "the receipt's signature"
        );
    }
}

impl Work {
    fn read(evidence: &[u8], trust: &str) -> anyhow::Result<Self> {
        let evidence = Evidence::parse(evidence)?;
        let proof = evidence
            .material
            .log_entries
            .first()
            .and_then(|entry| entry.proof.as_ref());
        let note = Note::parse(proof.context("the evidence is not logged")?.checkpoint.as_bytes())?;
        let [log, witness] = note.signatures() else {
            anyhow::bail!("the checkpoint is not cosigned")
        };
        let (time, cosignature) = witness.bytes.split_first_chunk::<8>().context("no cosignature")?;
        let cosigned = format!(
            "cosignature/v1\ntime {}\n{}",
            u64::from_be_bytes(*time),
            note.text()
        );
        let trust: serde_json::Value = serde_json::from_str(trust)?;
        let receipt = Envelope::from_value(&trust["receipt"])?;
        let signed = |envelope: &Envelope| (envelope.pae(), envelope.signatures[0].sig.clone());
        Ok(Self {
            envelope: signed(&evidence.envelope),
            checkpoint: (note.text().as_bytes().to_vec(), log.bytes.clone()),
            cosignature: (cosigned.into_bytes(), cosignature.to_vec()),
            receipt: signed(&receipt),
        })
    }
}
