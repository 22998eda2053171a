//! Disks as kernel devices, `/dev/nbdN`: attach, detach, and keep them alive.
//!
//! The kernel gets one end of each connection by netlink, the daemon serves the other like any client's.
//! Dead connections are replaced; what is attached is remembered and restored at the next start.
//!
//! Invariants:
//! - a device is touched only if its backend identifier says that it belongs to this disk;
//! - calls to the kernel are made one at a time, on threads that serve no I/O: they may wait for I/O to
//!   the very device;
//! - a disk changes under its device only while the device is claimed and without connections, and what
//!   the host had cached of it is gone before it is used again.
//!
//! Absent: freezing (`freeze/`), and mounts: `rowctl` mounts, as whoever asked.

mod block;
mod change;
mod device;
mod holders;
mod keeper;
mod netlink;
mod restore;
mod sysfs;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::Engine;
use crate::engine::api::{Actor, AttachmentState, DiskInfo};
use crate::engine::attachments::Attachable;
use crate::engine::catalogue::Attachment;
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::nbd::siblings::Siblings;
use crate::nbd::{End, Server};
use crate::units::DiskId;
use block::Claim;
use device::{Device, Workshop, backend_prefix, no_client, refused};
use netlink::Refusal;
use sysfs::{INDEX_MAX, Kernel, Sysfs};

/// A device that was given up is not chosen for another disk for so long: somebody may still mean the
/// old one by its name.
const REUSE_AFTER: Duration = Duration::from_secs(300);
/// Devices tried before an attach is given up: others may connect devices at the same time.
const TRIES_MAX: usize = 16;
/// How long a device may be open somewhere before that is a use: udev looks at each for a moment.
const OPEN_WAIT: Duration = Duration::from_secs(2);
const OPEN_PAUSE: Duration = Duration::from_millis(50);
/// How long the connections of a device may take to end after the kernel was told.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What is configured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Connections of a device: one for each processor that is to send requests, and at least two, so
    /// that the kernel asks again on another one.
    pub connections: usize,
    /// How long I/O waits for the daemon to come back before it fails.
    pub dead_connection: Duration,
    /// After how long without an answer the kernel asks on another connection. It is also how long I/O
    /// that was under way stalls when the daemon is killed.
    pub retry: Duration,
    /// Percent of the memory that the kernel lets fill with unwritten data that one device may have. When all of
    /// it waits for a daemon on the same host, what the rest of the host needs, the daemon included, has no room.
    pub dirty_share: u32,
}

/// A connection of a device is over.
#[derive(Debug)]
struct Ended {
    index: u32,
    siblings: Weak<Siblings>,
    end: End,
}

/// The kernel devices of this daemon.
#[derive(Debug)]
pub struct Attach {
    engine: Arc<Engine>,
    shop: Workshop,
    /// Held by whoever changes devices, while the kernel works.
    verbs: Mutex<Released>,
    devices: Mutex<BTreeMap<u32, Arc<Device>>>,
    stopping: AtomicBool,
}

/// Devices given up lately.
#[derive(Debug, Default)]
struct Released(VecDeque<(u32, Instant)>);

impl Released {
    fn add(&mut self, index: u32) {
        self.0.push_back((index, Instant::now()));
    }

    fn contains(&mut self, index: u32) -> bool {
        self.0.retain(|(_, at)| at.elapsed() < REUSE_AFTER);
        self.0.iter().any(|(one, _)| *one == index)
    }
}

/// How to attach a disk.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `/dev/nbdN`; `None` takes one that is free.
    pub device: Option<String>,
    pub read_only: bool,
}

