//! Kernel devices of disks, as the catalogue remembers them and as they are now.
//!
//! Invariants: what is remembered is a journal record like any other; how a device is at the moment is
//! kept in memory only, by whoever looks after devices.
//! Absent: the devices themselves (`attach/`).

use super::Engine;
use super::api::{Actor, AttachmentInfo, AttachmentState, DiskInfo};
use super::catalogue::{Attachment, DiskRecord, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::units::DiskId;

/// A disk with what is needed to attach it.
#[derive(Clone, Debug)]
pub struct Attachable {
    pub id: DiskId,
    pub name: String,
    pub size: u64,
    pub read_only: bool,
    pub attachment: Option<Attachment>,
}

impl From<DiskRecord> for Attachable {
    fn from(disk: DiskRecord) -> Self {
        let DiskRecord { id, name, size, read_only, attachment, .. } = disk;
        Attachable { id, name, size, read_only, attachment }
    }
}

impl Engine {
    /// # Errors
    /// There is no such disk.
    pub fn attachable(&self, id: &DiskId) -> Result<Attachable> {
        self.refuse_unfilled(id)?;
        self.record(id).map(Attachable::from)
    }

    /// The disks that are to be attached.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachable> {
        let catalogue = self.catalogue.read();
        let attached = catalogue.disks.values().filter(|disk| disk.attachment.is_some());
        attached.cloned().map(Attachable::from).collect()
    }

    /// Remembers or forgets the device of a disk; `message` is for its event.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn attachment_set(
        &self,
        by: Actor,
        id: &DiskId,
        attachment: Option<Attachment>,
        message: String,
    ) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let mut disk = self.record(id)?;
        self.refuse_unfilled(id)?;
        let kind = if attachment.is_some() { "disk.attach" } else { "disk.detach" };
        if attachment.is_none() {
            self.device_states.lock().remove(id);
        }
        disk.attachment = attachment;
        self.change(by, Op::DiskUpdate { disk, kind: kind.to_owned() }, message)?;
        self.disk(id)
    }

    /// Takes note of how the device of a disk is now.
    pub fn attachment_is(&self, id: &DiskId, state: AttachmentState) {
        self.device_states.lock().insert(id.clone(), state);
    }

    /// Tells an event about the device of a disk.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn attachment_note(&self, id: &DiskId, kind: &str, message: String) -> Result<()> {
        let _shape = self.shape.lock();
        self.note(Actor::DAEMON, kind, id.as_str(), message)
    }

    pub(super) fn attachment_info(&self, disk: &DiskRecord) -> Option<AttachmentInfo> {
        let Attachment { index, read_only, .. } = disk.attachment?;
        let state = self.device_states.lock().get(&disk.id).cloned();
        Some(AttachmentInfo {
            device: format!("/dev/nbd{index}"),
            read_only,
            state: state.unwrap_or(AttachmentState::Pending),
        })
    }
}

/// Refuses what cannot be done to a disk that is a kernel device.
pub(super) fn refuse_attached(disk: &DiskRecord, what: &str) -> Result<()> {
    match disk.attachment {
        None => Ok(()),
        Some(Attachment { index, .. }) => Err(Error::new(
            ErrorKind::InUse,
            format!("{} is attached at /dev/nbd{index} and cannot be {what}", disk.name),
        )
        .hint(format!("detach it first: rowctl disk detach {}", disk.name))),
    }
}
