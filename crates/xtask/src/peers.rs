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
    /// What the source of a test that uses it holds: the name of its launcher, or its own in quotes.
    word: &'static str,
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

/// Prints every peer, with the tests and checks that use it.
///
/// # Errors
/// The checkout cannot be read.
pub(crate) fn list() -> anyhow::Result<()> {
    let files = users()?;
    for peer in PEERS {
        let Peer {
            name,
            version,
            licence,
            ..
        } = peer;
        println!(
            "{name:<18} {version:<13} {licence:<19} {}",
            used_by(peer, &files).join(" ")
        );
    }
    Ok(())
}

/// The files of the checkout that may use a peer, by name, with what they hold.
fn users() -> anyhow::Result<Vec<(String, String)>> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let mut files = Vec::new();
    let mut folders = vec![
        checkout.join(".ci"),
        checkout.join("crates"),
        checkout.join("services"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            let name = path.strip_prefix(&checkout)?.display().to_string();
            if entry.file_type()?.is_dir() {
                // These say what a peer is and how it starts.
                if name != "crates/xtask" && name != "crates/testkit/src" {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") || name.starts_with(".ci/") {
                files.push((name, std::fs::read_to_string(&path)?));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn used_by<'a>(peer: &Peer, files: &'a [(String, String)]) -> Vec<&'a str> {
    let mut used_by = Vec::new();
    for (name, text) in files {
        let uses = if name.starts_with(".ci/") {
            text.split_whitespace().any(|word| word == peer.name)
        } else {
            text.contains(peer.word)
        };
        if uses {
            used_by.push(name.as_str());
        }
    }
    used_by
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
    use super::{PEERS, used_by, users};

    #[test]
    fn nothing_is_brought_that_nothing_uses() {
        let files = users().unwrap();
        for peer in PEERS {
            assert!(!used_by(peer, &files).is_empty(), "{}", peer.name);
        }
    }
}
