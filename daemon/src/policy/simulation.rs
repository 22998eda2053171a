//! Ten years of policies and their copies over changes of clocks, against an oracle that looks at every minute.
//!
//! Invariants: the oracle shares nothing with what it judges but the offsets of the zones: it counts minutes, works
//! out its own calendar, and knows no cron expression.
//! Absent: the daemon; `tests/it/policies.rs` has one.

mod groups;

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::due::{ON_TIME, due};
use super::retention::{evict, prune};
use super::schedule::{Timetable, zone};
use crate::engine::api::policy::{Automatic, CatchUp, Counts, Kept, Schedule};
use crate::units::{PolicyId, SnapshotId};

/// From 2026 to 2036, in minutes.
const BEGIN: i64 = 29_454_240;
const END: i64 = BEGIN + 3652 * 1440;

const ZONES: &[&str] = &[
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    // Half an hour.
    "Australia/Lord_Howe",
    // Off for Ramadan.
    "Africa/Casablanca",
    // Changes at midnight: days begin at one o'clock.
    "America/Santiago",
    "Pacific/Auckland",
    "Asia/Kolkata",
];

/// What the clock on the wall shows.
#[derive(Clone, Copy)]
struct Clock {
    minute: i64,
    hour: i64,
    /// 1 is Monday.
    weekday: i64,
    day: i64,
    month: i64,
}

/// A minute since 1970 on the wall as date and time.
fn clock(local: i64) -> Clock {
    let (days, minute) = (local.div_euclid(1440), local.rem_euclid(1440));
    // Days since the first of March of the year 0, in eras of 400 years.
    let z = days + 719_468;
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    Clock {
        minute: minute % 60,
        hour: minute / 60,
        weekday: (days + 3).rem_euclid(7) + 1,
        day: of_year - (153 * march + 2) / 5 + 1,
        month: if march < 10 { march + 3 } else { march - 9 },
    }
}

/// Minutes that the clocks of a zone are ahead, for every quarter of an hour.
fn offsets(name: &str) -> Vec<i64> {
    let zone = zone(name).unwrap();
    let at = |minute: i64| zone.to_offset(Timestamp::from_second(minute * 60).unwrap());
    (BEGIN..END).step_by(15).map(|minute| i64::from(at(minute).seconds()) / 60).collect()
}

type Fits = fn(&Clock) -> bool;

/// The minutes at which a schedule is due, by looking at all of them. With `real_time` the clock is believed at each
/// minute; otherwise each time of the clock counts once, and one that was left out counts when it is over.
fn oracle(offsets: &[i64], fits: Fits, real_time: bool) -> Vec<i64> {
    let mut seen = BEGIN + offsets[0] - 1;
    let mut found = Vec::new();
    for (quarter, offset) in offsets.iter().enumerate() {
        let from = BEGIN + i64::try_from(quarter).unwrap() * 15;
        for minute in from..from + 15 {
            let local = minute + offset;
            let is_due = if real_time {
                fits(&clock(local))
            } else {
                (seen + 1..=local).any(|local| fits(&clock(local)))
            };
            seen = seen.max(local);
            if is_due {
                found.push(minute);
            }
        }
    }
    found
}

fn at(hours: &[u8], days: &[u8]) -> Schedule {
    Schedule::At { hours: hours.iter().copied().collect(), days: days.iter().copied().collect() }
}

fn cron(expression: &str) -> Schedule {
    Schedule::Cron { expression: expression.to_owned() }
}

const WEEK: &[u8] = &[1, 2, 3, 4, 5, 6, 7];

fn schedules() -> Vec<(Schedule, Fits, bool)> {
    let all: Vec<u8> = (0..24).collect();
    vec![
        (
            at(&[2, 14], &[1, 5]),
            |c| c.minute == 0 && [2, 14].contains(&c.hour) && [1, 5].contains(&c.weekday),
            false,
        ),
        (at(&[0, 1, 2, 3], WEEK), |c| c.minute == 0 && c.hour < 4, false),
        (at(&all, WEEK), |c| c.minute == 0, true),
        (cron("30 2 * * *"), |c| c.minute == 30 && c.hour == 2, false),
        (cron("*/20 0-3 * * *"), |c| c.minute % 20 == 0 && c.hour < 4, false),
        (cron("5 * * * mon-fri"), |c| c.minute == 5 && c.weekday < 6, true),
        (cron("0 3 1 * *"), |c| c.minute == 0 && c.hour == 3 && c.day == 1, false),
        // As everywhere with cron: both days given means either.
        (
            cron("59 23 13 1-6 5"),
            |c| c.minute == 59 && c.hour == 23 && c.month < 7 && (c.day == 13 || c.weekday == 5),
            false,
        ),
    ]
}

fn seconds(minute: i64) -> u64 {
    u64::try_from(minute * 60).unwrap()
}

