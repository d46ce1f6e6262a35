//! The log's files, and what it takes for them to survive a crash.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use stella_attest::checkpoint::LogKey;
use stella_attest::merkle::{Hash, MemoryTree};
use stella_attest::note::{MAX_NOTE, Note};
use stella_attest::tile::{TILE_WIDTH, TileKind, TilePath};

use super::Signed;

/// The newest checkpoint, as the log signed it.
pub(super) const CHECKPOINT: &str = "checkpoint";

/// The newest checkpoint that every required witness cosigned.
pub(super) const COSIGNED: &str = "checkpoint.cosigned";

/// Origin and key of the log, fixed when it was made, as a C2SP verifier key.
pub(super) const VERIFIER_KEY: &str = "vkey";

/// Held by the process that writes.
pub(super) const LOCK: &str = "lock";

/// What disks write whole or not at all.
const SECTOR: usize = 512;

const WIDTH: u64 = TILE_WIDTH as u64;

/// The bytes of a file; `None` if there is none.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a checkpoint over the one before, or in its place; durably if `is_durable`.
///
/// Nearly every one is as long as the one before. Such a one is written over it: one write within one sector, which no
/// crash tears, and a hundred times cheaper on ext4 than a new file in its place. Whoever reads in that very moment
/// finds the signature wrong and reads again.
pub(super) fn write_checkpoint(dir: &Path, name: &str, note: &str, is_durable: bool) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return replace_durably(dir, name, note.as_bytes());
        }
        opened => opened?,
    };
    if file.metadata()?.len() != note.len() as u64 || note.len() > SECTOR {
        return replace_durably(dir, name, note.as_bytes());
    }
    file.write_all_at(note.as_bytes(), 0)?;
    if is_durable { file.sync_data() } else { Ok(()) }
}

/// Replaces a file at once, durably.
pub(super) fn replace_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

/// Finds out whether the disk takes `bytes` more; leaves nothing.
pub(super) fn probe(dir: &Path, bytes: usize) -> io::Result<()> {
    let path = dir.join("probe");
    let mut file = File::create(&path)?;
    let written = file.write_all(&vec![0; bytes]).and_then(|()| file.sync_all());
    fs::remove_file(&path)?;
    written
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes files and the directories that lead to them from `dir` durable.
pub(super) fn sync_all<'a>(dir: &Path, names: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    for name in names {
        let path = dir.join(name);
        File::open(&path)?.sync_all()?;
        folders.extend(
            path.ancestors()
                .skip(1)
                .take_while(|folder| folder.starts_with(dir))
                .map(PathBuf::from),
        );
    }
    for folder in folders {
        sync_dir(&folder)?;
    }
    Ok(())
}

/// Writes a tile. Its name belongs to this content alone, and nobody is told of it before it is whole.
pub(super) fn write_tile(dir: &Path, tile: &TilePath, bytes: &[u8]) -> io::Result<()> {
    let path = dir.join(tile.to_string());
    match fs::write(&path, bytes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, bytes)
        }
        done => done,
    }
}

/// Reads a signed checkpoint of the log; an inner error says why it does not count.
pub(super) fn read_signed(
    dir: &Path,
    name: &str,
    log: &LogKey,
) -> io::Result<Option<Result<Signed, String>>> {
    let Some(bytes) = read(&dir.join(name))? else {
        return Ok(None);
    };
    Ok(Some(signed_from(&bytes, log)))
}

/// Checks the log's signature on a checkpoint.
pub(super) fn signed_from(bytes: &[u8], log: &LogKey) -> Result<Signed, String> {
    if bytes.len() > MAX_NOTE {
        return Err("the checkpoint is too large".into());
    }
    let note = Note::parse(bytes).map_err(|error| error.to_string())?;
    let checkpoint = log.verify_checkpoint(&note).map_err(|error| error.to_string())?;
    Ok(Signed {
        checkpoint,
        note: note.to_string().into(),
    })
}

/// Where the partial tiles of a tile that became full stand.
pub(super) fn partial_folder(dir: &Path, tile: &TilePath) -> PathBuf {
    let full = TilePath {
        width: TILE_WIDTH,
        ..*tile
    };
    dir.join(format!("{full}.p"))
}

/// The tiles that a tree of `new` leaves has and one of `old` has not: hashes of every level, then bundles of entries.
pub(super) fn tiles_between(old: u64, new: u64) -> Vec<TilePath> {
    let mut tiles = Vec::new();
    let (mut level, mut before, mut after) = (0, old, new);
    while after > 0 {
        add_tiles(TileKind::Hashes(level), before, after, &mut tiles);
        (level, before, after) = (level + 1, before / WIDTH, after / WIDTH);
    }
    add_tiles(TileKind::Entries, old, new, &mut tiles);
    tiles
}

