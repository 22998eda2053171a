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
use tokio::sync::Semaphore;

use super::Vault;
use crate::engine::api::JobState;
use crate::engine::jobs::Job;
use crate::error::{Error, ErrorKind, Result};

/// How soon an interruption is noticed.
const NOTICED: Duration = Duration::from_millis(50);
/// The vault's threads come after everybody else's.
const NICE: i32 = 10;

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
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "the vault's threads are not nice");
            }
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

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        if self.rate == 0 {
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
