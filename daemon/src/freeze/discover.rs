//! Which file systems live on disks: found, checked, and held open.
//!
//! Invariants: nothing is touched before everything is checked; a file system is held by an open
//! directory whose device number was compared, and that directory, never the path, is frozen later, so
//! that nothing mounted or unmounted in between can put another file system in its place; each
//! superblock is there once; the order is the one to freeze in, innermost first.
//! Absent: freezing (`local.rs`).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::dev::{Dev, open};
use super::devices::{Loop, Sys};
use super::kernel::DESCRIPTORS_MAX;
use super::mounts::{Mount, parse, unescape};
use super::provider::Target;
use crate::error::{Error, ErrorKind, Result};

/// File systems whose freeze leaves nothing to repair or replay, as tests show.
const SUPPORTED: &[&str] = &["ext3", "ext4", "xfs"];
/// `CAP_SYS_ADMIN`, which both ioctls ask for.
const CAP_SYS_ADMIN: u32 = 21;

/// A disk and the processes that are connected to it.
#[derive(Clone, Debug)]
pub struct DiskUse {
    pub id: String,
    pub name: String,
    pub pids: Vec<i32>,
    /// The instance that has it, and the socket of its guest agent; nothing for this host.
    pub instance: Option<(String, Option<String>)>,
}

/// What is to be frozen.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub disks: &'a [DiskUse],
    /// Mount points named by the user.
    pub named: &'a [PathBuf],
    /// Files that must not be on a frozen file system, with what they are.
    pub own: &'a [(String, PathBuf)],
}

/// A file system, held open.
#[derive(Debug)]
pub struct Member {
    pub dev: Dev,
    pub target: Target,
    pub directory: File,
    /// How many file systems of the set it lies on, by loop devices.
    pub depth: usize,
}

/// A mount and the root of the mount namespace it was seen in.
#[derive(Clone, Debug)]
struct Seen {
    root: PathBuf,
    mount: Mount,
    /// How many file systems of the set it lies on, by loop devices.
    depth: usize,
}

impl Seen {
    fn path(&self) -> PathBuf {
        self.root.join(self.mount.point.strip_prefix("/").unwrap_or(&self.mount.point))
    }
}

/// Finds, checks and opens the file systems, in the order to freeze them in.
///
/// # Errors
/// `Condition`, with what is in the way.
pub fn discover(sys: &Sys, wanted: Wanted<'_>) -> Result<Vec<Member>> {
    check_privilege()?;
    let seen = all_mounts()?;
    let mut devices = BTreeSet::new();
    for path in wanted.named {
        devices.insert(named_mount(path, &seen)?.dev);
    }
    for disk in wanted.disks {
        let of_disk = sys.with_holders(sys.of_disk(&disk.id, &disk.pids));
        let mounted = select(&seen, &of_disk, &[], sys, &device_of);
        if mounted.is_empty() && wanted.named.is_empty() && !uses_btrfs(sys, &of_disk) {
            return Err(nothing_mounted(disk));
        }
        devices.extend(of_disk);
    }
    let selected = select(&seen, &devices, &sys.loops(), sys, &device_of);
    refuse_unsupported(&selected)?;
    let members: BTreeSet<Dev> = selected.iter().map(|one| one.mount.dev).collect();
    devices.extend(&members);
    if uses_btrfs(sys, &devices) {
        return Err(unsupported("btrfs", "one of the disks"));
    }
    refuse_own(wanted.own, &members)?;
    refuse_swap(&fs::read("/proc/swaps").unwrap_or_default(), &devices, &members)?;
    hold(&seen, &selected)
}

fn check_privilege() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|e| Error::io("read /proc/self/status", &e))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.is_some_and(|bits| bits >> CAP_SYS_ADMIN & 1 == 1) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Condition, "rowd may not freeze file systems")
        .hint("that takes CAP_SYS_ADMIN: run rowd as root, or ask for --consistency crash"))
}

