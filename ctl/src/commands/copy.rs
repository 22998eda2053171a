//! `rowctl copy`: snapshots as they are kept in repositories.
//!
//! Invariants: a copy is deleted only when the user agrees.
//! Absent: beginning one (`snapshot copy`); making a disk of one (`disk create --from`).

use std::time::Duration;

use clap::{Args, Subcommand};
use rowd_proto::{
    Copy, CopyCreate, CopyDelete, CopyList, CopyRestore, CopyRetry, CopyShow, CopyStatus,
    CopyVerify, ErrorKind,
};

use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output, Text};

use super::args::{About, Consent};
use super::filter::Filter;
use super::{Context, job, wait};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List copies, those under way included
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  rowctl copy list
  rowctl copy list --repo backup -o json
  rowctl copy list --filter tag:keep=long"
    )]
    List {
        /// Only those in this repository
        #[arg(long)]
        repo: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one copy
    #[command(after_help = "Example:\n  rowctl copy show c-4f2a")]
    Show(Which),
    /// Wait until a copy is complete or has failed
    #[command(after_help = "Example:\n  rowctl copy wait c-4f2a --timeout 3600")]
    Wait {
        #[command(flatten)]
        which: Which,
        /// Give up after this many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Read a copy back and check every byte: exit code 24 when it is damaged
    #[command(after_help = "Example:\n  rowctl copy verify c-4f2a")]
    Verify(Which),
    /// Try a copy that failed again; what was sent is not sent again
    #[command(after_help = "Example:\n  rowctl copy retry c-4f2a")]
    Retry {
        /// Id, or the beginning of one
        copy: String,
    },
    /// Delete a copy, or cancel one that is under way
    #[command(visible_alias = "rm", after_help = "Example:\n  rowctl copy delete c-4f2a --yes")]
    Delete {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Args, Debug)]
pub struct Which {
    /// Id, or the beginning of one
    copy: String,
    /// Look in this repository only
    #[arg(long)]
    repo: Option<String>,
}

/// `snapshot copy`.
#[derive(Args, Debug)]
pub struct Begin {
    /// Id, disk@snapshot, or a name that only one snapshot has; or the id of a copy in another repository
    snapshot: String,
    /// The repository
    #[arg(long, value_name = "REPOSITORY")]
    to: String,
    /// Take the copy from this repository
    #[arg(long, value_name = "REPOSITORY")]
    from: Option<String>,
    /// What the snapshot is called there; as here, if left out
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    about: About,
    /// Return when the copy is complete
    #[arg(long)]
    wait: bool,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::List { repo, filter } => {
            let mut all = client.call_patiently(&CopyList { repo })?.copies;
            filter.leave(&mut all, |one| one.detail.as_ref().map(|detail| &detail.tags));
            context.output.list(&all, |one| one.id.clone(), |output| table(&all, output))?;
        }
        Verb::Show(Which { copy, repo }) => {
            print(&client.call_patiently(&CopyShow { copy, repo })?, context)?;
        }
        Verb::Wait { which, timeout } => {
            let Which { copy, repo } = which;
            let found = client.call_patiently(&CopyShow { copy, repo })?;
            return finish(&mut client, found, timeout.map(Duration::from_secs), context);
        }
        Verb::Verify(Which { copy, repo }) => {
            let started = client.call_patiently(&CopyVerify { copy, repo })?;
            let ended = job::finish(&mut client, &started.id, None, context)?;
            return job::end(&ended, context);
        }
        Verb::Retry { copy } => print(&client.call_patiently(&CopyRetry { copy })?, context)?,
        Verb::Delete { which: Which { copy, repo }, consent } => {
            let found = client.call_patiently(&CopyShow { copy, repo: repo.clone() })?;
            confirm(consent.yes, &format!("delete copy {} in {}", found.id, found.repo))?;
            let repo = Some(found.repo.clone());
            let done = client.call_patiently(&CopyDelete { copy: found.id, repo })?;
            context.output.object(&done, &done.id, |_| format!("copy {} is deleted", done.id))?;
        }
    }
    Ok(Outcome::Done)
}

pub fn begin(args: Begin, context: &Context) -> Result<Outcome> {
    let Begin { snapshot, to, from, name, about, wait } = args;
    let mut client = context.client()?;
    let (description, tags) = about.parts();
    let request = CopyCreate { snapshot, repo: to, from, name, description, tags };
    let made = client.call_patiently(&request)?;
    if wait {
        return finish(&mut client, made, None, context);
    }
    print(&made, context)?;
    context.output.remark(&format!("wait for it with rowctl copy wait {}", made.id));
    Ok(Outcome::Done)
}

