//! Which automatic snapshots of a disk have had their time.
//!
//! Invariants: each snapshot follows the rule it was made under, and each copy; one that was made with others goes with
//! its group, which follows that rule as a snapshot does; the newest one of a disk that exists
//! never goes by retention; what is in use is passed over; more than a few, and more than half of all, go only when somebody has
//! agreed.
//! Absent: manual snapshots. Nobody here sees one.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use super::schedule::zone;
use crate::engine::api::policy::{Automatic, Counts, Kept};
use crate::units::SnapshotId;

/// So many go at a time without anybody asking, and also half of all.
const AT_ONCE: usize = 10;

/// Why a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its time is over.
    Expired,
    /// It is none of those that its rule counts.
    Counted,
    /// The disk has its full number of automatic snapshots, and this is the oldest.
    Quota,
}

/// What is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prune<I = SnapshotId> {
    /// Oldest first.
    pub remove: Vec<(I, Reason)>,
    /// These are too many to go unasked: nothing is removed.
    pub too_many: bool,
    /// Something else has had its time too, and is in use.
    pub in_use: bool,
}

/// What is to go of the automatic snapshots of one disk, of its complete copies in one repository, or of the groups of one
/// instance. `agreed`: however many that are. Snapshots that were made with others count and are passed over: it is for
/// their group to go.
#[must_use]
pub fn prune<I: Clone + Ord>(
    now: u64,
    disk_exists: bool,
    all: &[Kept<I>],
    agreed: bool,
) -> Prune<I> {
    let mut sorted: Vec<&Kept<I>> = all.iter().collect();
    sorted.sort_by_key(|one| one.created_at);
    let newest = sorted.last().filter(|_| disk_exists).map(|one| &one.id);
    let kept_by_count = Kinds::new(&sorted);
    let (mut remove, mut in_use) = (Vec::new(), false);
    let alone = |one: &&&Kept<I>| one.automatic.group.is_none() && Some(&one.id) != newest;
    for one in sorted.iter().filter(alone) {
        let reason = match one.automatic.counts {
            _ if one.expires_at.is_some_and(|end| end <= now) => Reason::Expired,
            Some(_) if !kept_by_count.keeps(one) => Reason::Counted,
            _ => continue,
        };
        match one.held {
            None => remove.push((one.id.clone(), reason)),
            Some(_) => in_use = true,
        }
    }
    let too_many = !agreed && remove.len() > AT_ONCE.max(all.len() / 2);
    Prune { remove, too_many, in_use }
}

/// The oldest ones that have to go so that at most `quota` are there, as far as they can; one that was made with others
/// with its group.
#[must_use]
pub fn evict(all: &[Kept], quota: usize) -> Vec<SnapshotId> {
    let mut sorted: Vec<&Kept> = all.iter().collect();
    sorted.sort_by_key(|one| one.created_at);
    let surplus = all.len().saturating_sub(quota);
    // The newest is what was just made.
    sorted.pop();
    let free = sorted.into_iter().filter(|one| one.held.is_none());
    free.take(surplus).map(|one| one.id.clone()).collect()
}

/// Whether another one can be made without going beyond the quota for good.
#[must_use]
pub fn has_room(all: &[Kept], quota: usize) -> bool {
    all.len() < quota || quota > 0 && all.iter().any(|one| one.held.is_none())
}

/// The snapshots that rules of counting keep: each rule looks at all snapshots of its policy.
struct Kinds<I> {
    kept: BTreeMap<(String, Counts, String), BTreeSet<I>>,
}

impl<I: Clone + Ord> Kinds<I> {
    fn new(sorted: &[&Kept<I>]) -> Kinds<I> {
        let mut kept = BTreeMap::new();
        for one in sorted {
            let Some(counts) = one.automatic.counts else { continue };
            let policy = &one.automatic.policy;
            let key = (policy.to_string(), counts, one.automatic.zone.clone());
            kept.entry(key).or_insert_with(|| {
                let same = sorted.iter().filter(|other| other.automatic.policy == *policy);
                counted(counts, &one.automatic.zone, same.copied().collect())
            });
        }
        Kinds { kept }
    }

    fn keeps(&self, one: &Kept<I>) -> bool {
        let Some(counts) = one.automatic.counts else { return true };
        let Automatic { policy, zone, .. } = &one.automatic;
        let kept = self.kept.get(&(policy.to_string(), counts, zone.clone()));
        kept.is_none_or(|kept| kept.contains(&one.id))
    }
}

