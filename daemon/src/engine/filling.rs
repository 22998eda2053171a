//! Disks that do not have all their contents yet: what may be done with them, and how far they are.
//!
//! Invariants: a disk that is filled while it is used keeps no snapshot and cannot return anywhere until it has
//! its contents: a snapshot of it would need the origin for as long as it exists.
//! Absent: where contents come from (`vault/`), and how blocks are stored (`disk/lazy.rs`).

use std::sync::Arc;

use super::Engine;
use super::api::{Actor, FillingInfo};
use crate::disk::lazy::Lazy;
use crate::error::{Error, ErrorKind, Result};
use crate::units::DiskId;

/// Kinds of the jobs that fill disks: before they can be used, and while they are.
pub const FILL: &str = "fill";
pub const FETCH: &str = "fetch";

impl Engine {
    /// What a disk that is used before it has all its contents is filled from.
    #[must_use]
    pub fn lazy(&self, id: &DiskId) -> Option<Arc<Lazy>> {
        self.live(id).ok()?.lazy().cloned()
    }

    /// Tells an event about where the contents of a disk come from.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn filling_note(&self, id: &DiskId, kind: &str, message: String) -> Result<()> {
        let _shape = self.shape.lock();
        self.note(Actor::DAEMON, kind, id.as_str(), message)
    }

    /// A pair of numbers that is another one after somebody has read or written.
    #[must_use]
    pub fn activity(&self) -> (u64, u64) {
        let pool = &self.shared.pool;
        (pool.journal.last().0, pool.readers.entries())
    }

    /// Refuses a disk that cannot be used until it has its contents, or until it has lost what it had before.
    pub(super) fn refuse_unfilled(&self, id: &DiskId) -> Result<()> {
        match self.catalogue.read().fillings.get(id) {
            Some(filling) if !filling.lazy || filling.clear.is_some() => {}
            _ => return Ok(()),
        }
        self.refuse_filling(id)
    }

    /// Refuses what needs all contents of a disk.
    pub(super) fn refuse_filling(&self, id: &DiskId) -> Result<()> {
        self.filling_trouble(id).map_or(Ok(()), Err)
    }

    /// Why what needs all contents of a disk has to wait, if it has.
    pub(super) fn filling_trouble(&self, id: &DiskId) -> Option<Error> {
        let info = self.filling_info(id)?;
        let name = self.disk_name(id);
        let percent = info.percent;
        let message = format!("{name} is still being filled from copy {}: {percent} %", info.copy);
        let hint = match info.job {
            Some(job) => format!("wait for it: `rowctl job wait {job}`"),
            None => "see `rowctl job list`".to_owned(),
        };
        Some(Error::new(ErrorKind::WrongState, message).hint(hint))
    }

    /// What a disk is being filled from, and how far that is.
    pub(super) fn filling_info(&self, id: &DiskId) -> Option<FillingInfo> {
        let filling = self.catalogue.read().fillings.get(id).cloned()?;
        let jobs = self.jobs().into_iter().rev();
        let job = jobs
            .into_iter()
            .find(|job| (job.kind == FILL || job.kind == FETCH) && job.object == id.as_str());
        let (done, total) = job.as_ref().map_or((0, 0), |job| (job.done, job.total));
        let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
        Some(FillingInfo {
            repo: filling.repo,
            copy: filling.copy,
            usable: filling.lazy && filling.clear.is_none(),
            // All is there only when the disk is an ordinary one.
            percent: u8::try_from(percent).unwrap_or(99).min(99),
            job: job.map(|job| job.id),
        })
    }
}
