//! The embedded log over HTTP against Rekor v2, with the same clients and the same kind of entries.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use stella_attest::digest::Digest;
use stella_attest::key::{Algorithm, SigningKey};
use stella_testkit::peers::{RekorV2, RekorV2Options};
use stella_testkit::tools;
use stella_tlog::embedded::{EmbeddedConfig, EmbeddedLog};
use stella_tlog::face::{Face, FaceConfig};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::row::{Goal, Row, median};

pub const NAMES: [&str; 3] = [
    "log over HTTP, 1 client / Rekor v2 on the POSIX file system",
    "log over HTTP, 8 clients / Rekor v2",
    "log over HTTP, 64 clients / Rekor v2",
];

const CLIENTS: [usize; 3] = [1, 8, 64];
const ROUNDS: usize = 3;
/// Entries of each client in a round: of ours, which answers at once, and of Rekor, which answers once a second.
const OURS: [usize; 3] = [400, 200, 50];
const REKORS: usize = 3;

/// What the machine lacks to run Rekor v2.
pub fn lacks() -> Option<&'static str> {
    let is_there = tools::is_there("rekor-v2");
    (!is_there).then_some("rekor-v2 (cargo xtask peers rekor-v2)")
}

pub fn rows(runtime: &Runtime) -> anyhow::Result<Vec<Row>> {
    let rekor = RekorV2::start(RekorV2Options::default()).context("Rekor v2 does not start")?;
    let rekor_address: SocketAddr = rekor.url.trim_start_matches("http://").parse()?;
    let dir = tempfile::tempdir()?;
    let log_key = SigningKey::generate(Algorithm::Ed25519)?;
    let log = EmbeddedLog::open(
        EmbeddedConfig::new(dir.path(), "127.0.0.1"),
        log_key,
        None,
        Vec::new(),
    )?;
    let log = Arc::new(log);
    let config = FaceConfig {
        writes_per_second: u32::MAX,
        write_burst: u32::MAX,
        ..FaceConfig::new("127.0.0.1:0".parse()?)
    };
    let face = runtime.block_on(async { Face::bind(config, None) })?;
    let (address, stop) = (face.address(), CancellationToken::new());
    let served = runtime.spawn(face.serve(log.clone(), stop.clone()));
    let key = SigningKey::generate(Algorithm::EcdsaP256)?;
    let mut rows = Vec::new();
    for ((name, clients), each) in NAMES.into_iter().zip(CLIENTS).zip(OURS) {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(rate(address, &key, clients, each)?);
            floor.push(rate(rekor_address, &key, clients, REKORS)?);
        }
        rows.push(Row {
            name,
            ours: median(ours),
            floor: median(floor),
            goal: Goal::AtLeast(20.0),
            unit: "entries/s",
        });
    }
    stop.cancel();
    runtime.block_on(served)?;
    log.close();
    Ok(rows)
}

/// Entries a second that so many clients log, each on a connection of its own, `each` one after the other.
fn rate(address: SocketAddr, key: &SigningKey, clients: usize, each: usize) -> anyhow::Result<f64> {
    let mut all = Vec::new();
    for _ in 0..clients {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let requests = (0..each).map(|_| request(key));
        all.push((BufReader::new(stream), requests.collect::<Result<Vec<_>, _>>()?));
    }
    let start = Instant::now();
    let mut threads = Vec::new();
    for (mut stream, requests) in all {
        threads.push(thread::spawn(move || {
            for request in &requests {
                post(&mut stream, request)?;
            }
            anyhow::Ok(())
        }));
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok((clients * each) as f64 / start.elapsed().as_secs_f64())
}

/// A request to log a signature that was never made before: ECDSA is randomised.
fn request(key: &SigningKey) -> anyhow::Result<Vec<u8>> {
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let message = b"statement";
    let body = json!({"hashedRekordRequestV002": {
        "digest": encode(Digest::of(message).as_bytes()),
        "signature": {
            "content": encode(&key.sign(message)?),
            "verifier": {
                "publicKey": {"rawBytes": encode(key.verifying_key().spki())},
                "keyDetails": key.verifying_key().key_details(),
            },
        },
    }})
    .to_string();
    let head = format!(
        "POST /api/v2/log/entries HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head, body].concat().into_bytes())
}

/// Sends a request and reads its answer, which must say that the entry is there.
fn post(stream: &mut BufReader<TcpStream>, request: &[u8]) -> anyhow::Result<()> {
    stream.get_mut().write_all(request)?;
    let mut status = String::new();
    stream.read_line(&mut status)?;
    ensure!(status.starts_with("HTTP/1.1 201 "), "the log says {status:?}");
    let mut length = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.context("the answer has no length")?];
    stream.read_exact(&mut body)?;
    Ok(())
}
