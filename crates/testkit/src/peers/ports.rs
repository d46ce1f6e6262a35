//! Ports that nobody listens on.

use std::net::TcpListener;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

/// Below the range from which the kernel takes ports for outgoing connections, so that none of those is in the way
/// between the choice of a port and its use.
const FIRST: u16 = 12_000;
/// Ports that a process claims at once.
const BLOCK: u16 = 100;
const BLOCKS: u16 = 180;

/// What this process has claimed.
struct Ports {
    /// A claim is a name in the kernel's abstract namespace: it goes when the process does, however it ends.
    claims: Vec<UnixListener>,
    /// What is left of the last block.
    left: Range<u16>,
}

/// A port of the loopback that is free and was not given out before, by this process or by a test program that runs
/// beside it: between the choice of a port and its use another program would take the same one.
pub(crate) fn free() -> u16 {
    static PORTS: Mutex<Ports> = Mutex::new(Ports {
        claims: Vec::new(),
        left: 0..0,
    });
    let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        for port in ports.left.by_ref() {
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
        let (claim, block) = claim();
        ports.claims.push(claim);
        ports.left = block;
    }
}

/// A block that no process has.
fn claim() -> (UnixListener, Range<u16>) {
    let own = std::process::id();
    for step in 0..u32::from(BLOCKS) {
        let number = u16::try_from(own.wrapping_add(step) % u32::from(BLOCKS)).expect("below BLOCKS");
        let first = FIRST + number * BLOCK;
        let name = SocketAddr::from_abstract_name(format!("stella-testkit-ports-{first}"));
        if let Ok(claim) = UnixListener::bind_addr(&name.expect("a short name")) {
            return (claim, first..first + BLOCK);
        }
    }
    panic!("no port is free");
}