impl Attach {
    /// Looks after the devices of a server's disks from now on.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(
        engine: &Arc<Engine>,
        server: &Arc<Server>,
        settings: Settings,
    ) -> Result<Arc<Attach>> {
        let (ended, ends) = channel();
        let sysfs = Sysfs::default();
        let shop = Workshop { server: Arc::clone(server), settings, sysfs, ended };
        let attach = Arc::new(Attach {
            engine: Arc::clone(engine),
            shop,
            verbs: Mutex::default(),
            devices: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        keeper::start(&attach, ends)?;
        Ok(attach)
    }

    /// From now on connections that end are not replaced.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Makes a device of a disk.
    ///
    /// # Errors
    /// `InUse` when the disk or the device is attached already, `Condition` without the kernel's client,
    /// `NotPermitted` when the daemon is not root.
    pub fn attach(&self, by: Actor, id: &DiskId, wish: &Wish) -> Result<DiskInfo> {
        let wanted = wish.device.as_deref().map(parse).transpose()?;
        let mut verbs = self.verbs.lock();
        let disk = self.engine.attachable(id)?;
        if let Some(device) = self.device_of(id) {
            let at = sysfs::path(device.index);
            return Err(Error::new(
                ErrorKind::InUse,
                format!("{} is attached already, at {at}", disk.name),
            ));
        }
        match netlink::probe() {
            Err(Refusal::NoClient) => return Err(no_client()),
            Err(other) => return Err(refused(&other, "make devices like", 0)),
            // From now on this host may need us to free its memory.
            Ok(()) => memory::protect(),
        }
        let device = self.connect(&disk, wanted, wish.read_only, &mut verbs)?;
        let read_only = wish.read_only || disk.read_only;
        let record = Attachment { index: device.index, read_only, pinned: wanted.is_some() };
        let message = format!("disk {} attached at {}", disk.name, sysfs::path(device.index));
        let done = self.engine.attachment_set(by, id, Some(record), message);
        if done.is_err() {
            // What cannot be remembered must not exist.
            self.devices.lock().remove(&device.index);
            device.disconnect(&self.shop)?;
        }
        done
    }

    /// Takes the device of a disk away.
    ///
    /// # Errors
    /// `WrongState` when there is none; `InUse`, naming the holders, unless `force`.
    pub fn detach(&self, by: Actor, id: &DiskId, force: bool) -> Result<DiskInfo> {
        let mut verbs = self.verbs.lock();
        let disk = self.engine.attachable(id)?;
        // Whoever holds a file system frozen holds on to the device too.
        self.engine.refuse_making(id, "detached")?;
        let Some(record) = disk.attachment else {
            let message = format!("{} is not attached", disk.name);
            return Err(Error::new(ErrorKind::WrongState, message));
        };
        if let Some(device) = self.device_of(id) {
            let claim = match self.claim(&device, &disk.name) {
                Ok(claim) => Some(claim),
                Err(error) if force => {
                    tracing::warn!(%error, "detached by force");
                    None
                }
                Err(error) => return Err(error),
            };
            if let Some(claim) = &claim
                && let Err(error) = claim.flush()
                && !force
            {
                return Err(Error::io(format!("flush {}", sysfs::path(device.index)), &error));
            }
            self.end(&device, &mut verbs)?;
        }
        let message = format!("disk {} detached from {}", disk.name, sysfs::path(record.index));
        self.engine.attachment_set(by, id, None, message)
    }

    /// The device of a disk, if there is one now.
    fn device_of(&self, id: &DiskId) -> Option<Arc<Device>> {
        self.devices.lock().values().find(|device| device.disk == *id).cloned()
    }

    /// Claims a device that nobody uses. Who has it open for a moment only is waited for.
    fn claim(&self, device: &Device, disk: &str) -> Result<Claim> {
        let path = sysfs::path(device.index);
        let deadline = Instant::now() + OPEN_WAIT;
        loop {
            let mut users = holders::of(&self.shop.sysfs.of(device.index));
            if users.is_empty() {
                match Claim::of(&path) {
                    Ok(claim) => return Ok(claim),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        users.open.push("claimed by something that cannot be seen".to_owned());
                    }
                    Err(error) => return Err(Error::io(format!("open {path}"), &error)),
                }
            }
            if !users.firm.is_empty() || Instant::now() >= deadline {
                let hint =
                    format!("unmount and close it, or use --force, which fails the I/O on {disk}");
                let message = holders::describe(device.index, &users);
                return Err(Error::new(ErrorKind::InUse, message).hint(hint));
            }
            std::thread::sleep(OPEN_PAUSE);
        }
    }

    /// Ends a device and waits until its connections are over.
    fn end(&self, device: &Arc<Device>, verbs: &mut Released) -> Result<()> {
        // Out of the list first: the keeper must not take the end for an accident.
        self.devices.lock().remove(&device.index);
        if let Err(error) = device.disconnect(&self.shop) {
            self.devices.lock().insert(device.index, Arc::clone(device));
            return Err(error);
        }
        verbs.add(device.index);
        device.siblings.hang_up();
        wait_gone(device)
    }

    /// Connects a disk, at the device wanted or at a free one.
    fn connect(
        &self,
        disk: &Attachable,
        wanted: Option<u32>,
        read_only: bool,
        verbs: &mut Released,
    ) -> Result<Arc<Device>> {
        if let Some(index) = wanted {
            if let Kernel::Connected { backend } = self.shop.sysfs.state(index) {
                return Err(taken(index, &backend, &self.engine));
            }
            return self.connect_at(disk, index, read_only);
        }
        let mut free = self.free_indices(verbs).into_iter();
        for _ in 0..TRIES_MAX {
            let Some(index) = free.next() else { break };
            match self.connect_at(disk, index, read_only) {
                Err(error) if error.kind() == ErrorKind::InUse => {}
                other => return other,
            }
        }
        Err(Error::new(ErrorKind::InUse, "no NBD device is free")
            .hint("disconnect one, or name a higher one: --device /dev/nbd64"))
    }

    fn connect_at(&self, disk: &Attachable, index: u32, read_only: bool) -> Result<Arc<Device>> {
        let backend = format!("{}{}", backend_prefix(&disk.id), disk.name);
        let device = Device::new(disk, index, backend, &self.shop);
        device.connect(disk, read_only, &self.shop)?;
        self.take_on(&device);
        Ok(device)
    }

    /// From now on the device is looked after.
    fn take_on(&self, device: &Arc<Device>) {
        self.devices.lock().insert(device.index, Arc::clone(device));
        self.engine.attachment_is(&device.disk, AttachmentState::Attached);
    }

    /// Devices that are free, the best choice first: the lowest number that was not in use lately.
    fn free_indices(&self, released: &mut Released) -> Vec<u32> {
        let existing: BTreeMap<u32, Kernel> = self.shop.sysfs.devices().into_iter().collect();
        let remembered: Vec<u32> = self.engine.attachments().iter().filter_map(index_of).collect();
        let most = u32::try_from(existing.len() + TRIES_MAX).unwrap_or(INDEX_MAX);
        let free = |index: &u32| {
            !matches!(existing.get(index), Some(Kernel::Connected { .. }))
                && !remembered.contains(index)
        };
        let (late, early): (Vec<u32>, Vec<u32>) =
            (0..=most).filter(free).partition(|index| released.contains(*index));
        early.into_iter().chain(late).collect()
    }
}