/// Whether this is the id of a copy, or enough of the beginning of one.
pub fn is_copy(text: &str) -> bool {
    let id = |c: char| c.is_ascii_digit() || ('a'..='x').contains(&c);
    text.strip_prefix("c-").is_some_and(|rest| rest.len() >= 4 && rest.chars().all(id))
}

/// Makes a disk of a copy; waits until it can be used.
pub fn restore(request: &CopyRestore, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let made = client.call_patiently(request)?;
    if !request.full {
        super::disk::print(&made.disk, context)?;
        let job = &made.job.id;
        context.output.remark(&format!("it is filled while it is used: rowctl job wait {job}"));
        return Ok(Outcome::Done);
    }
    let ended = job::finish(&mut client, &made.job.id, None, context)?;
    match job::outcome(&ended) {
        Outcome::Done => super::disk::print(&made.disk, context).map(|()| Outcome::Done),
        _ => job::end(&ended, context),
    }
}

fn finish(
    client: &mut Client,
    copy: Copy,
    limit: Option<Duration>,
    context: &Context,
) -> Result<Outcome> {
    let (id, repo) = (copy.id.clone(), Some(copy.repo.clone()));
    let mut last = copy;
    let ended = wait::until(&format!("copy {id}"), limit, || {
        if last.status == CopyStatus::Progressing {
            last = client.call_patiently(&CopyShow { copy: id.clone(), repo: repo.clone() })?;
        }
        Ok((last.status != CopyStatus::Progressing).then(|| last.clone()))
    })?;
    print(&ended, context)?;
    if let Some(reason) = &ended.reason {
        context.output.reason(&ended.id, reason);
    }
    Ok(match ended.status {
        CopyStatus::Accomplished | CopyStatus::Progressing => Outcome::Done,
        CopyStatus::Failed => Outcome::Ended(ErrorKind::Io),
        CopyStatus::Damaged => Outcome::Ended(ErrorKind::Corrupt),
    })
}

fn print(copy: &Copy, context: &Context) -> Result<()> {
    context.output.object(copy, &copy.id, |output| fields(copy, output))
}

fn status(copy: &Copy) -> Text {
    match copy.status {
        CopyStatus::Progressing => format!("progressing, {} %", copy.progress).into(),
        CopyStatus::Accomplished => "accomplished".into(),
        CopyStatus::Failed => Text::Alarm("failed".to_owned()),
        CopyStatus::Damaged => Text::Alarm("damaged".to_owned()),
    }
}

fn fields(copy: &Copy, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("id", copy.id.clone());
    fields.add("repository", copy.repo.clone());
    fields.add("status", status(copy));
    fields.add_some("remaining", copy.remaining_s.map(|left| format!("{left} s")));
    fields.add_some("reason", copy.reason.clone());
    fields.add_some("job", copy.job.clone());
    fields.add("snapshot", copy.snapshot_id.clone());
    fields.add_some("policy", copy.policy_id.clone());
    fields.add_some("expires", copy.expires_at.map(|at| output.full_time(at)));
    if let Some(detail) = &copy.detail {
        fields.add("of", format!("{}@{}", detail.disk_name, detail.snapshot_name));
        fields.add_some("description", Some(detail.description.clone()));
        fields.add("size", render::bytes(detail.size));
        fields.add("data", render::bytes(detail.data_bytes));
        fields.add("new", render::bytes(detail.new_bytes));
        fields.add("sent", render::bytes(detail.sent_bytes));
        fields.add_some("base", detail.base.clone());
        fields.add_some("made of", detail.source.clone());
        fields.add("created", output.full_time(detail.created_at));
        fields.add("copied", output.full_time(detail.copied_at));
        fields.add("consistency", detail.consistency.name());
        fields.add_some("tags", Some(render::tags(&detail.tags)));
        fields.add_some(
            "encrypted",
            detail.master.as_ref().map(|master| format!("with a key of master key {master}")),
        );
    }
    fields.render(output)
}

fn table(copies: &[Copy], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("ID"),
        Heading::Left("REPOSITORY"),
        Heading::Left("OF"),
        Heading::Right("DATA"),
        Heading::Right("NEW"),
        Heading::Left("CREATED"),
        Heading::Left("STATUS"),
    ]);
    for copy in copies {
        let detail = copy.detail.as_ref();
        let of = detail.map(|one| format!("{}@{}", one.disk_name, one.snapshot_name));
        columns.row([
            copy.id.clone().into(),
            copy.repo.clone().into(),
            of.unwrap_or_else(|| copy.snapshot_id.clone()).into(),
            detail.map_or_else(|| "".into(), |one| render::bytes(one.data_bytes)),
            detail.map_or_else(|| "".into(), |one| render::bytes(one.new_bytes)),
            detail.map_or_else(String::new, |one| output.time(one.created_at)).into(),
            status(copy),
        ]);
    }
    columns.render(output)
}
