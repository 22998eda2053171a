//! The level of a snapshot: asked before the cut, recorded after it.
//!
//! Invariants: a check changes nothing and finds what the verb itself would refuse; a level is recorded
//! by a change of its own, so that a snapshot whose freeze was cut off counts as `crash`.
//! Absent: freezing (`freeze/`).

use super::Engine;
use super::api::{Actor, Consistency, SnapshotSpec, Tags};
use super::catalogue::Op;
use super::disks::{change_tags, check_tags};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SnapshotId;

impl Engine {
    /// Whether a snapshot could be made now.
    ///
    /// # Errors
    /// What [`Engine::snapshot_create`] would say.
    pub fn snapshot_check(&self, spec: &SnapshotSpec) -> Result<()> {
        check_tags(&spec.tags)?;
        let disk = self.record(&spec.disk)?;
        self.new_snapshot_name(&disk.id, spec.name.clone(), 0)?;
        self.check_quota(&disk.id, &disk.name)
    }

    /// Records the level that a snapshot has reached, with its tag.
    ///
    /// # Errors
    /// `TagFailed` when the tag does not fit any more; the level is recorded all the same.
    pub fn snapshot_mark(
        &self,
        by: Actor,
        id: &SnapshotId,
        level: Consistency,
        tag: (&str, &str),
    ) -> Result<()> {
        let _shape = self.shape.lock();
        let failed = |error: Error| {
            Error::new(
                ErrorKind::TagFailed,
                format!("{id} has no tag {}: {}", tag.0, error.message()),
            )
            .hint("its level is recorded without it; `rowctl tag set` sets tags")
        };
        let mut snapshot = self.snapshot_record(id).map_err(failed)?;
        snapshot.consistency = level;
        let set = Tags::from([(tag.0.to_owned(), tag.1.to_owned())]);
        let mut tags = snapshot.tags.clone();
        let tagged = change_tags(&mut tags, &set, &[]);
        if tagged.is_ok() {
            snapshot.tags = tags;
        }
        let message = format!("snapshot {} is {level}-consistent", self.snapshot_label(&snapshot));
        let op = Op::SnapshotUpdate { snapshot, kind: "snapshot.mark".to_owned() };
        self.change(by, op, message).map_err(failed)?;
        tagged.map_err(failed)
    }
}
