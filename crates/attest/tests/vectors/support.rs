//! Where the third-party data lies, and the tally of a suite.
//!
//! What the machine lacks is said here as `testkit::needs` says it, and not by it: the test kit starts whole services, and
//! a crate depends on nothing above it, for its tests either (`crates/forensic/tests/layers.rs`).

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of one suite; `None`, said aloud, if the machine has no vectors. With `CI=true` that is a failure.
pub(crate) fn folder(suite: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let root = std::env::var_os("STELLA_VECTORS").map_or_else(beside, PathBuf::from);
    let folder = root.join(suite);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{suite}: needs vectors (STELLA_VECTORS)"
    );
    say("not run: needs vectors (STELLA_VECTORS)");
    if let Some(file) = std::env::var_os("STELLA_NOT_RUN") {
        let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
        writeln!(file, "vectors (STELLA_VECTORS)").unwrap();
    }
    None
}

/// Says a line that is shown even when the test passes.
fn say(line: &str) {
    // `println!` would be captured.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Every file below `folder`, sorted.
pub(crate) fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    files.sort();
    files
}

/// The bytes of a file.
pub(crate) fn read(file: &Path) -> Vec<u8> {
    std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The JSON values of a file with one in each line.
pub(crate) fn lines_of(file: &Path) -> Vec<Value> {
    let bytes = read(file);
    let lines = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The tally of a suite: it goes on after a wrong case, and names all of them at the end.
pub(crate) struct Run {
    suite: &'static str,
    cases: usize,
    wrong: Vec<String>,
    skipped: usize,
}

impl Run {
    pub(crate) fn new(suite: &'static str) -> Self {
        Self {
            suite,
            cases: 0,
            wrong: Vec::new(),
            skipped: 0,
        }
    }

    /// One case, whose verdict is a yes or a no.
    pub(crate) fn expect(&mut self, case: &str, wanted: bool, found: bool) {
        self.cases += 1;
        if wanted != found {
            self.wrong.push(format!("{case}: {found} instead of {wanted}"));
        }
    }

    /// One case, whose verdict is a text.
    pub(crate) fn expect_text(&mut self, case: &str, wanted: &str, found: &str) {
        self.cases += 1;
        if wanted != found {
            self.wrong
                .push(format!("{case}: {found:?} instead of {wanted:?}"));
        }
    }

    /// One case that is about something that we do not have or do not promise; `why` stands in the test's own code.
    pub(crate) fn skip(&mut self, _case: &str, _why: &str) {
        self.skipped += 1;
    }

    /// Says how many cases ran, and fails if one was wrong or none was there.
    pub(crate) fn finish(self) {
        say(&format!(
            "{}: {} cases ran, {} wrong, {} not applicable",
            self.suite,
            self.cases,
            self.wrong.len(),
            self.skipped
        ));
        assert!(self.cases > 0, "{}: no cases", self.suite);
        assert!(
            self.wrong.is_empty(),
            "{}: {} wrong\n{}",
            self.suite,
            self.wrong.len(),
            self.wrong.join("\n")
        );
    }
}