fn nothing_mounted(disk: &DiskUse) -> Error {
    let message = format!("no file system of {} is mounted on this host", disk.name);
    Error::new(ErrorKind::Condition, message).hint(
        "mount it first; name its mount point with --mount if rowd cannot see whose it is (nbdfuse, \
         multipath); or ask for --consistency crash, which is enough for what nobody has mounted",
    )
}

/// The mounts of every mount namespace of this host; our own and that of the first process first.
fn all_mounts() -> Result<Vec<Seen>> {
    let mut known: BTreeSet<OsString> = BTreeSet::new();
    let mut seen = Vec::new();
    let own = fs::read("/proc/self/mountinfo");
    let own = own.map_err(|e| Error::io("read /proc/self/mountinfo", &e))?;
    let mut add = |root: PathBuf, text: &[u8]| {
        seen.extend(parse(text).into_iter().map(|mount| Seen {
            root: root.clone(),
            mount,
            depth: 0,
        }));
    };
    add(PathBuf::from("/"), &own);
    known.extend(namespace(Path::new("/proc/self")));
    let mut pids: Vec<i32> = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|e| Error::io("read /proc", &e))?.flatten() {
        pids.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    pids.sort_unstable();
    for pid in pids {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Some(namespace) = namespace(&process) else { continue };
        if known.contains(&namespace) {
            continue;
        }
        // A process that ends meanwhile takes nothing with it that another does not show too.
        if let Ok(text) = fs::read(process.join("mountinfo")) {
            add(process.join("root"), &text);
            known.insert(namespace);
        }
    }
    Ok(seen)
}

fn namespace(process: &Path) -> Option<OsString> {
    fs::read_link(process.join("ns/mnt")).ok().map(PathBuf::into_os_string)
}

/// The device number of the file system that holds a path.
fn device_of(path: &Path) -> Option<Dev> {
    fs::metadata(path).ok().map(|found| Dev::of(found.dev()))
}

fn named_mount<'a>(path: &Path, seen: &'a [Seen]) -> Result<&'a Mount> {
    let hint = "name the directory where the file system is mounted (findmnt)";
    let refuse = |why: String| Err(Error::new(ErrorKind::Condition, why).hint(hint));
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::invalid(format!("{shown}: the path of a mount point begins with /")));
    }
    let Ok(path) = fs::canonicalize(path) else {
        return refuse(format!("{shown} is not there"));
    };
    let here = Path::new("/");
    let at = |one: &&Seen| one.root == here && one.mount.point == path;
    if let Some(found) = seen.iter().rev().find(at) {
        return Ok(&found.mount);
    }
    let above = seen.iter().filter(|one| one.root == here && path.starts_with(&one.mount.point));
    let above = above.max_by_key(|one| one.mount.point.components().count());
    let above = above.map_or(here, |one| &one.mount.point).display();
    refuse(format!("{shown} is not a mount point; its file system is mounted at {above}"))
}

/// The mounts on these devices, and those on loop devices whose files lie on such a mount; each
/// superblock once, innermost first.
fn select(
    seen: &[Seen],
    devices: &BTreeSet<Dev>,
    loops: &[Loop],
    sys: &Sys,
    device_of: &dyn Fn(&Path) -> Option<Dev>,
) -> Vec<Seen> {
    let mut chosen: Vec<(usize, Seen)> = Vec::new();
    let (mut wanted, mut depth) = (devices.clone(), 0);
    loop {
        for (at, one) in seen.iter().enumerate() {
            let is_new = chosen.iter().all(|(_, other)| other.mount.dev != one.mount.dev);
            if is_new && wanted.contains(&one.mount.dev) {
                chosen.push((at, Seen { depth, ..one.clone() }));
            }
        }
        let on_chosen = |file: &Path| {
            let dev = device_of(file);
            chosen.iter().any(|(_, one)| Some(one.mount.dev) == dev)
        };
        let inner = loops.iter().filter(|l| !wanted.contains(&l.dev) && on_chosen(&l.file));
        let inner = sys.with_holders(inner.map(|l| l.dev).collect::<Vec<_>>());
        if inner.is_empty() {
            break;
        }
        wanted.extend(inner);
        depth += 1;
    }
    chosen.sort_by_key(|(at, one)| std::cmp::Reverse((one.depth, *at)));
    chosen.into_iter().map(|(_, one)| one).collect()
}

