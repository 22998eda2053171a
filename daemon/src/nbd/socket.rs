//! The socket of one connection in the transmission phase: large receives, whole sends, and a short spin.
//!
//! Invariants: a send is never interleaved with another's bytes; a receive waits by spinning only while
//! that pays, and never more threads spin than half the processors.
//! Absent: what the bytes mean.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, sendmsg, shutdown};
use parking_lot::Mutex;

use super::gather::Hold;
use super::leave::Leave;

/// Threads that spin now, over all connections.
static SPINNING: AtomicUsize = AtomicUsize::new(0);
/// Waits in a row that were longer than the spin before spinning is given up for a while.
const LONG_WAITS_MAX: u32 = 8;

/// A connected stream socket that several threads may send on.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sending: Mutex<()>,
}

impl Socket {
    #[must_use]
    pub fn new(fd: OwnedFd) -> Socket {
        Socket { fd, sending: Mutex::new(()) }
    }

    /// Sends all of the buffers, in one piece as the peer sees it.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn send(&self, buffers: &mut [IoSlice<'_>]) -> io::Result<()> {
        let _alone = self.sending.lock();
        let mut rest = buffers;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match sendmsg::<()>(self.raw(), rest, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, PollTimeout::NONE)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Whether something has arrived that was not received yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        recv(self.raw(), &mut [0], flags).is_ok_and(|got| got > 0)
    }

    /// Whether the peer has shut the connection down in both directions, or is gone. What it sent before
    /// may still be there to be received.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        let mut asked = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        // An interrupted look is repeated: the answer decides whether data is written.
        while let Err(Errno::EINTR) = poll(&mut asked, PollTimeout::ZERO) {}
        asked[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
    }

    /// Whether nothing more can be received: the client has closed its side, or was sent away.
    pub fn is_half_closed(&self) -> bool {
        let half = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut asked = [PollFd::new(self.fd.as_fd(), half)];
        while let Err(Errno::EINTR) = poll(&mut asked, PollTimeout::ZERO) {}
        // What was asked for has no name in the library, and then there is no answer in its words.
        let ends = PollFlags::POLLHUP | PollFlags::POLLERR;
        asked[0].revents().is_none_or(|seen| seen.intersects(ends))
    }

    /// Ends the connection's receiving side: what has arrived is still answered.
    pub fn hang_up(&self) {
        if let Err(errno) = shutdown(self.raw(), Shutdown::Read) {
            tracing::debug!(%errno, "hang up");
        }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn wait(&self, what: PollFlags, timeout: PollTimeout) -> io::Result<()> {
        match poll(&mut [PollFd::new(self.fd.as_fd(), what)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for input, or for the word to leave.
    fn wait_or_leave(&self, timeout: PollTimeout, leave: &Leave) -> io::Result<()> {
        let input = PollFlags::POLLIN;
        let mut both = [PollFd::new(self.fd.as_fd(), input), PollFd::new(leave.as_fd(), input)];
        match poll(&mut both, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How long one connection spins before it sleeps.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    long_waits: u32,
    spinners_max: usize,
}

impl Spin {
    /// Spins up to `limit` while fewer than `spinners_max` threads do; zero never spins.
    #[must_use]
    pub fn new(limit: Duration, spinners_max: usize) -> Spin {
        Spin { limit, long_waits: 0, spinners_max }
    }

    /// Receives at least one byte, or 0 at the end of the stream. With `patience` the client has to send
    /// within that time. `None` when nothing has come before the word was given to `leave`.
    ///
    /// # Errors
    /// The connection is broken, or the client too slow.
    pub fn receive(
        &mut self,
        socket: &Socket,
        out: &mut [u8],
        patience: Option<Duration>,
        leave: Option<&Leave>,
    ) -> io::Result<Option<usize>> {
        if let Some(got) = try_receive(socket, out)? {
            return Ok(Some(got));
        }
        if let Some(got) = self.spin(socket, out)? {
            self.long_waits = 0;
            return Ok(Some(got));
        }
        let slept = Instant::now();
        loop {
            if leave.is_some_and(Leave::is_given) {
                return Ok(None);
            }
            let timeout = patience.map(|most| most.saturating_sub(slept.elapsed()));
            if timeout.is_some_and(|left| left.is_zero()) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a payload stopped half-way"));
            }
            let timeout = timeout.map(PollTimeout::try_from).transpose();
            let timeout = timeout.ok().flatten().unwrap_or(PollTimeout::NONE);
            match leave {
                Some(leave) => socket.wait_or_leave(timeout, leave)?,
                None => socket.wait(PollFlags::POLLIN, timeout)?,
            }
            if let Some(got) = try_receive(socket, out)? {
                // A client that is idle for long is not worth a processor; one that is back is.
                let long = slept.elapsed() > self.limit;
                self.long_waits = if long { self.long_waits.saturating_add(1) } else { 0 };
                return Ok(Some(got));
            }
        }
    }

    fn spin(&mut self, socket: &Socket, out: &mut [u8]) -> io::Result<Option<usize>> {
        if self.limit.is_zero() || self.long_waits > LONG_WAITS_MAX {
            // From time to time, see whether spinning would pay again.
            self.long_waits =
                if self.long_waits > 4 * LONG_WAITS_MAX { 0 } else { self.long_waits };
            return Ok(None);
        }
        let Some(_spinning) = Spinning::begin(self.spinners_max) else { return Ok(None) };
        let began = Instant::now();
        loop {
            match try_receive(socket, out) {
                Ok(None) if began.elapsed() < self.limit => std::hint::spin_loop(),
                other => return other,
            }
        }
    }

    /// Receives what arrives within the time of `hold`, at most until `out` holds `enough` bytes. Returns
    /// how many came, which may be none, the end of the stream included.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn linger(
        &self,
        socket: &Socket,
        out: &mut [u8],
        enough: usize,
        hold: Hold,
    ) -> io::Result<usize> {
        if self.limit.is_zero() {
            return Ok(0);
        }
        let Some(_spinning) = Spinning::begin(self.spinners_max) else { return Ok(0) };
        let began = Instant::now();
        let (mut at, mut heard) = (0, began);
        while at < enough.min(out.len()) {
            match try_receive(socket, &mut out[at..])? {
                Some(0) => break,
                Some(got) => {
                    at += got;
                    heard = Instant::now();
                }
                None => std::hint::spin_loop(),
            }
            if began.elapsed() >= hold.most || heard.elapsed() >= hold.silence {
                break;
            }
        }
        Ok(at)
    }
}

/// A thread that spins; one of few.
struct Spinning;

impl Spinning {
    fn begin(most: usize) -> Option<Spinning> {
        let spinning = Spinning;
        let before = SPINNING.fetch_add(1, Ordering::Relaxed);
        (before < most).then_some(spinning)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        SPINNING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn try_receive(socket: &Socket, out: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match recv(socket.raw(), out, MsgFlags::MSG_DONTWAIT) {
            Ok(got) => return Ok(Some(got)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
