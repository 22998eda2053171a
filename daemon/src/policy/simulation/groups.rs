//! Years of an instance whose disks come and go, with a policy that makes groups of them, against a model that does by
//! hand what the rules say.
//!
//! Invariants: the model counts with lists of times and numbers of disks, and shares with what it judges the clock and
//! the way in which a calendar is read (`Life::counted`).
//! Absent: the daemon; `tests/it/policies/instances.rs` has one.

use std::collections::{BTreeMap, BTreeSet};

use super::super::retention::{evict, has_room, prune};
use super::*;
use crate::units::GroupId;

/// What a disk of the simulation is.
#[derive(Clone, Copy, Default)]
struct Disk {
    gone: bool,
    member: bool,
}

/// What is there, as the functions under test see it: groups by the time they were made at, with the numbers of their
/// disks; and snapshots that disks have brought with them, with their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct There {
    groups: BTreeMap<u64, Vec<usize>>,
    alone: BTreeMap<(usize, u64), u64>,
}

struct Herd {
    disks: Vec<Disk>,
    keep: Option<u64>,
    counts: Option<Counts>,
    zone: &'static str,
    quota: usize,
    /// A group that somebody reads.
    held: Option<u64>,
}

impl There {
    /// When snapshots of a disk were made, oldest first; with its group, if it has one.
    fn of(&self, disk: usize) -> BTreeMap<u64, bool> {
        let groups = self.groups.iter().filter(|(_, disks)| disks.contains(&disk));
        let alone = self.alone.keys().filter(|(of, _)| *of == disk).map(|(_, made)| (*made, false));
        groups.map(|(made, _)| (*made, true)).chain(alone).collect()
    }
}

impl Herd {
    fn automatic(&self, group: Option<u64>, counts: Option<Counts>) -> Automatic {
        let group = group.map(|made| GroupId::from(format!("ssg-{made}").as_str()));
        let (policy, zone) = (PolicyId::from("sp-1"), self.zone.to_owned());
        Automatic { policy, slot: 0, counts, zone, group }
    }

    /// The groups that stay whatever their rule says: one is read, others have the newest snapshot of a disk; but for the
    /// members of the instance when they are about to get newer ones.
    fn held(&self, there: &There, renewed: bool) -> BTreeSet<u64> {
        let mut newest: BTreeMap<usize, u64> = BTreeMap::new();
        let grouped =
            there.groups.iter().flat_map(|(made, disks)| disks.iter().map(|disk| (*disk, *made)));
        for (disk, made) in grouped.chain(there.alone.keys().copied()) {
            let last = newest.entry(disk).or_default();
            *last = made.max(*last);
        }
        newest.retain(|disk, _| {
            let disk = self.disks[*disk];
            !(disk.gone || renewed && disk.member)
        });
        newest
            .into_values()
            .filter(|made| there.groups.contains_key(made))
            .chain(self.held)
            .collect()
    }

    fn kept_groups(&self, there: &There) -> Vec<Kept<GroupId>> {
        let held = self.held(there, false);
        let kept = |made: &u64| Kept {
            id: GroupId::from(format!("ssg-{made}").as_str()),
            name: String::new(),
            created_at: *made,
            expires_at: self.keep.map(|keep| made + keep),
            automatic: self.automatic(None, self.counts),
            held: held.contains(made).then(|| "it is in use".to_owned()),
        };
        there.groups.keys().map(kept).collect()
    }

    fn kept_of(&self, there: &There, disk: usize, renewed: bool) -> Vec<Kept> {
        let held = self.held(there, renewed);
        let kept = |(made, grouped): (u64, bool)| Kept {
            id: SnapshotId::from(format!("s-{made}").as_str()),
            name: String::new(),
            created_at: made,
            expires_at: match grouped {
                true => self.keep.map(|keep| made + keep),
                false => there.alone.get(&(disk, made)).copied(),
            },
            automatic: self.automatic(grouped.then_some(made), self.counts.filter(|_| grouped)),
            held: (grouped && held.contains(&made)).then(|| "it is in use".to_owned()),
        };
        there.of(disk).into_iter().map(kept).collect()
    }

    /// A run: what goes at the quota goes by `evict`.
    fn run(&self, there: &mut There, now: u64) {
        let members: Vec<usize> =
            (0..self.disks.len()).filter(|disk| self.disks[*disk].member).collect();
        let room = |disk: &usize| has_room(&self.kept_of(there, *disk, true), self.quota);
        if members.is_empty() || !members.iter().all(room) {
            return;
        }
        there.groups.insert(now, members.clone());
        for disk in members {
            for id in evict(&self.kept_of(there, disk, false), self.quota) {
                let made: u64 = id.as_str()[2..].parse().unwrap();
                if there.groups.remove(&made).is_none() {
                    assert!(there.alone.remove(&(disk, made)).is_some(), "{id} went twice");
                }
            }
        }
    }

    /// A look: what has had its time goes by `prune`.
    fn look(&self, there: &mut There, now: u64) {
        let groups = self.kept_groups(there);
        for (id, _) in prune(now, true, &groups, true).remove {
            let made: u64 = id.as_str()[4..].parse().unwrap();
            there.groups.remove(&made).unwrap();
        }
        let brought: BTreeSet<usize> = there.alone.keys().map(|(disk, _)| *disk).collect();
        for number in brought {
            let disk = self.disks[number];
            for (id, _) in prune(now, !disk.gone, &self.kept_of(there, number, false), true).remove
            {
                let made: u64 = id.as_str()[2..].parse().unwrap();
                assert!(
                    there.alone.remove(&(number, made)).is_some(),
                    "{id} went without its group"
                );
            }
        }
    }

