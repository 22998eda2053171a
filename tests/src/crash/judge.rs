//! The judge: whether what a disk shows after a crash could have come about.
//!
//! Of each sector the operations are known in order, so what it shows says up to which of them it got;
//! zeros may say several. From that follows for each operation whether it is there, is not, or cannot
//! be told.
//!
//! Invariants: an error is always a broken promise: where several explanations fit, the best counts.
//! Absent: which operations must or may be there: that is the caller's question.

use std::ops::Range;

use super::history::{Log, Op};
use super::stamp::Value;

/// What the caller knows of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It has to be there.
    Must,
    /// It may be there.
    May,
    /// It cannot be there.
    Never,
}

/// The operations of a snapshot or a crash: those answered before `must` are in, those asked for after
/// `may` are not.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub must: u64,
    pub may: u64,
}

impl Window {
    /// Every answered operation, and perhaps some in flight: what a killed daemon promises.
    pub const ALL_ANSWERED: Window = Window { must: u64::MAX, may: u64::MAX };

    #[must_use]
    pub fn expect(self, op: &Op) -> Expect {
        match op.completed {
            Some(at) if at < self.must => Expect::Must,
            _ if op.invoked < self.may => Expect::May,
            _ => Expect::Never,
        }
    }
}

/// One disk as found, with its history.
#[derive(Debug)]
pub struct Found<'a> {
    pub name: &'a str,
    pub log: &'a Log,
    pub image: &'a [Value],
}

/// What is certain about an operation.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    there: bool,
    missing: bool,
}

