//! The system calls of freezing that have no safe wrapper.
//!
//! Invariants: every descriptor that is received has exactly one owner and closes on exec.
//! Absent: threads and deadlines. Both ioctls may take for ever, and nothing interrupts them.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors that one message carries; the kernel takes up to 253.
pub const DESCRIPTORS_MAX: usize = 64;

mod raw {
    nix::ioctl_readwrite!(freeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(thaw, b'X', 120, libc::c_int);
}

/// `FIFREEZE` on the file system that holds an open directory.
pub fn freeze(directory: BorrowedFd<'_>) -> nix::Result<()> {
    let mut unused = 0;
    // SAFETY: the descriptor is open, and the kernel neither reads nor writes behind the pointer.
    unsafe { raw::freeze(directory.as_raw_fd(), &raw mut unused) }.map(drop)
}

/// `FITHAW`; `EINVAL` when the file system is not frozen.
pub fn thaw(directory: BorrowedFd<'_>) -> nix::Result<()> {
    let mut unused = 0;
    // SAFETY: as in `freeze`.
    unsafe { raw::thaw(directory.as_raw_fd(), &raw mut unused) }.map(drop)
}

/// Sends one message, with descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], with: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let raw: Vec<RawFd> = with.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[_] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).map(drop)
}

/// Receives one message; nothing when the other side has closed.
pub fn receive(socket: BorrowedFd<'_>) -> nix::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; 8 << 10];
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut descriptors = Vec::new();
    let count = {
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
        for one in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = one {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                let owned = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                descriptors.extend(owned);
            }
        }
        message.bytes
    };
    if count == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some((bytes[..count].to_vec(), descriptors)))
}
