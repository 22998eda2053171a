//! When a policy is due: hours and weekdays, cron expressions and intervals, in a time zone.
//!
//! Invariants: slots are instants, and [`Timetable::next`] is strictly later than what it is asked about, so that
//! no slot comes twice. A schedule for certain hours has a slot for each of them on each day: an hour that the
//! change of clocks leaves out is due right after the change, one that comes twice is due the first time. A
//! schedule for every hour goes on in real time, whatever the clocks do; so does an interval.
//! Absent: seconds. A snapshot is due at a minute.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};

use crate::engine::api::policy::Schedule;
use crate::error::{Error, Result};

/// The shortest interval: what a minute of a cron expression is too.
pub const EVERY_MIN: u64 = 60;
/// The longest interval, 366 days: longer ones are mistakes.
pub const EVERY_MAX: u64 = 366 * 86_400;
/// Characters of a cron expression; real ones have a few dozen.
const CRON_LENGTH_MAX: usize = 256;
/// Changes of clocks that a search goes over: more than a zone has until the year 2100.
const CHANGES_MAX: usize = 400;

/// A schedule that can be asked.
#[derive(Clone, Debug)]
pub struct Timetable {
    zone: TimeZone,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Every(u64),
    /// Certain hours of the day.
    Hours(Box<Cron>),
    /// Every hour of the day.
    AllHours(Box<Cron>),
}

/// The time zone of that name.
///
/// # Errors
/// `Invalid` when this host does not know it.
pub fn zone(name: &str) -> Result<TimeZone> {
    if name.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| {
        Error::invalid(format!("this host knows no time zone {name:?}"))
            .hint("zones are called like Europe/Berlin, or UTC; see `timedatectl list-timezones`")
    })
}

impl Timetable {
    /// # Errors
    /// `Invalid`, saying what is wrong with the schedule or the zone.
    pub fn new(schedule: &Schedule, zone_name: &str) -> Result<Timetable> {
        let zone = zone(zone_name)?;
        let rule = match schedule {
            Schedule::Every { seconds } => Rule::Every(checked_interval(*seconds)?),
            Schedule::At { hours, days } => of_cron(cron(&hours_as_cron(
                &hours.iter().copied().collect::<Vec<_>>(),
                &days.iter().copied().collect::<Vec<_>>(),
            )?)?)?,
            Schedule::Cron { expression } => of_cron(cron(expression)?)?,
        };
        let table = Timetable { zone, rule };
        match table.next(946_684_800) {
            Some(_) => Ok(table),
            None => Err(Error::invalid("this schedule is never due")
                .hint("there may be no such day, as the 30th of February")),
        }
    }

    /// The first slot after an instant; none when there is none until the year 5000.
    #[must_use]
    pub fn next(&self, after: u64) -> Option<u64> {
        match &self.rule {
            Rule::Every(seconds) => (after / seconds).checked_add(1)?.checked_mul(*seconds),
            Rule::Hours(cron) => self.next_by_clock(cron, after),
            Rule::AllHours(cron) => self.next_in_real_time(cron, after),
        }
    }

