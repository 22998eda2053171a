//! The kernel's NBD client, played by the test: what it does when a connection does not answer in time.
//!
//! Invariants: as the kernel does it, a connection is shut down in both directions before its requests
//! are sent again on another one, and a newer write is sent only after the older one was answered.
//! Absent: judging; `faults.rs` runs each with and without its guard.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rowd::engine::Engine;
use rowd::nbd::keep::Kept;
use rowd::nbd::siblings::{Siblings, pair};
use rowd::nbd::wire::{REQUEST_MAGIC, command};
use rowd::nbd::{OnEnd, Resumed, Server};

use super::Outcome;
use super::engine::pool;
use crate::model::machine::text;

const BLOCK: usize = 4096;
/// Writes that a connection has received and not done when it is given up: a millisecond of work, and no
/// more than the daemon takes in one receive, after which it notices that nobody takes its replies.
const BACKLOG: u64 = 120;
const ROUNDS: usize = 50;
/// Where the write goes that is sent twice.
const CONTESTED: u64 = 0;

/// The kernel's end of a connection.
struct Link(UnixStream);

impl Link {
    fn new(server: &Arc<Server>, siblings: &Arc<Siblings>, export: &str) -> Result<Link, String> {
        let (ours, kernels) = pair().map_err(|e| e.to_string())?;
        // The whole backlog has to fit, or sending it would wait for the daemon.
        setsockopt(&kernels, sockopt::SndBufForce, &(8 << 20)).map_err(|e| e.to_string())?;
        let kept = Kept {
            export: export.to_owned(),
            peer: "/dev/nbd0".to_owned(),
            pid: None,
            structured: false,
            contexts: Vec::new(),
            device: Some(0),
            unanswered: Vec::new(),
        };
        let device = Some((Arc::clone(siblings), OnEnd(Box::new(|_| {}))));
        server.resume(Resumed { fd: ours, kept, device }).map_err(text)?;
        Ok(Link::of(kernels))
    }

    fn of(fd: OwnedFd) -> Link {
        let stream = UnixStream::from(fd);
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
        Link(stream)
    }

    fn send(&mut self, messages: &[u8]) -> Result<(), String> {
        self.0.write_all(messages).map_err(|e| e.to_string())
    }

    fn write(&mut self, offset: u64, fill: u8) -> Result<(), String> {
        let mut message = Vec::new();
        put_write(&mut message, offset, fill);
        self.send(&message)?;
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).map_err(|e| e.to_string())?;
        if reply[4..8] == [0; 4] { Ok(()) } else { Err("a write failed".to_owned()) }
    }

    fn read_byte(&mut self, offset: u64) -> Result<u8, String> {
        let mut message = Vec::new();
        put_header(&mut message, command::READ, offset, 1);
        self.send(&message)?;
        let mut reply = [0; 17];
        self.0.read_exact(&mut reply).map_err(|e| e.to_string())?;
        Ok(reply[16])
    }
}

fn put_header(out: &mut Vec<u8>, command: u16, offset: u64, length: usize) {
    out.extend(REQUEST_MAGIC.to_be_bytes());
    out.extend(0u16.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(u32::try_from(length).expect("short").to_be_bytes());
}

fn put_write(out: &mut Vec<u8>, offset: u64, fill: u8) {
    put_header(out, command::WRITE, offset, BLOCK);
    out.resize(out.len() + BLOCK, fill);
}

/// H11: a request that the kernel sends a second time is not carried out a first time afterwards.
pub fn a_request_sent_twice() -> Outcome {
    let (_dir, engine) = pool(512)?;
    let server = Server::new(&engine, Duration::ZERO).map_err(text)?;
    let export = disk_id(&engine)?;
    let siblings = Arc::new(Siblings::default());
    let mut steady = Link::new(&server, &siblings, &export)?;
    let mut outcome = Ok(());
    for round in 0..ROUNDS {
        let mut doomed = Link::new(&server, &siblings, &export)?;
        let mut backlog = Vec::new();
        (1..BACKLOG).for_each(|block| put_write(&mut backlog, block * BLOCK as u64, 1));
        put_write(&mut backlog, CONTESTED, 1);
        doomed.send(&backlog)?;
        doomed.0.shutdown(Shutdown::Both).map_err(|e| e.to_string())?;
        steady.write(CONTESTED, 1)?;
        steady.write(CONTESTED, 2)?;
        // The first execution, if there is one, is over when its connection is.
        if !await_one(&siblings) {
            return Err("the connection that was given up goes on".to_owned());
        }
        if steady.read_byte(CONTESTED)? != 2 {
            outcome = Err(format!("round {round}: an older write replaced a newer one"));
            break;
        }
    }
    drop(steady);
    if !server.drained(Duration::from_secs(60)) {
        return Err("connections do not end".to_owned());
    }
    engine.close().map_err(text)?;
    outcome
}

fn await_one(siblings: &Siblings) -> bool {
    let alone = || (siblings.count() == 1).then_some(());
    rowd_tests::wait::try_until(rowd_tests::wait::PATIENCE, alone).is_some()
}

fn disk_id(engine: &Engine) -> Result<String, String> {
    engine.find_disk("disk").map(|id| id.to_string()).map_err(text)
}