fn refuse_unsupported(selected: &[Seen]) -> Result<()> {
    match selected.iter().find(|one| !SUPPORTED.contains(&one.mount.kind.as_str())) {
        None => Ok(()),
        Some(other) => {
            Err(unsupported(&other.mount.kind, &other.mount.point.display().to_string()))
        }
    }
}

fn unsupported(kind: &str, place: &str) -> Error {
    let message = format!("{place} has a file system of type {kind}, which rowd does not freeze");
    Error::new(ErrorKind::Condition, message)
        .hint("ext3, ext4 and xfs can be frozen; for others ask for --consistency crash")
}

fn uses_btrfs(sys: &Sys, devices: &BTreeSet<Dev>) -> bool {
    sys.of_btrfs().iter().any(|dev| devices.contains(dev))
}

/// A daemon that waits for a file system that waits for the daemon would never end.
fn refuse_own(own: &[(String, PathBuf)], members: &BTreeSet<Dev>) -> Result<()> {
    for (what, path) in own {
        // What is not there yet would be made on the file system of its directory.
        let dev = path.ancestors().find_map(device_of);
        if dev.is_some_and(|dev| members.contains(&dev)) {
            let message = format!("{what} ({}) is on a file system to be frozen", path.display());
            return Err(Error::new(ErrorKind::Condition, message).hint(
                "what rowd and the system need while it is frozen must be elsewhere; or ask for \
                 --consistency crash",
            ));
        }
    }
    Ok(())
}

fn refuse_swap(swaps: &[u8], devices: &BTreeSet<Dev>, members: &BTreeSet<Dev>) -> Result<()> {
    for line in swaps.split(|byte| *byte == b'\n').skip(1) {
        let Some(field) = line.split(|byte| *byte == b' ').next().filter(|f| !f.is_empty()) else {
            continue;
        };
        let path = unescape(field);
        let Ok(found) = fs::metadata(&path) else { continue };
        let inside = members.contains(&Dev::of(found.dev()));
        if inside || found.rdev() != 0 && devices.contains(&Dev::of(found.rdev())) {
            let message =
                format!("the host swaps to {}, which is on a disk to be frozen", path.display());
            return Err(Error::new(ErrorKind::Condition, message)
                .hint("swap elsewhere (swapoff), or ask for --consistency crash"));
        }
    }
    Ok(())
}

