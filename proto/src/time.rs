//! Instants on the wire: RFC 3339 in UTC, to the second.
//!
//! Invariants: every [`Time`] can be written as RFC 3339 (years 1970 to 9999); what is read back
//! equals what was written.
//! Absent: clocks and time zones.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The last second of the year 9998: beyond it RFC 3339 has no four-digit year in every time zone.
const SECONDS_MAX: u64 = 253_370_764_799;

/// Seconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// An instant by its seconds since 1970; one beyond the year 9998 becomes the last one.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        Time(seconds.min(SECONDS_MAX))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        jiff::Timestamp::from_second(seconds).map_err(|_| fmt::Error)?.fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        u64::try_from(instant.as_second())
            .map(Time::from_unix)
            .map_err(|_| de::Error::custom("a time before 1970"))
    }
}

/// An instant to the microsecond, for what is over in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// An instant by its microseconds since 1970; one beyond the year 9998 becomes the last one.
    #[must_use]
    pub fn from_unix_micros(micros: u64) -> Self {
        Moment(micros.min(SECONDS_MAX * 1_000_000))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn unix_micros(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        let at = jiff::Timestamp::from_microsecond(micros).map_err(|_| fmt::Error)?;
        write!(f, "{at:.6}")
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        u64::try_from(instant.as_microsecond())
            .map(Moment::from_unix_micros)
            .map_err(|_| de::Error::custom("a time before 1970"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_and_read_back() {
        for (seconds, text) in
            [(0, "1970-01-01T00:00:00Z"), (1_753_960_205, "2025-07-31T11:10:05Z")]
        {
            let json = serde_json::to_string(&Time::from_unix(seconds)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Time>(&json).unwrap().unix(), seconds);
        }
    }

    #[test]
    fn a_moment_keeps_its_microseconds() {
        let json = serde_json::to_string(&Moment::from_unix_micros(1_753_960_205_000_120)).unwrap();
        assert_eq!(json, "\"2025-07-31T11:10:05.000120Z\"");
        let read = serde_json::from_str::<Moment>(&json).unwrap();
        assert_eq!(read.unix_micros(), 1_753_960_205_000_120);
        assert_eq!(Moment::from_unix_micros(u64::MAX).to_string(), "9998-12-31T23:59:59.000000Z");
    }

    #[test]
    fn a_clock_far_off_is_clamped_not_a_failure() {
        assert_eq!(Time::from_unix(u64::MAX).to_string(), "9998-12-31T23:59:59Z");
    }

    #[test]
    fn times_before_1970_and_rubbish_are_refused() {
        assert!(serde_json::from_str::<Time>("\"1969-12-31T23:59:59Z\"").is_err());
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
    }
}
