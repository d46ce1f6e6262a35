//! Reads the audit log at start and refuses one that is not whole.
//!
//! Every line is hashed and must be what the next line names; the last durable one must be what the head names. So a
//! line that was altered, left out or cut off is found, and the refusal says which. Only bytes that were never
//! acknowledged may be missing: the unfinished line at the very end, which a crash leaves behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use stella_attest::digest::Digest;

use super::head::Head;
use super::record::Fields;
use super::{AuditError, Location};

/// No record is as long.
pub(super) const MAX_LINE: u64 = 256 << 10;

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".ndjson";

/// Where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Number of the last record; 0 for none.
    pub(super) seq: u64,
    /// Its hash.
    pub(super) hash: Option<Digest>,
    /// Number of the first record of the last segment; 0 if there is no segment.
    pub(super) segment: u64,
    /// How many bytes of the last segment are whole lines.
    pub(super) length: u64,
}

/// The path of the segment whose first record is `first`.
pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{first:020}{SUFFIX}"))
}

/// The first records of all segments, in order.
fn segments(dir: &Path) -> Result<Vec<u64>, AuditError> {
    let failed = |source| AuditError::io(dir, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok());
        found.extend(number);
    }
    found.sort_unstable();
    Ok(found)
}

/// Checks the whole log and gives each record to `visit`, in order.
pub(super) fn scan(
    dir: &Path,
    head: Option<&Head>,
    visit: &mut dyn FnMut(Location, &Fields<'_>) -> Result<(), AuditError>,
) -> Result<Tail, AuditError> {
    let mut tail = Tail {
        seq: 0,
        hash: None,
        segment: 0,
        length: 0,
    };
    let segments = segments(dir)?;
    for (index, first) in segments.iter().copied().enumerate() {
        if first != tail.seq + 1 {
            return Err(AuditError::Corrupt {
                seq: tail.seq + 1,
                what: "its segment is missing",
            });
        }
        tail.segment = first;
        tail.length = 0;
        let is_last = index + 1 == segments.len();
        scan_segment(dir, head, is_last, &mut tail, visit)?;
    }
    match head {
        Some(head) if head.seq > tail.seq => Err(AuditError::Corrupt {
            seq: tail.seq + 1,
            what: "it was written and is missing",
        }),
        Some(_) | None => Ok(tail),
    }
}

fn scan_segment(
    dir: &Path,
    head: Option<&Head>,
    is_last: bool,
    tail: &mut Tail,
    visit: &mut dyn FnMut(Location, &Fields<'_>) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    let path = segment_path(dir, tail.segment);
    let failed = |source| AuditError::io(&path, source);
    let mut reader = BufReader::with_capacity(1 << 20, File::open(&path).map_err(failed)?);
    let mut line = Vec::new();
    loop {
        let seq = tail.seq + 1;
        if !read_line(&mut reader, &mut line).map_err(failed)? {
            return match (line.is_empty(), is_last) {
                (true, _) | (false, true) => Ok(()),
                (false, false) => Err(AuditError::Corrupt {
                    seq,
                    what: "its line has no end",
                }),
            };
        }
        let malformed = || AuditError::Corrupt {
            seq,
            what: "it is not a record",
        };
        let fields = Fields::parse(&line).ok_or_else(malformed)?;
        if fields.seq > seq {
            return Err(AuditError::Corrupt {
                seq,
                what: "it is missing",
            });
        }
        if fields.seq < seq {
            return Err(AuditError::Corrupt {
                seq,
                what: "it has another number",
            });
        }
        let hash = Digest::of(&line);
        if fields.previous != tail.hash.map(|hash| hash.to_string()).unwrap_or_default() {
            let altered = Altered { seq, hash, head };
            return Err(altered.name(&mut reader));
        }
        if head.is_some_and(|head| head.seq == seq && head.hash != hash) {
            return Err(AuditError::Corrupt {
                seq,
                what: "it was altered",
            });
        }
        let length = line.len() as u64 + 1;
        let at = Location {
            segment: tail.segment,
            offset: tail.length,
            length: line.len() as u32,
        };
        visit(at, &fields)?;
        tail.seq = seq;
        tail.hash = Some(hash);
        tail.length += length;
    }
}

/// Two lines that do not fit: the second one's `previous` is not the first one's hash.
struct Altered<'a> {
    /// Number of the second line.
    seq: u64,
    /// Its hash.
    hash: Digest,
    head: Option<&'a Head>,
}

impl Altered<'_> {
    /// Says which of the two was altered: the second one if what follows does not know it either.
    fn name(&self, reader: &mut impl BufRead) -> AuditError {
        let mut next = Vec::new();
        let known = match read_line(reader, &mut next) {
            Ok(true) => Fields::parse(&next).is_some_and(|next| next.previous == self.hash.to_string()),
            Ok(false) | Err(_) => !self
                .head
                .is_some_and(|head| head.seq == self.seq && head.hash != self.hash),
        };
        let seq = if known {
            self.seq.saturating_sub(1).max(1)
        } else {
            self.seq
        };
        AuditError::Corrupt {
            seq,
            what: "it was altered",
        }
    }
}

/// Reads a line without its newline; false if the file ends before one, with what stood there in `line`.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    std::io::Read::take(&mut *reader, MAX_LINE).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(true);
    }
    // A line that is too long is no record; an unfinished one at the end of the file may be torn.
    Ok(line.len() as u64 == MAX_LINE)
}
