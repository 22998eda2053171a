//! Work of the vault: threads with a job, which can be interrupted wherever they wait.
//!
//! Invariants: a job that the end of the daemon interrupts is neither failed nor cancelled: it goes on at the
//! next start; at most a few run at a time, the others wait.
//! Absent: what is done (`upload.rs`, `download.rs`, `collect.rs`).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::Vault;
use super::courtesy::Turn;
use crate::engine::api::JobState;
use crate::engine::jobs::Job;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;

/// How soon an interruption is noticed.
const NOTICED: Duration = Duration::from_millis(50);
/// The vault's threads come after everybody else's.
const NICE: i32 = 10;
/// Those that do nothing but compute, and hold nothing that a client may wait for, come last.
const LAST: i32 = 19;

/// One piece of work.
#[derive(Clone, Debug)]
pub struct Work {
    pub vault: Arc<Vault>,
    pub job: Arc<Job>,
}

impl Work {
    /// Waits for something, unless the work is interrupted.
    ///
    /// # Errors
    /// `ShuttingDown`, `Cancelled`, or what came of it.
    pub fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.vault.handle.block_on(async {
            tokio::select! {
                biased;
                error = self.interrupted() => Err(error),
                done = work => done,
            }
        })
    }

    /// Waits until so many bytes may pass.
    ///
    /// # Errors
    /// As [`Work::check`].
    pub fn turn(&self, pacer: &Pacer, bytes: usize) -> Result<()> {
        self.wait(async {
            pacer.pass(bytes).await;
            Ok(())
        })
    }

    /// Says that uploads are about to begin.
    pub fn arrive(&self) {
        self.vault.courtesy.arrive(Instant::now(), self.vault.engine.served());
    }

    /// Waits until an upload may read, pack and send one more chunk without being in the way of clients.
    ///
    /// # Errors
    /// As [`Work::check`].
    pub fn ticket(&self) -> Result<Ticket> {
        let mut waits = None;
        loop {
            let (now, served) = (Instant::now(), self.vault.engine.served());
            let time = match self.vault.courtesy.ask(now, served) {
                Turn::Begin => break,
                Turn::Look(time) => time,
                Turn::Wait(time) => {
                    waits.get_or_insert_with(|| {
                        self.job.says("waits to let clients go first");
                        now
                    });
                    time
                }
            };
            self.wait(async {
                tokio::time::sleep(time).await;
                Ok(())
            })?;
        }
        let ticket = Ticket(Arc::clone(&self.vault));
        match waits {
            Some(since) => self.vault.engine.upload_waited(since.elapsed()),
            None => self.job.says(""),
        }
        Ok(ticket)
    }

    /// Waits until a chunk may pass where bandwidth is limited. It disturbs no client meanwhile, so others have its place.
    ///
    /// # Errors
    /// As [`Work::check`].
    pub fn pace(&self, ticket: Ticket, pacer: &Pacer, bytes: usize) -> Result<Ticket> {
        if !pacer.is_limited() {
            return Ok(ticket);
        }
        if faults::seeded("h13-turn-is-never-given-up") {
            self.vault.handle.block_on(pacer.pass(bytes));
            return Ok(ticket);
        }
        drop(ticket);
        self.turn(pacer, bytes)?;
        self.ticket()
    }

    /// Does a part of the work on a thread that comes after all others.
    pub fn aside<T: Send + 'static>(
        &self,
        parts: &mut JoinSet<Result<T>>,
        part: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<()> {
        let (tell, told) = oneshot::channel();
        let run = move || {
            be_nice(LAST);
            if tell.send(part()).is_err() {
                tracing::debug!("nobody waits for a part of a copy any more");
            }
        };
        let thread = std::thread::Builder::new().name("vault-part".to_owned()).spawn(run);
        thread.map_err(|e| Error::io("start a thread", &e))?;
        let ended = async { told.await.map_err(|e| Error::internal(e.to_string()))? };
        parts.spawn_on(ended, &self.vault.handle);
        Ok(())
    }

    /// Waits for a turn, of work that began without one.
    ///
    /// # Errors
    /// As [`Work::check`].
    pub fn turn_among_jobs(&self) -> Result<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.vault.permits);
        self.wait(async {
            permits.acquire_owned().await.map_err(|e| Error::internal(e.to_string()))
        })
    }

    /// # Errors
    /// `ShuttingDown` or `Cancelled`.
    pub fn check(&self) -> Result<()> {
        if self.vault.closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ShuttingDown, "the daemon is going down"));
        }
        if self.job.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
        }
        Ok(())
    }

    async fn interrupted(&self) -> Error {
        loop {
            if let Err(error) = self.check() {
                return error;
            }
            tokio::time::sleep(NOTICED).await;
        }
    }
}

