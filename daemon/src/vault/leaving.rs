//! Looking after copies: those that have to be made are being made, those that have to go are being deleted.
//!
//! Invariants: a copy has one job at most; what the catalogue says has to be done is done at some time, whoever
//! wrote it there and whenever the daemon ended.
//! Absent: how a copy is made (`upload.rs`), and what is freed after a delete (`collect.rs`).

use std::sync::Arc;
use std::time::Duration;

use super::work::Work;
use super::{Vault, collect, open_repo};
use crate::engine::api::Actor;
use crate::engine::copies::CopyRecord;
use crate::engine::jobs::Job;
use crate::error::{Error, ErrorKind, Result};
use crate::units::CopyId;

/// The kind of job that makes a copy.
pub(super) const UPLOAD: &str = "copy";
/// How often somebody looks whether there is something to do that nobody has told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A delete that failed is tried again so many looks later, and at the first one.
const RETRY_LOOKS: u32 = 60;

impl Vault {
    /// Begins what is to be done about copies and has not begun.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn look_after_copies(self: &Arc<Self>) -> Result<()> {
        self.look(false)
    }

    /// Looks again and again, until the daemon goes down, on a thread of its own: the runtime would wake four.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn keep_looking(self: &Arc<Self>) -> Result<()> {
        let vault = Arc::clone(self);
        let run = move || {
            let mut looks: u32 = 0;
            loop {
                std::thread::park_timeout(LOOK_EVERY);
                if vault.is_closing() {
                    return;
                }
                // After a start too: what was in the way may have gone.
                let again = looks.is_multiple_of(RETRY_LOOKS);
                looks = looks.wrapping_add(1);
                if let Err(error) = vault.look(again) {
                    tracing::warn!(%error, "copies do not go on");
                }
            }
        };
        let thread = std::thread::Builder::new().name("vault-look".to_owned()).spawn(run);
        let thread = thread.map_err(|e| Error::io("start a thread", &e))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// As [`Vault::look_after_copies`], with `again` also what failed to be deleted.
    ///
    /// # Errors
    /// As there.
    pub(super) fn look(self: &Arc<Self>, again: bool) -> Result<()> {
        if self.is_closing() {
            return Ok(());
        }
        for copy in self.engine.copies().into_iter().filter(|copy| copy.failed.is_none()) {
            self.begin_upload(copy)?;
        }
        let leaving = self.engine.copies_leaving().into_iter();
        for copy in leaving.filter(|copy| again || copy.failed.is_none()) {
            // It may still wait for its turn to be made.
            let upload =
                self.jobs.lock().get(&copy.id).filter(|job| job.info().kind == UPLOAD).cloned();
            upload.iter().for_each(|job| job.cancel());
            self.begin_delete(copy)?;
        }
        Ok(())
    }

    /// Asks the job of a copy to end.
    pub(super) fn cancel(&self, copy: &CopyId) {
        if let Some(job) = self.jobs.lock().get(copy) {
            job.cancel();
        }
    }

    /// A job for a copy, unless it has one or is no longer as it was.
    pub(super) fn only_job(
        &self,
        kind: &'static str,
        copy: &CopyRecord,
    ) -> Result<Option<Arc<Job>>> {
        let mut jobs = self.jobs.lock();
        if jobs.contains_key(&copy.id) || self.engine.copy_record(&copy.id).as_ref() != Some(copy) {
            return Ok(None);
        }
        let job = self.engine.job_begin(kind, copy.id.as_str())?;
        jobs.insert(copy.id.clone(), Arc::clone(&job));
        Ok(Some(job))
    }

    fn begin_delete(self: &Arc<Self>, copy: CopyRecord) -> Result<()> {
        let Some(job) = self.only_job("delete", &copy)? else { return Ok(()) };
        let told = copy.clone();
        let work = move |work: &Work| {
            let repo = work.vault.engine.repo(&copy.repo)?;
            work.wait(async {
                let (store, _) = open_repo(&repo).await?;
                collect::delete(&store, &copy.id, Some(&copy.snapshot)).await?;
                // Before the record goes: a start in between begins again.
                match collect::collect(&store).await {
                    Err(error) => {
                        // Another copy is damaged, say. This one is gone all the same.
                        tracing::warn!(%error, copy = %copy.id, "its chunks are not freed");
                        Ok(error.to_string())
                    }
                    Ok(done) => Ok(super::copies::in_words(done)),
                }
            })
        };
        self.spawn(&job, work, move |work, result| {
            let outcome = deleted(work, &told, result);
            work.vault.jobs.lock().remove(&told.id);
            outcome
        })
    }
}

fn deleted(work: &Work, copy: &CopyRecord, result: Result<String>) -> Result<String> {
    let engine = &work.vault.engine;
    match result {
        Ok(freed) => {
            let message = format!("copy {} in {} deleted: {freed}", copy.id, copy.repo);
            engine.copy_end(Actor::DAEMON, &copy.id, "copy.delete", message.clone())?;
            Ok(message)
        }
        // It is said once, and not every minute.
        Err(error) if copy.failed.is_some() => Err(error),
        Err(error) => {
            match engine.copy_failed(Actor::DAEMON, &copy.id, Some(error.to_string())) {
                // The repository was forgotten meanwhile, and what was to be deleted there.
                Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                kept => drop(kept?),
            }
            Err(Error::new(error.kind(), error.message())
                .context(format!("copy {} is not deleted yet", copy.id))
                .hint("it is tried again every minute"))
        }
    }
}
