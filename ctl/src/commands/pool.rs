//! `rowctl pool`: the pool that holds all blocks.
//!
//! Invariants: only the limit changes; no block moves.
//! Absent: the state of the pool, which is `rowctl status`.

use clap::Subcommand;
use rowd_proto::PoolResize;

use crate::error::{Outcome, Result};
use rowd_proto::size::Size;

use super::{Context, status};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Change how far the pool may grow
    #[command(after_help = "Example:\n  rowctl pool resize 2TiB

The pool file grows as blocks are written; this sets where it ends. It cannot be made smaller
than the file is already.")]
    Resize {
        /// The new limit, as in 2TiB
        size: Size,
    },
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let Verb::Resize { size } = verb;
    let pool = context.client()?.call(&PoolResize { max_bytes: size.0 })?;
    context.output.object(&pool, &pool.uuid, |output| status::text(&pool, output))?;
    Ok(Outcome::Done)
}