/// The right to have one chunk under way.
#[derive(Debug)]
pub struct Ticket(Arc<Vault>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.courtesy.ended(Instant::now(), self.0.engine.served());
    }
}

/// Lets this thread come after those of clients.
fn be_nice(nice: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, "the vault's threads are not nice");
    }
}

impl Vault {
    /// Does a piece of work on a thread of its own. `ended` is told what came of it, except when the daemon
    /// went down, and says it in words.
    pub(super) fn spawn<T: 'static>(
        self: &Arc<Self>,
        job: &Arc<Job>,
        work: impl FnOnce(&Work) -> Result<T> + Send + 'static,
        ended: impl FnOnce(&Work, Result<T>) -> Result<String> + Send + 'static,
    ) -> Result<()> {
        self.spawn_among(Some(Arc::clone(&self.permits)), job, work, ended)
    }

    /// As [`Vault::spawn`], for work that waits most of the time and takes nobody's turn.
    pub(super) fn spawn_idle<T: 'static>(
        self: &Arc<Self>,
        job: &Arc<Job>,
        work: impl FnOnce(&Work) -> Result<T> + Send + 'static,
        ended: impl FnOnce(&Work, Result<T>) -> Result<String> + Send + 'static,
    ) -> Result<()> {
        self.spawn_among(None, job, work, ended)
    }

    fn spawn_among<T: 'static>(
        self: &Arc<Self>,
        permits: Option<Arc<Semaphore>>,
        job: &Arc<Job>,
        work: impl FnOnce(&Work) -> Result<T> + Send + 'static,
        ended: impl FnOnce(&Work, Result<T>) -> Result<String> + Send + 'static,
    ) -> Result<()> {
        let doing = Work { vault: Arc::clone(self), job: Arc::clone(job) };
        let run = move || {
            be_nice(NICE);
            let turn = async {
                let Some(permits) = permits else { return Ok(None) };
                let turn = permits.acquire_owned().await;
                turn.map(Some).map_err(|e| Error::internal(e.to_string()))
            };
            let result = doing.wait(turn).and_then(|_turn| work(&doing));
            if result.as_ref().err().is_some_and(|e| e.kind() == ErrorKind::ShuttingDown) {
                doing.job.finish(JobState::Running, "goes on at the next start".to_owned());
                return;
            }
            match ended(&doing, result) {
                Ok(message) => doing.job.finish(JobState::Done, message),
                Err(error) if error.kind() == ErrorKind::Cancelled => {
                    doing.job.finish(JobState::Cancelled, error.to_string());
                }
                Err(error) => {
                    tracing::warn!(%error, job = %doing.job.id, "work of the vault failed");
                    doing.job.finish(JobState::Failed, error.to_string());
                }
            }
        };
        let mut threads = self.threads.lock();
        // Who goes down has taken the threads, and waits for no more.
        if self.is_closing() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the daemon is going down"));
        }
        let thread = std::thread::Builder::new().name("vault-job".to_owned()).spawn(run);
        let thread = thread.map_err(|e| Error::io("start a thread", &e))?;
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }
}

/// Bytes per second, shared by all that use one repository.
#[derive(Debug)]
pub struct Pacer {
    rate: u64,
    free_at: Mutex<Instant>,
}

impl Pacer {
    /// `rate` in bytes per second; 0 is no limit.
    #[must_use]
    pub fn new(rate: u64) -> Pacer {
        Pacer { rate, free_at: Mutex::new(Instant::now()) }
    }

    fn is_limited(&self) -> bool {
        self.rate != 0
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        if !self.is_limited() {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock();
            let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            *free_at = (*free_at).max(Instant::now()) + cost;
            *free_at
        };
        tokio::time::sleep_until(until.into()).await;
    }
}
