//! Sizes as people write and read them.
//!
//! Invariants: a size that is read is exact or refused; a size that is printed is in IEC units.
//! Absent: the rule that disks are multiples of 4096, which is the daemon's.

use std::str::FromStr;

/// A number of bytes given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const KIB: u64 = 1 << 10;
const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

impl FromStr for Size {
    type Err = String;

    /// `512`, `4KiB`, `10G` = `10GiB`, `10GB` = 10^9, `1.5TiB`; case and a blank before the unit do
    /// not matter.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = factor(unit.trim()).ok_or_else(|| {
            format!(
                "'{}' is no unit: use K to E (1024), KiB to EiB, or KB to EB (1000)",
                unit.trim()
            )
        })?;
        exact(number, factor).map(Size)
    }
}

/// Bytes in a unit.
fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return Some(1);
    }
    let (letter, rest) = unit.split_at(unit.char_indices().nth(1).map_or(unit.len(), |(i, _)| i));
    let power = UNITS.iter().position(|known| letter.starts_with(*known))? + 1;
    let base: u64 = match rest {
        "" | "I" | "IB" => KIB,
        "B" => 1000,
        _ => return None,
    };
    base.checked_pow(u32::try_from(power).ok()?)
}

/// `number * factor`, where the number may have a fraction that comes out even.
fn exact(number: &str, factor: u64) -> Result<u64, String> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if whole.is_empty() || digits.contains('.') || fraction.len() > 18 || number.ends_with('.') {
        return Err("a size is a number and a unit, as in 20GiB or 512".to_owned());
    }
    let too_large = || "the size does not fit 64 bits".to_owned();
    let value: u128 = digits.parse().map_err(|_| too_large())?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|e| e.to_string())?);
    let bytes = value.checked_mul(u128::from(factor)).ok_or_else(too_large)?;
    if bytes % scale != 0 {
        return Err(format!("{number} of that unit is no whole number of bytes"));
    }
    u64::try_from(bytes / scale).map_err(|_| too_large())
}

/// `1.5 GiB`: one decimal where it says something.
pub fn human(bytes: u64) -> String {
    if bytes < KIB {
        return format!("{bytes} B");
    }
    let mut divisor = KIB;
    let mut unit = 0;
    // The next unit begins where this one would round to 1024.0.
    while unit + 1 < UNITS.len() && tenths(bytes, divisor) >= 10_240 {
        divisor *= KIB;
        unit += 1;
    }
    let tenths = tenths(bytes, divisor);
    match tenths % 10 {
        0 => format!("{} {}iB", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}iB", tenths / 10, UNITS[unit]),
    }
}

/// Tenths of a unit, rounded to the nearest.
fn tenths(bytes: u64, divisor: u64) -> u128 {
    (u128::from(bytes) * 10 + u128::from(divisor / 2)) / u128::from(divisor)
}

/// `part` of `whole` in per cent, rounded down so that 100 means all.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_documented() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KiB", 4096),
            ("4k", 4096),
            ("4Ki", 4096),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5TiB", 3 << 39),
            ("0.5K", 512),
            ("2.25MB", 2_250_000),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1.",
            ".5G",
            "1.2.3K",
            "10X",
            "10GIBB",
            "10KK",
            "1e9",
            "0.1",
            "ten",
            "16E",
            "18446744073709551616",
            "10\u{202f}\u{df}",
            "1.0000000000000000000G",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_printed_in_iec_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            ((1 << 20) - 1, "1 MiB"),
            ((1 << 30) + (1 << 29), "1.5 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn per_cent_of_nothing_is_none() {
        assert_eq!(percent(5, 0), 0);
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
