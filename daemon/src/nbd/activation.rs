//! Listening sockets that the service manager opened before it started the daemon.
//!
//! The protocol is systemd's, sd_listen_fds(3): `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`.
//!
//! Invariants:
//! - a socket is handed out once, by the first call; the variables need not be removed for that,
//!   and children ignore them because `LISTEN_PID` is not theirs;
//! - what is handed out is a listening stream socket that children do not inherit.
//!
//! Absent: what a socket is for. The caller knows it by its name.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::error::{Error, Result};

/// The first inherited descriptor, fixed by the protocol.
const FIRST_FD: RawFd = 3;
/// Sockets a unit may hand over. A larger number is a mistake in the environment.
const SOCKETS_MAX: usize = 64;
/// The name of a socket that was given none, as in sd_listen_fds_with_names(3).
const UNNAMED: &str = "unknown";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// A socket and the name its unit gave it (`FileDescriptorName=`).
#[derive(Debug)]
pub struct InheritedSocket {
    pub name: String,
    pub fd: OwnedFd,
}

/// The sockets meant for this process, in the order of the unit; none on the second call.
///
/// To be called before anything else opens descriptors that it could be confused with.
///
/// # Errors
/// The variables are malformed, or a descriptor is not a listening stream socket.
pub fn inherited_sockets() -> Result<Vec<InheritedSocket>> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let names = announced_names(std::process::id(), |variable| std::env::var(variable).ok())?;
    (FIRST_FD..).zip(names).map(|(fd, name)| claim(fd, name)).collect()
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
fn claim(fd: RawFd, name: String) -> Result<InheritedSocket> {
    let refused = |e: nix::Error| {
        Error::invalid(format!("inherited descriptor {fd} ({name}) is not a listening socket: {e}"))
    };
    // SAFETY: used only for the call below, which fails on a descriptor that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(refused)?;
    // SAFETY: the descriptor is open, as just seen; the service manager opened it for this process,
    // and `TAKEN` lets nobody else take it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let stream = getsockopt(&fd, sockopt::SockType).map_err(refused)? == SockType::Stream;
    let listening = getsockopt(&fd, sockopt::AcceptConn).map_err(refused)?;
    if !(stream && listening) {
        return Err(refused(nix::Error::EINVAL).hint("the unit needs ListenStream= and Accept=no"));
    }
    Ok(InheritedSocket { name, fd })
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
        for count in ["", "-1", "two", "65", "99999999999999999999"] {
            assert!(names("42", count, "").is_err(), "{count}");
        }
    }

    #[test]
    fn a_listening_socket_is_claimed_and_hidden_from_children() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let claimed = claim(socket.into_raw_fd(), "nbd".to_owned()).unwrap();
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
            let error = claim(fd, "nbd".to_owned()).unwrap_err().to_string();
            assert!(error.contains(&format!("descriptor {fd} (nbd)")), "{error}");
        }
    }
}
