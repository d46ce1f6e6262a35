//! The journal: what makes a batch durable with one flush.
//!
//! A batch is one record: its entries and the checkpoint that covers them. When the record is flushed, the batch is
//! logged; tiles and checkpoint file are written from it and need no flush of their own while the journal stands. After
//! a crash the journal is read again, and a record that was cut off at its end counts as never written.
//!
//! The journal is a sequence of segments, `journal/<first index>`. The first record of a segment has no entries, only
//! the newest checkpoint. Each record is hashed together with the hash before it, so none can be moved or swapped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use stella_attest::tile;

use super::files;

const FOLDER: &str = "journal";
const MAGIC: &[u8; 16] = b"stella journal 1";
const HEADER: usize = MAGIC.len() + 8;

/// Length and hash stand before each record's payload.
const PREFIX: usize = 4 + 32;

type Link = [u8; 32];

/// The segment that is written.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    link: Link,
    /// Bytes in the segment.
    length: u64,
    /// Index of the next entry.
    next: u64,
}

/// A segment that is written no more: it may go once its entries are durable elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) path: PathBuf,
    /// Index behind its last entry.
    pub(super) end: u64,
    /// Bytes in it that are durable.
    length: u64,
}

/// A batch as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) first: u64,
    pub(super) entries: Vec<Vec<u8>>,
    pub(super) checkpoint: Vec<u8>,
}

/// A segment as it was read.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) records: Vec<Record>,
    /// Bytes behind the last whole record.
    torn: u64,
    length: u64,
    link: Link,
}

/// Reads all segments, oldest first; the path and the reason, if one that is not the last has a bad record.
///
/// A last segment without any whole record, as a crash while making it leaves it, is removed.
pub(super) fn read(dir: &Path) -> io::Result<Result<Vec<Segment>, (PathBuf, &'static str)>> {
    let folder = dir.join(FOLDER);
    let mut starts = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name();
        let start = name
            .to_str()
            .filter(|name| name.len() == 20)
            .and_then(|name| name.parse::<u64>().ok());
        let Some(start) = start else {
            return Ok(Err((folder.join(name), "it is not a segment")));
        };
        starts.push(start);
    }
    starts.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    for (place, start) in starts.iter().enumerate() {
        let path = segment_path(dir, *start);
        let segment = read_segment(path.clone(), &fs::read(&path)?);
        let is_last = place + 1 == starts.len();
        if segment.records.is_empty() && is_last {
            fs::remove_file(&path)?;
            files::sync_dir(&folder)?;
        } else if segment.records.is_empty() || (segment.torn > 0 && !is_last) {
            return Ok(Err((path, "a record is damaged")));
        } else if segment.records[0].first != *start {
            return Ok(Err((path, "its name is not its first index")));
        } else {
            segments.push(segment);
        }
    }
    Ok(Ok(segments))
}

fn segment_path(dir: &Path, start: u64) -> PathBuf {
    dir.join(FOLDER).join(format!("{start:020}"))
}

fn read_segment(path: PathBuf, bytes: &[u8]) -> Segment {
    let mut segment = Segment {
        path,
        records: Vec::new(),
        torn: bytes.len() as u64,
        length: 0,
        link: [0; 32],
    };
    let Some((header, mut rest)) = bytes.split_at_checked(HEADER) else {
        return segment;
    };
    if header[..MAGIC.len()] != MAGIC[..] {
        return segment;
    }
    segment.link = hash(&[header]);
    while let Some((record, link, behind)) = read_record(&segment.link, rest) {
        (segment.link, rest) = (link, behind);
        segment.records.push(record);
    }
    segment.torn = rest.len() as u64;
    segment.length = (bytes.len() - rest.len()) as u64;
    segment
}

fn read_record<'a>(link: &Link, bytes: &'a [u8]) -> Option<(Record, Link, &'a [u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (stated, rest) = rest.split_first_chunk::<32>()?;
    let (payload, behind) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    if hash(&[link, payload]) != *stated {
        return None;
    }
    Some((read_payload(payload)?, *stated, behind))
}

/// `first index ‖ count ‖ length of the entries ‖ entries ‖ checkpoint`.
fn read_payload(payload: &[u8]) -> Option<Record> {
    let (first, rest) = payload.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (entries, checkpoint) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let entries = tile::read_entries(entries, u16::from_be_bytes(*count)).ok()?;
    Some(Record {
        first: u64::from_be_bytes(*first),
        entries: entries.into_iter().map(<[u8]>::to_vec).collect(),
        checkpoint: checkpoint.to_vec(),
    })
}

