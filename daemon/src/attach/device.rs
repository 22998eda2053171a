//! One kernel device: its connections, and what the kernel is told about them.
//!
//! Invariants:
//! - our end of a connection is served before the kernel gets the other, so that nothing it sends waits;
//! - the kernel's ends are closed here once the kernel has them: while it alone holds one, its death is
//!   seen at ours;
//! - what /sys refuses is logged and costs speed of recovery only.
//!
//! Absent: which disk goes where, and what is remembered (`mod.rs`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::netlink::{self, Refusal};
use super::sysfs::{self, Sysfs};
use super::{Ended, Settings};
use crate::engine::attachments::Attachable;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::exports::Capabilities;
use crate::nbd::keep::Kept;
use crate::nbd::siblings::{Siblings, pair};
use crate::nbd::{OnEnd, Resumed, Server};
use crate::units::DiskId;

/// Bytes of the device's logical block. 512, not 4096, so that partition tables and file systems of
/// images made for ordinary disks keep working; the server takes any length.
const BLOCK_SIZE: u64 = 512;
/// The longest time the kernel waits for an answer before it asks on another connection. Its own.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// What all devices need.
#[derive(Clone, Debug)]
pub(super) struct Workshop {
    pub server: Arc<Server>,
    pub settings: Settings,
    pub sysfs: Sysfs,
    pub ended: Sender<Ended>,
}

/// A device that is ours.
#[derive(Debug)]
pub(super) struct Device {
    pub disk: DiskId,
    pub index: u32,
    /// As the kernel has it.
    pub backend: String,
    pub siblings: Arc<Siblings>,
    /// After how long the kernel gives a connection up.
    timeout: Mutex<Duration>,
    /// Since when this process looks after it.
    since: Instant,
}

/// The beginning of the backend identifiers of a disk's devices.
pub(super) fn backend_prefix(disk: &DiskId) -> String {
    format!("rowd:{disk}:")
}

impl Device {
    pub fn new(disk: &Attachable, index: u32, backend: String, workshop: &Workshop) -> Arc<Device> {
        Arc::new(Device {
            disk: disk.id.clone(),
            index,
            backend,
            siblings: Arc::default(),
            timeout: Mutex::new(workshop.settings.retry),
            since: Instant::now(),
        })
    }

    /// Has the kernel make the device.
    pub fn connect(&self, disk: &Attachable, read_only: bool, shop: &Workshop) -> Result<()> {
        let kernels = self.serve_new(shop.settings.connections, shop)?;
        let sockets: Vec<BorrowedFd<'_>> = kernels.iter().map(AsFd::as_fd).collect();
        let capabilities = match read_only || disk.read_only {
            true => Capabilities::READ_ONLY,
            false => Capabilities::WRITABLE,
        };
        let asked = netlink::connect(&netlink::Connect {
            index: self.index,
            size: disk.size,
            block_size: BLOCK_SIZE,
            server_flags: capabilities.transmission_flags(false),
            dead_connection_s: shop.settings.dead_connection.as_secs(),
            backend: &self.backend,
            sockets: &sockets,
        });
        if let Err(refusal) = asked {
            self.siblings.hang_up();
            return Err(refused(&refusal, "connect", self.index));
        }
        self.tune(shop);
        Ok(())
    }

    /// Gives the kernel as many connections as it should have; those it has stay. Nothing else is asked for
    /// in the same call: to change the size the kernel waits for the requests under way, and they may be
    /// waiting for these connections.
    pub fn refill(&self, shop: &Workshop) -> Result<()> {
        let missing = shop.settings.connections.saturating_sub(self.siblings.count());
        let kernels = self.serve_new(missing, shop)?;
        let sockets: Vec<BorrowedFd<'_>> = kernels.iter().map(AsFd::as_fd).collect();
        netlink::reconfigure(&netlink::Reconfigure {
            index: self.index,
            backend: &self.backend,
            size: None,
            dead_connection_s: Some(shop.settings.dead_connection.as_secs()),
            sockets: &sockets,
        })
        .map_err(|refusal| refused(&refusal, "give new connections to", self.index))
    }

    /// Tells the kernel the size of the disk, if it has another one. There have to be connections.
    pub fn resize(&self, size: u64, shop: &Workshop) -> Result<()> {
        if shop.sysfs.size(self.index).is_ok_and(|had| had == size) {
            return Ok(());
        }
        let change = netlink::Reconfigure {
            index: self.index,
            backend: &self.backend,
            size: Some(size),
            ..netlink::Reconfigure::default()
        };
        netlink::reconfigure(&change).map_err(|e| refused(&e, "resize", self.index))
    }

