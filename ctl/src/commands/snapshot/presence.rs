//! Where snapshots are kept: asking for it, waiting for it, and telling of it.
//!
//! Absent: copies as such (`copy.rs`).

use std::time::Duration;

use clap::Args;
use rowd_proto::{CopyVerify, ErrorKind, InstantAccess, Place, Snapshot, SnapshotStatus};

use crate::client::Client;
use crate::error::{Failure, Outcome, Result};
use crate::render::{Fields, Output};

use super::super::{Context, job, wait};
use super::{full_name, show};

/// Where a new snapshot is to be kept.
#[derive(Args, Debug)]
pub struct Keep {
    /// Keep it in this repository: it is copied there in the background, and then leaves the pool
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<String>,
    /// Keep it in the pool, although there is a default repository
    #[arg(long, conflicts_with = "repo")]
    local: bool,
    /// Use it from the pool at once, for this many days (1 to 65536, or none for no end) [default: 1]
    #[arg(
        long,
        value_name = "DAYS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = days,
        conflicts_with = "local"
    )]
    instant_access: Option<InstantAccess>,
}

impl Keep {
    /// The repository, whether it is none, and the instant access.
    pub fn parts(self) -> (Option<String>, bool, InstantAccess) {
        (self.repo, self.local, self.instant_access.unwrap_or_default())
    }
}

/// What can be changed of a snapshot; at least one of them.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Change {
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long)]
    pub description: Option<String>,
    /// Keep it in the pool beside its repository for this many days from now, or none for no end [default: 1]
    #[arg(
        long,
        value_name = "DAYS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = days,
        conflicts_with = "no_instant_access"
    )]
    instant_access: Option<InstantAccess>,
    /// Let it leave the pool; its copy has to be complete
    #[arg(long)]
    no_instant_access: bool,
    /// Refuse what would lose it, whatever the force, until --no-protect
    #[arg(long, conflicts_with = "no_protect")]
    pub protect: bool,
    /// Allow it again
    #[arg(long)]
    pub no_protect: bool,
}

impl Change {
    /// The change of its instant access, if any.
    pub fn access(&self) -> Option<InstantAccess> {
        self.instant_access.or(self.no_instant_access.then_some(InstantAccess::Off))
    }
}

fn days(text: &str) -> std::result::Result<InstantAccess, String> {
    if text == "none" {
        return Ok(InstantAccess::Endless);
    }
    let number = text.parse().ok().filter(|days| (1..=InstantAccess::DAYS_MAX).contains(days));
    number.map(InstantAccess::Days).ok_or_else(|| {
        format!(
            "{text:?} is neither a number of days from 1 to {} nor none",
            InstantAccess::DAYS_MAX
        )
    })
}

/// Waits until a snapshot is accomplished or, if it is being deleted, gone. Returns its last state.
pub fn settle(
    client: &mut Client,
    snapshot: Snapshot,
    limit: Option<Duration>,
) -> Result<Snapshot> {
    let what = full_name(&snapshot);
    let id = snapshot.id.clone();
    let mut last = snapshot;
    wait::until(&what, limit, || {
        match last.status {
            SnapshotStatus::Accomplished => return Ok(Some(last.clone())),
            SnapshotStatus::Failed => return Err(failed(&last)),
            SnapshotStatus::Progressing | SnapshotStatus::Deleting => {}
        }
        match show(client, &id) {
            Ok(seen) => last = seen,
            Err(gone) if gone.kind() == Some(ErrorKind::NotFound) => return Ok(Some(last.clone())),
            Err(failure) => return Err(failure),
        }
        Ok((last.status == SnapshotStatus::Accomplished).then(|| last.clone()))
    })
}

fn failed(snapshot: &Snapshot) -> Failure {
    let what = full_name(snapshot);
    let why = snapshot.reason.as_deref().unwrap_or("no reason is known");
    let failure = Failure::new(ErrorKind::WrongState, format!("{what} failed: {why}"));
    match &snapshot.copy {
        Some(copy) => failure.hint(format!("try again: rowctl copy retry {copy}")),
        None => failure,
    }
}

/// Reads back what a repository holds of a snapshot.
pub fn verify(snapshot: &str, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let snapshot = show(&mut client, snapshot)?;
    let Some(copy) = snapshot.copy.clone() else {
        let message = format!("{} is in the pool only", full_name(&snapshot));
        return Err(Failure::new(ErrorKind::WrongState, message).hint(
            "the pool is checked by rowctl scrub; a copy of a snapshot by rowctl copy verify",
        ));
    };
    let started = client.call_patiently(&CopyVerify { copy, repo: snapshot.repo.clone() })?;
    let ended = job::finish(&mut client, &started.id, None, context)?;
    job::end(&ended, context)
}

/// The copy that a disk has to be made of, when that is what a name means that is no copy's.
pub fn copy_meant(client: &mut Client, name: &str) -> Result<Option<(String, Option<String>)>> {
    match show(client, name) {
        Ok(snapshot) if snapshot.presence == [Place::Repository] => {
            Ok(snapshot.copy.map(|copy| (copy, snapshot.repo)))
        }
        Ok(_) => Ok(None),
        // An image, or a mistake that is told better when the disk is asked for.
        Err(Failure::Told(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What is said in full of where a snapshot is, unless it is in the pool only.
pub fn fields(snapshot: &Snapshot, fields: &mut Fields, output: &Output) {
    fields.add_some("remaining", snapshot.remaining_s.map(|left| format!("{left} s")));
    fields.add_some("reason", snapshot.reason.clone());
    let Some(repo) = &snapshot.repo else { return };
    let in_pool = snapshot.presence.contains(&Place::Pool);
    let pool = match (in_pool, snapshot.instant_access, snapshot.instant_access_until) {
        (false, ..) => "no".to_owned(),
        (true, false, _) => "until it is copied".to_owned(),
        (true, true, None) => "instant access".to_owned(),
        (true, true, Some(end)) => format!("instant access until {}", output.full_time(end)),
    };
    fields.add("in pool", pool);
    fields.add("repository", repo.clone());
    fields.add_some("copy", snapshot.copy.clone());
    if snapshot.status == SnapshotStatus::Failed {
        let copy = snapshot.copy.clone().unwrap_or_default();
        fields.add("try again", format!("rowctl copy retry {copy}"));
    }
}

/// The same in a few words.
pub fn note(snapshot: &Snapshot, output: &Output) -> Option<String> {
    let repo = snapshot.repo.as_ref()?;
    let done = snapshot.presence.contains(&Place::Repository);
    let to = if done { format!("in {repo}") } else { format!("to {repo}") };
    Some(match (snapshot.instant_access, snapshot.instant_access_until) {
        (false, _) => to,
        (true, None) => format!("{to}, instant access"),
        (true, Some(end)) => format!("{to}, instant access until {}", output.time(end)),
    })
}
