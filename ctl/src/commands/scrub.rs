//! `rowctl scrub`: reads and verifies every block in use.
//!
//! Invariants: with `--wait` a bad block means exit code 24, even when the scrub itself went well.
//! Absent: repair.

use clap::Args;
use rowd_proto::{PoolShow, ScrubStart};

use crate::error::{Outcome, Result};
use rowd_proto::size::Size;

use super::{Context, job};

pub const EXAMPLES: &str = "Examples:
  rowctl scrub                        starts it in the background: a job
  rowctl scrub --rate 100MiB --wait   at most 100 MiB/s, and wait for the result";

#[derive(Args, Debug)]
pub struct Scrub {
    /// Most bytes to read in a second [default: as configured]
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// Wait for the result: exit code 24 when a block is bad
    #[arg(long)]
    wait: bool,
}

pub fn run(args: &Scrub, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let bytes_per_second = args.rate.map_or(0, |rate| rate.0);
    let started = client.call(&ScrubStart { bytes_per_second })?;
    if !args.wait {
        job::print(&started, context)?;
        context.output.remark(&format!("wait for it with rowctl job wait {}", started.id));
        return Ok(Outcome::Done);
    }
    let ended = job::finish(&mut client, &started.id, None, context)?;
    let outcome = job::end(&ended, context)?;
    if outcome != Outcome::Done {
        return Ok(outcome);
    }
    let report = client.call(&PoolShow {})?.last_scrub;
    match report {
        Some(report) if !report.bad.is_empty() => {
            for line in &report.bad {
                context.output.remark(line);
                context.output.reason(&ended.id, line);
            }
            Ok(Outcome::Ended(rowd_proto::ErrorKind::Corrupt))
        }
        _ => Ok(Outcome::Done),
    }
}