fn add_tiles(kind: TileKind, before: u64, after: u64, tiles: &mut Vec<TilePath>) {
    for index in before / WIDTH..after / WIDTH {
        tiles.push(TilePath {
            kind,
            index,
            width: TILE_WIDTH,
        });
    }
    let width = (after % WIDTH) as u16;
    if width > 0 && after > before {
        tiles.push(TilePath {
            kind,
            index: after / WIDTH,
            width,
        });
    }
}

/// The tiles of a tree that are not full, at every level.
pub(super) fn partial_tiles(size: u64) -> Vec<TilePath> {
    let mut tiles = Vec::new();
    let (mut level, mut nodes) = (0, size);
    while nodes > 0 {
        add_tiles(TileKind::Hashes(level), nodes - nodes % WIDTH, nodes, &mut tiles);
        (level, nodes) = (level + 1, nodes / WIDTH);
    }
    add_tiles(TileKind::Entries, size - size % WIDTH, size, &mut tiles);
    tiles
}

/// The partial tiles of a smaller tree that no full one has replaced in a tree of `now`.
pub(super) fn partial_tiles_at(size: u64, now: u64) -> impl Iterator<Item = TilePath> {
    let is_full_now = move |tile: &TilePath| {
        leaves_of(&TilePath {
            width: TILE_WIDTH,
            ..*tile
        })
        .1 <= now
    };
    partial_tiles(size)
        .into_iter()
        .filter(move |tile| !is_full_now(tile))
}

/// The content of a tile of hashes.
pub(super) fn hashes_of(tree: &MemoryTree, level: u8, tile: &TilePath) -> Vec<u8> {
    let first = tile.index as usize * usize::from(TILE_WIDTH);
    let nodes = tree.level(level * 8).get(first..first + usize::from(tile.width));
    nodes.map(<[Hash]>::concat).unwrap_or_default()
}

/// The leaves that a tile is about: the first one, and the first one behind it.
pub(super) fn leaves_of(tile: &TilePath) -> (u64, u64) {
    let of_each = match tile.kind {
        TileKind::Entries => 1,
        TileKind::Hashes(level) => 1_u64.checked_shl(u32::from(level) * 8).unwrap_or(u64::MAX),
    };
    let first = tile.index.saturating_mul(WIDTH);
    (
        first.saturating_mul(of_each),
        (first + u64::from(tile.width)).saturating_mul(of_each),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(old: u64, new: u64) -> Vec<String> {
        tiles_between(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_tree_has_the_tiles_of_its_size_and_no_others() {
        assert_eq!(names(0, 0), [""; 0]);
        assert_eq!(names(7, 7), [""; 0]);
        assert_eq!(names(0, 1), ["tile/0/000.p/1", "tile/entries/000.p/1"]);
        assert_eq!(
            names(255, 256),
            ["tile/0/000", "tile/1/000.p/1", "tile/entries/000"]
        );
        assert_eq!(names(256, 300), ["tile/0/001.p/44", "tile/entries/001.p/44"]);
        assert_eq!(
            names(250, 600),
            [
                "tile/0/000",
                "tile/0/001",
                "tile/0/002.p/88",
                "tile/1/000.p/2",
                "tile/entries/000",
                "tile/entries/001",
                "tile/entries/002.p/88",
            ]
        );
        assert_eq!(
            names(65_535, 65_536),
            ["tile/0/255", "tile/1/000", "tile/2/000.p/1", "tile/entries/255"]
        );
    }

    #[test]
    fn the_partial_tiles_are_those_at_the_right_edge() {
        for size in [0, 1, 255, 256, 300, 600, 65_536, 65_537, 70_000, 16_777_216] {
            let all = tiles_between(0, size).into_iter();
            let partial: Vec<TilePath> = all.filter(TilePath::is_partial).collect();
            assert_eq!(partial_tiles(size), partial, "size {size}");
        }
    }

    #[test]
    fn a_tile_is_about_the_leaves_below_it() {
        for (name, leaves) in [
            ("tile/entries/002.p/88", (512, 600)),
            ("tile/0/002.p/88", (512, 600)),
            ("tile/1/000.p/2", (0, 512)),
            ("tile/1/001", (65_536, 131_072)),
            ("tile/63/001", (u64::MAX, u64::MAX)),
        ] {
            assert_eq!(leaves_of(&name.parse().unwrap()), leaves, "{name}");
        }
    }
}
