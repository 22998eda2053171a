//! Tables, numbers and verdicts as people read them: on a terminal and in RESULTS.md, in the same form.
//!
//! Invariants: a table is Markdown with aligned columns; a verdict is `ok`, `SHORT`, or nothing where no
//! target was set.
//! Absent: measuring.

use std::fmt;
use std::time::Duration;

/// Whether a target was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Short,
    /// There is no target.
    Told,
}

impl Verdict {
    pub fn of(met: bool) -> Verdict {
        if met { Verdict::Ok } else { Verdict::Short }
    }

    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Short => "SHORT",
            Verdict::Told => "",
        }
    }
}

/// A table whose last column is a verdict.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    short: usize,
}

impl Table {
    pub fn new(head: Vec<String>) -> Table {
        Table { rows: vec![head], short: 0 }
    }

    pub fn push(&mut self, mut row: Vec<String>, verdict: Verdict) {
        row.push(verdict.name().to_owned());
        self.short += usize::from(verdict == Verdict::Short);
        self.rows.push(row);
    }

    /// How many targets were missed.
    pub fn short(&self) -> usize {
        self.short
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (text, width) in row.iter().zip(&widths) {
                write!(f, "| {text:<width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                for width in &widths {
                    write!(f, "|{}", "-".repeat(width + 2))?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// The middle of some numbers; of an even count the mean of the two.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// A percentile, between the two nearest values.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let place = percent / 100.0 * last as f64;
    let below = (0..last).rev().find(|index| *index as f64 <= place).unwrap_or(0);
    match (sorted.get(below), sorted.get(below + 1)) {
        (Some(low), Some(high)) => low + (high - low) * (place - below as f64).min(1.0),
        (Some(only), None) => *only,
        _ => 0.0,
    }
}

/// Three digits and a thousand's letter.
pub fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e5 => format!("{:.0} k", v / 1e3),
        v if v >= 1e4 => format!("{:.1} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_values_they_are_of() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 100.0), 3.0);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
    }
}
