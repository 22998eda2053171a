//! The machine: what it is, its free space, its page cache.
//!
//! Invariants: everything a reader needs to judge the numbers is in [`facts`]; nothing here touches
//! files that are not ours.
//! Absent: dropping the page cache of the whole machine, which others use too.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rowd_proto::{Time, size};
use rowd_tests::tool;

use crate::options::Options;

/// Memory that [`settle`] leaves free.
const KEEP_FREE: u64 = 256 << 20;
/// More than a run ever reads.
const FILLER_BYTES: u64 = 8 << 40;
/// A file of holes, and how much of it was read.
static FILLER: OnceLock<(File, AtomicU64)> = OnceLock::new();

/// Lines for the head of a report: name and value.
pub fn facts(options: &Options) -> Vec<(&'static str, String)> {
    let cpu = field("/proc/cpuinfo", "model name");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = field("/proc/meminfo", "MemTotal").replace(" kB", "").parse::<u64>();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    vec![
        ("date", Time::from_unix(now).to_string()),
        ("processor", format!("{cpu}, {cores} cores")),
        ("memory", size::human(memory.unwrap_or(0) << 10)),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("file system", file_system(&options.dir)),
        ("load before", load),
        ("fio", version("fio", "--version")),
        ("nbdkit", version("nbdkit", "--version")),
        ("qemu-nbd", version("qemu-nbd", "--version")),
        ("nbd-server", version("nbd-server", "-V")),
        ("rowd", daemon(&options.rowd)),
    ]
}

/// Waits until the file system of a directory has nothing left to write, and puts free memory to use.
pub fn settle(dir: &Path) {
    let file = File::open(dir).expect("open a directory");
    nix::unistd::syncfs(&file).expect("write back a file system");
    fill_free_memory();
}

/// Bytes that can still be written to the file system of a directory.
pub fn free_bytes(dir: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(dir).expect("look at a file system");
    found.blocks_available() * found.fragment_size()
}

/// Bytes written to the device of a directory's file system since the machine started, by everybody.
pub fn device_bytes(dir: &Path) -> u64 {
    let device = fs::metadata(dir).expect("look at a directory").dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let stat = read(&format!("/sys/dev/block/{major}:{minor}/stat"));
    // The seventh number counts sectors of 512 bytes, whatever the device has.
    let sectors = stat.split_whitespace().nth(6).and_then(|number| number.parse::<u64>().ok());
    sectors.expect("the kernel counts sectors") * 512
}

/// Has [`settle`] fill free memory with clean page cache from now on, as it is on a machine that has run for
/// a while. A virtual machine gets memory from its host on first touch and may lose it when it is free:
/// whoever fills the page cache first would pay for that, and be measured with it.
pub fn keep_memory_in_use(dir: &Path) {
    let file = tempfile::tempfile_in(dir).expect("make a file");
    file.set_len(FILLER_BYTES).expect("make a sparse file");
    FILLER.set((file, AtomicU64::new(0))).expect("called once");
}

/// Reads holes that were not read before: the kernel makes pages of zeros of them, and takes them back
/// when somebody needs memory.
fn fill_free_memory() {
    let Some((file, read)) = FILLER.get() else { return };
    let mut buffer = vec![0; 1 << 20];
    let free = || field("/proc/meminfo", "MemFree").replace(" kB", "").parse::<u64>();
    let mut left = free().map_or(0, |kib| kib << 10).saturating_sub(KEEP_FREE);
    while left > 0 {
        let at = read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        file.read_exact_at(&mut buffer, at).expect("read a hole");
        left = left.saturating_sub(buffer.len() as u64);
    }
}

/// Takes the files below a directory out of the page cache, except one.
pub fn evict(dir: &Path, except: Option<&Path>) {
    settle(dir);
    for entry in fs::read_dir(dir).expect("list a directory") {
        let path = entry.expect("list a directory").path();
        let kind = fs::symlink_metadata(&path).expect("look at a file").file_type();
        if kind.is_dir() {
            evict(&path, except);
        } else if kind.is_file() && except != Some(&path) {
            let file = File::open(&path).expect("open a file");
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            posix_fadvise(&file, 0, 0, advice).expect("evict a file");
        }
    }
}

/// The value behind `name:` in a file of the kernel.
pub fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
    found.unwrap_or_default().trim().to_owned()
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.trim().to_owned()
}

fn version(program: &str, option: &str) -> String {
    let outcome = tool::run(program, &[option]);
    let line = format!("{}{}", outcome.stdout, outcome.stderr);
    line.lines().next().unwrap_or_default().to_owned()
}

/// The version of the daemon, and whether it is the one people install.
fn daemon(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mark: &[u8] = b"ROWD_SEEDED_FAULT";
    let faults = bytes.windows(mark.len()).any(|window| window == mark);
    let version = tool::finish(std::process::Command::new(path).arg("--version")).ok().stdout;
    let note =
        if faults { " (built with fail points: a little slower than a release)" } else { "" };
    format!("{}{note}", version.trim())
}

fn file_system(dir: &Path) -> String {
    let dir = dir.display().to_string();
    let found = tool::run("findmnt", &["-n", "-o", "FSTYPE,OPTIONS", "-T", &dir]).ok().stdout;
    found.split_whitespace().collect::<Vec<_>>().join(" ")
}
