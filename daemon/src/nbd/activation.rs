//! Descriptors that the service manager had open when it started the daemon: listening sockets of a
//! socket unit, and what the process before put into the descriptor store.
//!
//! The protocol is systemd's, sd_listen_fds(3): `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`.
//!
//! Invariants:
//! - a socket is handed out once, by the first call; the variables need not be removed for that,
//!   and children ignore them because `LISTEN_PID` is not theirs;
//! - a descriptor whose name begins with [`STORED_PREFIX`] was stored by rowd; any other is a listening
//!   stream socket, or an error;
//! - children inherit none of them.
//!
//! Absent: what stored descriptors are (`handover.rs` of the daemon).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::error::{Error, Result};

/// The first inherited descriptor, fixed by the protocol.
const FIRST_FD: RawFd = 3;
/// Sockets a unit may hand over. A larger number is a mistake in the environment.
const SOCKETS_MAX: usize = 1024;
/// How the names begin that rowd gives to what it stores.
pub const STORED_PREFIX: &str = "rowd-kept-";
/// The name of a socket that was given none, as in sd_listen_fds_with_names(3).
const UNNAMED: &str = "unknown";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// A descriptor and its name: `FileDescriptorName=` of a unit, or `FDNAME=` of what was stored.
#[derive(Debug)]
pub struct InheritedFd {
    pub name: String,
    pub fd: OwnedFd,
}

/// What this process was started with.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets.
    pub listening: Vec<InheritedFd>,
    /// What rowd had stored.
    pub stored: Vec<InheritedFd>,
}

/// The descriptors meant for this process, in the order of the manager; none on the second call.
///
/// To be called before anything else opens descriptors that it could be confused with.
///
/// # Errors
/// The variables are malformed, or a descriptor is not a listening stream socket.
pub fn inherited() -> Result<Inherited> {
    let mut all = Inherited::default();
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(all);
    }
    let names = announced_names(std::process::id(), |variable| std::env::var(variable).ok())?;
    for (fd, name) in (FIRST_FD..).zip(names) {
        if name.starts_with(STORED_PREFIX) {
            all.stored.push(claim(fd, name)?);
        } else {
            all.listening.push(listening(claim(fd, name)?)?);
        }
    }
    Ok(all)
}

/// The names of the sockets the variables announce to the process `pid`, one for each.
fn announced_names(pid: u32, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
    if variable("LISTEN_PID").is_none_or(|meant| meant != pid.to_string()) {
        return Ok(Vec::new());
    }
    let count = variable("LISTEN_FDS").unwrap_or_default();
    let count = count.parse().ok().filter(|&count| count <= SOCKETS_MAX).ok_or_else(|| {
        Error::invalid(format!("LISTEN_FDS={count} is not a number from 0 to {SOCKETS_MAX}"))
    })?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(|name| if name.is_empty() { UNNAMED } else { name });
    Ok(names.chain(std::iter::repeat(UNNAMED)).take(count).map(str::to_owned).collect())
}

/// Takes ownership of an inherited descriptor.
fn claim(fd: RawFd, name: String) -> Result<InheritedFd> {
    let refused = |e: nix::Error| {
        Error::invalid(format!("inherited descriptor {fd} ({name}) is not open: {e}"))
    };
    // SAFETY: used only for the call below, which fails on a descriptor that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(refused)?;
    // SAFETY: the descriptor is open, as just seen; the service manager opened it for this process,
    // and `TAKEN` lets nobody else take it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(InheritedFd { name, fd })
}

/// Makes sure that clients can come in by a socket.
fn listening(one: InheritedFd) -> Result<InheritedFd> {
    let refused = |e: nix::Error| {
        let (fd, name) = (one.fd.as_raw_fd(), &one.name);
        Error::invalid(format!("inherited descriptor {fd} ({name}) is not a listening socket: {e}"))
    };
    let stream = getsockopt(&one.fd, sockopt::SockType).map_err(refused)? == SockType::Stream;
    let listening = getsockopt(&one.fd, sockopt::AcceptConn).map_err(refused)?;
    if !(stream && listening) {
        return Err(refused(nix::Error::EINVAL).hint("the unit needs ListenStream= and Accept=no"));
    }
    Ok(one)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::IntoRawFd;

    use super::*;

    fn names(pid: &'static str, count: &'static str, names: &'static str) -> Result<Vec<String>> {
        announced_names(42, |variable| match variable {
            "LISTEN_PID" => Some(pid.to_owned()),
            "LISTEN_FDS" => Some(count.to_owned()),
            "LISTEN_FDNAMES" => (!names.is_empty()).then(|| names.to_owned()),
            other => panic!("{other} was read"),
        })
    }

    #[test]
    fn sockets_for_another_process_are_left_alone() {
        assert!(names("41", "2", "").unwrap().is_empty());
        assert!(announced_names(42, |_| None).unwrap().is_empty());
    }

    #[test]
    fn every_announced_socket_has_a_name() {
        assert_eq!(names("42", "2", "nbd:control").unwrap(), ["nbd", "control"]);
        assert_eq!(names("42", "2", "").unwrap(), ["unknown", "unknown"]);
        assert_eq!(names("42", "3", "nbd").unwrap(), ["nbd", "unknown", "unknown"]);
        assert_eq!(names("42", "1", "nbd:control").unwrap(), ["nbd"]);
        assert!(names("42", "0", "").unwrap().is_empty());
    }

    #[test]
    fn a_senseless_number_of_sockets_is_an_error() {
        for count in ["", "-1", "two", "1025", "99999999999999999999"] {
            assert!(names("42", count, "").is_err(), "{count}");
        }
    }

    #[test]
    fn a_listening_socket_is_claimed_and_hidden_from_children() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let claimed = claim(socket.into_raw_fd(), "nbd".to_owned()).and_then(listening).unwrap();
        let flags = fcntl(&claimed.fd, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & FdFlag::FD_CLOEXEC.bits(), FdFlag::FD_CLOEXEC.bits());
        assert_eq!(claimed.name, "nbd");
    }

    #[test]
    fn anything_else_is_refused_by_number_and_name() {
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = tempfile::tempfile().unwrap();
        let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for fd in [datagrams.into_raw_fd(), file.into_raw_fd(), connected.into_raw_fd(), 1 << 20] {
            let claimed = claim(fd, "nbd".to_owned()).and_then(listening);
            let error = claimed.unwrap_err().to_string();
            assert!(error.contains(&format!("descriptor {fd} (nbd)")), "{error}");
        }
    }
}
