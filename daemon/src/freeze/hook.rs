//! Hooks of applications in a directory: found, checked, begun in order and released in reverse order.
//!
//! A hook is a program `NN-name` that says `READY` when its application is quiet and keeps it so until its
//! input is closed; or a pair of scripts `NN-name.pre` and `NN-name.post`. If rowd dies the kernel closes the
//! input, so the application does not stay quiet.
//! Invariants: a hook that began is released, at the latest when its `Held` is dropped; one that ends in
//! any other way than by being released successfully takes its group with it, so that no session of it
//! keeps a lock.
//! Absent: what follows from a hook that failed (the freeze engine).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::child::{Event, Program, Running, Wiring, describe};
use super::script::{Role, Script, Surroundings, seconds};
use crate::error::{Error, ErrorKind, Result};

/// The owner of a hook and of its directory: root.
const OWNER: u32 = 0;
/// What a hook that came too late has to let go before its group is killed.
const GRACE: Duration = Duration::from_secs(2);
/// Ends of names that editors and packages leave behind.
const LEFTOVER_ENDS: &[&str] =
    &["~", ".bak", ".orig", ".rpmsave", ".rpmnew", ".rpmorig", ".sample", ".swp"];
/// Parts of such names.
const LEFTOVER_PARTS: &[&str] = &[".dpkg-", ".ucf-"];
/// Ends of the names of a pair.
const PRE: &str = ".pre";
const POST: &str = ".post";

/// What a thaw script is told unless [`Held::tell`] says otherwise.
const FAILED: &str = "failed";

/// Something in the directory that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub name: String,
    pub reason: String,
}

/// A usable hook.
#[derive(Debug)]
pub struct Hook {
    name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Coprocess(Program),
    Pair { pre: Script, post: Script },
}

/// The hooks of a directory in the order of their names, and what is not used. A directory that does not
/// exist has none.
pub fn discover(dir: &Path) -> (Vec<Hook>, Vec<Skipped>) {
    discover_owned_by(OWNER, dir)
}

fn discover_owned_by(owner: u32, dir: &Path) -> (Vec<Hook>, Vec<Skipped>) {
    let whole = |reason: String| {
        let name = dir.display().to_string();
        (Vec::new(), vec![Skipped { name, reason }])
    };
    let names = match fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Default::default(),
        Err(error) => return whole(format!("cannot be read: {error}")),
    };
    match fs::metadata(dir) {
        Ok(found) => {
            if let Err(reason) = check_owner(&found, owner) {
                return whole(reason);
            }
        }
        Err(error) => return whole(format!("cannot be looked at: {error}")),
    }
    let mut names: Vec<String> =
        names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let (mut programs, mut skipped) = (Vec::new(), Vec::new());
    for name in names {
        match open(dir, &name, owner) {
            Ok(program) => programs.push((name, program)),
            Err(reason) => skipped.push(Skipped { name, reason }),
        }
    }
    let hooks = pair_up(programs, &mut skipped);
    (hooks, skipped)
}

/// Opens one file of the directory and checks it.
fn open(dir: &Path, name: &str, owner: u32) -> Result<Program, String> {
    let leftover = name.starts_with(['.', '#'])
        || LEFTOVER_ENDS.iter().any(|end| name.ends_with(end))
        || LEFTOVER_PARTS.iter().any(|part| name.contains(part));
    if leftover {
        return Err("is what an editor or a package left behind".to_owned());
    }
    let bytes = name.as_bytes();
    let numbered = bytes.len() > 3 && bytes[..2].iter().all(u8::is_ascii_digit) && bytes[2] == b'-';
    if !numbered {
        return Err("its name is not two digits, a hyphen and more, such as 50-name".to_owned());
    }
    // A link in a directory of root is root's choice; what it leads to is checked.
    let program = Program::open(&dir.join(name), OFlag::empty())
        .map_err(|error| format!("cannot be opened: {error}"))?;
    let found = program.metadata().map_err(|error| format!("cannot be looked at: {error}"))?;
    if !found.is_file() {
        return Err("is not a regular file".to_owned());
    }
    check_owner(&found, owner)?;
    if found.mode() & 0o100 == 0 {
        return Err("is not executable by root".to_owned());
    }
    Ok(program)
}

