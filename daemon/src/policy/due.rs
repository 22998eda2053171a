//! Which slot of a policy is to be run now, and which were missed.
//!
//! Invariants: each slot is run, or missed and told; none is run twice, whatever the clock does; at most one run
//! follows a time of absence.
//! Absent: why a disk is left out of a run, which is seen when it is its turn.

use super::schedule::Timetable;
use crate::engine::api::policy::CatchUp;
use crate::units::PolicyId;

/// A slot is on time for so long: longer than a daemon takes to restart and to replay its journal.
pub const ON_TIME: u64 = 300;
/// Missed slots that are counted one by one.
const COUNTED_MAX: u64 = 10_000;

/// What is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub run: Option<u64>,
    pub missed: Option<Missed>,
    /// Slots up to here are done with after that.
    pub handled: u64,
}

/// Slots that were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    pub count: u64,
    pub first: u64,
    pub last: u64,
    /// There are more than were counted.
    pub more: bool,
}

/// What is due at `now`, when slots up to `handled` are done with.
#[must_use]
pub fn due(table: &Timetable, catch_up: CatchUp, handled: u64, now: u64) -> Due {
    let mut slots = Slots { count: 0, first: 0, last: 0 };
    let mut more = false;
    let mut at = handled;
    while let Some(slot) = table.next(at).filter(|slot| *slot <= now) {
        slots.add(slot);
        at = slot;
        if slots.count == COUNTED_MAX {
            more = true;
            // A schedule with so many slots has some in the last days; only they decide what is run.
            at = at.max(now.saturating_sub(7 * 86_400));
            while let Some(slot) = table.next(at).filter(|slot| *slot <= now) {
                slots.last = slot;
                at = slot;
            }
            break;
        }
    }
    if slots.count == 0 {
        return Due { handled, ..Due::default() };
    }
    let handled = slots.last;
    let missed = |count, last| Missed { count, first: slots.first, last, more };
    if now - slots.last > ON_TIME {
        let run = (catch_up == CatchUp::Once).then_some(slots.last);
        return Due { run, missed: Some(missed(slots.count, slots.last)), handled };
    }
    let before = (slots.count > 1).then(|| missed(slots.count - 1, slots.last));
    Due { run: Some(slots.last), missed: before, handled }
}

/// How long after their slots the runs of a policy begin: always as long, and not as long as those of another policy.
#[must_use]
pub fn delay(policy: &PolicyId, jitter: u64) -> u64 {
    // FNV-1a: the same for ever, on every machine.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = policy.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, step);
    (hash >> 16) % jitter.saturating_add(1)
}

struct Slots {
    count: u64,
    first: u64,
    last: u64,
}

impl Slots {
    fn add(&mut self, slot: u64) {
        if self.count == 0 {
            self.first = slot;
        }
        self.count += 1;
        self.last = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::policy::Schedule;

    const HOUR: u64 = 3600;
    const T: u64 = 1_800_000_000 / HOUR * HOUR;

    fn hourly() -> Timetable {
        Timetable::new(&Schedule::Every { seconds: HOUR }, "UTC").unwrap()
    }

    #[test]
    fn a_slot_is_run_once_and_not_before_its_time() {
        let table = hourly();
        assert_eq!(due(&table, CatchUp::None, T, T + HOUR - 1).run, None);
        let first = due(&table, CatchUp::None, T, T + HOUR);
        assert_eq!((first.run, first.missed, first.handled), (Some(T + HOUR), None, T + HOUR));
        assert_eq!(due(&table, CatchUp::None, first.handled, T + HOUR + 10).run, None);
        // A clock that goes back brings no slot again.
        assert_eq!(due(&table, CatchUp::None, first.handled, T).run, None);
    }

    #[test]
    fn what_was_missed_is_told_and_caught_up_once_if_wanted() {
        let table = hourly();
        let later = T + 5 * HOUR + 20 * 60;
        let told = Missed { count: 5, first: T + HOUR, last: T + 5 * HOUR, more: false };
        let none = due(&table, CatchUp::None, T, later);
        assert_eq!((none.run, none.missed), (None, Some(told)));
        let once = due(&table, CatchUp::Once, T, later);
        assert_eq!((once.run, once.missed), (Some(T + 5 * HOUR), Some(told)));
        assert_eq!(due(&table, CatchUp::Once, once.handled, later + 1).run, None);
        // One that is on time makes up for those before it.
        let on_time = due(&table, CatchUp::Once, T, T + 5 * HOUR + ON_TIME);
        assert_eq!(on_time.run, Some(T + 5 * HOUR));
        assert_eq!(on_time.missed.map(|missed| missed.count), Some(4));
    }

    /// POL-43: policies with the same times begin at different ones, each always at its own.
    #[test]
    fn jitter_is_one_delay_for_each_policy() {
        let ids: Vec<PolicyId> = (0..100).map(|n| format!("sp-{n:016}").as_str().into()).collect();
        let delays: Vec<u64> = ids.iter().map(|id| delay(id, 599)).collect();
        assert!(delays.iter().all(|delay| *delay < 600));
        for tenth in 0..10 {
            let within = delays.iter().filter(|delay| **delay / 60 == tenth).count();
            assert!((2..=25).contains(&within), "{within} of 100 in minute {tenth}");
        }
        assert_eq!(delays, ids.iter().map(|id| delay(id, 599)).collect::<Vec<_>>());
        assert!(ids.iter().all(|id| delay(id, 0) == 0));
    }

    #[test]
    fn years_of_absence_are_counted_up_to_a_bound() {
        let table = Timetable::new(&Schedule::Every { seconds: 60 }, "UTC").unwrap();
        let now = T + 10 * 365 * 86_400;
        let found = due(&table, CatchUp::Once, T, now);
        assert_eq!(found.run, Some(now));
        assert_eq!(found.missed.map(|m| (m.count, m.more)), Some((9_999, true)));
    }
}
