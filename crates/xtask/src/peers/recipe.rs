//! How a peer is brought. Each step is a run of an ordinary package client; what it says is shown if it fails.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use anyhow::Context as _;

use super::Peer;
use super::list::PEERS;
use Recipe::{Apt, Cargo, DocumentDb, FerretV1, Go, GoTogether, MongoJavaServer, Npm, Pip};

/// How a peer is brought.
pub(super) enum Recipe {
    /// By the distribution, for the whole machine, unless `program` is there. Needs root.
    Apt {
        program: &'static str,
        package: &'static str,
    },
    /// A Node package; `program` lies in `node_modules`.
    Npm {
        package: &'static str,
        program: &'static str,
    },
    /// A Python package, in a virtual environment that all share.
    Pip { package: &'static str },
    /// A crate with a program.
    Cargo,
    /// A Go program; it gets the name of the peer.
    Go { package: &'static str },
    /// Go programs whose dependencies are largely the same: they stand in one throw-away module with those of the other
    /// peers of this kind, and are compiled against one set of versions. A single one gets the name of the peer.
    GoTogether { packages: &'static [&'static str] },
    /// FerretDB v1 with our own `main`, because its program lacks SQLite.
    FerretV1,
    /// mongo-java-server with our own `main`.
    MongoJavaServer,
    /// PostgreSQL with DocumentDB, unpacked. Needs root.
    DocumentDb,
}

impl Recipe {
    /// Whether it need not be followed; `mark` is a file that stands where it was.
    pub(super) fn is_done(&self, mark: &Path) -> bool {
        match self {
            Apt { program, .. } => is_installed(program),
            Npm { .. }
            | Pip { .. }
            | Cargo
            | Go { .. }
            | GoTogether { .. }
            | FerretV1
            | MongoJavaServer
            | DocumentDb => mark.exists(),
        }
    }

