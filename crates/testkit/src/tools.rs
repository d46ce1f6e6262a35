//! Programs of others, at the versions that `.ci/tools` brings.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::needs;

/// The directory that `.ci/tools` fills.
fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("STELLA_TOOLS") {
        return folder.into();
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(home, PathBuf::from)
        .join("stella-tools")
}

/// The program `name`; `None`, said aloud, if the machine does not have it.
pub fn tool(name: &str) -> Option<PathBuf> {
    let brought = [format!("bin/{name}"), format!("python/bin/{name}")].map(|place| folder().join(place));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|folder| folder.join(name));
    let found = brought.into_iter().chain(installed).find(|place| place.is_file());
    if found.is_none() {
        needs(&format!("{name} (.ci/tools)"));
    }
    found
}

/// The Python that `.ci/tools` makes, with the module `module`; `None`, said aloud, without it.
pub fn python(module: &str) -> Option<PathBuf> {
    let program = folder().join("python/bin/python");
    let imports = Command::new(&program)
        .args(["-c", &format!("import {module}")])
        .output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(program);
    }
    needs(&format!("python module {module} (.ci/tools)"));
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
