//! What tests of whole services need: the four services as processes, identities to call them with, and tools of
//! others.
//!
//! [`stack::Stack`] runs `stella up` in a directory of its own, [`rest`] calls it over HTTP; [`tools::tool`] finds a
//! program that `cargo xtask peers` brings, [`peers`] starts the servers among them; [`needs`] says what a test lacked.

pub mod peers;
pub mod rest;
pub mod stack;
pub mod tools;

use std::io::Write as _;

/// Says that this test cannot run because the machine lacks `what`; the closing lines of `cargo xtask test` count it.
///
/// # Panics
/// With `CI=true`, where nothing may be lacking.
pub fn needs(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "needs {what}");
    println!("not run: needs {what}");
    if let Some(file) = std::env::var_os("STELLA_NOT_RUN") {
        let file = std::fs::OpenOptions::new().append(true).open(file);
        file.and_then(|mut file| writeln!(file, "{what}"))
            .expect("the list of what is lacking can be written");
    }
}
