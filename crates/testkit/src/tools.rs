//! Programs of others, at the versions that `cargo xtask peers` brings.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::needs;

/// The directory that `cargo xtask peers` fills.
pub(crate) fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("STELLA_PEERS") {
        return folder.into();
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(home, PathBuf::from)
        .join("stella-peers")
}

/// Says aloud that the peer `name` is not there.
fn needs_peer(name: &str) {
    needs(&format!("{name} (cargo xtask peers {name})"));
}

/// The program `name`; `None`, said aloud, if the machine does not have it.
pub fn tool(name: &str) -> Option<PathBuf> {
    tool_of(name, name)
}

/// The program `name` of the peer `peer`, where one brings several; `None`, said aloud, if the machine does not have it.
pub fn tool_of(peer: &str, name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        needs_peer(peer);
    }
    found
}

/// Whether the machine has the program `name`; nothing is said.
pub fn is_there(name: &str) -> bool {
    find(name).is_some()
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|folder| folder.join(name));
    std::iter::once(folder().join("bin").join(name))
        .chain(installed)
        .find(|place| place.is_file())
}

/// What lies at `place` below the directory of the peers once `peer` is brought; `None`, said aloud, without it.
pub(crate) fn part_of(peer: &str, place: &str) -> Option<PathBuf> {
    let found = folder().join(place);
    if found.exists() {
        return Some(found);
    }
    needs_peer(peer);
    None
}

/// Whether this process is root's.
pub(crate) fn is_root() -> bool {
    let user = std::fs::metadata("/proc/self").map(|own| own.uid());
    matches!(user, Ok(0))
}

/// Says aloud that this process is not root's; `None` then.
pub(crate) fn root() -> Option<()> {
    if is_root() {
        return Some(());
    }
    needs("root (PostgreSQL runs in namespaces of its own)");
    None
}

/// The Python that has the module `module`; `None`, said aloud, without it.
pub fn python(module: &str) -> Option<PathBuf> {
    let program = folder().join("python/bin/python");
    let imports = Command::new(&program)
        .args(["-c", &format!("import {module}")])
        .output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(program);
    }
    needs_peer(module);
    None
}

/// A program of this workspace, as `cargo build` made it for this profile.
///
/// # Panics
/// It is not built.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let mut folders = test.ancestors().skip(1);
    let found = folders
        .by_ref()
        .take(3)
        .map(|folder: &Path| folder.join(name))
        .find(|place| place.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is not built: cargo build --workspace --bins"))
}