#[test]
fn ten_years_of_slots_are_those_that_the_clocks_show() {
    for name in ZONES {
        let offsets = offsets(name);
        for (schedule, fits, real_time) in schedules() {
            let wanted: Vec<u64> =
                oracle(&offsets, fits, real_time).into_iter().map(seconds).collect();
            assert!(wanted.len() >= 120, "{name} {schedule:?}: {}", wanted.len());
            let table = Timetable::new(&schedule, name).unwrap();
            let mut after = seconds(BEGIN) - 1;
            for slot in wanted {
                let next = table.next(after);
                assert_eq!(next, Some(slot), "{name} {schedule:?} after {after}");
                after = slot;
            }
            assert!(table.next(after).is_some_and(|next| next >= seconds(END)), "{name}");
        }
    }
}

#[test]
fn ten_years_of_intervals_are_multiples() {
    for every in [900, 7 * 3600, 86_400, 604_800, 1_000_003] {
        let table = Timetable::new(&Schedule::Every { seconds: every }, "Europe/Berlin").unwrap();
        let (mut after, end) = (seconds(BEGIN), seconds(END));
        let mut count = 0;
        while let Some(next) = table.next(after).filter(|next| *next <= end) {
            assert!(next % every == 0 && next > after && next - after <= every);
            after = next;
            count += 1;
        }
        assert_eq!(count, end / every - seconds(BEGIN) / every);
    }
}

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// How long the daemon is away before it looks again, once a slot has come.
fn absence(dice: &mut Dice) -> u64 {
    match dice.below(1000) {
        0 => 3 * 86_400 + dice.below(30 * 86_400),
        1..=10 => dice.below(86_400),
        11..=40 => dice.below(2 * ON_TIME),
        _ => dice.below(20),
    }
}

/// What was made in a simulated life, and what should be there.
struct Life {
    made: BTreeSet<u64>,
    there: Vec<Kept>,
    /// Made then, and being copied: they cannot go.
    copying: BTreeSet<u64>,
    keep: Option<u64>,
    counts: Option<Counts>,
    zone: &'static str,
}

impl Life {
    fn make(&mut self, slot: u64, now: u64) {
        let automatic = Automatic {
            policy: PolicyId::from("sp-1"),
            slot,
            counts: self.counts,
            zone: self.zone.to_owned(),
            group: None,
        };
        let id = SnapshotId::from(format!("s-{now}").as_str());
        let expires_at = self.keep.map(|keep| now + keep);
        let name = String::new();
        self.there.push(Kept { id, name, created_at: now, expires_at, automatic, held: None });
        self.made.insert(now);
    }

    fn remove(&mut self, gone: &[SnapshotId]) {
        self.there.retain(|one| !gone.contains(&one.id));
    }

    fn prune(&mut self, now: u64) {
        for one in &mut self.there {
            one.held = self.copying.contains(&one.created_at).then(|| "is copied".to_owned());
        }
        let mut found = prune(now, true, &self.there, false);
        if found.too_many {
            assert!(found.remove.len() > 10 && found.remove.len() * 2 > self.there.len());
            found = prune(now, true, &self.there, true);
        }
        let gone: Vec<SnapshotId> = found.remove.into_iter().map(|(id, _)| id).collect();
        self.remove(&gone);
    }

    /// What has to be there, out of all that was ever made.
    fn wanted(&self, now: u64, quota: usize) -> BTreeSet<u64> {
        let mut wanted: BTreeSet<u64> = match (self.keep, self.counts) {
            (Some(keep), _) => self.made.iter().copied().filter(|made| made + keep > now).collect(),
            (None, Some(counts)) => self.counted(counts),
            (None, None) => self.made.iter().copied().collect(),
        };
        wanted.extend(self.made.last());
        let surplus = wanted.len().saturating_sub(quota);
        wanted.into_iter().skip(surplus).chain(self.copying.iter().copied()).collect()
    }

    /// By collecting the newest of each period and taking the last ones.
    fn counted(&self, counts: Counts) -> BTreeSet<u64> {
        let zone = zone(self.zone).unwrap();
        let local = |made: u64| {
            let made = i64::try_from(made).unwrap();
            made + i64::from(zone.to_offset(Timestamp::from_second(made).unwrap()).seconds())
        };
        let month = |made: u64| {
            let clock = clock(local(made).div_euclid(60));
            // Months are told apart by the day they begin on.
            local(made).div_euclid(86_400) - clock.day
        };
        let kinds: [(u32, &dyn Fn(u64) -> i64); 5] = [
            (counts.last, &|made| i64::try_from(made).unwrap()),
            (counts.hourly, &|made| local(made).div_euclid(3600)),
            (counts.daily, &|made| local(made).div_euclid(86_400)),
            (counts.weekly, &|made| (local(made).div_euclid(86_400) + 3).div_euclid(7)),
            (counts.monthly, &month),
        ];
        let mut kept = BTreeSet::new();
        for (count, period) in kinds {
            let mut newest: std::collections::BTreeMap<i64, u64> =
                std::collections::BTreeMap::new();
            for made in &self.made {
                newest.insert(period(*made), *made);
            }
            kept.extend(newest.values().rev().take(usize::try_from(count).unwrap()));
        }
        kept
    }
}

