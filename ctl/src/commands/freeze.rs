//! `rowctl freeze`: what is frozen now, and the way out; and the options of all that freezes.
//!
//! Invariants: thawing works without a daemon, by the record that it keeps.
//! Absent: freezing by itself. It is part of a snapshot or a group.

use std::path::PathBuf;
use std::process::Command;

use clap::{Args, Subcommand, ValueEnum};
use rowd_proto::{
    Consistency, ErrorKind, FreezeCheck, FreezeOptions, FreezePreview, FreezeReport, FreezeShow,
    FreezeStatus, FreezeThaw,
};

use crate::error::{Failure, Outcome, Result};
use crate::render::{Fields, Output};

use super::Context;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show what a snapshot of disks would freeze, and which scripts and hooks it would run
    #[command(after_help = "It touches nothing. Exit code 1 when something is in the way.

Examples:
  rowctl freeze check data1 log1
  rowctl freeze check db1 --consistency app")]
    Check(Check),
    /// Show what is frozen now, and what an earlier freeze may have left
    #[command(after_help = "Example:\n  rowctl freeze status")]
    Status,
    /// Thaw everything now; a snapshot that is not cut yet is not made
    #[command(
        after_help = "It works without the daemon too, as root, by the record that the daemon keeps.

Example:
  rowctl freeze thaw"
    )]
    Thaw,
}

#[derive(Args, Debug)]
pub struct Check {
    /// Names or ids
    #[arg(required = true, value_name = "DISK")]
    disks: Vec<String>,
    #[command(flatten)]
    freeze: FreezeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// One exact instant under live I/O, as a power failure would leave it
    Crash,
    /// The file systems are frozen: nothing to repair or replay
    Fs,
    /// Applications stand still too; falls back to fs without usable scripts or hooks
    App,
}

/// The level of a snapshot or group, and how to freeze for it.
#[derive(Args, Clone, Debug)]
pub struct FreezeArgs {
    /// How much of what runs on the disks takes part
    #[arg(long, default_value = "crash")]
    consistency: Level,
    /// Also freeze the file system mounted here, where the daemon cannot see that it lives on the disk
    /// (nbdfuse, multipath); may be given several times
    #[arg(long = "mount", value_name = "DIR", help_heading = FREEZING)]
    mounts: Vec<PathBuf>,
    /// Seconds that file systems may stay frozen [default: freeze.timeout_s of rowd.toml, 30]
    #[arg(long, value_name = "SECONDS", help_heading = FREEZING)]
    freeze_timeout: Option<u64>,
    /// Run this before freezing, for --consistency app: a file of root with mode 0700
    #[arg(long, value_name = "PATH", help_heading = FREEZING)]
    pre_script: Option<PathBuf>,
    /// Run this after thawing, whenever the other one ran
    #[arg(long, value_name = "PATH", help_heading = FREEZING)]
    post_script: Option<PathBuf>,
    /// Seconds that each script or hook may take [default: freeze.script_timeout_s of rowd.toml, 1800]
    #[arg(long, value_name = "SECONDS", help_heading = FREEZING)]
    script_timeout: Option<u64>,
    /// Run neither scripts nor hooks: --consistency app gives fs
    #[arg(long, help_heading = FREEZING)]
    no_scripts: bool,
    /// Leave file systems alone
    #[arg(long, help_heading = FREEZING)]
    no_freeze: bool,
}

const FREEZING: &str = "Freezing";

impl FreezeArgs {
    /// The level and the options, as the daemon takes them.
    pub fn parts(self) -> Result<(Consistency, Option<FreezeOptions>)> {
        let level = match self.consistency {
            Level::Crash => Consistency::Crash,
            Level::Fs => Consistency::Fs,
            Level::App => Consistency::App,
        };
        let options = FreezeOptions {
            mounts: self.mounts.into_iter().map(absolute).collect::<Result<_>>()?,
            timeout: self.freeze_timeout,
            pre_script: self.pre_script.map(absolute).transpose()?,
            post_script: self.post_script.map(absolute).transpose()?,
            script_timeout: self.script_timeout,
            no_scripts: self.no_scripts,
            no_freeze: self.no_freeze,
        };
        Ok((level, (options != FreezeOptions::default()).then_some(options)))
    }
}

