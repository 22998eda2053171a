//! Who is at the other end of a control socket, and whether it may be there.
//!
//! Invariants: the answer comes from the kernel and describes the process at the time it connected;
//! root and the daemon's own user are always let in.
//! Absent: what a client may do once it is in; that is the role of the socket.

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::UnixStream;

use crate::engine::api::Actor;
use crate::error::{Error, ErrorKind, Result};

/// Groups a process can be in: the kernel's own limit (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Who may connect, besides root and the daemon's own user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Members of these groups, by primary or supplementary group.
    pub gids: Vec<u32>,
}

/// The client as the kernel knows it, if it may connect.
///
/// # Errors
/// `NotPermitted` when it may not, or when the kernel does not say who it is.
pub(super) fn identify(stream: &UnixStream, access: &Access) -> Result<Actor> {
    let unknown = |e: &io::Error| {
        Error::new(ErrorKind::NotPermitted, format!("cannot tell who is connecting: {e}"))
    };
    let credentials = stream.peer_cred().map_err(|e| unknown(&e))?;
    let actor = Actor { uid: credentials.uid(), pid: credentials.pid().unwrap_or(0) };
    let own = nix::unistd::geteuid().as_raw();
    if actor.uid == 0 || actor.uid == own || access.gids.contains(&credentials.gid()) {
        return Ok(actor);
    }
    // The list is only asked for when it can matter: without configured groups it cannot.
    if !access.gids.is_empty() {
        let groups = supplementary_groups(stream).map_err(|e| unknown(&e))?;
        if groups.iter().any(|gid| access.gids.contains(gid)) {
            return Ok(actor);
        }
    }
    let message = format!("uid {} may not use this socket", actor.uid);
    Err(Error::new(ErrorKind::NotPermitted, message)
        .hint("run as root, or join a group that the configuration lets in"))
}

/// The supplementary groups of the peer (`SO_PEERGROUPS`).
fn supplementary_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let bytes = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for the life of `stream`, and the kernel writes at most
        // `length` bytes to the buffer, which is that long.
        let status = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if status == 0 {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            groups.truncate(length / size_of::<libc::gid_t>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || groups.len() >= GROUPS_MAX {
            return Err(error);
        }
        groups.resize(GROUPS_MAX, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_daemon_s_own_user_is_let_in_and_known_by_its_pid() {
        let (near, _far) = UnixStream::pair().unwrap();
        let actor = identify(&near, &Access::default()).unwrap();
        assert_eq!(actor.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(u32::try_from(actor.pid).unwrap(), std::process::id());
    }

    #[tokio::test]
    async fn the_kernel_s_list_of_groups_is_the_process_s() {
        let (near, _far) = UnixStream::pair().unwrap();
        let told = supplementary_groups(&near).unwrap();
        let own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(told, own);
    }
}
