//! The command line of the benchmark.
//!
//! Invariants: an unknown option or name ends the program before anything is started; `--quick` only
//! changes defaults, so that it can be refined.
//! Absent: a library for command lines; nine options need none.

use std::path::PathBuf;

use rowd_proto::size::Size;
use rowd_tests::tool;

use crate::server::Kind;

pub const HELP: &str = "\
rowd-bench: rowd against other NBD servers, and the curves nobody publishes

  --only NAME       only this line or curve, or all of `race` or `curves`; may be repeated
  --server NAME     only this server in the race; may be repeated
  --rounds N        rounds of the race [3]
  --runtime S       seconds of one measurement of the race [5]
  --window S        seconds before and after a snapshot or a delete [10]
  --disk SIZE       disk of the race [1GiB]
  --mapped SIZE     the larger of the two sizes of the curves; the smaller is a 16th [16GiB]
  --quick           1 round, 1 s, small disks: shows that everything runs, measures nothing
  --dir DIR         where pools and disk files are made and removed; needs 45 GiB [/var/tmp]
  --rowd FILE       the daemon [beside this program]
  --json FILE       everything that was measured
  --write-results   put the run into tests/bench/RESULTS.md
  --strict          exit 1 when a target is missed
  --list            the names for --only and --server";

#[derive(Clone, Debug)]
pub struct Options {
    pub only: Vec<String>,
    pub servers: Vec<Kind>,
    pub rounds: u32,
    pub runtime: u32,
    /// Seconds of load that are forgotten before a measurement begins.
    pub ramp: u32,
    pub window: u32,
    pub disk: u64,
    pub mapped: u64,
    pub quick: bool,
    pub dir: PathBuf,
    pub rowd: PathBuf,
    pub json: Option<PathBuf>,
    pub write_results: bool,
    pub strict: bool,
}

impl Options {
    fn new(quick: bool) -> Options {
        let full = |full: u32, small: u32| if quick { small } else { full };
        Options {
            only: Vec::new(),
            servers: Vec::new(),
            rounds: full(3, 1),
            runtime: full(5, 1),
            ramp: full(1, 0),
            window: full(10, 2),
            disk: if quick { 128 << 20 } else { 1 << 30 },
            mapped: if quick { 512 << 20 } else { 16 << 30 },
            quick,
            dir: PathBuf::from("/var/tmp"),
            rowd: PathBuf::new(),
            json: None,
            write_results: false,
            strict: false,
        }
    }

    /// What the caller asked for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(args: &[String]) -> Result<Options, String> {
        let mut options = Options::new(args.iter().any(|arg| arg == "--quick"));
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => {}
                "--write-results" => options.write_results = true,
                "--strict" => options.strict = true,
                name => {
                    let value = args.next().ok_or_else(|| unknown(name))?;
                    options.set(name, value).map_err(|e| format!("{name} {value}: {e}"))?;
                }
            }
        }
        if options.rowd.as_os_str().is_empty() {
            options.rowd = tool::built("rowd");
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || match value.parse::<u32>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err("a number from 1 on is needed".to_owned()),
        };
        let size = || value.parse::<Size>().map(|size| size.0 >> 20 << 20);
        match name {
            "--only" => self.only.push(known(value)?),
            "--server" => self.servers.push(Kind::from_name(value).ok_or("no such server")?),
            "--rounds" => self.rounds = number()?,
            "--runtime" => self.runtime = number()?,
            "--window" => self.window = number()?,
            "--disk" => self.disk = size()?,
            "--mapped" => self.mapped = size()?,
            "--dir" => self.dir = value.into(),
            "--rowd" => self.rowd = value.into(),
            "--json" => self.json = Some(value.into()),
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// Whether a line of the race or a curve is wanted; `of` is the table it stands in.
    #[must_use]
    pub fn wants(&self, of: &str, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == of || only == name)
    }

    /// Whether a server takes part.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.servers.is_empty() || self.servers.contains(&kind)
    }

    /// The two sizes of the curves.
    #[must_use]
    pub fn sizes(&self) -> [u64; 2] {
        // Below 16 MiB a disk is so small that its map is a handful of leaves.
        [(self.mapped / 16).max(16 << 20), self.mapped]
    }
}

/// Every name `--only` takes.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let lines = crate::race::LINES.iter().map(|line| line.name);
    let curves = crate::curves::CURVES.iter().map(|(name, _)| *name);
    [crate::race::TABLE, crate::curves::TABLE].into_iter().chain(lines).chain(curves).collect()
}

fn known(name: &str) -> Result<String, String> {
    if names().contains(&name) { Ok(name.to_owned()) } else { Err("no such line".to_owned()) }
}

fn unknown(name: &str) -> String {
    format!("{name}: not an option, or one without its value; see --help")
}