fn check_owner(found: &fs::Metadata, owner: u32) -> Result<(), String> {
    if found.uid() != owner {
        return Err(format!("belongs to user {}, not to root", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o777;
        return Err(format!("has mode {mode:04o}: others than root may write to it"));
    }
    Ok(())
}

/// Makes hooks of programs, in the order of their names; half a pair is none.
fn pair_up(programs: Vec<(String, Program)>, skipped: &mut Vec<Skipped>) -> Vec<Hook> {
    let mut hooks = Vec::new();
    let mut halves: BTreeMap<String, (Option<Program>, Option<Program>)> = BTreeMap::new();
    for (name, program) in programs {
        if let Some(stem) = name.strip_suffix(PRE) {
            halves.entry(stem.to_owned()).or_default().0 = Some(program);
        } else if let Some(stem) = name.strip_suffix(POST) {
            halves.entry(stem.to_owned()).or_default().1 = Some(program);
        } else {
            hooks.push(Hook { name, kind: Kind::Coprocess(program) });
        }
    }
    for (stem, pair) in halves {
        let mut half = |has: &str, lacks: &str| {
            let reason = format!("is half a pair: there is no usable {stem}{lacks}");
            skipped.push(Skipped { name: format!("{stem}{has}"), reason });
        };
        match pair {
            (Some(pre), Some(post)) => {
                let pre = Script::new(pre, Role::Freeze);
                let kind = Kind::Pair { pre, post: Script::new(post, Role::Thaw) };
                hooks.push(Hook { name: stem, kind });
            }
            (Some(_), None) => half(PRE, POST),
            (None, Some(_)) => half(POST, PRE),
            (None, None) => {}
        }
    }
    hooks.sort_by(|a, b| a.name.cmp(&b.name));
    hooks
}

impl Hook {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the application quiet. When it fails nothing is held: a thaw script has been run, a coprocess
    /// is gone with its group.
    pub fn begin(&self, surroundings: &Surroundings, limit: Duration) -> Result<Held> {
        let begun = Instant::now();
        let grip = match &self.kind {
            Kind::Coprocess(program) => self.start(program, surroundings, limit)?,
            Kind::Pair { post, .. } => {
                let mut after = surroundings.clone();
                after.result.get_or_insert_with(|| FAILED.to_owned());
                Grip::Pair { post: post.clone(), surroundings: after }
            }
        };
        let mut held = Held { name: self.name.clone(), took: Duration::ZERO, limit, grip };
        if let Kind::Pair { pre, .. } = &self.kind {
            // Should it fail, the thaw script runs when `held` goes.
            pre.run(surroundings, limit)?;
        }
        held.took = begun.elapsed();
        Ok(held)
    }

    fn start(
        &self,
        program: &Program,
        surroundings: &Surroundings,
        limit: Duration,
    ) -> Result<Grip> {
        let failed = |why: String| {
            let message = format!("the hook {} {why}", self.name);
            Error::new(ErrorKind::FreezeScript, message)
        };
        let deadline = Instant::now() + limit;
        let variables = surroundings.variables("hold");
        let started = Running::start(program, Wiring::Coprocess, &variables);
        let mut running = started.map_err(failed)?;
        let why = match running.watch_ready(deadline) {
            Event::Ready => return Ok(Grip::Coprocess(running)),
            Event::Ended => {
                // What it started must not keep the application quiet without it.
                running.kill_group();
                match running.reap() {
                    Ok(status) if running.said_ready() => {
                        format!("said READY and {} without waiting", describe(status))
                    }
                    Ok(status) => format!("{} before it said READY", describe(status)),
                    Err(error) => format!("cannot be waited for: {error}"),
                }
            }
            Event::Mute => {
                let_go_or_kill(&mut running);
                "closed its output before it said READY".to_owned()
            }
            Event::Late => {
                let_go_or_kill(&mut running);
                format!("did not say READY within {} and was ended", seconds(limit))
            }
        };
        Err(failed(why + &running.last_words()))
    }
}

/// Ends a hook that is of no use any more: as agreed if it listens, else by force.
fn let_go_or_kill(running: &mut Running) {
    running.close_input();
    if running.watch_end(Instant::now() + GRACE) == Event::Late {
        tracing::warn!("a hook did not let go when its input was closed; it is killed");
    }
    running.kill();
}

/// A hook whose application is quiet. It is released when this is dropped.
#[derive(Debug)]
pub struct Held {
    name: String,
    took: Duration,
    limit: Duration,
    grip: Grip,
}

#[derive(Debug)]
enum Grip {
    Coprocess(Running),
    Pair { post: Script, surroundings: Surroundings },
    Released,
}

impl Held {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long it took until the application was quiet.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Whether the application is quiet still, as far as can be told: the coprocess of a hook that ended holds
    /// nothing. [`Held::release`] says why then.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        match &self.grip {
            Grip::Coprocess(running) => !running.has_ended(),
            Grip::Pair { .. } => true,
            Grip::Released => false,
        }
    }

    /// What became of the snapshot, told to the thaw script of a pair as `ROWD_RESULT`; `failed` unless said
    /// otherwise.
    pub fn tell(&mut self, result: &str) {
        if let Grip::Pair { surroundings, .. } = &mut self.grip {
            surroundings.result = Some(result.to_owned());
        }
    }

    /// Lets the application go on; tells how long that took.
    pub fn release(mut self, limit: Duration) -> Result<Duration> {
        self.release_within(limit)
    }

    fn release_within(&mut self, limit: Duration) -> Result<Duration> {
        match std::mem::replace(&mut self.grip, Grip::Released) {
            Grip::Coprocess(running) => self.end(running, limit),
            Grip::Pair { post, surroundings } => post.run(&surroundings, limit),
            Grip::Released => Ok(Duration::ZERO),
        }
    }

    fn end(&self, mut running: Running, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let failed = |why: String| {
            let message = format!("the hook {} {why}", self.name);
            Error::new(ErrorKind::ThawScript, message)
        };
        let early = running.has_ended();
        running.close_input();
        if running.watch_end(begun + limit) == Event::Late {
            running.kill();
            let why = format!("did not let go within {} and was killed", seconds(limit));
            return Err(failed(why + &running.last_words()));
        }
        if early || !running.ended_well() {
            running.kill_group();
        }
        let status =
            running.reap().map_err(|error| failed(format!("cannot be waited for: {error}")))?;
        let words = running.last_words();
        let took = begun.elapsed();
        tracing::debug!(hook = self.name, ?took, "{}{words}", describe(status));
        if early {
            let why = format!("{} while it had to keep its application quiet", describe(status));
            return Err(failed(why + &words));
        }
        if status.success() { Ok(took) } else { Err(failed(describe(status) + &words)) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.release_within(self.limit) {
            tracing::warn!(hook = self.name, %error, "a hook that was given up did not let go");
        }
    }
}

#[cfg(test)]
mod tests;
