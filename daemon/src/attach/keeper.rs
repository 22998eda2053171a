//! The keeper: a thread that replaces connections which the kernel has given up.
//!
//! Invariants: it works only on devices in the list, and after it has made sure that the connection that
//! ended is one of theirs; what fails is tried again until it works or the device is gone.
//! Absent: the first connections of a device.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::device::Device;
use super::{Attach, Ended, sysfs};
use crate::engine::api::{Actor, AttachmentState};
use crate::error::{Error, Result};
use crate::nbd::End;
use crate::nbd::siblings::Siblings;
use std::sync::atomic::Ordering;

/// How long a device without all its connections waits for the next try.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts the thread; it ends with the list of devices.
pub(super) fn start(attach: &Arc<Attach>, ends: Receiver<Ended>) -> Result<()> {
    let attach = Arc::downgrade(attach);
    std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || keep(&attach, &ends))
        .map(drop)
        .map_err(|e| Error::io("start the thread that keeps devices", &e))
}

fn keep(attach: &Weak<Attach>, ends: &Receiver<Ended>) {
    let mut wanting = BTreeSet::new();
    loop {
        let ended = match wanting.is_empty() {
            true => ends.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => ends.recv_timeout(PAUSE),
        };
        let Some(attach) = attach.upgrade() else { return };
        if attach.stopping.load(Ordering::SeqCst) {
            return;
        }
        match ended {
            Ok(ended) => attach.ended(&ended, &mut wanting),
            Err(RecvTimeoutError::Timeout) => {
                let again = std::mem::take(&mut wanting);
                again.into_iter().for_each(|index| attach.mend(index, &mut wanting));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Attach {
    /// Has the keeper look at a device soon.
    pub(super) fn ask_keeper(&self, device: &Device) {
        let siblings = Arc::downgrade(&device.siblings);
        let ended = Ended { index: device.index, siblings, end: End::Closed };
        // Without a keeper the daemon is about to end.
        drop(self.shop.ended.send(ended));
    }

    /// A connection is over.
    fn ended(&self, ended: &Ended, wanting: &mut BTreeSet<u32>) {
        let verbs = self.verbs.lock();
        let Some(device) = self.devices.lock().get(&ended.index).cloned() else { return };
        if !is_of(&ended.siblings, &device) {
            return;
        }
        match ended.end {
            End::Left => self.lost(&device, "was disconnected by somebody else"),
            End::Closed | End::Boundary => {
                if device.siblings.count() < self.shop.settings.connections {
                    device.be_patient(&self.shop);
                }
                drop(verbs);
                self.mend(ended.index, wanting);
            }
        }
    }

    /// Gives a device the connections it lacks; `wanting` keeps it in mind if that does not work.
    fn mend(&self, index: u32, wanting: &mut BTreeSet<u32>) {
        let _verbs = self.verbs.lock();
        let Some(device) = self.devices.lock().get(&index).cloned() else { return };
        if device.siblings.count() >= self.shop.settings.connections {
            return;
        }
        if self.shop.sysfs.state(index) == sysfs::Kernel::Free {
            return self.lost(&device, "is gone");
        }
        // One that the kernel did not want ends at once, and is told of as any other.
        if let Err(error) = device.refill(&self.shop) {
            tracing::warn!(%error, device = sysfs::path(index), "will be tried again");
            wanting.insert(index);
        }
    }

    /// Forgets a device that is ours no more.
    fn lost(&self, device: &Arc<Device>, why: &str) {
        self.devices.lock().remove(&device.index);
        device.siblings.hang_up();
        let path = sysfs::path(device.index);
        tracing::warn!(device = path, "{why}");
        let message = format!("{path} {why}");
        let forgotten = self.engine.attachment_set(Actor::DAEMON, &device.disk, None, message);
        if let Err(error) = forgotten {
            tracing::error!(%error, device = path, "the attachment could not be forgotten");
            self.engine.attachment_is(&device.disk, AttachmentState::Failed(why.to_owned()));
        }
    }
}

fn is_of(siblings: &Weak<Siblings>, device: &Device) -> bool {
    siblings.upgrade().is_some_and(|siblings| Arc::ptr_eq(&siblings, &device.siblings))
}