/// Those that a rule keeps out of these, which are sorted by time.
fn counted<I: Clone + Ord>(counts: Counts, zone_name: &str, sorted: Vec<&Kept<I>>) -> BTreeSet<I> {
    // A zone that has vanished from the host: days are counted all the same.
    let zone = zone(zone_name).unwrap_or(TimeZone::UTC);
    let clock = |one: &Kept<I>| {
        let at = i64::try_from(one.created_at).unwrap_or(0);
        zone.to_datetime(Timestamp::from_second(at).unwrap_or(Timestamp::UNIX_EPOCH))
    };
    let mut kept = BTreeSet::new();
    let mut newest_of = |count: u32, period: &dyn Fn(&Kept<I>) -> Period<I>| {
        let mut last = None;
        let mut left = count;
        for one in sorted.iter().rev() {
            let period = period(one);
            if left > 0 && last.as_ref() != Some(&period) {
                kept.insert(one.id.clone());
                last = Some(period);
                left -= 1;
            }
        }
    };
    newest_of(counts.last, &|one| Period::One(one.id.clone()));
    newest_of(counts.hourly, &|one| Period::Hour(hour_of(clock(one))));
    newest_of(counts.daily, &|one| Period::Day(clock(one).date()));
    newest_of(counts.weekly, &|one| {
        let week = clock(one).date().iso_week_date();
        Period::Number(i32::from(week.year()), i32::from(week.week()))
    });
    newest_of(counts.monthly, &|one| {
        let date = clock(one).date();
        Period::Number(i32::from(date.year()), i32::from(date.month()))
    });
    newest_of(counts.yearly, &|one| Period::Number(i32::from(clock(one).date().year()), 0));
    kept
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Period<I> {
    One(I),
    Hour((Date, i8)),
    Day(Date),
    Number(i32, i32),
}

fn hour_of(clock: DateTime) -> (Date, i8) {
    (clock.date(), clock.hour())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PolicyId;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    /// A Monday at midnight.
    const T: u64 = 1_780_272_000;

    fn kept(number: u64, created_at: u64, expires_at: Option<u64>, counts: Option<Counts>) -> Kept {
        let automatic = Automatic {
            policy: PolicyId::from("sp-1"),
            slot: created_at,
            counts,
            zone: "UTC".to_owned(),
            group: None,
        };
        let id = SnapshotId::from(format!("s-{number}").as_str());
        Kept { id, name: String::new(), created_at, expires_at, automatic, held: None }
    }

    fn numbers(found: &[(SnapshotId, Reason)]) -> Vec<u64> {
        found.iter().map(|(id, _)| id.as_str()[2..].parse().unwrap()).collect()
    }

    #[test]
    fn what_has_expired_goes_but_for_the_newest_and_what_is_in_use() {
        let mut all: Vec<Kept> =
            (0..4).map(|n| kept(n, T + n * HOUR, Some(T + n * HOUR + DAY), None)).collect();
        all[1].held = Some("an image is made of it".to_owned());
        assert_eq!(numbers(&prune(T + DAY, true, &all, false).remove), [0]);
        let later = prune(T + 9 * DAY, true, &all, false);
        assert_eq!((numbers(&later.remove), later.in_use), (vec![0, 2], true), "1 comes later");
        // Of a disk that is gone nothing has to stay.
        assert_eq!(numbers(&prune(T + 9 * DAY, false, &all, false).remove), [0, 2, 3]);
    }

    #[test]
    fn counts_keep_the_newest_of_each_period() {
        let rule = Counts { last: 2, hourly: 3, daily: 3, ..Counts::default() };
        // Two an hour for four days.
        let all: Vec<Kept> =
            (0..192).map(|n| kept(n, T + n * HOUR / 2, None, Some(rule))).collect();
        let gone = prune(T + 5 * DAY, true, &all, true);
        let left: Vec<u64> = (0..192).filter(|n| !numbers(&gone.remove).contains(n)).collect();
        // Last two: 190, 191. Hours: 191, 189, 187. Days: 191, 143, 95.
        assert_eq!(left, [95, 143, 187, 189, 190, 191]);
        assert!(prune(T + 5 * DAY, true, &all, false).too_many, "186 of 192 is a lot");
    }

    #[test]
    fn a_snapshot_follows_the_rule_it_was_made_under() {
        let (few, many) =
            (Counts { last: 1, ..Counts::default() }, Counts { last: 3, ..Counts::default() });
        let rules = [many, many, many, few, few];
        let all: Vec<Kept> = (0..5)
            .map(|n| kept(n, T + n * HOUR, None, Some(rules[usize::try_from(n).unwrap()])))
            .collect();
        // The older rule keeps 2, 3 and 4 of all, the newer only 4.
        assert_eq!(numbers(&prune(T + DAY, true, &all, false).remove), [0, 1, 3]);
    }

    #[test]
    fn what_was_made_with_others_is_for_its_group_to_go_and_counts_all_the_same() {
        let rule = Counts { last: 2, ..Counts::default() };
        let mut all: Vec<Kept> =
            (0..5).map(|n| kept(n, T + n * HOUR, Some(T + n * HOUR), Some(rule))).collect();
        for one in &mut all[3..] {
            one.automatic.group = Some("ssg-1".into());
        }
        // None of the three need stay: newer ones are there, in groups; these have had their time too, and are not ours.
        assert_eq!(numbers(&prune(T + DAY, true, &all, false).remove), [0, 1, 2]);
        assert_eq!(
            evict(&all, 1).len(),
            4,
            "at the quota they go, and take their groups with them"
        );
        // For the group itself nothing is otherwise.
        let groups: Vec<Kept> =
            (0..3).map(|n| kept(n, T + n * HOUR, Some(T + DAY), None)).collect();
        assert_eq!(numbers(&prune(T + DAY, true, &groups, false).remove), [0, 1]);
        assert_eq!(
            numbers(&prune(T + DAY, false, &groups, false).remove),
            [0, 1, 2],
            "no instance"
        );
    }

    #[test]
    fn at_the_quota_the_oldest_that_is_free_goes() {
        let mut all: Vec<Kept> = (0..4).map(|n| kept(n, T + n * HOUR, None, None)).collect();
        all[0].held = Some("it is mounted".to_owned());
        let ids =
            |found: Vec<SnapshotId>| found.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ids(evict(&all, 3)), ["s-1"]);
        assert_eq!(ids(evict(&all, 1)), ["s-1", "s-2"], "what is in use stays beyond the quota");
        assert!(evict(&all, 4).is_empty());
        assert!(has_room(&all, 4));
        for one in &mut all {
            one.held = Some("it is mounted".to_owned());
        }
        assert!(!has_room(&all, 4) && has_room(&all, 5) && !has_room(&[], 0));
    }
}