fn payload_of(first: u64, count: u16, entries: &[u8], checkpoint: &str) -> io::Result<Vec<u8>> {
    let length = u32::try_from(entries.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut payload = Vec::with_capacity(14 + entries.len() + checkpoint.len());
    payload.extend_from_slice(&first.to_be_bytes());
    payload.extend_from_slice(&count.to_be_bytes());
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(entries);
    payload.extend_from_slice(checkpoint.as_bytes());
    Ok(payload)
}

fn hash(parts: &[&[u8]]) -> Link {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut link = [0; 32];
    link.copy_from_slice(context.finish().as_ref());
    link
}

impl Journal {
    /// Makes the folder of segments.
    pub(super) fn prepare(dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir.join(FOLDER))?;
        files::sync_dir(dir)
    }

    /// Begins a segment whose first entry will be `next`.
    pub(super) fn begin(dir: &Path, next: u64, checkpoint: &str) -> io::Result<Self> {
        let path = segment_path(dir, next);
        let mut file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        let header = [&MAGIC[..], &next.to_be_bytes()].concat();
        file.write_all(&header)?;
        let mut journal = Self {
            file,
            path,
            link: hash(&[&header]),
            length: HEADER as u64,
            next,
        };
        journal.append(&[], 0, checkpoint)?;
        files::sync_dir(&dir.join(FOLDER))?;
        Ok(journal)
    }

    /// Goes on with the last segment that was read; cuts off what is behind its last whole record.
    pub(super) fn resume(segment: &Segment, next: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(&segment.path)?;
        if segment.torn > 0 {
            file.set_len(segment.length)?;
            file.sync_all()?;
        }
        let Segment {
            path, link, length, ..
        } = segment;
        Ok(Self {
            file,
            path: path.clone(),
            link: *link,
            length: *length,
            next,
        })
    }

    /// Writes a batch, durably: `entries` are `count` entries as a bundle holds them. This is the commit point.
    pub(super) fn append(&mut self, entries: &[u8], count: u16, checkpoint: &str) -> io::Result<()> {
        let payload = payload_of(self.next, count, entries, checkpoint)?;
        let length =
            u32::try_from(payload.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let link = hash(&[&self.link, &payload]);
        let mut record = Vec::with_capacity(PREFIX + payload.len());
        record.extend_from_slice(&length.to_be_bytes());
        record.extend_from_slice(&link);
        record.extend_from_slice(&payload);
        self.file.write_all(&record)?;
        self.file.sync_data()?;
        self.link = link;
        self.length += record.len() as u64;
        self.next += u64::from(count);
        Ok(())
    }

    /// Bytes in the segment.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Ends the segment.
    pub(super) fn close(self) -> Closed {
        Closed {
            path: self.path,
            end: self.next,
            length: self.length,
        }
    }
}

impl Segment {
    /// The segment as one that is written no more.
    pub(super) fn closed(&self) -> Closed {
        let end = self
            .records
            .last()
            .map_or(0, |record| record.first + record.entries.len() as u64);
        Closed {
            path: self.path.clone(),
            end,
            length: self.length,
        }
    }
}

/// Cuts off what a failed write left behind the last record of `last` that is durable.
///
/// Nobody was told of it. After a failed flush it can be read and still not be on the disk, so it must not be believed.
pub(super) fn cut_back(dir: &Path, last: &Closed) -> io::Result<()> {
    let next = segment_path(dir, last.end);
    if next != last.path {
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let file = OpenOptions::new().write(true).open(&last.path)?;
    file.set_len(last.length)?;
    file.sync_all()?;
    files::sync_dir(&dir.join(FOLDER))
}

/// Removes a segment whose entries are durable elsewhere.
pub(super) fn remove(dir: &Path, closed: &Closed) -> io::Result<()> {
    fs::remove_file(&closed.path)?;
    files::sync_dir(&dir.join(FOLDER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(entries: &[&[u8]]) -> Vec<u8> {
        let mut bundle = Vec::new();
        for entry in entries {
            tile::push_entry(&mut bundle, entry).unwrap();
        }
        bundle
    }

    fn record(first: u64, entries: &[&[u8]], checkpoint: &str) -> Record {
        let entries = entries.iter().map(|entry| entry.to_vec()).collect();
        Record {
            first,
            entries,
            checkpoint: checkpoint.as_bytes().to_vec(),
        }
    }

    fn records(dir: &Path) -> Vec<Record> {
        let segments = read(dir).unwrap().unwrap();
        segments.into_iter().flat_map(|segment| segment.records).collect()
    }

    fn written(dir: &Path) -> PathBuf {
        Journal::prepare(dir).unwrap();
        let mut journal = Journal::begin(dir, 5, "at 5").unwrap();
        journal.append(&bundle(&[b"five", b""]), 2, "at 7").unwrap();
        journal.append(&bundle(&[b"seven"]), 1, "at 8").unwrap();
        let closed = journal.close();
        assert_eq!(closed.end, 8);
        closed.path
    }

    #[test]
    fn a_journal_cut_anywhere_keeps_every_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let all = [
            record(5, &[], "at 5"),
            record(5, &[b"five", b""], "at 7"),
            record(7, &[b"seven"], "at 8"),
        ];
        assert_eq!(records(dir.path()), all);
        let bytes = fs::read(&path).unwrap();
        let starts: Vec<usize> = {
            let mut ends = vec![HEADER];
            for _ in 0..3 {
                let at = ends[ends.len() - 1];
                let length = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                ends.push(at + PREFIX + length as usize);
            }
            ends
        };
        assert_eq!(starts[3], bytes.len());
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let whole = starts[1..].iter().filter(|end| **end <= cut).count();
            assert_eq!(records(dir.path()), all[..whole], "cut at {cut}");
            assert_eq!(path.exists(), whole > 0, "cut at {cut}");
        }
    }

    #[test]
    fn a_resumed_journal_goes_on_behind_the_last_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let segments = read(dir.path()).unwrap().unwrap();
        let mut journal = Journal::resume(&segments[0], 7).unwrap();
        journal.append(&bundle(&[b"7"]), 1, "again at 8").unwrap();
        let all = [
            record(5, &[], "at 5"),
            record(5, &[b"five", b""], "at 7"),
            record(7, &[b"7"], "again at 8"),
        ];
        assert_eq!(records(dir.path()), all);
    }

    #[test]
    fn what_a_failed_write_left_is_cut_off_even_if_it_looks_whole() {
        let dir = tempfile::tempdir().unwrap();
        Journal::prepare(dir.path()).unwrap();
        let mut journal = Journal::begin(dir.path(), 5, "at 5").unwrap();
        journal.append(&bundle(&[b"five"]), 1, "at 6").unwrap();
        let path = journal.path.clone();
        let (end, length) = (journal.next, journal.length());
        journal
            .append(&bundle(&[b"six"]), 1, "never acknowledged")
            .unwrap();
        let last = Closed { path, end, length };
        Journal::begin(dir.path(), 6, "never acknowledged").unwrap();
        cut_back(dir.path(), &last).unwrap();
        let durable = [record(5, &[], "at 5"), record(5, &[b"five"], "at 6")];
        assert_eq!(records(dir.path()), durable);
        cut_back(dir.path(), &last).unwrap();
        assert_eq!(records(dir.path()), durable, "again");
    }

    #[test]
    fn only_the_last_segment_may_be_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let bytes = fs::read(&path).unwrap();
        let next = Journal::begin(dir.path(), 8, "at 8").unwrap().close().path;
        assert_eq!(records(dir.path()).len(), 4);
        for (case, damaged) in [
            ("cut", bytes[..bytes.len() - 1].to_vec()),
            (
                "bent",
                bytes.iter().map(|byte| byte ^ u8::from(*byte == b'v')).collect(),
            ),
            ("longer", [&bytes[..], &bytes[HEADER..]].concat()),
            ("empty", Vec::new()),
        ] {
            fs::write(&path, &damaged).unwrap();
            let refused = read(dir.path()).unwrap().unwrap_err();
            assert_eq!(refused, (path.clone(), "a record is damaged"), "{case}");
        }
        fs::write(&path, &bytes).unwrap();
        let misnamed = segment_path(dir.path(), 9);
        fs::rename(&next, &misnamed).unwrap();
        assert_eq!(
            read(dir.path()).unwrap().unwrap_err(),
            (misnamed.clone(), "its name is not its first index")
        );
        let foreign = dir.path().join(FOLDER).join("notes.txt");
        fs::rename(&misnamed, &foreign).unwrap();
        assert_eq!(
            read(dir.path()).unwrap().unwrap_err(),
            (foreign, "it is not a segment")
        );
    }
}