/// Judges disks that share one order of effects.
///
/// # Errors
/// What cannot have come about.
pub fn judge(disks: &[Found<'_>], expect: impl Fn(&Op) -> Expect) -> Result<(), String> {
    let mut all: Vec<(&str, &Op, Seen)> = Vec::new();
    for disk in disks {
        let seen = look(disk, &expect).map_err(|e| format!("{}: {e}", disk.name))?;
        for (op, seen) in disk.log.ops.iter().zip(seen) {
            if seen.there && seen.missing {
                return Err(format!("{}: {} is there in part", disk.name, describe(op)));
            }
            all.push((disk.name, op, seen));
        }
    }
    // A prefix in order: what was answered before a visible operation was asked for is there too.
    let Some((newest_disk, newest, _)) =
        all.iter().filter(|(_, _, seen)| seen.there).max_by_key(|(_, op, _)| op.invoked)
    else {
        return Ok(());
    };
    for (disk, op, seen) in &all {
        if seen.missing && op.completed.is_some_and(|at| at < newest.invoked) {
            return Err(format!(
                "{disk}: {} is missing, but the later {} of {newest_disk} is there",
                describe(op),
                describe(newest)
            ));
        }
    }
    Ok(())
}

/// Finds out for each operation of a disk whether it is there.
fn look(disk: &Found<'_>, expect: &impl Fn(&Op) -> Expect) -> Result<Vec<Seen>, String> {
    let Found { log, image, .. } = disk;
    if image.len() != log.base.len() {
        return Err(format!("{} sectors, expected {}", image.len(), log.base.len()));
    }
    let mut touching: Vec<Vec<usize>> = vec![Vec::new(); image.len()];
    for (index, op) in log.ops.iter().enumerate() {
        for sector in op.sectors.clone() {
            touching[sector as usize].push(index);
        }
    }
    let mut seen = vec![Seen::default(); log.ops.len()];
    for (at, ops) in touching.iter().enumerate() {
        let range = explain(log, at, ops, image[at], expect)?;
        for (position, index) in ops.iter().enumerate() {
            // Position 0 of the range is the base, position 1 the first operation. One that a later
            // one has overwritten is neither there nor missing: the later one tells, by their order.
            seen[*index].there |= *range.start() == position + 1;
            seen[*index].missing |= *range.end() <= position;
        }
    }
    Ok(seen)
}

/// The least and the most operations that explain what a sector shows.
fn explain(
    log: &Log,
    at: usize,
    ops: &[usize],
    found: Value,
    expect: &impl Fn(&Op) -> Expect,
) -> Result<std::ops::RangeInclusive<usize>, String> {
    let wants: Vec<Expect> = ops.iter().map(|index| expect(&log.ops[*index])).collect();
    let least = wants.iter().rposition(|want| *want == Expect::Must).map_or(0, |at| at + 1);
    let most = wants.iter().position(|want| *want == Expect::Never).unwrap_or(ops.len());
    let value = |count: usize| match count.checked_sub(1) {
        None => log.base[at],
        Some(last) => log.ops[ops[last]].value,
    };
    let mut fitting = (least..=most).filter(|count| value(*count) == found);
    let Some(first) = fitting.next() else {
        return Err(impossible(log, at, ops, found, least..most));
    };
    Ok(first..=fitting.next_back().unwrap_or(first))
}

fn impossible(log: &Log, at: usize, ops: &[usize], found: Value, range: Range<usize>) -> String {
    let told: Vec<String> =
        ops.iter().map(|index| describe(&log.ops[*index])).rev().take(6).collect();
    format!(
        "sector {at} shows {found}; at the start {}, then {} operations of which {} must and {} may \
         be there; the last were: {}",
        log.base[at],
        ops.len(),
        range.start,
        range.end,
        told.join("; ")
    )
}

fn describe(op: &Op) -> String {
    let Op { value, sectors, invoked, completed, fua } = op;
    let answered = completed.map_or("never".to_owned(), |at| at.to_string());
    let fua = if *fua { " with FUA" } else { "" };
    format!("{value}{fua} in sectors {sectors:?}, asked {invoked}, answered {answered}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::history::Clock;

    const SIZE: usize = 8;

    /// A disk with three writes in sequence, the last one not answered: 0..4, 2..6, 4..8.
    fn history() -> (Log, [Value; 3]) {
        let (clock, mut log) = (Clock::default(), Log::new(1, vec![Value::ZERO; SIZE]));
        let values = [0..4, 2..6, 4..8].map(|sectors| {
            let value = log.new_value();
            let index = log.invoke(&clock, value, sectors.clone(), false);
            if sectors.end < 8 {
                log.complete(&clock, index);
            }
            value
        });
        (log, values)
    }

    fn judged(log: &Log, image: &[Value], window: Window) -> Result<(), String> {
        judge(&[Found { name: "d", log, image }], |op| window.expect(op))
    }

    const ANY: Window = Window { must: 0, may: u64::MAX };

    #[test]
    fn every_prefix_passes_and_each_hole_in_one_is_noticed() {
        let (log, [a, b, c]) = history();
        let z = Value::ZERO;
        for image in [
            [z, z, z, z, z, z, z, z],
            [a, a, a, a, z, z, z, z],
            [a, a, b, b, b, b, z, z],
            [a, a, b, b, c, c, c, c],
        ] {
            judged(&log, &image, ANY).unwrap();
        }
        // The second write without the first, and the third without the second.
        assert!(judged(&log, &[z, z, b, b, b, b, z, z], ANY).unwrap_err().contains("missing"));
        assert!(judged(&log, &[a, a, a, a, c, c, c, c], ANY).unwrap_err().contains("missing"));
    }

    #[test]
    fn a_torn_write_a_lost_one_and_a_foreign_one_are_noticed() {
        let (log, [a, b, c]) = history();
        let (z, foreign) = (Value::ZERO, Value::new(9, 9));
        let torn = judged(&log, &[a, a, b, b, b, c, c, c], ANY).unwrap_err();
        assert!(torn.contains("in part"), "{torn}");
        let lost = judged(&log, &[a, a, a, a, z, z, z, z], Window::ALL_ANSWERED).unwrap_err();
        assert!(lost.contains("2 must"), "{lost}");
        judged(&log, &[a, a, b, b, b, b, z, z], Window::ALL_ANSWERED).unwrap();
        assert!(judged(&log, &[a, a, b, b, foreign, b, z, z], ANY).is_err());
    }

    #[test]
    fn what_was_asked_for_after_the_window_is_noticed() {
        let (log, [a, b, c]) = history();
        let window = Window { must: log.ops[2].invoked, may: log.ops[2].invoked };
        judged(&log, &[a, a, b, b, b, b, Value::ZERO, Value::ZERO], window).unwrap();
        assert!(judged(&log, &[a, a, b, b, c, c, c, c], window).is_err());
    }

    #[test]
    fn disks_share_one_order() {
        let clock = Clock::default();
        let mut logs = [Log::new(1, vec![Value::ZERO; 1]), Log::new(2, vec![Value::ZERO; 1])];
        let values = [0, 1].map(|disk| {
            let log: &mut Log = &mut logs[disk];
            let value = log.new_value();
            let index = log.invoke(&clock, value, 0..1, false);
            log.complete(&clock, index);
            value
        });
        let both = |first: Value, second: Value| {
            let (first, second) = ([first], [second]);
            let found = [
                Found { name: "a", log: &logs[0], image: &first },
                Found { name: "b", log: &logs[1], image: &second },
            ];
            judge(&found, |op| ANY.expect(op))
        };
        both(values[0], Value::ZERO).unwrap();
        assert!(both(Value::ZERO, values[1]).unwrap_err().contains("missing"));
    }
}
