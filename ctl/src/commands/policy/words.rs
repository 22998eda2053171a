//! Schedules and retentions as they are written on the command line, both ways.
//!
//! Invariants: what is printed can be typed again.
//! Absent: what the daemon checks: whether a day exists, and how long is too long.

use std::str::FromStr;

use rowd_proto::{PolicyKeep, PolicySchedule};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const UNITS: [(char, u64); 5] =
    [('w', 7 * 86_400), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// Hours of the day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours(pub Vec<u8>);

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hour = |part: &str| match part.trim().parse::<u8>() {
            Ok(hour) if hour < 24 => Ok(hour),
            _ => Err(format!("{part:?} is no full hour from 0 to 23; minutes need --cron")),
        };
        text.split(',').map(hour).collect::<Result<_, _>>().map(Hours)
    }
}

/// Days of the week, 1 is Monday.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Days(pub Vec<u8>);

impl FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Vec::new();
        for part in text.split(',').map(|part| part.trim().to_ascii_lowercase()) {
            match part.split_once('-') {
                None => found.push(day(&part)?),
                Some((first, last)) => {
                    let (first, last) = (day(first)?, day(last)?);
                    if first > last {
                        return Err(format!("{part:?} runs backwards"));
                    }
                    found.extend(first..=last);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(Days(found))
    }
}

fn day(text: &str) -> Result<u8, String> {
    let named = DAYS.iter().position(|name| text.len() >= 3 && text.starts_with(name));
    let number = named.and_then(|at| u8::try_from(at + 1).ok()).or_else(|| text.parse().ok());
    number
        .filter(|day| (1..=7).contains(day))
        .ok_or_else(|| format!("{text:?} is no day of the week: mon to sun, or 1 (Monday) to 7"))
}

/// An interval in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every(pub u64);

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        seconds(text).map(Every)
    }
}

/// Reads `30d`, `12h`, `15m`.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no length of time, such as 30d, 12h or 15m");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(*factor).ok_or_else(|| format!("{text:?} is too long"))
}

/// How long snapshots stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep(pub PolicyKeep);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Keep(PolicyKeep::Forever));
        }
        if !text.contains('=') {
            return seconds(text).map(|seconds| Keep(PolicyKeep::For { seconds }));
        }
        let [mut last, mut hourly, mut daily, mut weekly, mut monthly, mut yearly] = [0; 6];
        for part in text.split(',') {
            let (kind, count) = part.split_once('=').unwrap_or((part, ""));
            let place = match kind.trim() {
                "last" => &mut last,
                "hourly" => &mut hourly,
                "daily" => &mut daily,
                "weekly" => &mut weekly,
                "monthly" => &mut monthly,
                "yearly" => &mut yearly,
                other => {
                    return Err(format!(
                        "{other:?} cannot be counted: last, hourly, daily, weekly, monthly and yearly can"
                    ));
                }
            };
            *place = count.trim().parse().map_err(|_| format!("{part:?} has no number"))?;
        }
        Ok(Keep(PolicyKeep::Counts { last, hourly, daily, weekly, monthly, yearly }))
    }
}

/// A length of time in its largest unit that leaves nothing over.
pub fn length(seconds: u64) -> String {
    let whole = |(_, factor): &&(char, u64)| seconds.is_multiple_of(*factor) && seconds > 0;
    let found = UNITS.iter().filter(|(name, _)| *name != 'w').find(whole);
    found.map_or_else(
        || format!("{seconds}s"),
        |(name, factor)| format!("{}{name}", seconds / factor),
    )
}

/// A schedule in the words of the command line.
pub fn schedule(schedule: &PolicySchedule) -> String {
    let list = |numbers: &[u8], name: &dyn Fn(u8) -> String| {
        numbers.iter().map(|number| name(*number)).collect::<Vec<_>>().join(",")
    };
    let day = |day: u8| {
        let name = usize::from(day).checked_sub(1).and_then(|at| DAYS.get(at));
        name.map_or_else(|| day.to_string(), |name| (*name).to_owned())
    };
    let PolicySchedule { at, on, cron, every } = schedule;
    match (cron, every) {
        (Some(cron), _) => format!("cron {cron}"),
        (None, Some(every)) => format!("every {}", length(*every)),
        (None, None) if on.is_empty() || on.len() == 7 => {
            format!("at {}", list(at, &|hour| hour.to_string()))
        }
        (None, None) => {
            format!("at {} on {}", list(at, &|hour| hour.to_string()), list(on, &day))
        }
    }
}

/// A retention in the words of the command line.
pub fn keep(keep: &PolicyKeep) -> String {
    match keep {
        PolicyKeep::For { seconds } => length(*seconds),
        PolicyKeep::Forever => "forever".to_owned(),
        PolicyKeep::Counts { last, hourly, daily, weekly, monthly, yearly } => {
            let all = [
                ("last", last),
                ("hourly", hourly),
                ("daily", daily),
                ("weekly", weekly),
                ("monthly", monthly),
                ("yearly", yearly),
            ];
            let some = all.iter().filter(|(_, count)| **count > 0);
            some.map(|(kind, count)| format!("{kind}={count}")).collect::<Vec<_>>().join(",")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_and_days_are_lists() {
        assert_eq!("2,14".parse(), Ok(Hours(vec![2, 14])));
        assert_eq!("fri,mon,mon".parse(), Ok(Days(vec![1, 5])));
        assert_eq!("mon-wed,Sunday,6".parse(), Ok(Days(vec![1, 2, 3, 6, 7])));
        for bad in ["", "24", "7:30", "-1", "2,", "x"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad:?}");
        }
        for bad in ["", "0", "8", "mo", "fri-mon", "xyz"] {
            assert!(bad.parse::<Days>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        for text in ["30d", "forever", "12h", "90s", "last=7,hourly=24,daily=7,weekly=4,monthly=12"]
        {
            assert_eq!(keep(&text.parse::<Keep>().unwrap().0), text);
        }
        assert_eq!(keep(&"2w".parse::<Keep>().unwrap().0), "14d");
        assert_eq!(keep(&"yearly=3, last=1".parse::<Keep>().unwrap().0), "last=1,yearly=3");
        for bad in ["", "30", "d", "1y", "last=", "last", "often=3", "last=7,", "-1d", "1.5d"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad:?}");
        }
        assert!("99999999999999999d".parse::<Every>().is_err());
    }

    #[test]
    fn a_schedule_is_told_in_a_few_words() {
        let at = |at: &[u8], on: &[u8]| {
            schedule(&PolicySchedule { at: at.to_vec(), on: on.to_vec(), ..Default::default() })
        };
        assert_eq!(at(&[2, 14], &[1, 5]), "at 2,14 on mon,fri");
        assert_eq!(at(&[2], &[1, 2, 3, 4, 5, 6, 7]), "at 2");
        let every = PolicySchedule { every: Some(900), ..Default::default() };
        assert_eq!(schedule(&every), "every 15m");
    }
}
