//! Tiles (C2SP tlog-tiles): how a log lies in files.
//!
//! `tile/<L>/<N>` holds 256 consecutive hashes of level 8·L, `tile/entries/<N>` the 256 entries below one tile of
//! level 0. The right edge of a tree ends in partial tiles, `<N>.p/<W>` with W of the 256. `<N>` is written in groups
//! of three digits, all but the last with an `x`: 1234067 is `x001/x234/067`.

use std::fmt;
use std::str::FromStr;

/// Hashes or entries of a full tile.
pub const TILE_WIDTH: u16 = 256;

/// Highest level that a path can name.
const MAX_LEVEL: u8 = 63;

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileKind {
    /// Hashes of the complete subtrees of 256^L leaves.
    Hashes(u8),
    /// Entries, each with its length before it.
    Entries,
}

/// The place of one tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TilePath {
    /// What it holds.
    pub kind: TileKind,
    /// Its position from the left.
    pub index: u64,
    /// Hashes or entries in it, 1 to 256.
    pub width: u16,
}

/// Why a tile is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// Not the path of a tile, or not written in the one right way.
    #[error("the path is not that of a tile")]
    Path,
    /// The bundle does not hold whole entries, or another number of them than its path says.
    #[error("the entry bundle is cut or too long")]
    Bundle,
    /// An entry of more than 65,535 bytes.
    #[error("an entry of {0} bytes is too large")]
    Entry(usize),
}

impl TileError {
    /// The reason code; a contract.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Path => "TILE_PATH",
            Self::Bundle => "TILE_BUNDLE",
            Self::Entry(_) => "ENTRY_TOO_LARGE",
        }
    }
}

impl TilePath {
    /// True if the tile is not full.
    pub const fn is_partial(&self) -> bool {
        self.width < TILE_WIDTH
    }
}

impl fmt::Display for TilePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes(level) => write!(out, "tile/{level}/")?,
            TileKind::Entries => write!(out, "tile/entries/")?,
        }
        let mut groups = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for group in groups[1..].iter().rev() {
            write!(out, "x{group:03}/")?;
        }
        write!(out, "{:03}", groups[0])?;
        if self.is_partial() {
            write!(out, ".p/{}", self.width)
        } else {
            Ok(())
        }
    }
}

impl FromStr for TilePath {
    type Err = TileError;

    fn from_str(text: &str) -> Result<Self, TileError> {
        let path = read_path(text).ok_or(TileError::Path)?;
        // Whatever was written in another way, such as `00`, reads the same but is not the same.
        if path.to_string() == text {
            Ok(path)
        } else {
            Err(TileError::Path)
        }
    }
}

fn read_path(text: &str) -> Option<TilePath> {
    let (kind, rest) = text.strip_prefix("tile/")?.split_once('/')?;
    let kind = match kind {
        "entries" => TileKind::Entries,
        level => TileKind::Hashes(level.parse().ok().filter(|level| *level <= MAX_LEVEL)?),
    };
    let (number, width) = match rest.split_once(".p/") {
        Some((number, width)) => (
            number,
            width
                .parse()
                .ok()
                .filter(|width| (1..TILE_WIDTH).contains(width))?,
        ),
        None => (rest, TILE_WIDTH),
    };
    let mut index: u64 = 0;
    for group in number.split('/') {
        let digits = group.strip_prefix('x').unwrap_or(group);
        if digits.len() != 3 {
            return None;
        }
        index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
    }
    Some(TilePath { kind, index, width })
}

/// Adds an entry to a bundle: its length in two bytes, then itself.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), TileError> {
    let length = u16::try_from(entry.len()).map_err(|_| TileError::Entry(entry.len()))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The entries of a bundle, which must be exactly `width`.
pub fn read_entries(mut bundle: &[u8], width: u16) -> Result<Vec<&[u8]>, TileError> {
    let mut entries = Vec::with_capacity(usize::from(width.min(TILE_WIDTH)));
    for _ in 0..width {
        let (length, rest) = bundle.split_first_chunk::<2>().ok_or(TileError::Bundle)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length).ok_or(TileError::Bundle)?;
        entries.push(entry);
        bundle = rest;
    }
    if bundle.is_empty() {
        Ok(entries)
    } else {
        Err(TileError::Bundle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_in_one_way() {
        for (text, kind, index, width) in [
            ("tile/0/000", TileKind::Hashes(0), 0, 256),
            ("tile/63/x001/x234/067", TileKind::Hashes(63), 1_234_067, 256),
            (
                "tile/entries/x018/x446/x744/x073/x709/x551/615",
                TileKind::Entries,
                u64::MAX,
                256,
            ),
            ("tile/entries/x001/000.p/255", TileKind::Entries, 1000, 255),
        ] {
            let path = TilePath { kind, index, width };
            assert_eq!(text.parse(), Ok(path), "{text}");
            assert_eq!(path.to_string(), text);
        }
        for text in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000",
            "tile/0/x000/001",
            "tile/0/001/002",
            "tile/0/x001",
            "tile/00/001",
            "tile/+1/001",
            "tile/-1/001",
            "tile/64/001",
            "tile/data/001",
            "tile/0/+01",
            "tile/0/001.p",
            "tile/0/001.p/",
            "tile/0/001.p/0",
            "tile/0/001.p/256",
            "tile/0/001.p/05",
            "tile/0/001.p/5/",
            "/tile/0/001",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/../001",
        ] {
            assert_eq!(text.parse::<TilePath>(), Err(TileError::Path), "{text}");
        }
    }

    #[test]
    fn a_bundle_holds_as_many_entries_as_its_path_says() {
        let mut bundle = Vec::new();
        let entries: [&[u8]; 3] = [b"", b"one", &[7; 65_535]];
        for entry in entries {
            push_entry(&mut bundle, entry).unwrap();
        }
        assert_eq!(read_entries(&bundle, 3), Ok(entries.to_vec()));
        assert_eq!(
            push_entry(&mut Vec::new(), &[7; 65_536]),
            Err(TileError::Entry(65_536))
        );
        for (case, bytes, width) in [
            ("more than said", &bundle[..], 2),
            ("fewer than said", &bundle[..], 4),
            ("cut in an entry", &bundle[..bundle.len() - 1], 3),
            ("cut in a length", &bundle[..1], 1),
        ] {
            assert_eq!(read_entries(bytes, width), Err(TileError::Bundle), "{case}");
        }
    }
}
