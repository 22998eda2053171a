//! Waiting for something another process does.
//!
//! Invariants: every wait has a deadline and a name; what is waited for is looked at before the first
//! pause and after the last, so a slow machine cannot miss it.
//! Absent: sleeping for a fixed time, which no test does.

use std::thread;
use std::time::{Duration, Instant};

/// A look costs a system call or a process; this keeps them below a hundred per second.
const PAUSE: Duration = Duration::from_millis(10);

/// Long enough for anything that works, on a machine with every core taken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until there is something to see; `None` when the time is over.
pub fn try_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(seen) = look() {
            return Some(seen);
        }
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(PAUSE.min(left));
    }
}

/// As [`try_until`], with [`PATIENCE`].
///
/// # Panics
/// It did not happen in time.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    try_until(PATIENCE, look)
        .unwrap_or_else(|| panic!("{what}: not within {} s", PATIENCE.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_seen_and_what_does_not_ends() {
        let mut looks = 0;
        let seen = try_until(PATIENCE, || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(seen, Some(3));
        assert_eq!(try_until(Duration::ZERO, || None::<()>), None);
    }
}
