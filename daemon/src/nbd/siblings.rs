//! The connections of one kernel device, and the guard against requests that the kernel sends twice.
//!
//! **The hazard (H11).** The kernel's client (drivers/block/nbd.c) sends a request again on another
//! connection of the device when the first did not answer in time (`queue/io_timeout`). Before that it
//! marks the first connection dead and shuts its socket down in both directions, but the daemon may be
//! in the middle of the request. Were it to finish later than the second execution, and later than a
//! newer write to the same block that the kernel sent after it had the answer, old data would replace
//! new data: corruption without any error.
//!
//! **The guard.** Before a connection changes anything it calls [`Member::enter`], which
//! 1. counts it as busy,
//! 2. looks whether its own socket has been shut down: if so, nothing of what it received is done,
//! 3. looks at its siblings: while one is shut down and busy, it is not busy itself and waits, then starts
//!    again at 1.
//!
//! **Why that is enough.** Let A be the connection that was given up and B the one that gets the request
//! again. In the kernel `shutdown(A)` comes before the sending on B, hence before B's receive, hence before
//! B's steps. Step 1 of A is before its step 2 (both sequentially consistent).
//! * If step 2 of A comes after `shutdown(A)`, A sees it and does nothing: the request is done by B only.
//! * If it comes before, step 1 of A was before it too, so B's step 3, which is after `shutdown(A)`, sees A
//!   shut down and, as long as A is at work, busy. B waits, so A's execution is over before B's begins,
//!   and any newer write is sent only after B has answered.
//!
//! The same holds whichever connection the newer write takes, for it is sent after B's answer. Two that
//! are both shut down cannot wait for each other: who waits is not busy.
//!
//! Invariants: a member stays in the list until nothing it began is unfinished; connections that belong to
//! no kernel device never come here.
//! Absent: replies of the old execution. Their socket is shut down; they reach nobody.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::socket::Socket;
use crate::faults;

/// The connections of one kernel device.
#[derive(Debug, Default)]
pub struct Siblings {
    members: RwLock<Vec<Arc<Member>>>,
    /// Signalled when a member has left.
    left: (Mutex<()>, Condvar),
}

/// One connection among its siblings.
#[derive(Debug)]
pub struct Member {
    socket: Arc<Socket>,
    /// Things begun and not finished that change the disk.
    busy: AtomicUsize,
    idle: (Mutex<()>, Condvar),
}

impl Siblings {
    /// Adds a connection.
    pub fn join(self: &Arc<Self>, socket: &Arc<Socket>) -> Membership {
        let member = Arc::new(Member {
            socket: Arc::clone(socket),
            busy: AtomicUsize::new(0),
            idle: (Mutex::default(), Condvar::new()),
        });
        self.members.write().push(Arc::clone(&member));
        Membership { siblings: Arc::clone(self), member }
    }

    /// Ends the receiving side of all connections: what they have received is still answered.
    pub fn hang_up(&self) {
        self.members.read().iter().for_each(|member| member.socket.hang_up());
    }

    /// Connections that are not yet over.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members.read().len()
    }

    /// Waits until all are over; `false` when the time is.
    #[must_use]
    pub fn wait_empty(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut lock = self.left.0.lock();
        while self.count() > 0 {
            if self.left.1.wait_until(&mut lock, deadline).timed_out() {
                return self.count() == 0;
            }
        }
        true
    }
}

/// A place in the list; left when dropped, which has to be after the last thing begun is done.
#[derive(Debug)]
pub struct Membership {
    siblings: Arc<Siblings>,
    member: Arc<Member>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.siblings.members.write().retain(|one| !Arc::ptr_eq(one, &self.member));
        let _lock = self.siblings.left.0.lock();
        self.siblings.left.1.notify_all();
    }
}

impl Membership {
    /// Permission to change the disk, while the result lives; `None` when the kernel has given this
    /// connection up, and nothing that came over it may be done any more.
    #[must_use]
    pub fn enter(&self) -> Option<Busy> {
        loop {
            let busy = Busy::new(&self.member);
            if faults::seeded("h11-retry-overtakes") {
                return Some(busy);
            }
            if self.member.socket.is_shut_down() {
                return None;
            }
            let siblings = self.siblings.members.read();
            let others = siblings.iter().filter(|one| !Arc::ptr_eq(one, &self.member));
            let stale: Vec<Arc<Member>> = others
                .filter(|one| one.socket.is_shut_down() && one.is_busy())
                .map(Arc::clone)
                .collect();
            drop(siblings);
            if stale.is_empty() {
                return Some(busy);
            }
            drop(busy);
            stale.iter().for_each(|one| one.wait_idle());
        }
    }
}