    /// Has the kernel end the device. What is under way fails.
    pub fn disconnect(&self, shop: &Workshop) -> Result<()> {
        // Whoever has the device next knows nothing of our bound.
        self.bound_dirty(100, shop);
        netlink::disconnect(self.index).map_err(|e| {
            self.bound_dirty(shop.settings.dirty_share, shop);
            refused(&e, "disconnect", self.index)
        })
    }

    /// Serves a connection that another process of the daemon has begun.
    pub fn adopt(&self, fd: OwnedFd, kept: Kept, shop: &Workshop) -> Result<()> {
        shop.server.resume(Resumed { fd, kept, device: Some(self.link(shop)) })
    }

    /// Settings of the device that netlink has no word for.
    pub fn tune(&self, shop: &Workshop) {
        let timeout = *self.timeout.lock();
        if let Err(error) = shop.sysfs.set_io_timeout(self.index, timeout) {
            tracing::warn!(%error, device = sysfs::path(self.index), "io_timeout");
        }
        self.bound_dirty(shop.settings.dirty_share, shop);
        if let Err(error) = shop.sysfs.announce(self.index) {
            tracing::warn!(%error, device = sysfs::path(self.index), "uevent");
        }
    }

    fn bound_dirty(&self, percent: u32, shop: &Workshop) {
        if let Err(error) = shop.sysfs.set_dirty_share(self.index, percent) {
            tracing::warn!(%error, device = sysfs::path(self.index), percent, "dirty_share");
        }
    }

    /// The kernel gave a connection up while the daemon was well: what lies below is slower than was
    /// thought. Without more patience, a request that always takes longer would never end.
    pub fn be_patient(&self, shop: &Workshop) {
        let mut timeout = self.timeout.lock();
        // What was sent to the process before, and waited for this one, says nothing about the disk.
        if self.since.elapsed() < *timeout {
            return;
        }
        *timeout = (*timeout * 2).min(TIMEOUT_MAX);
        tracing::warn!(
            device = sysfs::path(self.index),
            timeout = ?*timeout,
            "a connection died; the kernel is told to be more patient"
        );
        // On a thread of its own: from Linux 6.12 on the write waits for the requests under way (the queue
        // is frozen for it), and they may be waiting for the connection that the caller is to replace.
        let (sysfs, index, timeout) = (shop.sysfs.clone(), self.index, *timeout);
        let write = move || {
            if let Err(error) = sysfs.set_io_timeout(index, timeout) {
                tracing::warn!(%error, device = sysfs::path(index), "io_timeout");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("patience".to_owned()).spawn(write) {
            tracing::warn!(%error, device = sysfs::path(self.index), "io_timeout");
        }
    }

    /// Makes connections and serves our ends; the others are for the kernel.
    fn serve_new(&self, count: usize, shop: &Workshop) -> Result<Vec<OwnedFd>> {
        let mut kernels = Vec::with_capacity(count);
        for _ in 0..count {
            let (ours, kernel) = pair().map_err(|e| Error::io("make a pair of sockets", &e))?;
            let kept = Kept {
                export: self.disk.to_string(),
                peer: sysfs::path(self.index),
                pid: None,
                structured: false,
                contexts: Vec::new(),
                device: Some(self.index),
                unanswered: Vec::new(),
            };
            let device = Some(self.link(shop));
            shop.server.resume(Resumed { fd: ours, kept, device })?;
            kernels.push(kernel);
        }
        Ok(kernels)
    }

    fn link(&self, shop: &Workshop) -> (Arc<Siblings>, OnEnd) {
        let (index, ended) = (self.index, shop.ended.clone());
        let siblings = Arc::clone(&self.siblings);
        let of = Arc::downgrade(&self.siblings);
        let told = move |end| {
            // At the end of the daemon nobody listens any more, and nobody needs to.
            drop(ended.send(Ended { index, siblings: of, end }));
        };
        (siblings, OnEnd(Box::new(told)))
    }
}

/// What a refusal of the kernel means to people.
pub(super) fn refused(refusal: &Refusal, what: &str, index: u32) -> Error {
    let device = sysfs::path(index);
    match refusal {
        Refusal::NoClient => no_client(),
        Refusal::Errno(Errno::EPERM | Errno::EACCES) => {
            let message = format!("the daemon may not {what} {device}");
            Error::new(ErrorKind::NotPermitted, message)
                .hint("it has to run as root, with CAP_SYS_ADMIN")
        }
        Refusal::Errno(Errno::EBUSY) => {
            Error::new(ErrorKind::InUse, format!("{device} is in use by somebody else"))
                .hint("leave --device out to have a free one chosen")
        }
        other => Error::new(ErrorKind::Io, format!("the kernel does not {what} {device}: {other}")),
    }
}

pub(super) fn no_client() -> Error {
    Error::new(ErrorKind::Condition, "the kernel's NBD client is not loaded")
        .hint("load it: modprobe nbd; at every boot: echo nbd > /etc/modules-load.d/nbd.conf")
}