/// Opens a directory of each, and makes sure that it is of that file system.
fn hold(seen: &[Seen], selected: &[Seen]) -> Result<Vec<Member>> {
    if selected.len() > DESCRIPTORS_MAX {
        let message = format!(
            "{} file systems; at most {DESCRIPTORS_MAX} are frozen at a time",
            selected.len()
        );
        return Err(Error::new(ErrorKind::Condition, message));
    }
    let mut members = Vec::new();
    for one in selected {
        let dev = one.mount.dev;
        let same = seen.iter().filter(|other| other.mount.dev == dev);
        let opened = same.filter_map(|other| Some((other, open(&other.path(), dev)?))).next();
        let Some((from, directory)) = opened else {
            let message = format!("{} cannot be opened", one.mount.point.display());
            return Err(Error::new(ErrorKind::Condition, message)
                .hint("it was unmounted this moment, or another mount hides it"));
        };
        let target = Target {
            mount_point: from.mount.point.display().to_string(),
            file_system: from.mount.kind.clone(),
            device: from.mount.source.display().to_string(),
        };
        members.push(Member { dev, target, directory, depth: one.depth });
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(text: &str) -> Dev {
        Dev::parse(text).unwrap()
    }

    fn seen(text: &str) -> Vec<Seen> {
        let root = PathBuf::from("/");
        let mounts = parse(text.as_bytes()).into_iter();
        mounts.map(|mount| Seen { root: root.clone(), mount, depth: 0 }).collect()
    }

    const MOUNTS: &str = "\
28 1 8:1 / / rw - ext4 /dev/sda1 rw
40 28 43:1 / /srv/data rw - ext4 /dev/nbd0p1 rw
41 40 253:0 / /srv/data/inner rw - xfs /dev/mapper/v rw
42 28 43:1 /sub /srv/bind rw - ext4 /dev/nbd0p1 rw
43 28 7:5 / /srv/image rw - ext4 /dev/loop5 rw
44 28 0:50 / /net rw - nfs4 host:/x rw
";

    /// Loop devices over files of a member are frozen before it, nested mounts before outer ones.
    #[test]
    fn the_innermost_is_frozen_first_and_each_superblock_once() {
        let home = tempfile::tempdir().unwrap();
        let sys = Sys::at(home.path());
        let loops = [Loop { dev: dev("7:5"), file: PathBuf::from("/srv/data/image") }];
        let device_of = |path: &Path| path.starts_with("/srv/data").then(|| dev("43:1"));
        let devices = BTreeSet::from([dev("43:1"), dev("253:0")]);
        let found = select(&seen(MOUNTS), &devices, &loops, &sys, &device_of);
        let points: Vec<_> = found.iter().map(|one| one.mount.point.to_str().unwrap()).collect();
        assert_eq!(points, ["/srv/image", "/srv/data/inner", "/srv/data"]);
    }

    #[test]
    fn file_systems_that_cannot_be_frozen_are_refused_by_name() {
        let found = seen(MOUNTS);
        assert!(refuse_unsupported(&found[..5]).is_ok());
        let error = refuse_unsupported(&found).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Condition);
        assert!(error.message().contains("/net") && error.message().contains("nfs4"), "{error}");
    }

    #[test]
    fn what_rowd_needs_may_not_be_frozen_even_if_it_is_not_there_yet() {
        let home = tempfile::tempdir().unwrap();
        let own = [("the pool".to_owned(), home.path().join("not/there/pool"))];
        let here = device_of(home.path()).unwrap();
        let error = refuse_own(&own, &BTreeSet::from([here])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Condition);
        assert!(error.message().starts_with("the pool"), "{error}");
        assert!(refuse_own(&own, &BTreeSet::from([dev("4095:4095")])).is_ok());
    }

    #[test]
    fn swap_on_a_member_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("swap file");
        fs::write(&file, "x").unwrap();
        let shown = file.display().to_string().replace(' ', "\\040");
        let swaps = format!("Filename Type Size Used Priority\n{shown} file 1 0 -2\n");
        let here = BTreeSet::from([device_of(home.path()).unwrap()]);
        let error = refuse_swap(swaps.as_bytes(), &BTreeSet::new(), &here).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Condition);
        assert!(refuse_swap(swaps.as_bytes(), &here, &BTreeSet::new()).is_ok());
    }

    #[test]
    fn a_named_mount_must_be_one() {
        let mounts =
            seen("28 1 8:1 / / rw - ext4 /dev/sda1 rw\n29 28 0:20 / /proc rw - proc proc rw\n");
        assert_eq!(named_mount(Path::new("/proc"), &mounts).unwrap().kind, "proc");
        let error = named_mount(Path::new("/proc/self"), &mounts).unwrap_err();
        assert!(error.message().contains("mounted at /proc"), "{error}");
        assert_eq!(named_mount(Path::new("x"), &mounts).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