/// A repository to which a policy copies: what is complete there, by a rule of its own.
struct Copies {
    complete: Life,
    under_way: Vec<(u64, u64)>,
}

impl Copies {
    /// Some copies are complete, whichever began first; others take longer.
    fn look(&mut self, now: u64, dice: &mut Dice) {
        let (done, left) = self.under_way.drain(..).partition(|_| dice.below(4) > 0);
        self.under_way = left;
        let done: Vec<(u64, u64)> = done;
        done.into_iter().for_each(|(slot, made)| self.complete.make(slot, made));
        self.complete.prune(now);
    }
}

/// Lets a policy live through the slots, with a daemon that is away at times.
fn live(
    slots: &[u64],
    (schedule, name): (&Schedule, &'static str),
    [(keep, counts), copied]: [(Option<u64>, Option<Counts>); 2],
    (catch_up, quota): (CatchUp, usize),
    dice: &mut Dice,
) {
    let table = Timetable::new(schedule, name).unwrap();
    let new = |keep, counts| {
        let (made, copying) = (BTreeSet::new(), BTreeSet::new());
        Life { made, there: Vec::new(), copying, keep, counts, zone: name }
    };
    let mut life = new(keep, counts);
    // The copies are kept as the snapshots of another policy are.
    let (keep_copy, counts_copy) = copied;
    let mut copies = Copies { complete: new(keep_copy, counts_copy), under_way: Vec::new() };
    let (mut handled, mut at) = (seconds(BEGIN) - 1, 0usize);
    let (mut runs, mut told, mut late) = (BTreeSet::new(), 0, 0);
    let end = *slots.last().unwrap();
    let mut looks = 0;
    while handled < end {
        let now = slots[at] + absence(dice);
        if now > end {
            // What follows is not on the list.
            break;
        }
        let found = due(&table, catch_up, handled, now);
        let passed = slots[at..].iter().take_while(|slot| **slot <= now).count();
        let missed = found.missed.map_or(0, |missed| missed.count);
        let last = slots[at + passed - 1];
        let on_time = now - last <= ON_TIME;
        assert_eq!(found.handled, last, "{name} {schedule:?}");
        // Every slot is run or told, and none of them both, but for the one that is caught up with.
        let run = usize::from(on_time);
        assert_eq!(usize::try_from(missed).unwrap(), passed - run, "{name} {schedule:?} at {now}");
        assert_eq!(found.run.is_some(), on_time || catch_up == CatchUp::Once);
        if let Some(slot) = found.run {
            assert_eq!(slot, last);
            assert!(runs.insert(slot), "{slot} was run twice");
            late += u64::from(!on_time);
            life.make(slot, now);
            copies.under_way.push((slot, now));
            let gone = evict(&life.there, quota);
            life.remove(&gone);
        }
        told += missed;
        at += passed;
        handled = found.handled;
        copies.look(now, dice);
        life.copying = copies.under_way.iter().map(|(_, made)| *made).collect();
        life.prune(now);
        looks += 1;
        if looks % 128 == 0 || handled >= end {
            let there: BTreeSet<u64> = life.there.iter().map(|one| one.created_at).collect();
            assert_eq!(there, life.wanted(now, quota), "{name} {schedule:?} {keep:?} at {now}");
            let copied: BTreeSet<u64> =
                copies.complete.there.iter().map(|one| one.created_at).collect();
            let wanted = copies.complete.wanted(now, usize::MAX);
            assert_eq!(copied, wanted, "copies: {name} {schedule:?} {keep_copy:?} at {now}");
        }
    }
    let runs = u64::try_from(runs.len()).unwrap();
    assert_eq!(runs - late + told, u64::try_from(at).unwrap(), "{name} {schedule:?}");
    assert!(runs * 4 > told, "the daemon was away for most of the time: {runs} runs, {told} told");
    assert!(told > 0 || slots.len() < 1000, "the daemon was never away");
    assert!(life.there.len() <= quota);
}

#[test]
fn ten_years_with_absences_have_no_double_run_none_that_is_missed_in_silence_and_the_right_rest() {
    const DAY: u64 = 86_400;
    let counts = Counts { last: 7, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 0 };
    let keeps = [(Some(30 * DAY), None), (None, Some(counts)), (None, None), (Some(DAY), None)];
    let mut dice = Dice(20_261_122);
    for (number, name) in ZONES.iter().enumerate() {
        let offsets = offsets(name);
        for (schedule, fits, real_time) in schedules() {
            let slots: Vec<u64> =
                oracle(&offsets, fits, real_time).into_iter().map(seconds).collect();
            // Hourly ones are many: seven months of them.
            let slots = &slots[..slots.len().min(5000)];
            let keep = [keeps[number % keeps.len()], keeps[(number + 1) % keeps.len()]];
            let catch_up = [CatchUp::None, CatchUp::Once][number / keeps.len() % 2];
            live(slots, (&schedule, name), keep, (catch_up, 250), &mut dice);
        }
    }
}
