//! Changes of a disk while it is attached: its contents by a rollback, its size.
//!
//! **Stale caches.** The host keeps blocks of the device in its page cache. After a rollback they would be
//! those of another time: reads would mix old and new, and writing one back would damage the disk. So
//! the device is claimed (nobody has it mounted, nobody can), its cache is written out, its connections
//! are ended, the disk is changed, and before new connections carry the first request the cache is
//! dropped. I/O that others begin meanwhile waits for the new connections.
//!
//! Invariants: a device in use is refused, or with force ended for good, never changed under its user.
//! Absent: what changes the disk; the caller says it.

use std::sync::Arc;

use super::block::Claim;
use super::device::Device;
use super::{Attach, Released, sysfs, wait_gone};
use crate::engine::api::Actor;
use crate::error::Result;
use crate::units::DiskId;

/// A device without connections, while its disk is changed.
struct Paused {
    device: Arc<Device>,
    claim: Claim,
}

impl Attach {
    /// Changes what some disks hold. Those that are attached get their device back afterwards, whether
    /// it worked or not; with `force` a device that is in use is detached.
    ///
    /// # Errors
    /// `InUse` names the holders of a device; else what `change` says.
    pub fn around<T>(
        &self,
        by: Actor,
        disks: &[DiskId],
        force: bool,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if !disks.iter().any(|id| self.device_of(id).is_some()) {
            return change();
        }
        let mut verbs = self.verbs.lock();
        let devices: Vec<_> = disks.iter().filter_map(|id| self.device_of(id)).collect();
        let mut paused = Vec::new();
        let mut ready = Ok(());
        for device in devices {
            ready = self.pause(by, device, force, &mut paused, &mut verbs);
            if ready.is_err() {
                break;
            }
        }
        let outcome = ready.and_then(|()| change());
        for one in paused {
            self.resume(one);
        }
        outcome
    }

    /// Tells the kernel the size a disk has now, if it is attached.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn resized(&self, id: &DiskId) -> Result<()> {
        if self.device_of(id).is_none() {
            return Ok(());
        }
        let _verbs = self.verbs.lock();
        let Some(device) = self.device_of(id) else { return Ok(()) };
        device.resize(self.engine.attachable(id)?.size, &self.shop)
    }

    fn pause(
        &self,
        by: Actor,
        device: Arc<Device>,
        force: bool,
        paused: &mut Vec<Paused>,
        verbs: &mut Released,
    ) -> Result<()> {
        let disk = self.engine.attachable(&device.disk)?;
        let path = sysfs::path(device.index);
        let claim = match self.claim(&device, &disk.name) {
            Ok(claim) => claim,
            Err(error) if force => {
                self.end(&device, verbs)?;
                let message = format!("disk {} detached from {path} by force: {error}", disk.name);
                return self.engine.attachment_set(by, &device.disk, None, message).map(drop);
            }
            Err(error) => return Err(error),
        };
        claim.flush().map_err(|e| crate::error::Error::io(format!("flush {path}"), &e))?;
        // Out of the list: the keeper must not replace the connections.
        self.devices.lock().remove(&device.index);
        device.siblings.hang_up();
        let gone = wait_gone(&device);
        paused.push(Paused { device, claim });
        gone
    }

    /// Gives a device its connections back. It is the keeper's work if that fails.
    fn resume(&self, paused: Paused) {
        let Paused { device, claim } = paused;
        let path = sysfs::path(device.index);
        self.take_on(&device);
        if let Err(error) = device.refill(&self.shop) {
            tracing::warn!(%error, device = path, "new connections");
            self.ask_keeper(&device);
            return;
        }
        let disk = self.engine.attachable(&device.disk);
        if let Err(error) = disk.and_then(|disk| device.resize(disk.size, &self.shop)) {
            tracing::warn!(%error, device = path, "the kernel was not told the size");
        }
        if let Err(error) = claim.flush() {
            tracing::warn!(%error, device = path, "the cache was not dropped");
        }
        if let Err(error) = claim.release(&path) {
            tracing::warn!(%error, device = path, "the partition table was not read again");
        }
        if let Err(error) = self.shop.sysfs.announce(device.index) {
            tracing::warn!(%error, device = path, "uevent");
        }
    }
}
