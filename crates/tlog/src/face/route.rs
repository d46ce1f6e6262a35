//! What a path asks for.

use stella_attest::tile::TilePath;

/// Before which Rekor v2 has its paths.
const PREFIX: &str = "/api/v2";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The entries, to which one is added.
    Entries,
    /// The newest checkpoint.
    Checkpoint,
    /// A tile. Its path is written anew from what was read here, so no other file can be reached.
    Tile(TilePath),
    /// Whether the log is there.
    Health,
}

impl Route {
    /// `None` if nothing has this path. Paths are compared as they stand, without decoding anything.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/api/v2/log/entries" => return Some(Self::Entries),
            "/healthz" => return Some(Self::Health),
            _ => {}
        }
        let read = path.strip_prefix(PREFIX).unwrap_or(path).strip_prefix('/')?;
        match read {
            "checkpoint" => Some(Self::Checkpoint),
            tile => tile.parse().ok().map(Self::Tile),
        }
    }

    /// The route's name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Checkpoint => "checkpoint",
            Self::Tile(_) => "tile",
            Self::Health => "health",
        }
    }
}

#[cfg(test)]
mod tests {
    use stella_attest::tile::TileKind;

    use super::*;

    #[test]
    fn a_path_asks_for_one_thing_or_for_nothing() {
        let tile = |kind, index, width| Some(Route::Tile(TilePath { kind, index, width }));
        for (path, want) in [
            ("/api/v2/log/entries", Some(Route::Entries)),
            ("/healthz", Some(Route::Health)),
            ("/checkpoint", Some(Route::Checkpoint)),
            ("/api/v2/checkpoint", Some(Route::Checkpoint)),
            ("/tile/0/000", tile(TileKind::Hashes(0), 0, 256)),
            ("/api/v2/tile/0/000.p/7", tile(TileKind::Hashes(0), 0, 7)),
            ("/tile/entries/x001/234", tile(TileKind::Entries, 1234, 256)),
            ("/", None),
            ("", None),
            ("/log/entries", None),
            ("/api/v2/log/entries/", None),
            ("/api/v2/healthz", None),
            ("/api/v2/api/v2/checkpoint", None),
            ("/checkpoint.cosigned", None),
            ("/journal/00000000000000000000", None),
            ("/vkey", None),
            ("/tile/0/0", None),
            ("/tile/0/000.p/256", None),
            ("/tile/0/000.p/0", None),
            ("/tile/64/000", None),
            ("/tile/../checkpoint", None),
            ("/tile/entries/../../vkey", None),
            ("/tile/entries/000.p/../../../vkey", None),
            ("/tile/%2e%2e/vkey", None),
            ("/tile/0/000%00", None),
            ("//tile/0/000", None),
            ("/api/v2//tile/0/000", None),
        ] {
            assert_eq!(Route::of(path), want, "{path}");
        }
    }
}
