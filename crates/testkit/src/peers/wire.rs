//! As much of MongoDB's wire protocol as tells that a server answers.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// `OP_MSG` with one section, the BSON document `{hello: 1, $db: "admin"}`.
const HELLO: &[u8] = b"\x34\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\
    \x1f\0\0\0\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0";

/// A connection to the loopback's `port` that gives up after 10 seconds of silence.
pub(crate) fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Asks who is there and reads the answer's header.
///
/// # Errors
/// No answer comes.
pub(crate) fn hello(mut stream: impl Read + Write) -> io::Result<()> {
    stream.write_all(HELLO)?;
    stream.flush()?;
    let mut header = [0; 16];
    stream.read_exact(&mut header)
}
