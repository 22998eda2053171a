//! `rowctl check --plugin`: the check as plugins of monitoring systems (Nagios, Icinga, Sensu, Zabbix) make it.
//!
//! Invariants: exactly one line on the standard output, whatever happens, and an exit code of the plugins' own table:
//! 0 ok, 1 warning, 2 critical, 3 unknown. It is the only command that leaves the table of exit codes, and only when
//! it is asked to.
//! Absent: metrics over time; see `rowctl metrics`.

use rowd_proto::size::human;
use rowd_proto::{ErrorKind, PoolStatus};
use serde::Serialize;

use super::super::Context;
use super::super::status::filled;
use super::{Finding, Seen};
use crate::error::{Failure, Outcome, Result};

/// How bad it is, in the order of the exit codes but for `Unknown`, which is the worst that can be said of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl State {
    fn exit_code(self) -> u8 {
        match self {
            State::Ok => 0,
            State::Warning => 1,
            State::Critical => 2,
            State::Unknown => 3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            State::Ok => "OK",
            State::Warning => "WARNING",
            State::Critical => "CRITICAL",
            State::Unknown => "UNKNOWN",
        }
    }
}

/// From how full a pool on it is worth a word, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub warn: u64,
    pub critical: u64,
}

/// The result as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Report {
    state: State,
    message: String,
    findings: Vec<Graded>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Graded {
    condition: &'static str,
    state: State,
    message: String,
}

pub fn run(limits: Limits, context: &Context) -> Result<Outcome> {
    let looked = match limits {
        Limits { warn, critical } if warn > critical => {
            Err(Failure::invalid(format!("--warn {warn} is above --critical {critical}")))
        }
        _ => super::look(context),
    };
    let (report, measured) = match looked {
        Ok(Seen { pool, findings }) => (report(&pool, findings, limits), measured(&pool, limits)),
        Err(failure) => (failed(failure)?, String::new()),
    };
    let state = report.state;
    // The bar begins the measurements.
    let message = report.message.replace('|', "/").replace('\n', " ");
    let line = format!("ROWD {}: {message}{measured}", state.name());
    context.output.object(&report, &line, |_| line.clone())?;
    Ok(Outcome::Said(state.exit_code()))
}

fn report(pool: &PoolStatus, findings: Vec<Finding>, limits: Limits) -> Report {
    let mut graded: Vec<Graded> = findings
        .into_iter()
        .filter(|finding| finding.condition != "full")
        .map(|Finding { condition, message }| {
            let state = if condition == "locked" { State::Warning } else { State::Critical };
            Graded { condition, state, message }
        })
        .collect();
    graded.extend(full(pool, limits));
    graded.sort_by_key(|one| std::cmp::Reverse(one.state));
    let state = graded.iter().map(|one| one.state).max().unwrap_or(State::Ok);
    let message = match graded.as_slice() {
        [] => super::all_is_well(pool),
        several => several.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; "),
    };
    Report { state, message, findings: graded }
}

fn full(pool: &PoolStatus, limits: Limits) -> Option<Graded> {
    let percent = filled(pool);
    let state = match percent {
        percent if percent >= limits.critical => State::Critical,
        percent if percent >= limits.warn => State::Warning,
        _ => return None,
    };
    let (used, max) = (human(pool.used_bytes), human(pool.max_bytes));
    let message = format!("the pool is {percent} % full: {used} of {max}");
    Some(Graded { condition: "full", state, message })
}

/// ` | used=BYTESB;WARN;CRITICAL;0;MAX`, as the plugins' rules have it.
fn measured(pool: &PoolStatus, limits: Limits) -> String {
    let part = |percent: u64| pool.max_bytes / 100 * percent;
    let used = pool.used_bytes.saturating_add(pool.pending_bytes);
    let (warn, critical, max) = (part(limits.warn), part(limits.critical), pool.max_bytes);
    format!(" | used={used}B;{warn};{critical};0;{max}")
}

/// A daemon that does not answer is critical; what else keeps us from looking says nothing about it.
fn failed(failure: Failure) -> Result<Report> {
    let Failure::Told(body) = failure else { return Err(failure) };
    let state = match body.kind {
        ErrorKind::Unreachable => State::Critical,
        _ => State::Unknown,
    };
    let condition = "look";
    let finding = Graded { condition, state, message: body.message.clone() };
    Ok(Report { state, message: body.message, findings: vec![finding] })
}

#[cfg(test)]
mod tests {
    use super::super::tests::healthy;
    use super::*;

    const LIMITS: Limits = Limits { warn: 80, critical: 90 };

    fn filled_to(used_bytes: u64) -> PoolStatus {
        PoolStatus { used_bytes, pending_bytes: 0, max_bytes: 1000, ..healthy() }
    }

    #[test]
    fn fullness_is_graded_by_the_limits() {
        let state = |used| report(&filled_to(used), Vec::new(), LIMITS).state;
        assert_eq!(
            [state(799), state(800), state(899), state(900)],
            [State::Ok, State::Warning, State::Warning, State::Critical]
        );
    }

    #[test]
    fn the_worst_comes_first_and_decides() {
        let finding = |condition| Finding { condition, message: format!("it is {condition}") };
        let findings = vec![finding("locked"), finding("full"), finding("stopped")];
        let report = report(&filled_to(10), findings, LIMITS);
        assert_eq!(report.state, State::Critical);
        assert_eq!(report.message, "it is stopped; it is locked");
    }

    #[test]
    fn the_measurement_has_the_form_of_the_plugins() {
        assert_eq!(measured(&filled_to(10), LIMITS), " | used=10B;800;900;0;1000");
    }

    #[test]
    fn who_cannot_look_does_not_say_that_all_is_well() {
        let state = |kind| failed(Failure::new(kind, "x")).unwrap().state;
        assert_eq!(state(ErrorKind::Unreachable), State::Critical);
        assert_eq!(state(ErrorKind::NotPermitted), State::Unknown);
    }
}
