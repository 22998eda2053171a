//! A block device of this host as the daemon holds it for a moment: alone, to flush it and drop its cache.
//!
//! Invariants: while a claim lives, nobody can mount the device or put another on top of it; everything
//! here may wait for I/O that this very process serves, and is never done by a thread that does.
//! Absent: data. The daemon reads and writes none through its own devices.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

mod ioctl {
    // Write out what is cached of a block device and forget it (linux/fs.h).
    nix::ioctl_none_bad!(flush_buffers, nix::request_code_none!(0x12, 97));
    // Read the partition table again.
    nix::ioctl_none_bad!(reread_partitions, nix::request_code_none!(0x12, 95));
}

/// A device that nobody else can claim.
#[derive(Debug)]
pub struct Claim(File);

impl Claim {
    /// Claims `/dev/nbdN`.
    ///
    /// # Errors
    /// `EBUSY` when it is mounted or otherwise claimed.
    pub fn of(path: &str) -> io::Result<Claim> {
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path).map(Claim)
    }

    /// Writes out what the host has cached of it, and forgets it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&self) -> io::Result<()> {
        self.0.sync_all()?;
        flush(&self.0)
    }

    /// Has the kernel read the partition table again, which may be another one now, and gives the device
    /// free.
    ///
    /// # Errors
    /// A partition is in use.
    pub fn release(self, path: &str) -> io::Result<()> {
        // Older kernels want to claim the device for this themselves.
        reread(&self.0).or_else(|_| {
            drop(self);
            reread(&File::open(path)?)
        })
    }
}

fn flush(device: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call takes no argument.
    unsafe { ioctl::flush_buffers(device.as_raw_fd()) }?;
    Ok(())
}

/// Has the kernel read the partition table of an open device again.
fn reread(device: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call takes no argument.
    match unsafe { ioctl::reread_partitions(device.as_raw_fd()) } {
        // A device without room for partitions.
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