/// The daemon's working directory is another one.
fn absolute(path: PathBuf) -> Result<String> {
    let shown = path.display().to_string();
    let path = std::path::absolute(path)
        .map_err(|e| Failure::io(format!("cannot make a full path of {shown}"), &e))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| Failure::invalid(format!("{shown} is not UTF-8")))
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    match verb {
        Verb::Check(Check { disks, freeze }) => {
            let (level, freeze) = freeze.parts()?;
            // Nobody asks what it takes to freeze nothing.
            let consistency = if level == Consistency::Crash { Consistency::Fs } else { level };
            let request = FreezeCheck { disks, consistency, freeze };
            let preview = context.client()?.call(&request)?;
            context.output.object(&preview, "", |output| preview_text(&preview, output))?;
        }
        Verb::Status => {
            let status = context.client()?.call(&FreezeShow {})?;
            context.output.object(&status, "", |output| text(&status, output))?;
        }
        Verb::Thaw => match context.client().and_then(|mut client| client.call(&FreezeThaw {})) {
            Ok(before) => {
                let none = before.running.is_none() && before.left.is_empty();
                let said = if none { "nothing was frozen" } else { "thawed" };
                context.output.object(&before, "", |_| said.to_owned())?;
            }
            Err(away) if is_away(&away) => thaw_alone(context)?,
            Err(failure) => return Err(failure),
        },
    }
    Ok(Outcome::Done)
}

fn is_away(failure: &Failure) -> bool {
    let away = [ErrorKind::Unreachable, ErrorKind::ShuttingDown, ErrorKind::TimedOut];
    failure.kind().is_some_and(|kind| away.contains(&kind))
}

/// Without the daemon: by its record.
fn thaw_alone(context: &Context) -> Result<()> {
    let record = context.sockets.control.with_file_name("frozen.json");
    context.output.remark("the daemon does not answer; thawing by its record");
    let mut command = Command::new(helper()?);
    command.args(["thaw", "--recorded"]).arg(&record);
    let done = command.output().map_err(|e| Failure::io("cannot start rowd-freeze", &e))?;
    let said: Vec<String> =
        String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect();
    if done.status.success() {
        return context.output.list(&said, String::clone, |_| said.join("\n"));
    }
    let why = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    let message = said.into_iter().chain([why]).filter(|line| !line.is_empty());
    let message = message.collect::<Vec<_>>().join("; ");
    Err(Failure::new(ErrorKind::ThawFailed, message)
        .hint("it takes root; the file systems of a disk answer when rowd serves it again"))
}

/// `rowd-freeze`, beside this program or where programs of the system go.
fn helper() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Failure::io("cannot find rowctl itself", &e))?;
    let dir = own.parent().map(PathBuf::from).unwrap_or_default();
    let places = [dir.join("rowd-freeze"), dir.join("../sbin/rowd-freeze")];
    let found = places.into_iter().find(|place| place.is_file());
    found.ok_or_else(|| {
        Failure::new(ErrorKind::Condition, "rowd-freeze is neither beside rowctl nor in ../sbin")
            .hint("`fsfreeze --unfreeze DIR` thaws one file system")
    })
}

fn text(status: &FreezeStatus, output: &Output) -> String {
    let mut fields = Fields::new();
    if let Some(running) = &status.running {
        fields.add("freezing for", running.what.clone());
        fields.add("level", running.wanted.name());
        fields.add("phase", running.phase.clone());
        fields.add("since", running.since.to_string());
        for target in &running.targets {
            let on =
                format!("{} ({} on {})", target.mount_point, target.file_system, target.device);
            fields.add("file system", on);
        }
    }
    for mount_point in &status.left {
        fields.add("left frozen?", format!("{mount_point}: `rowctl freeze thaw` thaws it"));
    }
    let text = fields.render(output);
    if text.is_empty() { "nothing is frozen".to_owned() } else { text }
}

fn preview_text(preview: &FreezePreview, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("level", preview.consistency.name());
    for note in &preview.notes {
        fields.add("note", note.clone());
    }
    for application in &preview.applications {
        fields.add("runs", application.clone());
    }
    for target in &preview.targets {
        let on = format!("{} ({} on {})", target.mount_point, target.file_system, target.device);
        fields.add("freezes", on);
    }
    fields.render(output)
}

/// A report below the object that was made.
pub fn report_text(report: &FreezeReport, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("reached", report.reached.name());
    for note in &report.notes {
        fields.add("note", note.clone());
    }
    for target in &report.targets {
        let on = format!("{} ({} on {})", target.mount_point, target.file_system, target.device);
        fields.add("frozen", on);
    }
    if let (Some(from), Some(to)) = (report.frozen_at, report.thawed_at) {
        let millis = report.frozen_seconds * 1000.0;
        fields.add("frozen for", format!("{millis:.1} ms, from {from} to {to}"));
    }
    let phase = |p: &rowd_proto::FreezePhase| format!("{} {:.1} ms", p.name, p.seconds * 1000.0);
    let phases: Vec<String> = report.phases.iter().map(phase).collect();
    fields.add("phases", phases.join(", "));
    fields.render(output)
}
