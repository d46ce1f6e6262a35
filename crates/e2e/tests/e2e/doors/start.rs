//! What keeps a service from starting is said whole: which file, which line and key, why, and what to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stella_testkit::stack::Ended;
use stella_testkit::tools::built;

use super::SERVICES;

/// The full sample of a service's configuration.
fn sample(service: &str) -> String {
    let file = format!("../../deploy/config/{service}.toml");
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the sample")
}

/// Both ways of starting a service.
fn starts(service: &str, config: &Path) -> [Ended; 2] {
    let mut own = Command::new(built(&format!("stella-{service}")));
    let mut general = Command::new(built("stella"));
    general.args(["serve", service]);
    [own.arg("--config"), general.arg("--config")]
        .map(|command| Ended::of(command.arg(config).stdin(Stdio::null())))
}

#[test]
fn a_configuration_with_an_error_is_explained_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    for service in SERVICES {
        let sample = sample(service);
        let line = |text: &str| {
            let found = sample.lines().position(|line| line == text);
            format!("line {}", found.expect("the sample has every key") + 1)
        };
        let connections = "max_connections = 1024";
        for (case, from, to, wanted) in [
            (
                "a key that nobody knows",
                connections,
                "max_conections = 1024",
                [line(connections), "unknown field `max_conections`".to_owned()],
            ),
            (
                "a number that makes no sense",
                connections,
                "max_connections = 0",
                [line(connections), "max_connections = 0".to_owned()],
            ),
            (
                "no TOML",
                connections,
                "max_connections 1024",
                [line(connections), "max_connections 1024".to_owned()],
            ),
            (
                "a text for a number",
                connections,
                "max_connections = \"many\"",
                [line(connections), "invalid type: string \"many\"".to_owned()],
            ),
        ] {
            let path = dir.path().join(format!("{service}.toml"));
            std::fs::write(&path, sample.replace(from, to)).expect("writes");
            for ended in starts(service, &path) {
                assert_eq!(ended.code, 1, "{case}: {ended:?}");
                let file = format!("`{}` is not a valid configuration", path.display());
                for part in [&file, &wanted[0], &wanted[1], "[CONFIG_INVALID]", "deploy/config"] {
                    assert!(ended.stderr.contains(part), "{case}: {part} in {}", ended.stderr);
                }
            }
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    for service in SERVICES {
        let absent = dir.path().join("absent.toml");
        for ended in starts(service, &absent) {
            assert_eq!(ended.code, 1, "{ended:?}");
            let file = format!("cannot read `{}`", absent.display());
            for part in [
                &file,
                "No such file or directory",
                "[FILE_UNREADABLE]",
                "--config",
            ] {
                assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
            }
        }
        // A good configuration whose certificate is missing: a relative path counts from its folder.
        let path: PathBuf = dir.path().join(format!("{service}.toml"));
        std::fs::write(&path, sample(service)).expect("writes");
        for ended in starts(service, &path) {
            assert_eq!(ended.code, 1, "{ended:?}");
            let file = format!("cannot read `{}", dir.path().display());
            for part in [&file, "cert.pem", "No such file or directory"] {
                assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
            }
        }
    }
}
