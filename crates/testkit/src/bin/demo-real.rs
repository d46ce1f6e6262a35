//! Runs `stella demo` on the real parts: DocumentDB with FerretDB v2 and a Rekor v1, then with a Rekor v2 and a timestamp
//! authority. The only argument is the program `stella`.
//!
//! Exit codes: 0 both held, 3 a peer is lacking, 2 wrong usage, 1 one of them did not hold.

use std::path::Path;
use std::process::{Command, ExitCode};

use stella_testkit::peers::{Access, FerretV2, RekorV1, RekorV2, RekorV2Options, Tsa};

fn main() -> ExitCode {
    let Some(stella) = std::env::args_os().nth(1) else {
        eprintln!("demo-real: name the program `stella`");
        return ExitCode::from(2);
    };
    match run(Path::new(&stella)) {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        // What is lacking has been said.
        None => ExitCode::from(3),
    }
}

/// True if both held; `None`, said aloud, where a peer is not brought.
fn run(stella: &Path) -> Option<bool> {
    let home = tempfile::tempdir().expect("a directory");
    let file = |name: &str| home.path().join(name).display().to_string();
    let database = FerretV2::start(Access::Open)?;

    let first = {
        let rekor = RekorV1::start()?;
        std::fs::write(file("rekor1.pem"), &rekor.public_key_pem).expect("writes");
        eprintln!("\nDocumentDB with FerretDB v2, Rekor v1");
        demo(
            stella,
            &[
                ("--dir", file("one")),
                ("--mongodb-uri", database.uri("one")),
                ("--rekor", rekor.url.clone()),
                ("--rekor-version", "1".to_owned()),
                ("--rekor-key", file("rekor1.pem")),
            ],
        )
    };
    let rekor = RekorV2::start(RekorV2Options::default())?;
    let tsa = Tsa::start()?;
    std::fs::write(file("rekor2.pem"), &rekor.public_key_pem).expect("writes");
    std::fs::write(file("tsa.pem"), &tsa.chain_pem).expect("writes");
    eprintln!("\nDocumentDB with FerretDB v2, Rekor v2, a timestamp authority");
    let second = demo(
        stella,
        &[
            ("--dir", file("two")),
            ("--mongodb-uri", database.uri("two")),
            ("--rekor", rekor.url.clone()),
            ("--rekor-version", "2".to_owned()),
            ("--rekor-key", file("rekor2.pem")),
            ("--rekor-tiles", rekor.tiles_url.clone()),
            ("--tsa", tsa.url.clone()),
            ("--tsa-chain", file("tsa.pem")),
        ],
    );
    Some(first && second)
}

fn demo(stella: &Path, flags: &[(&str, String)]) -> bool {
    let mut demo = Command::new(stella);
    demo.arg("demo");
    for (flag, value) in flags {
        demo.arg(flag).arg(value);
    }
    demo.status().expect("stella starts").success()
}
