//! The command line of `rowd`.
//!
//! Invariants: a panic anywhere ends the process, since half-updated state must not serve; errors go to
//! standard error with their hint, and the exit code is the one `rowctl` documents.
//! Absent: everything else. The tests start the same function from a binary with faults compiled in.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, reference};
use crate::engine::check::check;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Journal;

/// Serves virtual disks over NBD, with instant snapshots, rollback and clones.
///
/// `rowd --dir DIR` keeps everything inside DIR: the pool, the map, `control.sock` for rowctl and
/// `nbd.sock` for clients. No root is needed.
#[derive(Debug, Parser)]
#[command(name = "rowd", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Place {
    /// The directory that holds the pool; made if it does not exist.
    #[arg(long, global = true, env = "ROWD_DIR")]
    dir: Option<PathBuf>,
    /// The configuration file [default: /etc/rowd/rowd.toml, if neither it nor --dir is given].
    #[arg(long, global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks a pool that no daemon serves: map against allocator, counters and the data itself.
    Check {
        /// Rebuild the allocator from the map where they differ.
        #[arg(long)]
        repair: bool,
        /// Leave the blocks themselves out: check the metadata only.
        #[arg(long)]
        no_data: bool,
    },
    /// Prints a man page.
    #[command(hide = true)]
    Man {
        #[arg(default_value = "rowd")]
        page: Page,
    },
}

/// The man pages of the daemon.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Page {
    Rowd,
    #[value(name = "rowd.toml")]
    Configuration,
}

const EXAMPLES: &str = "Examples:
  rowd --dir /srv/rowd                    serve the pool in /srv/rowd
  rowd check --dir /srv/rowd              look for damage while the daemon is down
  rowctl --dir /srv/rowd disk create db --size 20GiB";

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    begin_log();
    abort_on_panic();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rowd: {}", error.message());
            if let Some(hint) = error.advice() {
                eprintln!("  {hint}");
            }
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

/// To the journal with its fields, if the standard error goes there; otherwise as text to the standard error.
fn begin_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if let Some(journal) = Journal::of_stderr() {
        registry.with(journal).init();
        return;
    }
    let text = tracing_subscriber::fmt::layer().with_ansi(wants_colours());
    registry.with(text.with_writer(std::io::stderr)).init();
}

/// Colours are for terminals, and for people who did not ask to be spared them.
fn wants_colours() -> bool {
    let spared = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !spared
}

fn run(cli: &Cli) -> Result<ExitCode> {
    if let Some(Command::Man { page }) = cli.command {
        let to = &mut std::io::stdout();
        let written = match page {
            Page::Rowd => clap_mangen::Man::new(Cli::command()).section("8").render(to),
            Page::Configuration => reference::man(to),
        };
        return written
            .map(|()| ExitCode::SUCCESS)
            .map_err(|e| Error::io("write the man page", &e));
    }
    let config = match (&cli.place.config, &cli.place.dir) {
        (None, Some(dir)) => Config::for_dir(dir)?,
        (path, dir) => {
            let default = PathBuf::from("/etc/rowd/rowd.toml");
            Config::load(path.as_ref().unwrap_or(&default), dir.as_deref())
                .map_err(|e| e.hint("`rowd --dir DIR` needs no configuration"))?
        }
    };
    match &cli.command {
        Some(Command::Check { repair, no_data }) => {
            let report = check(config.settings, !no_data, *repair)?;
            Ok(print(&report))
        }
        _ => crate::daemon::run(&config).map(|()| ExitCode::SUCCESS),
    }
}

fn print(report: &crate::engine::check::Report) -> ExitCode {
    println!("checked {} leaves and {} blocks", report.leaves, report.blocks);
    for line in &report.findings {
        println!("DAMAGE: {line}");
    }
    let unlisted = report.findings_count.saturating_sub(report.findings.len() as u64);
    if unlisted > 0 {
        println!("DAMAGE: and {unlisted} more");
    }
    for line in &report.repaired {
        println!("repaired: {line}");
    }
    if report.findings_count > 0 {
        return ExitCode::from(exit_code(ErrorKind::Corrupt));
    }
    println!("no damage found");
    ExitCode::SUCCESS
}

/// A panic leaves state half changed: end at once, the journal has everything that was acknowledged.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

fn exit_code(kind: ErrorKind) -> u8 {
    crate::control::exit_code(&Error::new(kind, ""))
}
