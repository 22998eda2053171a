//! Memory pressure: what keeps the daemon going while the host writes back through it to free memory.
//!
//! A kernel device of this host is a loop: the kernel frees memory by writing to the device, the write is
//! ours to do, and doing it must not wait for memory to be freed. Direct I/O (`pool/direct.rs`) is the
//! largest part of the answer; here is the rest, for the process as a whole.
//!
//! Invariants: nothing here is fatal; what cannot be done is told once, with what to do about it; the
//! state told is what the system granted. The mark of an I/O flusher is a thread's and inherited, so
//! [`begin`] comes before any other thread.
//! Absent: bounds on how much memory is used; each module has its own.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Processes that the kernel never ends to free memory.
const OOM_NEVER: i32 = -1000;
/// Bit of `CAP_IPC_LOCK` in a set of capabilities.
const CAP_IPC_LOCK: u32 = 14;
/// From `linux/prctl.h`; the crate `libc` does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const OOM_FILE: &str = "/proc/self/oom_score_adj";

/// When memory is locked, `[memory] lock` in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// When a kernel device of this host is attached.
    #[default]
    Attached,
    /// From the start.
    Always,
    Never,
}

/// What the system has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Memory that we need is not sought by writing to devices.
    pub io_flusher: bool,
    /// Nothing of the process is swapped out, nor its code dropped.
    pub memory_locked: bool,
    /// How ready the kernel is to end the process when memory is short: -1000 never, 1000 first.
    pub oom_score_adj: i32,
}

static FLUSHER: AtomicBool = AtomicBool::new(false);
static LOCKED: AtomicBool = AtomicBool::new(false);
static NEVER_LOCK: AtomicBool = AtomicBool::new(false);
/// Why the mark of an I/O flusher was refused, until that has been told.
static UNTOLD: Mutex<Option<Error>> = Mutex::new(None);
/// Held while memory is being protected: two attachments at once do it once.
static PROTECTING: Mutex<bool> = Mutex::new(false);

/// To be called before the first thread is started. `direct`: the pool is past the page cache, which is
/// for hosts whose own kernel is a client.
pub fn begin(lock: Lock, direct: bool) {
    NEVER_LOCK.store(lock == Lock::Never, Ordering::SeqCst);
    match set_io_flusher() {
        Ok(()) => FLUSHER.store(true, Ordering::SeqCst),
        // Nobody misses it while no kernel device is there: told when one may be.
        Err(error) => *UNTOLD.lock() = Some(error),
    }
    if lock == Lock::Always {
        protect();
    } else if direct {
        tell_flusher();
        spare_from_oom();
    }
}

/// To be called before a kernel device of this host is attached: locks memory, unless the configuration
/// says never, and asks to be spared when memory is short. Tells what the system refuses. Calling it again
/// costs nothing.
pub fn protect() {
    let mut done = PROTECTING.lock();
    if std::mem::replace(&mut *done, true) {
        return;
    }
    tell_flusher();
    spare_from_oom();
    if NEVER_LOCK.load(Ordering::SeqCst) {
        return;
    }
    match lock_all() {
        Ok(()) => LOCKED.store(true, Ordering::SeqCst),
        Err(error) => warn(&error, "memory is not locked"),
    }
}

/// What the system has granted.
#[must_use]
pub fn state() -> State {
    State {
        io_flusher: FLUSHER.load(Ordering::SeqCst),
        memory_locked: LOCKED.load(Ordering::SeqCst),
        oom_score_adj: oom_score().unwrap_or(0),
    }
}

fn warn(error: &Error, what: &str) {
    let advice = error.advice().unwrap_or_default();
    tracing::warn!(reason = error.message(), advice, "under memory pressure: {what}");
}

fn tell_flusher() {
    if let Some(error) = UNTOLD.lock().take() {
        warn(&error, "rowd is not marked as an I/O flusher");
    }
}

fn set_io_flusher() -> Result<()> {
    // SAFETY: a plain system call without pointers.
    let done = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if done == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Error::io("PR_SET_IO_FLUSHER", &error)
        .hint("run rowd with CAP_SYS_RESOURCE, as the unit that comes with it does"))
}

/// Locks what the process has and will have, each page when it is first used.
fn lock_all() -> Result<()> {
    may_lock()?;
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: a plain system call without pointers.
    if unsafe { libc::mlockall(flags) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Error::io("mlockall", &error)
        .hint("run rowd with CAP_IPC_LOCK, or with LimitMEMLOCK=infinity in its unit"))
}

/// With a limit locking would succeed now, and some allocation fail later: that would end the daemon.
fn may_lock() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    if set & (1 << CAP_IPC_LOCK) != 0 {
        return Ok(());
    }
    let limited = |limit: u64| limit != RLIM_INFINITY;
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)
        .map_err(|errno| Error::io("ask for RLIMIT_MEMLOCK", &errno.into()))?;
    if !limited(soft) || !limited(hard) && setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).is_ok() {
        return Ok(());
    }
    let what = format!("locked memory is limited to {soft} bytes (RLIMIT_MEMLOCK)");
    Err(Error::new(crate::error::ErrorKind::NotPermitted, what)
        .hint("run rowd with CAP_IPC_LOCK, or with LimitMEMLOCK=infinity in its unit"))
}

fn oom_score() -> Option<i32> {
    fs::read_to_string(OOM_FILE).ok()?.trim().parse().ok()
}

/// Asks never to be ended for want of memory, unless somebody has chosen a score already.
fn spare_from_oom() {
    if oom_score() != Some(0) {
        return;
    }
    if let Err(error) = fs::write(OOM_FILE, OOM_NEVER.to_string()) {
        let error = Error::io(format!("write {OOM_FILE}"), &error)
            .hint("set OOMScoreAdjust=-1000 in the unit of rowd, or run it with CAP_SYS_RESOURCE");
        warn(&error, "the kernel may end rowd");
    }
}

/// Makes a child that is not part of the daemon, such as a user's script, as ready to be ended for want of
/// memory as any process: it inherits that the daemon is spared.
pub fn spare_not(child: u32) {
    if oom_score() != Some(OOM_NEVER) {
        return;
    }
    if let Err(error) = fs::write(format!("/proc/{child}/oom_score_adj"), "0") {
        tracing::debug!(%error, child, "a child is spared when memory is short, as the daemon is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_process_that_asked_for_nothing_is_that_of_its_parent() {
        let state = state();
        assert!(!state.memory_locked && !state.io_flusher);
        assert_eq!(Some(state.oom_score_adj), oom_score());
    }
}
