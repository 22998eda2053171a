//! What /sys tells of NBD devices, and the settings the daemon makes there.
//!
//! Invariants: a device is ours only if its backend identifier says so; nothing is written to a device
//! that is not.
//! Absent: netlink (`netlink.rs`), and who holds a device (`holders.rs`).

use std::fs;
use std::io;
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

/// Where block devices are.
pub const BLOCK: &str = "/sys/block";
/// Indices looked at for a free device: the largest number the kernel takes with its usual 16
/// partitions each.
pub const INDEX_MAX: u32 = (1 << 15) - 1;

/// A device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// There is no such device, or nobody has connected it.
    Free,
    /// Connected, by whoever called itself this; empty where it told no name.
    Connected { backend: String },
}

/// The directory of block devices.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Sysfs { root: PathBuf::from(BLOCK) }
    }
}

impl Sysfs {
    /// Another directory than the kernel's, for tests.
    #[cfg(test)]
    pub fn at(root: &Path) -> Sysfs {
        Sysfs { root: root.to_owned() }
    }

    /// The directory of a device.
    #[must_use]
    pub fn of(&self, index: u32) -> PathBuf {
        self.root.join(name(index))
    }

    /// Who has connected a device.
    #[must_use]
    pub fn state(&self, index: u32) -> Kernel {
        let dir = self.of(index);
        // The file `pid` is there exactly while a device is connected.
        if !dir.join("pid").exists() {
            return Kernel::Free;
        }
        let backend = fs::read_to_string(dir.join("backend")).unwrap_or_default();
        Kernel::Connected { backend: backend.trim_end_matches('\n').to_owned() }
    }

    /// The devices that exist, with their state, by index.
    #[must_use]
    pub fn devices(&self) -> Vec<(u32, Kernel)> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut found: Vec<u32> =
            names.filter_map(|name| index_of(&name.to_string_lossy())).collect();
        found.sort_unstable();
        found.into_iter().map(|index| (index, self.state(index))).collect()
    }

    /// Sets after how long the kernel gives up a connection that does not answer and asks on another.
    ///
    /// # Errors
    /// /sys cannot be written.
    pub fn set_io_timeout(&self, index: u32, timeout: Duration) -> io::Result<()> {
        let (file, wanted) =
            (self.of(index).join("queue/io_timeout"), timeout.as_millis().to_string());
        // Writing makes the kernel wait for all requests under way, also where nothing changes.
        if fs::read_to_string(&file).is_ok_and(|text| text.trim() == wanted) {
            return Ok(());
        }
        fs::write(file, wanted)
    }

    /// Sets how much of the memory that the kernel lets fill with unwritten data this device may have, in percent.
    /// Below 100 the bound always holds, not just when such data is plenty.
    ///
    /// # Errors
    /// /sys cannot be written.
    pub fn set_dirty_share(&self, index: u32, percent: u32) -> io::Result<()> {
        let bdi = self.of(index).join("bdi");
        fs::write(bdi.join("max_ratio"), percent.to_string())?;
        let strict = bdi.join("strict_limit");
        // Before Linux 6.2 there is the bound alone.
        if strict.exists() {
            fs::write(strict, u8::from(percent < 100).to_string())
        } else {
            Ok(())
        }
    }

    /// Has udev look at a device again: the event that the kernel sends when it connects one comes
    /// before its backend can be read.
    ///
    /// # Errors
    /// /sys cannot be written.
    pub fn announce(&self, index: u32) -> io::Result<()> {
        fs::write(self.of(index).join("uevent"), "change")
    }

    /// The bytes a device has.
    ///
    /// # Errors
    /// There is no such device.
    pub fn size(&self, index: u32) -> io::Result<u64> {
        let sectors = fs::read_to_string(self.of(index).join("size"))?;
        sectors.trim().parse::<u64>().map(|n| n * 512).map_err(io::Error::other)
    }
}

/// `nbdN`.
#[must_use]
pub fn name(index: u32) -> String {
    format!("nbd{index}")
}

/// `/dev/nbdN`.
#[must_use]
pub fn path(index: u32) -> String {
    format!("/dev/{}", name(index))
}

/// The index of `nbdN`, not of a partition.
fn index_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("nbd")?;
    let canonical = digits == "0" || !digits.starts_with('0');
    digits.parse().ok().filter(|_| canonical && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The index that a person means by `/dev/nbdN` or `nbdN`.
#[must_use]
pub fn parse_device(given: &str) -> Option<u32> {
    let named = index_of(given.strip_prefix("/dev/").unwrap_or(given));
    named.filter(|index| *index <= INDEX_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(root: &Path, index: u32, pid: bool, backend: Option<&str>) {
        let dir = root.join(name(index));
        fs::create_dir_all(dir.join("queue")).unwrap();
        if pid {
            fs::write(dir.join("pid"), "1\n").unwrap();
        }
        if let Some(backend) = backend {
            fs::write(dir.join("backend"), format!("{backend}\n")).unwrap();
        }
    }

    #[test]
    fn devices_are_listed_by_number_and_others_left_out() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), 10, true, Some("rowd:d-1"));
        device(dir.path(), 2, false, None);
        device(dir.path(), 3, true, None);
        for other in ["sda", "nbd", "nbdx", "nbd01", "nbd1p1"] {
            fs::create_dir(dir.path().join(other)).unwrap();
        }
        let connected = |backend: &str| Kernel::Connected { backend: backend.to_owned() };
        assert_eq!(
            Sysfs::at(dir.path()).devices(),
            [(2, Kernel::Free), (3, connected("")), (10, connected("rowd:d-1"))]
        );
    }

    #[test]
    fn a_device_is_named_as_people_do() {
        for (given, index) in [
            ("/dev/nbd0", Some(0)),
            ("nbd12", Some(12)),
            ("/dev/nbd1p1", None),
            ("/dev/sda", None),
            ("nbd-1", None),
            ("nbd99999999999", None),
            ("/dev/nbd40000", None),
        ] {
            assert_eq!(parse_device(given), index, "{given}");
        }
    }

    #[test]
    fn the_timeout_is_written_in_milliseconds() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), 0, true, None);
        Sysfs::at(dir.path()).set_io_timeout(0, Duration::from_secs(3)).unwrap();
        let text = fs::read_to_string(dir.path().join("nbd0/queue/io_timeout")).unwrap();
        assert_eq!(text, "3000");
        assert!(Sysfs::at(dir.path()).set_io_timeout(1, Duration::from_secs(3)).is_err());
    }

    #[test]
    fn a_share_is_strict_where_the_kernel_can_and_all_is_no_bound() {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, bdi) = (Sysfs::at(dir.path()), dir.path().join("nbd0/bdi"));
        assert!(sysfs.set_dirty_share(0, 50).is_err());
        fs::create_dir_all(&bdi).unwrap();
        sysfs.set_dirty_share(0, 50).unwrap();
        assert!(!bdi.join("strict_limit").exists());
        fs::write(bdi.join("strict_limit"), "0\n").unwrap();
        for (share, strict) in [(50, "1"), (100, "0")] {
            sysfs.set_dirty_share(0, share).unwrap();
            assert_eq!(fs::read_to_string(bdi.join("max_ratio")).unwrap(), share.to_string());
            assert_eq!(fs::read_to_string(bdi.join("strict_limit")).unwrap(), strict);
        }
    }
}
