//! The freeze script and the thaw script: checked as a pair, then run around the cut.
//!
//! Invariants: a script is a regular file of root with mode 0700, and the file that was checked is the one
//! that runs; it is killed with its group at its limit; neither its environment nor all of its output is
//! ever logged, because passwords may be in them.
//! Absent: when a pair runs and what follows from a failure (the freeze engine), directories of hooks (`hook`).

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::child::{Event, Program, Running, Wiring, describe};
use crate::error::{Error, ErrorKind, Result};

/// The owner a script has to have: root.
const OWNER: u32 = 0;
/// Read, write and execute for the owner, nothing for others.
const MODE: u32 = 0o700;

/// What a script or hook is told, as variables `ROWD_…`.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Names of the disks: `ROWD_DISKS`, with blanks between.
    pub disks: Vec<String>,
    /// The name of the snapshot, empty for a group: `ROWD_SNAPSHOT`.
    pub snapshot: String,
    /// The name of the group, empty for a single snapshot: `ROWD_GROUP`.
    pub group: String,
    /// The level asked for, `crash`, `fs` or `app`: `ROWD_LEVEL`.
    pub level: String,
    /// What became of it, for a thaw script: `ROWD_RESULT`.
    pub result: Option<String>,
}

impl Surroundings {
    /// The variables for one run; `hook` says which: `pre`, `post` or `hold`.
    pub(super) fn variables(&self, hook: &str) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("ROWD_HOOK", hook.to_owned()),
            ("ROWD_DISKS", self.disks.join(" ")),
            ("ROWD_SNAPSHOT", self.snapshot.clone()),
            ("ROWD_GROUP", self.group.clone()),
            ("ROWD_LEVEL", self.level.clone()),
        ];
        variables.extend(self.result.clone().map(|result| ("ROWD_RESULT", result)));
        variables
    }
}

/// Why scripts cannot be used, to be shown to the user. It is no failure: the level is `fs` then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(pub String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of the two a script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Freeze,
    Thaw,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Freeze => "freeze script",
            Role::Thaw => "thaw script",
        }
    }

    fn hook(self) -> &'static str {
        match self {
            Role::Freeze => "pre",
            Role::Thaw => "post",
        }
    }

    fn failure(self) -> ErrorKind {
        match self {
            Role::Freeze => ErrorKind::FreezeScript,
            Role::Thaw => ErrorKind::ThawScript,
        }
    }
}

/// A freeze script and its thaw script, both usable.
#[derive(Debug)]
pub struct Pair {
    pub pre: Script,
    pub post: Script,
}

impl Pair {
    /// Opens and checks both. One alone is of no use: what it freezes nothing would thaw.
    pub fn check(pre: &Path, post: &Path) -> Result<Pair, Unusable> {
        Pair::check_owned_by(OWNER, pre, post)
    }

    fn check_owned_by(owner: u32, pre: &Path, post: &Path) -> Result<Pair, Unusable> {
        let open = |role: Role, path: &Path| {
            let unusable = |why| Unusable(format!("the {} {} {why}", role.name(), path.display()));
            let program =
                Program::open(path, OFlag::O_NOFOLLOW).map_err(|e| unusable(reason(&e)))?;
            check(&program, owner).map_err(unusable)?;
            Ok(Script::new(program, role))
        };
        Ok(Pair { pre: open(Role::Freeze, pre)?, post: open(Role::Thaw, post)? })
    }
}

/// Why a script cannot be opened.
fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "does not exist".to_owned(),
        Some(libc::ELOOP) => "is a symbolic link".to_owned(),
        _ => format!("cannot be opened: {error}"),
    }
}

fn check(program: &Program, owner: u32) -> Result<(), String> {
    let found = program.metadata().map_err(|error| format!("cannot be looked at: {error}"))?;
    let mode = found.mode() & 0o777;
    if !found.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if found.uid() != owner {
        return Err(format!("belongs to user {}, not to root", found.uid()));
    }
    if mode != MODE {
        return Err(format!("has mode {mode:04o}, not {MODE:04o}"));
    }
    Ok(())
}

/// One usable script.
#[derive(Clone, Debug)]
pub struct Script {
    program: Arc<Program>,
    role: Role,
}

impl Script {
    pub(super) fn new(program: Program, role: Role) -> Script {
        Script { program: Arc::new(program), role }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.program.path()
    }

    /// Runs it to its end, or kills it with all of its group at the limit; tells how long it took. What it
    /// leaves running in the background is left alone.
    pub fn run(&self, surroundings: &Surroundings, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let variables = surroundings.variables(self.role.hook());
        let started = Running::start(&self.program, Wiring::Quiet, &variables);
        let mut running = started.map_err(|why| self.failed(&why))?;
        if running.watch_end(begun + limit) == Event::Late {
            running.kill();
            let words = running.last_words();
            let hint = "mend what it waits for, or give it more time";
            let why = format!("did not end within {} and was killed{words}", seconds(limit));
            return Err(self.failed(&why).hint(hint));
        }
        let status = running.reap();
        let status = status.map_err(|e| self.failed(&format!("cannot be waited for: {e}")))?;
        let words = running.last_words();
        let took = begun.elapsed();
        tracing::debug!(script = %self.path().display(), ?took, "{}{words}", describe(status));
        if status.success() { Ok(took) } else { Err(self.failed(&(describe(status) + &words))) }
    }

    fn failed(&self, why: &str) -> Error {
        let path = self.path().display();
        Error::new(self.role.failure(), format!("the {} {path} {why}", self.role.name()))
    }
}

/// A limit in words.
pub(super) fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

#[cfg(test)]
mod tests;
