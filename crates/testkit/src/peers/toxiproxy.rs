//! Toxiproxy: a network that misbehaves on command.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::home::Home;
use super::http;
use super::ports;
use super::process::{Process, program};
use crate::tools::tool;

/// A running Toxiproxy.
pub struct Toxiproxy {
    _process: Process,
    _home: Home,
    port: u16,
}

/// One direction of a proxied connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What the client sends.
    Requests,
    /// What the server sends.
    Answers,
}

/// A port before a server; gone when this is dropped.
pub struct Proxy {
    /// The address to use instead of the server's, as `127.0.0.1:PORT`.
    pub address: String,
    api: u16,
    name: String,
}

impl Toxiproxy {
    /// Starts one; `None`, said aloud, where it is not brought.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start() -> Option<Self> {
        Some(Self::start_program(&tool("toxiproxy")?))
    }

    /// One for all tests of this program; each makes proxies of its own.
    ///
    /// # Panics
    /// It does not come up.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Toxiproxy> = OnceLock::new();
        let server = tool("toxiproxy")?;
        Some(SHARED.get_or_init(|| Self::start_program(&server)))
    }

    fn start_program(server: &Path) -> Self {
        let home = Home::new();
        let port = ports::free();
        let mut toxiproxy = program(server);
        toxiproxy.args(["-host=127.0.0.1", &format!("-port={port}")]);
        toxiproxy.env("LOG_LEVEL", "warn");
        let mut process = Process::start(toxiproxy, &home.file("toxiproxy.log"));
        process.wait_until(|| http::is_ok(port, "/version"));
        Self {
            _process: process,
            _home: home,
            port,
        }
    }

    /// The base URL of its own interface.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A proxy before `upstream` (`HOST:PORT`) that behaves well at first.
    ///
    /// # Panics
    /// Toxiproxy refuses.
    pub fn proxy(&self, upstream: &str) -> Proxy {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("proxy{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", ports::free());
        let proxy = Proxy {
            address,
            api: self.port,
            name,
        };
        let order = json!({
            "name": proxy.name, "listen": proxy.address, "upstream": upstream, "enabled": true,
        });
        call("POST", self.port, "/proxies", &order);
        proxy
    }
}

impl Proxy {
    /// Refuses new connections and cuts those that are open.
    pub fn disable(&self) {
        self.let_through(false);
    }

    /// Lets connections through again.
    pub fn enable(&self) {
        self.let_through(true);
    }

    /// Delays each part of `stream` by `latency`.
    pub fn latency(&self, stream: Stream, latency: Duration) {
        self.add("latency", stream, &json!({ "latency": millis(latency) }));
    }

    /// Resets each connection (TCP RST) `after` its first byte of `stream`.
    pub fn reset(&self, stream: Stream, after: Duration) {
        self.add("reset_peer", stream, &json!({ "timeout": millis(after) }));
    }

    /// Closes each connection after `bytes` of `stream`: an answer that is cut in the middle.
    pub fn limit_data(&self, stream: Stream, bytes: u64) {
        self.add("limit_data", stream, &json!({ "bytes": bytes }));
    }

    /// Lets nothing of `stream` through and keeps the connections open: a peer that has fallen silent.
    pub fn silence(&self, stream: Stream) {
        self.add("timeout", stream, &json!({ "timeout": 0 }));
    }

    /// Takes every fault away and lets connections through.
    ///
    /// # Panics
    /// Toxiproxy refuses.
    pub fn heal(&self) {
        let toxics = call("GET", self.api, &self.path("/toxics"), &Value::Null);
        for toxic in toxics.as_array().into_iter().flatten() {
            let name = toxic["name"].as_str().expect("a toxic has a name");
            call(
                "DELETE",
                self.api,
                &self.path(&format!("/toxics/{name}")),
                &Value::Null,
            );
        }
        self.enable();
    }

    fn add(&self, kind: &str, stream: Stream, attributes: &Value) {
        let stream = match stream {
            Stream::Requests => "upstream",
            Stream::Answers => "downstream",
        };
        let toxic = json!({ "type": kind, "stream": stream, "attributes": attributes });
        call("POST", self.api, &self.path("/toxics"), &toxic);
    }

    fn let_through(&self, enabled: bool) {
        call("PATCH", self.api, &self.path(""), &json!({ "enabled": enabled }));
    }

    fn path(&self, part: &str) -> String {
        format!("/proxies/{}{part}", self.name)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Toxiproxy itself may be gone already.
        let _ = http::request("DELETE", self.api, &self.path(""), b"");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("below half a billion years")
}

/// The answer of Toxiproxy's own interface.
fn call(method: &str, port: u16, path: &str, order: &Value) -> Value {
    let body = if order.is_null() {
        String::new()
    } else {
        order.to_string()
    };
    let (status, answer) = http::request(method, port, path, body.as_bytes()).expect("Toxiproxy answers");
    let text = String::from_utf8_lossy(&answer);
    assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
    serde_json::from_slice(&answer).unwrap_or(Value::Null)
}
