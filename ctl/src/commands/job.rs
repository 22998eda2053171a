//! `rowctl job`: long pieces of work.
//!
//! Invariants: waiting for a job never changes it; what became of it decides the exit code.
//! Absent: starting jobs, which the command for the work does.

use std::time::Duration;

use clap::{Args, Subcommand};
use rowd_proto::{ErrorKind, Job, JobCancel, JobList, JobShow, JobState};

use crate::client::Client;
use crate::error::{Outcome, Result};
use crate::progress::Progress;
use crate::render::{Columns, Fields, Heading, Output, Text};
use rowd_proto::size::percent;

use super::{Context, wait};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List jobs
    #[command(visible_alias = "ls", after_help = "Example:\n  rowctl job list")]
    List,
    /// Show one job
    #[command(after_help = "Example:\n  rowctl job show j-7766")]
    Show {
        /// Id, or the beginning of one
        job: String,
    },
    /// Wait until a job has ended; the exit code tells how
    #[command(after_help = "Example:\n  rowctl job wait j-7766 --timeout 3600

Exit codes: 0 done, 24 failed, 25 cancelled, 6 not ended within the timeout.")]
    Wait(Wait),
    /// Ask a job to end early
    #[command(after_help = "Example:\n  rowctl job cancel j-7766")]
    Cancel {
        /// Id, or the beginning of one
        job: String,
    },
}

#[derive(Args, Debug)]
pub struct Wait {
    /// Id, or the beginning of one
    job: String,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::List => {
            let jobs = client.call(&JobList {})?.jobs;
            context.output.list(&jobs, |job| job.id.clone(), |output| table(&jobs, output))?;
        }
        Verb::Show { job } => print(&client.call(&JobShow { job })?, context)?,
        Verb::Wait(args) => {
            let limit = args.timeout.map(Duration::from_secs);
            let job = finish(&mut client, &args.job, limit, context)?;
            return end(&job, context);
        }
        Verb::Cancel { job } => print(&client.call(&JobCancel { job })?, context)?,
    }
    Ok(Outcome::Done)
}

/// Waits until a job has ended, with a progress bar.
pub fn finish(
    client: &mut Client,
    job: &str,
    limit: Option<Duration>,
    context: &Context,
) -> Result<Job> {
    let mut progress: Option<Progress> = None;
    let mut name = job.to_owned();
    wait::until(&format!("job {job}"), limit, || {
        let job = client.call(&JobShow { job: name.clone() })?;
        // From now on by its full id: a prefix may become ambiguous while we wait.
        name.clone_from(&job.id);
        if job.state != JobState::Running {
            return Ok(Some(job));
        }
        let bar =
            progress.get_or_insert_with(|| Progress::new(job.kind.clone(), context.output.quiet));
        bar.show(job.done, job.total);
        Ok(None)
    })
}

/// Ends a command that has waited for this job and has nothing else to print.
pub fn end(job: &Job, context: &Context) -> Result<Outcome> {
    print(job, context)?;
    if matches!(job.state, JobState::Failed | JobState::Cancelled) {
        context.output.reason(&job.id, &job.message);
    }
    Ok(outcome(job))
}

/// How a command ends that has waited for this job.
pub fn outcome(job: &Job) -> Outcome {
    match job.state {
        JobState::Running | JobState::Done => Outcome::Done,
        JobState::Failed => Outcome::Ended(ErrorKind::Io),
        JobState::Cancelled => Outcome::Ended(ErrorKind::Cancelled),
    }
}

pub fn print(job: &Job, context: &Context) -> Result<()> {
    context.output.object(job, &job.id, |output| fields(job, output))
}

fn fields(job: &Job, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("id", job.id.clone());
    fields.add("kind", job.kind.clone());
    fields.add_some("object", Some(job.object.clone()));
    fields.add("state", state(job));
    fields.add_some("progress", Some(progress(job)));
    fields.add("started", output.full_time(job.started_at));
    fields.add_some("ended", job.ended_at.map(|at| output.full_time(at)));
    fields.add_some("result", Some(job.message.clone()));
    fields.render(output)
}

fn table(jobs: &[Job], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("ID"),
        Heading::Left("KIND"),
        Heading::Left("OBJECT"),
        Heading::Left("STATE"),
        Heading::Right("PROGRESS"),
        Heading::Left("STARTED"),
        Heading::Left("RESULT"),
    ]);
    for job in jobs {
        columns.row([
            job.id.clone().into(),
            job.kind.clone().into(),
            job.object.clone().into(),
            state(job),
            progress(job).into(),
            output.time(job.started_at).into(),
            job.message.clone().into(),
        ]);
    }
    columns.render(output)
}

fn state(job: &Job) -> Text {
    match job.state {
        JobState::Running => "running".into(),
        JobState::Done => "done".into(),
        JobState::Failed => Text::Alarm("failed".to_owned()),
        JobState::Cancelled => "cancelled".into(),
    }
}

/// How far a job is that still runs.
fn progress(job: &Job) -> String {
    if job.state == JobState::Running && job.total > 0 {
        format!("{} %", percent(job.done, job.total))
    } else {
        String::new()
    }
}
