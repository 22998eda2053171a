//! Waiting for something the daemon does in the background.
//!
//! Invariants: the pause between two looks grows from short to a second, so that quick work is
//! noticed quickly and slow work costs nothing; a deadline is kept to within one pause.
//! Absent: what is waited for.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rowd_proto::ErrorKind;

use crate::error::{Failure, Result};

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Looks until there is something to see.
///
/// # Errors
/// `TimedOut` after `limit`, or whatever goes wrong with looking.
pub fn until<T>(
    what: &str,
    limit: Option<Duration>,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            let waited = limit.unwrap_or_default().as_secs();
            let message = format!("{what} was not done within {waited} s");
            return Err(Failure::new(ErrorKind::TimedOut, message).hint("it goes on; wait again"));
        }
        sleep(left.map_or(pause, |left| pause.min(left)));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_at_once_is_not_waited_for() {
        assert_eq!(until("it", Some(Duration::ZERO), || Ok(Some(1))), Ok(1));
    }

    #[test]
    fn what_comes_later_is_found() {
        let mut looks = 0;
        let seen = until("it", None, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(seen, Ok(3));
    }

    #[test]
    fn what_never_comes_times_out() {
        let limit = Some(Duration::from_millis(50));
        let failure = until("it", limit, || Ok(None::<()>)).unwrap_err();
        assert_eq!(failure.kind(), Some(ErrorKind::TimedOut));
    }
}
