//! Who uses a block device of this host: mounts, swap, device-mapper and md on top, open files.
//!
//! Invariants: what lies on top of partitions and of mapped devices counts too; nothing is opened.
//! Absent: holders in places this process may not look at. [`super::block::Claim`] finds that there are
//! some, if not which.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::sysfs;

/// Device numbers as /sys and /proc write them.
type Numbers = BTreeSet<String>;

/// What lies on a device.
#[derive(Debug, Default)]
struct Stack {
    numbers: Numbers,
    /// `/dev/…` of the device, its partitions, and what is on top of them.
    paths: BTreeSet<String>,
    /// Device-mapper and md devices, for people.
    holders: Vec<String>,
}

/// The users of a device, for people.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Mounts, swap, devices on top: they stay until somebody ends them.
    pub firm: Vec<String>,
    /// Processes that have it open, perhaps for a moment only, as udev does.
    pub open: Vec<String>,
}

impl Users {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.firm.is_empty() && self.open.is_empty()
    }
}

/// The users of a device.
#[must_use]
pub fn of(device: &Path) -> Users {
    let mut stack = Stack::default();
    climb(device, &mut stack);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut firm: Vec<String> = mount_points(&mounts, &stack.numbers, &stack.paths)
        .into_iter()
        .map(|point| format!("mounted at {point}"))
        .collect();
    firm.extend(swap_files(&swaps, &stack.paths).map(|path| format!("swap on {path}")));
    firm.extend(stack.holders.iter().map(|holder| format!("used by {holder}")));
    Users { firm, open: openers(&stack.numbers) }
}

/// Adds a device, its partitions, and everything on top of these.
fn climb(device: &Path, stack: &mut Stack) {
    let Ok(number) = fs::read_to_string(device.join("dev")) else { return };
    if !stack.numbers.insert(number.trim().to_owned()) {
        return;
    }
    let name = name_of(device);
    stack.paths.insert(format!("/dev/{name}"));
    if let Ok(mapped) = fs::read_to_string(device.join("dm/name")) {
        stack.paths.insert(format!("/dev/mapper/{}", mapped.trim()));
    }
    for partition in entries(device).filter(|entry| entry.join("partition").exists()) {
        climb(&partition, stack);
    }
    for holder in entries(&device.join("holders")) {
        let name = name_of(&holder);
        let mapped = fs::read_to_string(holder.join("dm/name")).ok();
        stack.holders.push(match mapped {
            Some(mapped) => format!("{name} ({})", mapped.trim()),
            None => name.clone(),
        });
        // The entry is a link into the device tree, which also works below another root.
        let target = fs::canonicalize(&holder).unwrap_or(holder);
        climb(&target, stack);
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where these devices are mounted, by a table as in /proc/self/mountinfo. Some file systems, btrfs among
/// them, have device numbers of their own there and tell the device by its path only.
fn mount_points(table: &str, numbers: &Numbers, paths: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in table.lines() {
        let mut fields = line.split(' ');
        let (number, point) = (fields.nth(2), fields.nth(1));
        let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
        let ours = number.is_some_and(|number| numbers.contains(number))
            || source.is_some_and(|source| paths.contains(&unescape(source)));
        if let (true, Some(point)) = (ours, point) {
            found.insert(unescape(point));
        }
    }
    found
}

fn swap_files<'a>(
    table: &'a str,
    paths: &'a BTreeSet<String>,
) -> impl Iterator<Item = &'a str> + 'a {
    let files = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    files.filter(|file| paths.contains(*file))
}

/// Undoes the octal escapes of /proc: `\040` is a blank.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The processes that have one of these devices open, as far as this process may see.
fn openers(numbers: &Numbers) -> Vec<String> {
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let Some(pid) = name_of(&process).parse::<u32>().ok() else { continue };
        if pid == std::process::id() {
            continue;
        }
        let open = entries(&process.join("fd")).any(|file| {
            // Through the link: what is open, whatever it is called now.
            fs::metadata(file).is_ok_and(|metadata| {
                metadata.file_type().is_block_device() && {
                    let (major, minor) =
                        (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
                    numbers.contains(&format!("{major}:{minor}"))
                }
            })
        });
        if open {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            found.push(format!("open in {} (pid {pid})", name.trim()));
        }
    }
    found
}

/// What to say of a device that is used.
#[must_use]
pub fn describe(index: u32, users: &Users) -> String {
    let all = [users.firm.as_slice(), users.open.as_slice()].concat();
    format!("{} is in use: {}", sysfs::path(index), all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 43:0 / /srv/my\\040data rw,relatime shared:5 - xfs /dev/nbd0 rw
41 22 43:33 / /srv/part rw - ext4 /dev/nbd1p1 rw
42 22 0:45 / /srv/btrfs rw - btrfs /dev/nbd0 rw
43 22 253:0 / /srv/lvm rw - ext4 /dev/mapper/vg-lv rw
";

    fn set(items: &[&str]) -> BTreeSet<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn mounts_are_found_by_number_and_by_path() {
        let found = mount_points(MOUNTS, &set(&["43:0"]), &set(&["/dev/nbd0"]));
        assert_eq!(found, set(&["/srv/my data", "/srv/btrfs"]));
        assert_eq!(mount_points(MOUNTS, &set(&["253:0"]), &set(&[])), set(&["/srv/lvm"]));
        assert_eq!(mount_points("nonsense\n\n - \n", &set(&["43:0"]), &set(&[])), set(&[]));
    }

    #[test]
    fn swap_is_found_by_its_path() {
        let table = "Filename Type Size Used Priority\n/dev/nbd2 partition 1 0 -2\n";
        assert_eq!(swap_files(table, &set(&["/dev/nbd2"])).collect::<Vec<_>>(), ["/dev/nbd2"]);
        assert_eq!(swap_files(table, &set(&["/dev/nbd1"])).count(), 0);
    }

    #[test]
    fn octal_escapes_are_undone_and_nothing_else() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\b\04"), r"/a\b\04");
        assert_eq!(unescape(r"\999"), r"\999");
    }

    /// A device of the kernel, its partition, and a mapped device on top, as /sys shows them.
    #[test]
    fn what_lies_on_partitions_and_mapped_devices_counts() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str, files: &[(&str, &str)]| {
            let at = dir.path().join(path);
            fs::create_dir_all(at.join("holders")).unwrap();
            for (name, text) in files {
                fs::create_dir_all(at.join(name).parent().unwrap()).unwrap();
                fs::write(at.join(name), text).unwrap();
            }
            at
        };
        let device = make("nbd0", &[("dev", "43:0\n")]);
        let partition = make("nbd0/nbd0p1", &[("dev", "43:1\n"), ("partition", "1\n")]);
        let mapped = make("dm-3", &[("dev", "253:3\n"), ("dm/name", "vg-lv\n")]);
        std::os::unix::fs::symlink(&mapped, partition.join("holders/dm-3")).unwrap();
        let mut stack = Stack::default();
        climb(&device, &mut stack);
        assert_eq!(stack.numbers, set(&["43:0", "43:1", "253:3"]));
        let paths = ["/dev/nbd0", "/dev/nbd0p1", "/dev/dm-3", "/dev/mapper/vg-lv"];
        assert_eq!(stack.paths, set(&paths));
        assert_eq!(stack.holders, ["dm-3 (vg-lv)"]);
    }

    #[test]
    fn a_device_that_is_not_there_has_no_users() {
        assert!(of(Path::new("/sys/block/nbd32767")).is_empty());
    }
}
