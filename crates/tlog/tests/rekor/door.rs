//! A door between a client and a log: it passes requests on, or answers itself, and does to the answers what a test wants.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request, as far as a rule needs it.
pub struct Asked {
    /// Method and path, such as `GET /checkpoint`.
    pub line: String,
    /// Its number, from 0.
    pub number: usize,
}

/// What a rule does.
pub enum Deed {
    /// Passes the request on, and the answer back.
    Pass,
    /// The same, but the answer comes later by this.
    Slow(Duration),
    /// Passes the request on and the answer back as this makes it.
    Change(Box<dyn FnOnce(Vec<u8>) -> Vec<u8> + Send>),
    /// Passes the request on and cuts the connection instead of answering.
    Lose,
    /// Passes the request on and cuts the connection in the middle of the answer.
    Cut,
    /// Answers this without asking anybody.
    Say(Vec<u8>),
}

type Rule = Arc<dyn Fn(&Asked) -> Deed + Send + Sync>;

/// See the module's text; it closes when dropped.
pub struct Door {
    pub url: String,
    rule: Arc<Mutex<Rule>>,
    upstream: Arc<Mutex<Option<String>>>,
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    work: Option<JoinHandle<()>>,
}

/// An answer with a JSON body.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Head and body of a whole answer.
pub fn split(answer: &[u8]) -> (String, Vec<u8>) {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("an answer has a head")
        + 4;
    let head = String::from_utf8(answer[..end].to_vec()).expect("a head is text");
    let body = answer[end..].to_vec();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (head, body);
    }
    let (mut whole, mut rest) = (Vec::new(), &body[..]);
    loop {
        let line = rest
            .windows(2)
            .position(|two| two == b"\r\n")
            .expect("a chunk has a length");
        let length = std::str::from_utf8(&rest[..line]).expect("text");
        let length = usize::from_str_radix(length, 16).expect("a length");
        if length == 0 {
            return (head, whole);
        }
        whole.extend_from_slice(&rest[line + 2..line + 2 + length]);
        rest = &rest[line + 4 + length..];
    }
}

/// A whole answer whose body was changed, with a length that fits.
pub fn rewritten(answer: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (head, mut body) = split(answer);
    change(&mut body);
    let mut written = Vec::new();
    for line in head.trim_end().split("\r\n") {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !matches!(name.as_str(), "content-length" | "transfer-encoding") {
            written.extend_from_slice(line.as_bytes());
            written.extend_from_slice(b"\r\n");
        }
    }
    written.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    written.extend_from_slice(&body);
    written
}

impl Door {
    /// A door before `upstream`, a base URL without path; all passes.
    pub async fn before(upstream: &str) -> Self {
        let door = Self::open(Some(upstream)).await;
        door.rule(|_| Deed::Pass);
        door
    }

    /// A door with nobody behind it.
    pub async fn alone(rule: impl Fn(&Asked) -> Deed + Send + Sync + 'static) -> Self {
        let door = Self::open(None).await;
        door.rule(rule);
        door
    }

    async fn open(upstream: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let mut door = Self {
            url: format!("http://{address}"),
            rule: Arc::new(Mutex::new(Arc::new(|_: &Asked| Deed::Pass))),
            upstream: Arc::new(Mutex::new(None)),
            address,
            asked: Arc::default(),
            work: None,
        };
        if let Some(upstream) = upstream {
            door.lead_to(upstream);
        }
        door.serve(listener);
        door
    }

    /// From now on another server is behind it.
    pub fn lead_to(&self, upstream: &str) {
        let host = upstream.strip_prefix("http://").expect("an http URL");
        *self.upstream.lock().expect("no panic under it") = Some(host.to_owned());
    }

    /// From now on `rule` decides.
    pub fn rule(&self, rule: impl Fn(&Asked) -> Deed + Send + Sync + 'static) {
        *self.rule.lock().expect("no panic under it") = Arc::new(rule);
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Nobody listens from now on.
    pub async fn refuse(&mut self) {
        if let Some(work) = self.work.take() {
            work.abort();
            let _ = work.await;
        }
    }

    /// Listens again.
    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port of before");
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (rule, upstream, asked) = (self.rule.clone(), self.upstream.clone(), self.asked.clone());
        self.work = Some(tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (rule, upstream, asked) = (rule.clone(), upstream.clone(), asked.clone());
                // What fails here is a connection that a test or a peer has cut.
                open.spawn(async move {
                    let _ = pass(stream, &rule, &upstream, &asked).await;
                });
            }
        }));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(work) = &self.work {
            work.abort();
        }
    }
}

async fn pass(
    mut stream: TcpStream,
    rule: &Mutex<Rule>,
    upstream: &Mutex<Option<String>>,
    asked: &AtomicUsize,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let (head, length) = loop {
        let mut part = [0; 16 * 1024];
        let read = stream.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&part[..read]);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let length = head.split_once("content-length: ").map_or(0, |(_, rest)| {
                rest.lines().next().unwrap_or_default().parse().unwrap_or(0)
            });
            break (end + 4, length);
        }
    };
    while request.len() < head + length {
        let mut part = [0; 16 * 1024];
        let read = stream.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&part[..read]);
    }
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let line = line.trim_end_matches(" HTTP/1.1").to_owned();
    let asked = Asked {
        line,
        number: asked.fetch_add(1, Ordering::SeqCst),
    };
    let rule = rule.lock().expect("no panic under it").clone();
    let deed = rule(&asked);
    let answer = match deed {
        Deed::Say(answer) => answer,
        deed => {
            let host = upstream.lock().expect("no panic under it").clone();
            let host = host.expect("a door with somebody behind it");
            let mut behind = TcpStream::connect(&host).await?;
            // One request a connection, so that the answer ends with it.
            let (first, rest) = text.split_once("\r\n").expect("a head has lines");
            let whole = format!("{first}\r\nConnection: close\r\n{rest}");
            behind.write_all(whole.as_bytes()).await?;
            behind.write_all(&request[head..]).await?;
            let mut answer = Vec::new();
            behind.read_to_end(&mut answer).await?;
            match deed {
                Deed::Change(change) => change(answer),
                Deed::Slow(by) => {
                    tokio::time::sleep(by).await;
                    answer
                }
                Deed::Lose => return Ok(()),
                Deed::Cut => answer[..answer.len() - answer.len() / 4].to_vec(),
                Deed::Pass | Deed::Say(_) => answer,
            }
        }
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await
}