    /// The same run by hand.
    fn model_run(&self, there: &mut There, now: u64) {
        let members: Vec<usize> = self
            .disks
            .iter()
            .enumerate()
            .filter(|(_, disk)| disk.member)
            .map(|(at, _)| at)
            .collect();
        let held = self.held(there, true);
        let stuck = |disk: &usize| {
            let all = there.of(*disk);
            let free = |(made, grouped): (&u64, &bool)| !grouped || !held.contains(made);
            all.len() >= self.quota && !all.iter().any(free)
        };
        if members.is_empty() || members.iter().any(stuck) {
            return;
        }
        there.groups.insert(now, members.clone());
        for disk in members {
            // What is in use and the newest stay, and others go in their place.
            let (all, held) = (there.of(disk), self.held(there, false));
            let mut surplus = all.len().saturating_sub(self.quota);
            for (made, grouped) in all.into_iter().filter(|(made, _)| *made != now) {
                if surplus > 0 && (!grouped || !held.contains(&made)) {
                    surplus -= 1;
                    match grouped {
                        true => drop(there.groups.remove(&made)),
                        false => drop(there.alone.remove(&(disk, made))),
                    }
                }
            }
        }
    }

    /// The same look by hand: for each group and snapshot the reason why it may stay.
    fn model_look(&self, there: &mut There, now: u64) {
        let made: BTreeSet<u64> = there.groups.keys().copied().collect();
        let counted = self.counts.map(|counts| {
            let (there, copying) = (Vec::new(), BTreeSet::new());
            let life = Life {
                made: made.clone(),
                there,
                copying,
                keep: None,
                counts: None,
                zone: self.zone,
            };
            life.counted(counts)
        });
        let held = self.held(there, false);
        there.groups.retain(|one, _| {
            let by_rule = match (self.keep, &counted) {
                (Some(keep), _) => one + keep > now,
                (None, Some(counted)) => counted.contains(one),
                (None, None) => true,
            };
            by_rule || made.last() == Some(one) || held.contains(one)
        });
        let after = there.clone();
        there.alone.retain(|(disk, one), end| {
            let newest = after.of(*disk).last_key_value().map(|last| *last.0) == Some(*one);
            *end > now || newest && !self.disks[*disk].gone
        });
    }

    /// Disks come, with snapshots of their own, leave for another instance, come back, and are deleted.
    fn stir(&mut self, there: &mut There, now: u64, dice: &mut Dice) {
        let alive: Vec<usize> =
            (0..self.disks.len()).filter(|disk| !self.disks[*disk].gone).collect();
        // One is always left.
        let pick = alive[usize::try_from(dice.below(alive.len() as u64)).unwrap()];
        let members = self.disks.iter().filter(|disk| disk.member).count();
        match dice.below(4) {
            0 if members < 6 => {
                let number = self.disks.len();
                self.disks.push(Disk { gone: false, member: true });
                for age in 1..=dice.below(4) {
                    let end = now + dice.below(40) * 86_400;
                    there.alone.insert((number, now - age * 3600 - number as u64 - 1), end);
                }
            }
            1 if members > 1 => self.disks[pick].member = false,
            2 if members < 6 => self.disks[pick].member = true,
            3 if members > 1 => self.disks[pick] = Disk { gone: true, member: false },
            _ => {}
        }
        let groups: Vec<u64> = there.groups.keys().copied().collect();
        self.held = match dice.below(3) {
            0 => None,
            1 => self.held.filter(|held| there.groups.contains_key(held)),
            _ => groups
                .get(usize::try_from(dice.below(groups.len().max(1) as u64)).unwrap())
                .copied(),
        };
    }
}

/// Promise: a group goes as a whole, at the time its rule says and not before; what is in use and the newest of each disk stay;
/// no disk has more than its quota unless that is so because of them.
#[test]
fn ten_years_of_groups_are_kept_as_the_rules_say() {
    const DAY: u64 = 86_400;
    let counts = Counts { last: 5, hourly: 12, daily: 7, weekly: 4, monthly: 6, yearly: 0 };
    let rules = [
        (Some(20 * DAY), None, 1000),
        (None, Some(counts), 1000),
        (None, None, 40),
        (Some(90 * DAY), None, 25),
        (None, None, 1),
    ];
    let mut dice = Dice(20_261_123);
    let (mut joined, mut most) = (0, 0);
    for (number, zone) in ZONES.iter().enumerate() {
        let offsets = offsets(zone);
        let (schedule, fits, real_time) = schedules().swap_remove([0, 3][number % 2]);
        let slots: Vec<u64> = oracle(&offsets, fits, real_time).into_iter().map(seconds).collect();
        let (keep, counts, quota) = rules[number % rules.len()];
        let disks = vec![Disk { gone: false, member: true }; 3];
        let mut herd = Herd { disks, keep, counts, zone, quota, held: None };
        let (mut there, mut model) = (There::default(), There::default());
        for slot in slots {
            if dice.below(10) == 0 {
                herd.stir(&mut there, slot, &mut dice);
                model.alone.clone_from(&there.alone);
            }
            herd.run(&mut there, slot);
            herd.model_run(&mut model, slot);
            assert_eq!(there, model, "{zone} {schedule:?} at {slot}, the run");
            herd.look(&mut there, slot);
            herd.model_look(&mut model, slot);
            assert_eq!(there, model, "{zone} {schedule:?} at {slot}, the look");
            most = most.max(there.groups.len());
        }
        joined += herd.disks.len();
    }
    assert!(joined > 200 && most > 20, "{joined} disks, {most} groups: too little happened");
}
