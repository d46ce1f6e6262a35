//! One HTTP request to a server on this machine, whole and blocking. HTTP/1.0, so that the answer ends with the
//! connection.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Status and body of the answer to `method path`, asked of the loopback's `port`.
///
/// # Errors
/// Nobody listens, or the answer is no HTTP or does not come within 30 seconds.
pub(crate) fn request(method: &str, port: u16, path: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let no_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP");
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let body = answer.split_off(head.ok_or_else(no_http)? + 4);
    let status = std::str::from_utf8(&answer).ok().and_then(|head| {
        let mut words = head.split(' ');
        words.next().filter(|version| version.starts_with("HTTP/1."))?;
        words.next()?.parse().ok()
    });
    Ok((status.ok_or_else(no_http)?, body))
}

/// Whether `GET path` is answered with 200.
pub(crate) fn is_ok(port: u16, path: &str) -> bool {
    request("GET", port, path, b"").is_ok_and(|(status, _)| status == 200)
}