    /// Brings `peer` into `folder`.
    pub(super) fn follow(&self, peer: &Peer, folder: &Path) -> anyhow::Result<()> {
        match self {
            Apt { package, .. } => apt(package),
            Npm { package, program } => npm(peer, folder, package, program),
            Pip { package } => pip(peer, folder, package),
            Cargo => {
                let mut install = Command::new("cargo");
                install.args(["install", "--quiet", "--debug", "--locked", "--force", "--root"]);
                install.arg(folder).arg(format!("{}@{}", peer.name, peer.version));
                run(install.env("CARGO_PROFILE_DEV_DEBUG", "0"))
            }
            Go { package } => {
                let mut install = go_install(folder);
                install.arg(format!("{package}@v{}", peer.version));
                run(&mut install)?;
                take(folder, package, peer.name)
            }
            GoTogether { packages } => go_together(peer, folder, packages),
            FerretV1 => ferret_v1(peer, folder),
            MongoJavaServer => mongo_java_server(folder),
            DocumentDb => documentdb(folder),
        }
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Joining an absolute path gives that path.
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs `command` to its end, quietly unless it fails.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{program}` cannot be started"))?;
    if output.status.success() {
        return Ok(());
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    print!("{}", String::from_utf8_lossy(&output.stderr));
    anyhow::bail!("`{program}`: {}", output.status)
}

fn apt(package: &str) -> anyhow::Result<()> {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        // A list that cannot be refreshed may still be good enough; the installation tells.
        if let Err(error) = run(Command::new("apt-get").args(["update", "-qq"])) {
            println!("{error:#}");
        }
    });
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends", package]);
    // At this run level a package's service is not started.
    run(install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1"))
    .with_context(|| format!("needs root, or the package `{package}` from the distribution"))
}

fn npm(peer: &Peer, folder: &Path, package: &str, program: &str) -> anyhow::Result<()> {
    let modules = folder.join("npm");
    let mut install = Command::new("npm");
    install.args([
        "install",
        "--silent",
        "--no-fund",
        "--no-audit",
        "--ignore-scripts",
        "--prefix",
    ]);
    install.arg(&modules).arg(format!("{package}@{}", peer.version));
    run(&mut install)?;
    let link = folder.join("bin").join(peer.name);
    if link.is_symlink() {
        std::fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(modules.join("node_modules").join(program), link)?;
    Ok(())
}

fn pip(peer: &Peer, folder: &Path, package: &str) -> anyhow::Result<()> {
    let python = folder.join("python");
    if !python.join("bin/pip").is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    }
    let mut install = Command::new(python.join("bin/pip"));
    install.args(["install", "--quiet"]);
    run(install.arg(format!("{package}=={}", peer.version)))
}

/// `go install` into the directory that [`take`] takes from.
fn go_install(folder: &Path) -> Command {
    let mut install = Command::new("go");
    install.args(["install", "-trimpath", "-ldflags=-s -w"]);
    install.env("GOBIN", folder.join("new"));
    install
}

/// Moves the program that was made from the Go package `package` to its place.
fn take(folder: &Path, package: &str, name: &str) -> anyhow::Result<()> {
    let made = package.rsplit('/').next().unwrap_or(package);
    std::fs::rename(folder.join("new").join(made), folder.join("bin").join(name))
        .with_context(|| format!("go made no `{made}`"))
}

/// An empty directory for a module of that name.
fn fresh(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let module = folder.join(name);
    if module.exists() {
        std::fs::remove_dir_all(&module)?;
    }
    std::fs::create_dir_all(&module)?;
    Ok(module)
}

fn go_together(peer: &Peer, folder: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let module = folder.join("go-together");
    let mut tools = Vec::new();
    for other in PEERS {
        if let GoTogether { packages } = other.recipe {
            for package in packages {
                tools.push(format!("{package}@v{}", other.version));
            }
        }
    }
    let wanted = tools.join("\n");
    let complete = module.join("complete");
    if std::fs::read_to_string(&complete).ok().as_ref() != Some(&wanted) {
        fresh(folder, "go-together")?;
        run(Command::new("go")
            .args(["mod", "init", "example.invalid/peers"])
            .current_dir(&module))?;
        run(Command::new("go")
            .args(["get", "-tool"])
            .args(&tools)
            .current_dir(&module))?;
        std::fs::write(&complete, &wanted)?;
    }
    for package in packages {
        let mut install = go_install(folder);
        // Without its tag Trillian has no PostgreSQL; the other programs do not know the tag.
        install.args(["-tags", "postgresql", package]);
        run(install.current_dir(&module))?;
        let program = package.rsplit('/').next().unwrap_or(package);
        take(
            folder,
            package,
            if packages.len() == 1 { peer.name } else { program },
        )?;
    }
    if peer.name == "trillian" {
        let mut list = Command::new("go");
        list.args(["list", "-m", "-f", "{{.Dir}}", "github.com/google/trillian"]);
        let output = list.current_dir(&module).output()?;
        let sources = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let schema = sources.join("storage/postgresql/schema/storage.sql");
        // Not a copy of the mode: the cache is read-only.
        let text = std::fs::read(&schema).with_context(|| schema.display().to_string())?;
        std::fs::write(folder.join("trillian.sql"), text)?;
    }
    Ok(())
}

fn ferret_v1(peer: &Peer, folder: &Path) -> anyhow::Result<()> {
    let module = fresh(folder, peer.name)?;
    std::fs::write(module.join("main.go"), include_str!("../../peers/ferretdb-v1.go"))?;
    run(Command::new("go")
        .args(["mod", "init", "example.invalid/ferretdb-v1"])
        .current_dir(&module))?;
    let library = format!("github.com/FerretDB/FerretDB/ferretdb@v{}", peer.version);
    run(Command::new("go").args(["get", &library]).current_dir(&module))?;
    let mut install = go_install(folder);
    install.env("CGO_ENABLED", "0").arg(".");
    run(install.current_dir(&module))?;
    take(folder, peer.name, peer.name)
}

fn mongo_java_server(folder: &Path) -> anyhow::Result<()> {
    let place = fresh(folder, "mongo-java-server")?;
    std::fs::write(
        place.join("pom.xml"),
        include_str!("../../peers/mongo-java-server.xml"),
    )?;
    std::fs::write(
        place.join("MongoJavaServer.java"),
        include_str!("../../peers/MongoJavaServer.java"),
    )?;
    let mut copy = Command::new("mvn");
    copy.args([
        "-q",
        "-B",
        "dependency:copy-dependencies",
        "-DoutputDirectory=lib",
    ]);
    run(copy.current_dir(&place))?;
    let mut compile = Command::new("javac");
    compile.args([
        "--release",
        "17",
        "-cp",
        "lib/*",
        "-d",
        "classes",
        "MongoJavaServer.java",
    ]);
    run(compile.current_dir(&place))
}

fn documentdb(folder: &Path) -> anyhow::Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut script = Command::new("sh");
    script.args(["-c", include_str!("../../peers/documentdb.sh"), "documentdb"]);
    run(script.arg(folder.join("documentdb")).arg(port.to_string()))
}