impl Member {
    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
    }

    fn wait_idle(&self) {
        let mut lock = self.idle.0.lock();
        while self.is_busy() {
            self.idle.1.wait(&mut lock);
        }
    }
}

/// Something that changes the disk is under way.
#[derive(Debug)]
pub struct Busy(Arc<Member>);

impl Busy {
    fn new(member: &Arc<Member>) -> Busy {
        member.busy.fetch_add(1, Ordering::SeqCst);
        // The look at the socket, a system call, must not come before the count.
        fence(Ordering::SeqCst);
        Busy(Arc::clone(member))
    }
}

impl Clone for Busy {
    fn clone(&self) -> Self {
        Busy::new(&self.0)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            // With the lock, so that nobody falls asleep between his look and this.
            let _lock = self.0.idle.0.lock();
            self.0.idle.1.notify_all();
        }
    }
}

/// A pair of connected sockets: ours, and the one for the kernel.
///
/// # Errors
/// The system has no descriptors left.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    fn member(siblings: &Arc<Siblings>) -> (Membership, OwnedFd) {
        let (ours, kernels) = pair().unwrap();
        (siblings.join(&Arc::new(Socket::new(ours))), kernels)
    }

    /// As nbd_mark_nsock_dead does it.
    fn mark_dead(kernels: &OwnedFd) {
        use std::os::fd::AsRawFd;
        shutdown(kernels.as_raw_fd(), Shutdown::Both).unwrap();
    }

    #[test]
    fn a_connection_that_was_given_up_may_do_nothing_more() {
        let siblings = Arc::new(Siblings::default());
        let (a, kernel_a) = member(&siblings);
        assert!(a.enter().is_some());
        mark_dead(&kernel_a);
        assert!(a.enter().is_none());
    }

    #[test]
    fn a_connection_hung_up_by_the_daemon_may_finish() {
        let siblings = Arc::new(Siblings::default());
        let (a, _kernel_a) = member(&siblings);
        siblings.hang_up();
        assert!(a.enter().is_some());
    }

    #[test]
    fn a_retry_waits_for_the_first_execution() {
        let siblings = Arc::new(Siblings::default());
        let ((a, kernel_a), (b, _kernel_b)) = (member(&siblings), member(&siblings));
        let first = a.enter().unwrap();
        drop(b.enter().expect("a sibling that lives is not waited for"));
        mark_dead(&kernel_a);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let retry = scope.spawn(|| {
                let _busy = b.enter().unwrap();
                assert!(over.load(Ordering::SeqCst), "the retry overtook the first execution");
            });
            // The retry sleeps by now, or has failed.
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(50) && !retry.is_finished() {
                thread::yield_now();
            }
            over.store(true, Ordering::SeqCst);
            drop(first);
        });
    }

    #[test]
    fn what_a_helper_does_counts_until_it_is_done() {
        let siblings = Arc::new(Siblings::default());
        let ((a, kernel_a), (_b, _kernel_b)) = (member(&siblings), member(&siblings));
        let batch = a.enter().unwrap();
        let helpers = batch.clone();
        drop(batch);
        mark_dead(&kernel_a);
        assert!(a.member.is_busy());
        drop(helpers);
        assert!(!a.member.is_busy());
    }

    #[test]
    fn two_that_were_both_given_up_do_not_wait_for_each_other() {
        let siblings = Arc::new(Siblings::default());
        let members: Vec<_> = (0..2).map(|_| member(&siblings)).collect();
        thread::scope(|scope| {
            for (one, _) in &members {
                scope.spawn(move || while one.enter().is_some() {});
            }
            members.iter().for_each(|(_, kernels)| mark_dead(kernels));
        });
    }

    #[test]
    fn a_member_leaves_when_its_connection_is_over() {
        let siblings = Arc::new(Siblings::default());
        let (a, _kernel_a) = member(&siblings);
        assert_eq!(siblings.count(), 1);
        drop(a);
        assert_eq!(siblings.count(), 0);
    }
}
