//! Jobs: long pieces of work, with progress, and whether somebody wants them to end.
//!
//! Invariants: a job that ended does not change any more; the list is bounded.
//! Absent: the work. Jobs do not outlive the daemon; what they did is told as events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::api::{Actor, JobInfo, JobState};
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::JobId;

/// Ended jobs that are remembered.
const KEPT: usize = 256;

/// A job while it runs and after.
#[derive(Debug)]
pub struct Job {
    pub id: JobId,
    kind: &'static str,
    object: String,
    started_at: u64,
    pub done: AtomicU64,
    pub total: AtomicU64,
    cancelled: AtomicBool,
    /// What there is to say while it runs.
    saying: Mutex<String>,
    end: Mutex<Option<(JobState, u64, String)>>,
}

impl Job {
    /// Whether somebody asked it to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Asks it to end.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// What it has to say while it runs: what it waits for.
    pub fn says(&self, message: &str) {
        message.clone_into(&mut self.saying.lock());
    }

    /// Ends it; `message` is the outcome in words.
    pub fn finish(&self, state: JobState, message: String) {
        *self.end.lock() = Some((state, now(), message));
    }

    pub fn info(&self) -> JobInfo {
        let end = self.end.lock().clone();
        let (state, ended_at, message) = match end {
            Some((state, at, message)) => (state, Some(at), message),
            None => (JobState::Running, None, self.saying.lock().clone()),
        };
        JobInfo {
            id: self.id.clone(),
            kind: self.kind.to_owned(),
            object: self.object.clone(),
            state,
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            started_at: self.started_at,
            ended_at,
            message,
        }
    }

    fn is_running(&self) -> bool {
        self.end.lock().is_none()
    }
}

/// Percent (100 never, before it has ended), and the seconds left at the speed so far.
#[must_use]
pub fn progress(job: &JobInfo) -> (u8, Option<u64>) {
    if job.total == 0 {
        return (0, None);
    }
    let done = job.done.min(job.total);
    let percent = u8::try_from(u128::from(done) * 100 / u128::from(job.total)).unwrap_or(99);
    let elapsed = now().saturating_sub(job.started_at);
    let left = u128::from(elapsed) * u128::from(job.total - done) / u128::from(done.max(1));
    (percent.min(99), u64::try_from(left).ok().filter(|_| done > 0))
}

/// All jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    list: Mutex<VecDeque<Arc<Job>>>,
}

impl Jobs {
    /// Begins a job; with `alone`, only if none of its kind runs.
    pub(super) fn begin(&self, kind: &'static str, object: &str, alone: bool) -> Result<Arc<Job>> {
        let mut list = self.list.lock();
        if let Some(other) = list.iter().find(|job| alone && job.kind == kind && job.is_running()) {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("a {kind} runs already: {}", other.id),
            )
            .hint(format!("`rowctl job wait {}` or `rowctl job cancel {}`", other.id, other.id)));
        }
        while list.len() >= KEPT && list.front().is_some_and(|job| !job.is_running()) {
            list.pop_front();
        }
        let job = Arc::new(Job {
            id: JobId::random()?,
            kind,
            object: object.to_owned(),
            started_at: now(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            saying: Mutex::default(),
            end: Mutex::new(None),
        });
        list.push_back(Arc::clone(&job));
        Ok(job)
    }

    fn find(&self, name: &str) -> Result<Arc<Job>> {
        let list = self.list.lock();
        let mut found = list.iter().filter(|job| job.id.as_str().starts_with(name));
        let first = found.next().cloned();
        match (first, found.next()) {
            (Some(job), None) => Ok(job),
            (Some(_), Some(_)) => Err(Error::invalid(format!("several jobs begin with {name}"))),
            _ => Err(Error::not_found(format!("no job {name}")).hint("see `rowctl job list`")),
        }
    }

    /// The job of a kind that runs for an object.
    pub(super) fn running(&self, kind: &str, object: &str) -> Option<JobInfo> {
        let list = self.list.lock();
        let wanted = |job: &&Arc<Job>| job.kind == kind && job.object == object && job.is_running();
        list.iter().rev().find(wanted).map(|job| job.info())
    }

    /// Asks the jobs of a kind that run for an object to end.
    pub(super) fn cancel(&self, kind: &str, object: &str) {
        let list = self.list.lock();
        let meant = list.iter().filter(|job| job.kind == kind && job.object == object);
        meant.for_each(|job| job.cancel());
    }

    pub(super) fn cancel_all(&self) {
        self.list.lock().iter().for_each(|job| job.cancelled.store(true, Ordering::Relaxed));
    }
}

impl Engine {
    /// All jobs that are remembered, oldest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobInfo> {
        self.jobs.list.lock().iter().map(|job| job.info()).collect()
    }

    /// The job with this id or the only one whose id begins so.
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` when several begin so.
    pub fn job(&self, name: &str) -> Result<JobInfo> {
        self.jobs.find(name).map(|job| job.info())
    }

    /// Asks a job to end.
    ///
    /// # Errors
    /// `WrongState` when it has ended.
    pub fn job_cancel(&self, by: Actor, id: &JobId) -> Result<()> {
        let job = self.jobs.find(id.as_str())?;
        if job.is_running() && job.kind == super::filling::FETCH {
            let message = format!("job {id} cannot be cancelled: a disk is used that needs it");
            return Err(Error::new(ErrorKind::WrongState, message)
                .hint(format!(
                    "delete the disk: `rowctl disk delete {0}`; or take its rollback back: `rowctl disk rollback --undo {0} --force`",
                    job.object
                )));
        }
        if !job.is_running() || job.kind == super::background::RECLAIM {
            let why = if job.is_running() { "cannot be cancelled" } else { "has ended" };
            return Err(Error::new(ErrorKind::WrongState, format!("job {id} {why}")));
        }
        job.cancelled.store(true, Ordering::Relaxed);
        let _shape = self.shape.lock();
        self.note(by, "job.cancel", id.as_str(), format!("job {id} cancelled"))
    }
}
