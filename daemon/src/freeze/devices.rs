//! Which block devices stand on a disk: the kernel's NBD devices, their partitions, and what is built on
//! those (device mapper, md, loop devices over files).
//!
//! Invariants: only what /sys says is believed; everything found is reached from a device of the disk.
//! Absent: devices that user space makes of an export (nbdfuse, QEMU): the kernel does not know whose
//! they are, so the user names their mount points.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::dev::Dev;

/// A tree like /sys.
#[derive(Clone, Debug)]
pub struct Sys(PathBuf);

impl Default for Sys {
    fn default() -> Self {
        Sys(PathBuf::from("/sys"))
    }
}

/// A loop device and the file behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    pub dev: Dev,
    pub file: PathBuf,
}

impl Sys {
    /// Another tree, for tests.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Sys {
        Sys(root.into())
    }

    /// The NBD devices of a disk: those attached by rowd under its id, and those whose client is one of
    /// these processes.
    #[must_use]
    pub fn of_disk(&self, id: &str, pids: &[i32]) -> Vec<Dev> {
        let named = format!("rowd:{id}:");
        let is_of_disk = |dir: &Path| {
            let text = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
            // The file `pid` is there exactly while a device is connected.
            let pid: Option<i32> = text("pid").trim().parse().ok();
            pid.is_some_and(|pid| pids.contains(&pid) || text("backend").starts_with(&named))
        };
        let is_nbd = |dir: &PathBuf| name(dir).starts_with("nbd") && is_of_disk(dir);
        self.blocks().into_iter().filter(is_nbd).filter_map(|dir| number(&dir)).collect()
    }

    /// These devices, their partitions, and all that is built on them.
    #[must_use]
    pub fn with_holders(&self, devices: impl IntoIterator<Item = Dev>) -> BTreeSet<Dev> {
        let mut found = BTreeSet::new();
        let mut left: Vec<Dev> = devices.into_iter().collect();
        while let Some(dev) = left.pop() {
            if found.insert(dev) {
                let dir = self.0.join(format!("dev/block/{dev}"));
                left.extend(
                    entries(&dir).iter().filter(|d| is_partition(d)).filter_map(|d| number(d)),
                );
                left.extend(entries(&dir.join("holders")).iter().filter_map(|d| number(d)));
            }
        }
        found
    }

    /// All loop devices that are in use.
    #[must_use]
    pub fn loops(&self) -> Vec<Loop> {
        let one = |dir: PathBuf| {
            let file = fs::read_to_string(dir.join("loop/backing_file")).ok()?;
            Some(Loop { dev: number(&dir)?, file: PathBuf::from(file.trim_end_matches('\n')) })
        };
        self.blocks().into_iter().filter_map(one).collect()
    }

    /// The devices of all mounted btrfs file systems, which mountinfo does not tell.
    #[must_use]
    pub fn of_btrfs(&self) -> Vec<Dev> {
        let devices = |fs: &PathBuf| entries(&fs.join("devices"));
        let all = entries(&self.0.join("fs/btrfs"));
        all.iter().flat_map(devices).filter_map(|dir| number(&dir)).collect()
    }

    fn blocks(&self) -> Vec<PathBuf> {
        entries(&self.0.join("block"))
    }
}

/// What a directory holds; nothing when it is not there. Devices come and go at any time.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn name(dir: &Path) -> &str {
    dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_partition(dir: &Path) -> bool {
    dir.join("partition").exists()
}

fn number(dir: &Path) -> Option<Dev> {
    Dev::parse(&fs::read_to_string(dir.join("dev")).ok()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn dev(text: &str) -> Dev {
        Dev::parse(text).unwrap()
    }

    /// A device with files, and the link that finds it by its number.
    fn device(sys: &Path, path: &str, number: &str, files: &[(&str, &str)]) {
        let dir = sys.join(path);
        fs::create_dir_all(dir.join("holders")).unwrap();
        for (file, text) in [("dev", number)].iter().chain(files) {
            let file = dir.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{text}\n")).unwrap();
        }
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        symlink(&dir, sys.join("dev/block").join(number)).unwrap();
    }

    fn holds(sys: &Path, below: &str, above: &str) {
        let link = sys.join(below).join("holders").join(name(Path::new(above)));
        symlink(sys.join(above), link).unwrap();
    }

    #[test]
    fn partitions_volumes_and_arrays_over_a_disk_are_found() {
        let home = tempfile::tempdir().unwrap();
        let sys = home.path();
        device(sys, "block/nbd0", "43:0", &[("backend", "rowd:d-one:db"), ("pid", "7")]);
        device(sys, "block/nbd0/nbd0p1", "43:1", &[("partition", "1")]);
        device(sys, "block/nbd0/nbd0p2", "43:2", &[("partition", "2")]);
        device(sys, "block/nbd1", "43:32", &[("backend", "rowd:d-two:log")]);
        device(sys, "block/nbd2", "43:64", &[("pid", "4711")]);
        device(sys, "block/md0", "9:0", &[]);
        device(sys, "block/dm-0", "253:0", &[]);
        device(sys, "block/loop3", "7:3", &[("loop/backing_file", "/srv/a file")]);
        device(sys, "block/loop4", "7:4", &[]);
        holds(sys, "block/nbd0/nbd0p2", "block/md0");
        holds(sys, "block/nbd1", "block/md0");
        holds(sys, "block/md0", "block/dm-0");
        let sys = Sys::at(sys);
        assert_eq!(sys.of_disk("d-one", &[]), [dev("43:0")]);
        assert_eq!(sys.of_disk("d-x", &[4711]), [dev("43:64")]);
        assert_eq!(sys.of_disk("d-on", &[1]), []);
        let found: Vec<String> =
            sys.with_holders([dev("43:0")]).iter().map(Dev::to_string).collect();
        assert_eq!(found, ["9:0", "43:0", "43:1", "43:2", "253:0"]);
        let found = sys.with_holders([dev("43:32")]);
        assert!(found.contains(&dev("253:0")) && !found.contains(&dev("43:1")));
        assert_eq!(sys.loops(), [Loop { dev: dev("7:3"), file: PathBuf::from("/srv/a file") }]);
    }

    #[test]
    fn a_loop_of_holders_ends() {
        let home = tempfile::tempdir().unwrap();
        let sys = home.path();
        device(sys, "block/dm-0", "253:0", &[]);
        device(sys, "block/dm-1", "253:1", &[]);
        holds(sys, "block/dm-0", "block/dm-1");
        holds(sys, "block/dm-1", "block/dm-0");
        assert_eq!(Sys::at(sys).with_holders([dev("253:0")]).len(), 2);
    }
}
