//! `rowctl completion` and `rowctl man`: what packages install beside the program.
//!
//! Invariants: both come from the same command line that is parsed, so they cannot differ from it.
//! Absent: what the completion scripts ask at each Tab (`complete.rs`).

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::cli;
use crate::error::{Failure, Outcome, Result};

use super::Context;

pub const COMPLETION_EXAMPLES: &str =
    "Example:\n  rowctl completion bash > /usr/share/bash-completion/completions/rowctl";
pub const MAN_EXAMPLES: &str = "Example:\n  rowctl man /usr/share/man/man1";

#[derive(Args, Debug)]
pub struct Completion {
    shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Args, Debug)]
pub struct Man {
    /// Made if it does not exist
    #[arg(value_name = "DIR")]
    target: PathBuf,
}

pub fn completion(args: &Completion) -> Result<Outcome> {
    let script = match args.shell {
        Shell::Bash => include_str!("completion/rowctl.bash"),
        Shell::Zsh => include_str!("completion/rowctl.zsh"),
        Shell::Fish => include_str!("completion/rowctl.fish"),
    };
    match io::stdout().write_all(script.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ReaderGone),
        Err(error) => Err(Failure::io("cannot write the script", &error)),
        Ok(()) => Ok(Outcome::Done),
    }
}

pub fn man(args: &Man, context: &Context) -> Result<Outcome> {
    let failed =
        |e: io::Error| Failure::io(format!("cannot write to {}", args.target.display()), &e);
    fs::create_dir_all(&args.target).map_err(failed)?;
    clap_mangen::generate_to(cli::command(), &args.target).map_err(failed)?;
    context.output.remark(&format!("the man pages are in {}", args.target.display()));
    Ok(Outcome::Done)
}
