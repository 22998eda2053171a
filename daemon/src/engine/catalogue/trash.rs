//! Disks in the trash, in the catalogue.
//!
//! Invariants: a disk is among the disks or in the trash, never in both.
//! Absent: the verbs (`engine/trash.rs`).

use serde::{Deserialize, Serialize};

use super::{Catalogue, DiskRecord};
use crate::units::DiskId;

/// A deleted disk that can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashRecord {
    /// As it was; its head is frozen.
    pub disk: DiskRecord,
    pub deleted_at: u64,
    /// When it goes for good.
    pub until: u64,
    /// Larger than that of all that were deleted before: the number of the event.
    #[serde(default)]
    pub order: u64,
}

impl Catalogue {
    pub fn put_trash(&mut self, record: TrashRecord) {
        self.dirty.insert(format!("trash/{}", record.disk.id));
        self.next_tree = self.next_tree.max(record.disk.tree.0 + 1);
        self.trash.insert(record.disk.id.clone(), record);
    }

    /// A disk that is there or can be brought back.
    #[must_use]
    pub fn disk_or_trash(&self, id: &DiskId) -> Option<&DiskRecord> {
        self.disks.get(id).or_else(|| self.trash.get(id).map(|one| &one.disk))
    }

    pub fn remove_trash(&mut self, id: &DiskId) -> Option<TrashRecord> {
        self.dirty.insert(format!("trash/{id}"));
        self.trash.remove(id)
    }
}