    /// What the clock on the wall says at an instant.
    #[must_use]
    pub fn civil(&self, at: u64) -> DateTime {
        self.zone.to_datetime(timestamp(at).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// Each time of the clock belongs to one instant, in their order, so the first later one is found by going
    /// on from the time of the clock now.
    fn next_by_clock(&self, cron: &Cron, after: u64) -> Option<u64> {
        let mut clock = self.zone.to_datetime(timestamp(after)?);
        loop {
            clock = following(cron, clock, false)?;
            let at = self.instant(clock)?;
            if at > after {
                return Some(at);
            }
        }
    }

    /// Between two changes the clock runs as time does.
    fn next_in_real_time(&self, cron: &Cron, after: u64) -> Option<u64> {
        let (mut from, mut inclusive) = (timestamp(after)?, false);
        for _ in 0..CHANGES_MAX {
            let offset = self.zone.to_offset(from);
            let found = following(cron, offset.to_datetime(from), inclusive)?;
            let at = offset.to_timestamp(found).ok()?;
            match self.zone.following(from).next() {
                Some(change) if at >= change.timestamp() => {
                    (from, inclusive) = (change.timestamp(), true);
                }
                _ => return u64::try_from(at.as_second()).ok(),
            }
        }
        None
    }

    /// The instant at which the clock shows this, for the first time; or the end of the gap that it falls into.
    fn instant(&self, clock: DateTime) -> Option<u64> {
        let found = self.zone.to_ambiguous_timestamp(clock);
        let at = match found.offset() {
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => {
                found.compatible().ok()?
            }
            AmbiguousOffset::Gap { .. } => {
                let behind = found.compatible().ok()?.checked_add(1.second()).ok()?;
                self.zone.preceding(behind).next()?.timestamp()
            }
        };
        u64::try_from(at.as_second()).ok()
    }
}

fn timestamp(at: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(at).ok()?).ok()
}

/// The next time of the clock that fits, where no clock is ever changed.
fn following(cron: &Cron, clock: DateTime, inclusive: bool) -> Option<DateTime> {
    let from = clock.to_zoned(TimeZone::UTC).ok()?;
    cron.find_next_occurrence(&from, inclusive).ok().map(|found| found.datetime())
}

fn checked_interval(seconds: u64) -> Result<u64> {
    if (EVERY_MIN..=EVERY_MAX).contains(&seconds) {
        return Ok(seconds);
    }
    Err(Error::invalid(format!("an interval of {seconds} seconds"))
        .hint("one minute to 366 days are possible: --every 15m"))
}

/// Hours and days of the week as a cron expression.
fn hours_as_cron(hours: &[u8], days: &[u8]) -> Result<String> {
    if hours.is_empty() || days.is_empty() {
        return Err(Error::invalid("a schedule needs at least one hour and one day of the week"));
    }
    if let Some(bad) = hours.iter().find(|hour| **hour > 23) {
        return Err(Error::invalid(format!("hour {bad}")).hint("full hours from 0 to 23"));
    }
    if let Some(bad) = days.iter().find(|day| !(1..=7).contains(*day)) {
        return Err(Error::invalid(format!("day {bad} of the week"))
            .hint("1 is Monday and 7 is Sunday; mon, tue and so on will do too"));
    }
    let list = |numbers: &[u8]| numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    Ok(format!("0 {} * * {}", list(hours), list(days)))
}

fn cron(expression: &str) -> Result<Cron> {
    if expression.len() > CRON_LENGTH_MAX {
        return Err(Error::invalid(format!(
            "the cron expression has {} characters; at most {CRON_LENGTH_MAX} are possible",
            expression.len()
        )));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(expression).map_err(|error| {
        Error::invalid(format!("the cron expression {expression:?}: {error}")).hint(
            "five fields: minute, hour, day of the month, month, day of the week, as in \"30 2 * * 1-5\"",
        )
    })
}

fn of_cron(cron: Cron) -> Result<Rule> {
    for hour in 0..24 {
        let fits = cron.pattern.hour_match(hour);
        if !fits.map_err(|error| Error::internal(error.to_string()))? {
            return Ok(Rule::Hours(Box::new(cron)));
        }
    }
    Ok(Rule::AllHours(Box::new(cron)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: &[u8], days: &[u8]) -> Schedule {
        Schedule::At {
            hours: hours.iter().copied().collect(),
            days: days.iter().copied().collect(),
        }
    }

    fn cron_at(expression: &str) -> Schedule {
        Schedule::Cron { expression: expression.to_owned() }
    }

    /// The slots in UTC that follow an instant.
    fn slots(schedule: &Schedule, zone: &str, from: &str, count: usize) -> Vec<String> {
        let table = Timetable::new(schedule, zone).unwrap();
        let from: Timestamp = from.parse().unwrap();
        let mut at = u64::try_from(from.as_second()).unwrap();
        (0..count)
            .map(|_| {
                at = table.next(at).unwrap();
                timestamp(at).unwrap().strftime("%m-%d %H:%M").to_string()
            })
            .collect()
    }

    #[test]
    fn hours_and_days_of_the_week() {
        // The first of June 2026 is a Monday.
        let schedule = at(&[2, 14], &[1, 5]);
        let found = slots(&schedule, "UTC", "2026-06-01T02:00:00Z", 4);
        assert_eq!(found, ["06-01 14:00", "06-05 02:00", "06-05 14:00", "06-08 02:00"]);
        let berlin = slots(&schedule, "Europe/Berlin", "2026-06-01T02:00:00Z", 2);
        assert_eq!(berlin, ["06-01 12:00", "06-05 00:00"]);
        let all: Vec<u8> = (0..24).collect();
        let whole = at(&all, &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(slots(&whole, "UTC", "2026-06-01T00:00:00Z", 168)[167], "06-08 00:00");
    }

    #[test]
    fn an_hour_that_is_left_out_is_due_right_after_the_change() {
        // In Berlin 02:00 to 03:00 is missing on 29 March 2026: 01:00 UTC is 03:00 there.
        let found = slots(&at(&[2], &[6, 7, 1]), "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(found, ["03-28 01:00", "03-29 01:00", "03-30 00:00"]);
        let both = slots(&at(&[2, 3], &[7]), "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
        assert_eq!(both, ["03-29 01:00", "04-05 00:00"], "two hours, one instant, one slot");
        let half = slots(&cron_at("30 2 * * *"), "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
        assert_eq!(half, ["03-29 01:00", "03-30 00:30"]);
    }

    #[test]
    fn an_hour_that_comes_twice_is_due_once() {
        // In Berlin 02:00 to 03:00 comes twice on 25 October 2026: 00:00 and 01:00 UTC.
        let days = [1, 2, 3, 4, 5, 6, 7];
        let found = slots(&at(&[2, 3], &days), "Europe/Berlin", "2026-10-24T12:00:00Z", 3);
        assert_eq!(found, ["10-25 00:00", "10-25 02:00", "10-26 01:00"]);
        let many = slots(&cron_at("*/30 2 * * *"), "Europe/Berlin", "2026-10-24T12:00:00Z", 3);
        assert_eq!(many, ["10-25 00:00", "10-25 00:30", "10-26 01:00"]);
    }

    #[test]
    fn every_hour_goes_on_in_real_time() {
        let hourly = cron_at("15 * * * *");
        let spring = slots(&hourly, "Europe/Berlin", "2026-03-28T23:30:00Z", 3);
        assert_eq!(spring, ["03-29 00:15", "03-29 01:15", "03-29 02:15"]);
        let autumn = slots(&hourly, "Europe/Berlin", "2026-10-24T23:30:00Z", 4);
        assert_eq!(autumn, ["10-25 00:15", "10-25 01:15", "10-25 02:15", "10-25 03:15"]);
        // Lord Howe goes back by half an hour: the clock shows :15 again after an hour and a half.
        let howe = slots(&hourly, "Australia/Lord_Howe", "2026-04-04T14:00:00Z", 3);
        assert_eq!(howe, ["04-04 14:15", "04-04 15:45", "04-04 16:45"]);
    }

    #[test]
    fn an_interval_knows_no_clocks() {
        let found =
            slots(&Schedule::Every { seconds: 900 }, "Europe/Berlin", "2026-03-29T00:50:00Z", 2);
        assert_eq!(found, ["03-29 01:00", "03-29 01:15"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_advice() {
        for (schedule, zone, part) in [
            (at(&[], &[1]), "UTC", "at least one hour"),
            (at(&[24], &[1]), "UTC", "hour 24"),
            (at(&[1], &[8]), "UTC", "day 8"),
            (at(&[1], &[0]), "UTC", "day 0"),
            (cron_at("0 0 30 2 *"), "UTC", "never due"),
            (cron_at("* * *"), "UTC", "cron expression"),
            (cron_at("0 0 0 * * *"), "UTC", "cron expression"),
            (cron_at("61 * * * *"), "UTC", "cron expression"),
            (cron_at(&"1,".repeat(200)), "UTC", "at most 256"),
            (Schedule::Every { seconds: 59 }, "UTC", "59 seconds"),
            (Schedule::Every { seconds: EVERY_MAX + 1 }, "UTC", "interval"),
            (at(&[1], &[1]), "Europe/Berlín", "no time zone"),
            (at(&[1], &[1]), "../etc/passwd", "no time zone"),
        ] {
            let error = Timetable::new(&schedule, zone).unwrap_err();
            assert!(error.message().contains(part), "{schedule:?}: {error}");
        }
    }
}
