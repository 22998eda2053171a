//! Whether the clock can be trusted.
//!
//! Invariants: a clock that is set by more than it is ever corrected by stops what depends on it, until it is right
//! again or somebody says that it is.
//! Absent: what is stopped.

use std::time::Duration;

/// A clock that is behind by more than this was set.
const BACK_MAX: i64 = 300;
/// A clock that is ahead by more than this was set: more than a day and a change of zones.
const AHEAD_MAX: i64 = 25 * 3600;

/// The clock as it was last right.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: u64,
    steady: Duration,
}

/// The clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// By so many seconds; less than nothing is back.
    pub seconds: i64,
}

impl Clock {
    /// `steady` is the time of a clock that nobody sets and that does not stand still.
    #[must_use]
    pub fn new(wall: u64, steady: Duration) -> Clock {
        Clock { wall, steady }
    }

    /// Looks at the clock again.
    pub fn watch(&mut self, wall: u64, steady: Duration) -> Option<Jump> {
        let passed = steady.saturating_sub(self.steady).as_secs();
        let expected = self.wall.saturating_add(passed);
        let seconds =
            i64::try_from(wall).unwrap_or(i64::MAX) - i64::try_from(expected).unwrap_or(i64::MAX);
        if !(-BACK_MAX..=AHEAD_MAX).contains(&seconds) {
            return Some(Jump { seconds });
        }
        *self = Clock { wall, steady };
        None
    }

    /// Takes the clock as it is.
    pub fn trust(&mut self, wall: u64, steady: Duration) {
        *self = Clock { wall, steady };
    }
}

/// How far the clock is behind what was made last, if that is more than it is ever corrected by.
#[must_use]
pub fn behind(now: u64, newest: Option<u64>) -> Option<Jump> {
    let back = newest?.saturating_sub(now);
    let back = i64::try_from(back).unwrap_or(i64::MAX);
    (back > BACK_MAX).then_some(Jump { seconds: -back })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_pass_and_jumps_do_not() {
        let at = |seconds| Duration::from_secs(seconds);
        let mut clock = Clock::new(1_000_000, at(0));
        assert_eq!(clock.watch(1_000_060, at(60)), None);
        assert_eq!(clock.watch(999_900, at(120)), None, "corrected by a few minutes");
        assert_eq!(clock.watch(990_000, at(180)), Some(Jump { seconds: -9960 }));
        assert_eq!(clock.watch(999_960, at(180)), None, "it is right again");
        // Small steps in one direction are steps all the same: each is measured from the last good one.
        assert_eq!(clock.watch(1_089_960, at(180)), None, "25 hours");
        assert_eq!(clock.watch(1_179_961, at(180)), Some(Jump { seconds: 90_001 }));
        clock.trust(1_179_961, at(181));
        assert_eq!(clock.watch(1_179_962, at(182)), None);
    }

    #[test]
    fn a_clock_behind_what_was_made_is_wrong() {
        assert_eq!(behind(1000, None), None);
        assert_eq!(behind(1000, Some(1300)), None);
        assert_eq!(behind(1000, Some(1301)), Some(Jump { seconds: -301 }));
    }
}
