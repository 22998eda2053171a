//! The guest: a small Debian with systemd and a kernel that has an NBD client.
//!
//! Invariants: an image is built once for each recipe, under another name until it is whole; it is never
//! changed afterwards, a machine writes to an overlay of its own; the recipe is in this file and in
//! `guest/`, and a change of it makes a new image.
//! Absent: the removal of images of older recipes; rowd itself, which each machine gets at its first boot.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::tool;

/// Debian 13: Linux 6.12 and systemd 257. It runs programs that were built on Debian 12 or 13.
const SUITE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";

const PACKAGES: &[&str] = &[
    "busybox-static",
    "dbus",
    "e2fsprogs",
    "fio",
    "kmod",
    "linux-image-cloud-amd64",
    "lvm2",
    "mdadm",
    "nbd-client",
    "procps",
    "qemu-guest-agent",
    "rpm",
    "systemd-sysv",
    "udev",
    "xfsprogs",
];

/// What a machine that lives for a minute does not need, or what the distribution starts by itself and
/// a test starts at a time of its choice.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "blk-availability.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "lvm2-monitor.service",
    "mdcheck_continue.timer",
    "mdcheck_start.timer",
    "mdmonitor-oneshot.timer",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
    "xfs_scrub_all.timer",
];

/// Removed from the image: nobody reads it there.
const UNUSED: &[&str] = &[
    "boot",
    "initrd.img",
    "initrd.img.old",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "vmlinuz",
    "vmlinuz.old",
];

/// Sparse; the guest uses a tenth of it.
const ROOT_SIZE: &str = "8G";

const INIT: &str = include_str!("guest/init");
const AGENT: &str = include_str!("guest/agent.sh");
const AGENT_UNIT: &str = include_str!("guest/vm-agent.service");
/// This file, since it is the recipe.
const RECIPE: &str = include_str!("image.rs");

/// An image that is ready to boot.
#[derive(Clone, Debug)]
pub struct Image {
    home: PathBuf,
}

impl Image {
    /// The image of this recipe, built if need be; one builds, and others wait.
    ///
    /// # Panics
    /// It cannot be built; the message has the output of the tool that failed.
    #[must_use]
    pub fn get() -> Image {
        let hash = fnv1a(&[RECIPE, INIT, AGENT, AGENT_UNIT].concat());
        let home = cache().join(format!("{SUITE}-{hash:016x}"));
        let builder = File::create(cache().join("build.lock")).expect("a lock for the image");
        builder.lock().expect("lock the image");
        if !home.exists() {
            build(&home);
        }
        Image { home }
    }

    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.home.join("root.img")
    }

    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.home.join("vmlinuz")
    }

    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.home.join("initramfs")
    }
}

/// Where images are kept, outside the checkout.
///
/// # Panics
/// There is no home directory, or it cannot be written.
#[must_use]
pub fn cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let dir = base.expect("HOME or XDG_CACHE_HOME is set").join("rowd/vm");
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

fn build(home: &Path) {
    assert!(nix::unistd::geteuid().is_root(), "the image for the VM tests is built by root only");
    let work = tempfile::Builder::new().prefix("building-").tempdir_in(cache());
    let work = work.expect("a directory beside the image");
    let root = work.path().join("root");
    step("debootstrap: 2 to 4 minutes, once");
    let include = format!("--include={}", PACKAGES.join(","));
    let mut debootstrap = tool::command("debootstrap");
    debootstrap.args(["--variant=minbase", "--merged-usr", &include, SUITE]);
    tool::finish(debootstrap.arg(&root).arg(MIRROR)).ok();
    let made = work.path().join("image");
    fs::create_dir(&made).expect("mkdir");
    fs::copy(kernel(&root), made.join("vmlinuz")).expect("copy the kernel");
    step("initramfs");
    initramfs(&root, &work.path().join("initramfs"), &made.join("initramfs"));
    configure(&root);
    step("root file system");
    let mut mkfs = tool::command("mkfs.ext4");
    mkfs.args(["-q", "-O", "^metadata_csum_seed", "-d"]).arg(&root);
    tool::finish(mkfs.arg(made.join("root.img")).arg(ROOT_SIZE)).ok();
    fs::rename(made, home).expect("move the image to its place");
    step("ready");
}

fn step(what: &str) {
    eprintln!("image for the VM tests: {what}");
}

/// The newest kernel of the guest.
fn kernel(root: &Path) -> PathBuf {
    let files = fs::read_dir(root.join("boot")).expect("boot of the guest");
    let mut kernels: Vec<PathBuf> = files
        .map(|entry| entry.expect("an entry of boot").path())
        .filter(|path| {
            path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"vmlinuz"))
        })
        .collect();
    kernels.sort();
    kernels.pop().expect("the guest has a kernel")
}

/// A program of the guest, run inside it.
fn inside(root: &Path, args: &[&str]) {
    tool::finish(tool::command("chroot").arg(root).args(args)).ok();
}

/// Only what mounts the root file system: the distribution's own takes five times as long to start.
fn initramfs(root: &Path, tree: &Path, target: &Path) {
    for dir in ["bin", "dev", "root"] {
        fs::create_dir_all(tree.join(dir)).expect("mkdir");
    }
    fs::copy(root.join("usr/bin/busybox"), tree.join("bin/busybox")).expect("copy busybox");
    write(&tree.join("init"), INIT, 0o755);
    let script =
        "busybox xz -dc /usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko.xz > /virtio_blk.ko";
    inside(root, &["sh", "-c", script]);
    fs::rename(root.join("virtio_blk.ko"), tree.join("virtio_blk.ko")).expect("move the driver");
    let list = tree.with_extension("list");
    fs::write(&list, "bin\nbin/busybox\ndev\ninit\nroot\nvirtio_blk.ko\n").expect("write a list");
    let mut cpio = tool::command("cpio");
    cpio.current_dir(tree).args(["--quiet", "-o", "-H", "newc", "-O"]).arg(target);
    tool::finish(cpio.stdin(File::open(list).expect("read the list"))).ok();
}

fn configure(root: &Path) {
    for path in UNUSED {
        let path = root.join(path);
        let is_dir = path.is_dir() && !path.is_symlink();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{}: {e}", path.display()),
            _ => {}
        }
    }
    write(&root.join("etc/fstab"), "/dev/vda / ext4 noatime 0 0\n", 0o644);
    write(&root.join("etc/hostname"), "guest\n", 0o644);
    write(&root.join("usr/local/sbin/vm-agent"), AGENT, 0o755);
    write(&root.join("etc/systemd/system/vm-agent.service"), AGENT_UNIT, 0o644);
    // Kept over a reboot: a test looks at how the boot before it ended.
    fs::create_dir_all(root.join("var/log/journal")).expect("mkdir");
    inside(root, &[&["systemctl", "mask"], MASKED].concat());
    inside(root, &["systemctl", "enable", "vm-agent.service"]);
    inside(root, &["systemctl", "set-default", "multi-user.target"]);
    // What systemd does at a first boot is done here, once for all machines.
    write(&root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n", 0o444);
    inside(root, &["ldconfig"]);
    inside(root, &["journalctl", "--update-catalog"]);
    for mark in ["etc/.updated", "var/.updated"] {
        write(&root.join(mark), "", 0o644);
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    let written = fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    written.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// FNV-1a: the same for every build of the tests, which the hash of the standard library need not be.
fn fnv1a(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }
}
