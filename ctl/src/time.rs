//! Times as people read them: how long ago on a terminal, RFC 3339 elsewhere.
//!
//! Invariants: the present is passed in, so that what is printed can be tested; a clock that runs
//! behind the daemon's never prints a negative time.
//! Absent: local time zones; a relative time needs none and a precise one is UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use rowd_proto::Time;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The present, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `3 h ago`, `in 2 d`.
pub fn relative(at: Time, now: u64) -> String {
    if at.unix() > now {
        format!("in {}", duration(at.unix() - now))
    } else {
        match now - at.unix() {
            0 => "now".to_owned(),
            past => format!("{} ago", duration(past)),
        }
    }
}

/// A length of time in its largest fitting unit, rounded down.
pub fn duration(seconds: u64) -> String {
    match seconds {
        DAY.. => format!("{} d", seconds / DAY),
        HOUR.. => format!("{} h", seconds / HOUR),
        MINUTE.. => format!("{} min", seconds / MINUTE),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_their_largest_unit() {
        let now = 1_000_000_000;
        for (at, text) in [
            (now, "now"),
            (now - 59, "59 s ago"),
            (now - 60, "1 min ago"),
            (now - 3 * HOUR - 59 * MINUTE, "3 h ago"),
            (now - 400 * DAY, "400 d ago"),
            (now + 2 * DAY, "in 2 d"),
        ] {
            assert_eq!(relative(Time::from_unix(at), now), text);
        }
    }
}
