//! Disks that do not have all their contents yet: what may be done with them, and how far they are.
//!
//! Invariants: what needs all contents of a disk or snapshot is refused, or waits, until they are there; all else works.
//! Absent: where contents come from (`vault/`), how blocks are stored (`disk/lazy.rs`), and who lacks them together
//! (`families.rs`).

use super::Engine;
use super::api::{Actor, FillingInfo};
use super::copies::Filling;
use crate::error::{Error, ErrorKind, Result};
use crate::units::DiskId;

/// Kinds of the jobs that fill disks: before they can be used, and while they are.
pub const FILL: &str = "fill";
pub const FETCH: &str = "fetch";

impl Engine {
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

    /// Refuses to fill a disk from another copy while it, or what it was kept as, lacks blocks.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn refuse_second_filling(&self, id: &DiskId) -> Result<()> {
        self.refuse_filling(id)?;
        let Some(filling) = self.catalogue.read().fillings.get(id).cloned() else { return Ok(()) };
        let name = self.disk_name(id);
        Err(self.filling_error(&format!("what {name} was kept as"), &filling))
    }

    /// Why what needs all contents of a disk has to wait, if it has.
    pub(super) fn filling_trouble(&self, id: &DiskId) -> Option<Error> {
        let filling = self.disk_lacking(id)?;
        Some(self.filling_error(&self.disk_name(id), &filling))
    }

    /// Says that something is still being filled.
    pub(super) fn filling_error(&self, what: &str, filling: &Filling) -> Error {
        let info = self.filling_told(filling.clone());
        let message =
            format!("{what} is still being filled from copy {}: {} %", info.copy, info.percent);
        let hint = match info.job {
            Some(job) => format!("wait for it: `rowctl job wait {job}`"),
            None => "see `rowctl job list`".to_owned(),
        };
        Error::new(ErrorKind::WrongState, message).hint(hint)
    }

    /// What a disk is being filled from, and how far that is.
    pub(super) fn filling_info(&self, id: &DiskId) -> Option<FillingInfo> {
        self.disk_lacking(id).map(|filling| self.filling_told(filling))
    }

    pub(super) fn filling_told(&self, filling: Filling) -> FillingInfo {
        let jobs = self.jobs().into_iter().rev();
        let id = filling.disk.as_str();
        let job = jobs
            .into_iter()
            .find(|job| (job.kind == FILL || job.kind == FETCH) && job.object == id);
        let (done, total) = job.as_ref().map_or((0, 0), |job| (job.done, job.total));
        let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
        FillingInfo {
            repo: filling.repo,
            copy: filling.copy,
            usable: filling.lazy && filling.clear.is_none(),
            // All is there only when the disk is an ordinary one.
            percent: u8::try_from(percent).unwrap_or(99).min(99),
            job: job.map(|job| job.id),
        }
    }
}
