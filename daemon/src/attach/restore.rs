//! The start: what was attached is attached again, before the daemon says that it is ready.
//!
//! Invariants: a device that the kernel still has and that is ours goes on without an error, over the
//! connections that the process before handed over or over new ones; one that is somebody else's now is
//! left alone; nothing here can keep the daemon from starting.
//! Absent: how connections are handed over (`handover.rs`).

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use super::device::{Device, backend_prefix};
use super::sysfs::{self, Kernel};
use super::{Attach, Released, index_of, taken};
use crate::engine::Engine;
use crate::engine::api::{Actor, AttachmentState};
use crate::engine::attachments::Attachable;
use crate::engine::catalogue::Attachment;
use crate::error::{ErrorKind, Result};
use crate::memory;
use crate::nbd::keep::Kept;
use crate::units::DiskId;

/// Connections from the process before, by the device they belong to.
type Handed = HashMap<u32, Vec<(OwnedFd, Kept)>>;

impl Attach {
    /// Attaches again what is remembered as attached.
    pub fn restore(&self, kept: Vec<(OwnedFd, Kept)>) {
        let mut verbs = self.verbs.lock();
        let mut handed = Handed::new();
        for (fd, kept) in kept {
            // One without a device is none of ours, and is closed.
            if let Some(index) = kept.device {
                handed.entry(index).or_default().push((fd, kept));
            }
        }
        let disks = self.engine.attachments();
        if disks.iter().any(|disk| disk.attachment.is_some()) {
            memory::protect();
        }
        for disk in &disks {
            if let Err(error) = self.restore_one(disk, &mut handed, &mut verbs) {
                tracing::warn!(%error, disk = disk.name, "not attached again");
                let state = AttachmentState::Failed(error.message().to_owned());
                self.engine.attachment_is(&disk.id, state);
                self.tell(disk, format!("disk {} was not attached again: {error}", disk.name));
            }
        }
        self.end_strays(&disks);
    }

    fn restore_one(
        &self,
        disk: &Attachable,
        handed: &mut Handed,
        verbs: &mut Released,
    ) -> Result<()> {
        let Some(Attachment { index, read_only, pinned }) = disk.attachment else { return Ok(()) };
        match self.shop.sysfs.state(index) {
            Kernel::Connected { backend } if backend.starts_with(&backend_prefix(&disk.id)) => {
                let connections = handed.remove(&index).unwrap_or_default();
                self.resume_device(disk, index, backend, connections)
            }
            Kernel::Free => match self.connect_at(disk, index, read_only) {
                Err(error) if error.kind() == ErrorKind::InUse && !pinned => {
                    self.elsewhere(disk, read_only, verbs)
                }
                other => other.map(drop),
            },
            Kernel::Connected { backend } if pinned => Err(taken(index, &backend, &self.engine)),
            Kernel::Connected { .. } => self.elsewhere(disk, read_only, verbs),
        }
    }

    /// Goes on with a device that the kernel has kept.
    fn resume_device(
        &self,
        disk: &Attachable,
        index: u32,
        backend: String,
        connections: Vec<(OwnedFd, Kept)>,
    ) -> Result<()> {
        let device = Device::new(disk, index, backend, &self.shop);
        let handed = connections.len();
        for (fd, kept) in connections {
            if kept.export != disk.id.as_str() {
                tracing::warn!(export = kept.export, "a connection of another disk is closed");
                continue;
            }
            if let Err(error) = device.adopt(fd, kept, &self.shop) {
                tracing::warn!(%error, device = sysfs::path(index), "a connection is replaced");
            }
        }
        self.take_on(&device);
        if device.siblings.count() < self.shop.settings.connections {
            device.refill(&self.shop).inspect_err(|_| self.ask_keeper(&device))?;
        }
        // A process that died between changing the size and telling the kernel left it to us.
        device.resize(disk.size, &self.shop)?;
        device.tune(&self.shop);
        tracing::info!(device = sysfs::path(index), disk = disk.name, handed, "goes on");
        Ok(())
    }

    /// The device it had is somebody else's now: any other will do.
    fn elsewhere(&self, disk: &Attachable, read_only: bool, verbs: &mut Released) -> Result<()> {
        let device = self.connect(disk, None, read_only, verbs)?;
        let record = Attachment { index: device.index, read_only, pinned: false };
        let old = index_of(disk).map(sysfs::path).unwrap_or_default();
        let new = sysfs::path(device.index);
        let message = format!("disk {} attached at {new}, because {old} is taken", disk.name);
        let by = Actor::DAEMON;
        self.engine.attachment_set(by, &disk.id, Some(record), message)?;
        self.take_on(&device);
        Ok(())
    }

    /// Ends devices of our disks that nobody asked to keep: the process before was killed between making
    /// one and remembering it, or between forgetting it and ending it.
    fn end_strays(&self, disks: &[Attachable]) {
        for (index, state) in self.shop.sysfs.devices() {
            let Kernel::Connected { backend } = state else { continue };
            if self.devices.lock().contains_key(&index) {
                continue;
            }
            let known = disk_of_backend(&self.engine, &backend);
            let wanted = disks.iter().any(|disk| index_of(disk) == Some(index));
            let Some(disk) = known.filter(|_| !wanted) else { continue };
            let path = sysfs::path(index);
            tracing::warn!(device = path, disk = disk.name, "ended: it is not remembered");
            if let Err(refusal) = super::netlink::disconnect(index) {
                tracing::warn!(device = path, "not ended: {refusal}");
            }
        }
    }

    fn tell(&self, disk: &Attachable, message: String) {
        if let Err(error) = self.engine.attachment_note(&disk.id, "disk.attach-failed", message) {
            tracing::error!(%error, "an event was not kept");
        }
    }
}

/// The disk of this pool that a backend identifier names.
fn disk_of_backend(engine: &Engine, backend: &str) -> Option<Attachable> {
    let id = backend.strip_prefix("rowd:")?.split(':').next()?;
    engine.attachable(&DiskId::from(id)).ok()
}
