//! Connections that outlive the process: at the end they go to the service manager's descriptor store,
//! at the start they come back from it (sd_notify(3), `FDSTORE=1`).
//!
//! The same for kernel devices, QEMU and any other client: none of them notices more than a pause.
//!
//! Invariants:
//! - a connection is stored only when it stopped at a message boundary with every reply sent, or the request stored
//!   with it and nothing of it done, so that the next process reads the beginning of a request and no reply comes
//!   twice or never;
//! - nothing is stored while the daemon serves: after `kill -9` the connections are closed, which their
//!   clients see, instead of kept open in the middle of a message;
//! - what was stored is taken out of the store, and the manager has confirmed it, before the first
//!   byte is read. Else a second death would bring back connections in an unknown state.
//!
//! Absent: listening sockets (`nbd/activation.rs`), and what a connection is (`nbd/keep.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe;
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nbd::activation::{InheritedFd, STORED_PREFIX};
use crate::nbd::keep::Kept;

/// The form of [`State`]. Another one is not understood, and the connections are closed.
const VERSION: u32 = 1;
/// The same with requests that are not answered, which version 1 would forget.
const VERSION_UNANSWERED: u32 = 2;
/// The name of the descriptor that holds [`State`].
const STATE: &str = "state";
/// The most that is read of it.
const STATE_MAX: u64 = 64 << 20;
/// How long the service manager may take to confirm.
const BARRIER_LIMIT: Duration = Duration::from_secs(5);

/// What is written down beside the sockets.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// By the name of the descriptor.
    connections: BTreeMap<String, Kept>,
}

/// Whether there is a service manager to hand connections to.
#[must_use]
pub fn possible() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Hands connections to the service manager.
///
/// # Errors
/// It does not take them.
pub fn store(kept: Vec<(OwnedFd, Kept)>) -> Result<()> {
    if kept.is_empty() {
        return Ok(());
    }
    let failed = |e: io::Error| Error::io("hand over the connections", &e);
    let mut connections = BTreeMap::new();
    for (number, (fd, kept)) in kept.into_iter().enumerate() {
        let name = format!("{STORED_PREFIX}{number}");
        send(&name, fd.as_fd()).map_err(failed)?;
        connections.insert(name, kept);
    }
    let mut file = File::from(memory().map_err(failed)?);
    let unanswered = connections.values().any(|kept: &Kept| !kept.unanswered.is_empty());
    let version = if unanswered { VERSION_UNANSWERED } else { VERSION };
    let text = serde_json::to_vec(&State { version, connections })
        .map_err(|e| Error::internal(format!("encode the connections: {e}")))?;
    file.write_all(&text).map_err(failed)?;
    send(&format!("{STORED_PREFIX}{STATE}"), file.as_fd()).map_err(failed)?;
    barrier().map_err(failed)
}

fn memory() -> io::Result<OwnedFd> {
    Ok(memfd_create("rowd-connections", MFdFlags::MFD_CLOEXEC)?)
}

fn send(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    // Without FDPOLL=0 the manager drops a descriptor when the other side hangs up, which is for the
    // next process to see.
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[fd])
}

/// Waits until the service manager has dealt with everything it was told.
fn barrier() -> io::Result<()> {
    let (ours, theirs) = pipe()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    let limit = PollTimeout::try_from(BARRIER_LIMIT).map_err(io::Error::other)?;
    let mut asked = [PollFd::new(ours.as_fd(), PollFlags::empty())];
    match poll(&mut asked, limit)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the service manager does not confirm")),
        _ => Ok(()),
    }
}

/// Takes the connections of the process before out of the store. What is not understood is closed.
pub fn take(stored: Vec<InheritedFd>) -> Vec<(OwnedFd, Kept)> {
    if stored.is_empty() {
        return Vec::new();
    }
    match try_take(stored) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(%error, "the connections of the process before are closed");
            Vec::new()
        }
    }
}

fn try_take(stored: Vec<InheritedFd>) -> Result<Vec<(OwnedFd, Kept)>> {
    let failed = |e: io::Error| Error::io("take over the connections", &e);
    for one in &stored {
        let state = [NotifyState::FdStoreRemove, NotifyState::FdName(&one.name)];
        sd_notify::notify(&state).map_err(failed)?;
    }
    barrier().map_err(failed)?;
    let (states, sockets): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|one| one.name == format!("{STORED_PREFIX}{STATE}"));
    let state =
        states.into_iter().next().ok_or_else(|| Error::invalid("nothing describes them"))?;
    let mut connections = read(state.fd)?.connections;
    let known = |one: InheritedFd| {
        let kept = connections.remove(&one.name);
        if kept.is_none() {
            tracing::warn!(name = one.name, "a connection that nothing describes is closed");
        }
        kept.map(|kept| (one.fd, kept))
    };
    Ok(sockets.into_iter().filter_map(known).collect())
}

fn read(fd: OwnedFd) -> Result<State> {
    let failed = |e: io::Error| Error::io("read the description of connections", &e);
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut text = Vec::new();
    file.take(STATE_MAX).read_to_end(&mut text).map_err(failed)?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(format!("the description of connections: {e}")))?;
    if ![VERSION, VERSION_UNANSWERED].contains(&state.version) {
        let message = format!("connections are described in version {}", state.version);
        return Err(Error::invalid(message));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(export: &str) -> Kept {
        Kept {
            export: export.to_owned(),
            peer: "fio".to_owned(),
            pid: Some(7),
            structured: true,
            contexts: vec![(1, "base:allocation".to_owned())],
            device: None,
            unanswered: vec![0, 7],
        }
    }

    fn described(text: &[u8]) -> Result<State> {
        let mut file = File::from(memory().unwrap());
        file.write_all(text).unwrap();
        read(file.into())
    }

    #[test]
    fn what_is_described_is_read_back() {
        let connections = BTreeMap::from([("rowd-kept-0".to_owned(), kept("d-1"))]);
        let text = serde_json::to_vec(&State { version: VERSION, connections }).unwrap();
        assert_eq!(described(&text).unwrap().connections["rowd-kept-0"], kept("d-1"));
    }

    /// After an upgrade or a downgrade the other side may write what this one does not know.
    #[test]
    fn another_version_is_refused() {
        let error = described(br#"{"version":3,"connections":{}}"#).unwrap_err();
        assert!(error.message().contains("version 3"), "{error}");
        assert!(described(b"").is_err() && described(b"{}").is_err());
    }
}