fn index_of(disk: &Attachable) -> Option<u32> {
    disk.attachment.map(|attachment| attachment.index)
}

/// Waits until the last connection of a device is over.
fn wait_gone(device: &Device) -> Result<()> {
    if device.siblings.wait_empty(END_LIMIT) {
        return Ok(());
    }
    let path = sysfs::path(device.index);
    Err(Error::new(
        ErrorKind::TimedOut,
        format!("the connections of {path} did not end within {END_LIMIT:?}"),
    ))
}

/// Says who has a device.
fn taken(index: u32, backend: &str, engine: &Engine) -> Error {
    let mut parts = backend.splitn(3, ':');
    let (program, disk) = (parts.next(), parts.next());
    let by = match (program, disk) {
        (Some("rowd"), Some(id)) => match engine.attachable(&DiskId::from(id)) {
            Ok(disk) => format!("disk {}", disk.name),
            Err(_) => format!("disk {id} of another rowd"),
        },
        _ if backend.is_empty() => "another NBD client".to_owned(),
        _ => format!("another NBD client ({backend})"),
    };
    Error::new(ErrorKind::InUse, format!("{} is in use by {by}", sysfs::path(index)))
        .hint("leave --device out to have a free one chosen")
}

fn parse(device: &str) -> Result<u32> {
    sysfs::parse_device(device).ok_or_else(|| {
        Error::invalid(format!("{device:?} is not an NBD device"))
            .hint("devices are called /dev/nbd0, /dev/nbd1, …")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_given_up_is_remembered_for_a_while() {
        let mut released = Released::default();
        released.add(3);
        assert!(released.contains(3) && !released.contains(4));
        let long_ago = Instant::now().checked_sub(REUSE_AFTER);
        if let (Some(at), Some(entry)) = (long_ago, released.0.front_mut()) {
            entry.1 = at;
            assert!(!released.contains(3));
        }
    }

    #[test]
    fn only_nbd_devices_are_taken() {
        assert_eq!(parse("/dev/nbd7").unwrap(), 7);
        let error = parse("/dev/sda").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
