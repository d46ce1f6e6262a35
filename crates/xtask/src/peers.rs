//! `cargo xtask peers`: brings the programs of others that checks and tests need.
//!
//! [`list::PEERS`] says what, at which version, and how; [`recipe`] does it, through the ordinary package clients, into
//! `$STELLA_PEERS`, by default `stella-peers` in the user's cache directory. Programs go into `bin`, Python modules into
//! `python`, everything else into a directory of its name. A file in `have` marks what is there, so that nothing is
//! brought twice; another version is another mark.

mod list;
mod recipe;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use list::PEERS;
use recipe::Recipe;

/// A program (or module) of others.
struct Peer {
    /// What `cargo xtask peers NAME` and `not run: needs NAME` call it.
    name: &'static str,
    version: &'static str,
    /// SPDX expression.
    licence: &'static str,
    recipe: Recipe,
    /// The files, below the checkout, that use it.
    used_by: &'static [&'static str],
}

/// The directory that holds the peers.
pub(crate) fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("STELLA_PEERS") {
        return folder.into();
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(home, PathBuf::from)
        .join("stella-peers")
}

/// Prints every peer.
pub(crate) fn list() {
    for peer in PEERS {
        println!(
            "{:<20} {:<14} {:<26} {}",
            peer.name,
            peer.version,
            peer.licence,
            peer.used_by.join(" ")
        );
    }
}

/// Brings the peers `names`, or all if there are none, one after the other.
///
/// # Errors
/// A name is unknown; a peer could not be brought (the others are tried all the same).
pub(crate) fn bring(names: &[String]) -> anyhow::Result<()> {
    for name in names {
        let known = PEERS.iter().any(|peer| peer.name == name);
        anyhow::ensure!(
            known,
            "no peer is called `{name}`; `cargo xtask peers --list` names them"
        );
    }
    let folder = folder();
    for part in ["bin", "have"] {
        let part = folder.join(part);
        std::fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
    }
    let folder = folder.canonicalize()?;
    let mut failed = Vec::new();
    for peer in PEERS {
        if !names.is_empty() && !names.iter().any(|name| name == peer.name) {
            continue;
        }
        if let Err(error) = bring_one(peer, &folder) {
            println!("{} {}: {error:#}", peer.name, peer.version);
            failed.push(peer.name);
        }
    }
    anyhow::ensure!(failed.is_empty(), "could not bring {}", failed.join(", "));
    Ok(())
}

fn bring_one(peer: &Peer, folder: &Path) -> anyhow::Result<()> {
    let mark = folder
        .join("have")
        .join(format!("{}-{}", peer.name, peer.version));
    if peer.recipe.is_done(&mark) {
        println!("{} {}: is there", peer.name, peer.version);
        return Ok(());
    }
    let begun = Instant::now();
    peer.recipe.follow(peer, folder)?;
    std::fs::write(&mark, "")?;
    println!(
        "{} {}: brought in {} s",
        peer.name,
        peer.version,
        begun.elapsed().as_secs()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::PEERS;

    #[test]
    fn the_list_names_files_that_use_the_peer() {
        for peer in PEERS {
            assert!(!peer.used_by.is_empty(), "{}", peer.name);
            for file in peer.used_by {
                let path = format!("{}/../../{file}", env!("CARGO_MANIFEST_DIR"));
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
                assert!(text.contains(peer.name), "{file} does not name {}", peer.name);
            }
        }
    }
}
