//! One QEMU process: its command line, its console, its end.
//!
//! Invariants: it ends with its owner, also in a panic, and with the test program, also when that is
//! killed; it runs without hardware support, so that it runs everywhere.
//! Absent: networks; guests talk to the host through ports and drives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::image::Image;
use crate::{tool, wait};

/// Two, so that programs do run at the same time as the daemon.
const CPUS: &str = "2";

/// One thread takes turns for both processors of the guest. With two, a processor may run code that the
/// other has changed meanwhile, and a guest's kernel that patches itself dies now and then (seen with QEMU 7.2).
/// On two busy cores it is no slower.
const ACCELERATOR: &str = "tcg,thread=single,tb-size=256";

/// Everything QEMU can do, but for one instruction: interrupted at the wrong moment, `cmpxchg16b` leaves
/// wrong flags behind (seen with QEMU 7.2), and a guest's kernel that uses it dies now and then.
const CPU: &str = "max,-cx16";

/// As fast as possible to the first program: no console output unless something is wrong, no waiting
/// for entropy, and no alarms about a host that is busy.
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 systemd.show_status=auto panic=-1 \
                      mitigations=off random.trust_cpu=on no_timer_check nowatchdog \
                      rcupdate.rcu_expedited=1 net.ifnames=0 audit=0";

/// A block device of a machine.
#[derive(Clone, Debug)]
pub struct Drive {
    /// In the guest: `/dev/disk/by-id/virtio-SERIAL`.
    pub serial: String,
    /// A path, or an address such as `nbd+unix:///disk?socket=/run/x`.
    pub source: String,
    pub read_only: bool,
}

/// What a machine consists of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub memory_mib: u32,
    pub drives: Vec<Drive>,
    /// Where the host finds the QEMU guest agent, if the machine has one.
    pub guest_agent: Option<PathBuf>,
}

/// The name of the overlay.
const OVERLAY: &str = "root.qcow2";

/// A running machine.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    home: PathBuf,
}

impl Qemu {
    /// Starts a machine. `home` holds its sockets, its overlay and its console.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(home: &Path, image: &Image, shape: &Shape) -> Qemu {
        let errors = File::create(home.join("qemu.err")).expect("a file for errors");
        // Looked up here, so that a missing one is named.
        let qemu = tool::command("qemu-system-x86_64").get_program().to_owned();
        // The kernel ends it with the thread that started it, whatever happens to that.
        let mut command = tool::command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
        command.args(arguments(home, image, shape));
        let child = command.stdout(Stdio::null()).stderr(errors).spawn().expect("start QEMU");
        Qemu { child, home: home.to_owned() }
    }

    #[must_use]
    pub fn agent_socket(home: &Path) -> PathBuf {
        home.join("agent.sock")
    }

    /// Makes the overlay that the machine writes to.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn overlay(home: &Path, image: &Image) {
        let mut create = tool::command("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(image.root());
        tool::finish(create.arg(home.join(OVERLAY))).ok();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It runs on.
    #[track_caller]
    pub fn wait_ended(&mut self, limit: Duration) {
        let ended = wait::try_until(limit, || self.child.try_wait().expect("ask for a child"));
        assert!(ended.is_some(), "the VM runs on");
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("QEMU (pid {}): {error}", self.child.id());
        }
    }

    /// The end of what the guest's kernel and QEMU itself said.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let tail = |name: &str| {
            let text = fs::read(self.home.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        format!("--- QEMU\n{}\n--- console\n{}", tail("qemu.err"), tail("console"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(home: &Path, image: &Image, shape: &Shape) -> Vec<String> {
    let mut all = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(|&word| word.to_owned()));
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35,sata=off,smbus=off,vmport=off",
        "-no-reboot",
    ]);
    add(&["-accel", ACCELERATOR, "-cpu", CPU, "-smp", CPUS]);
    add(&["-m", &shape.memory_mib.to_string()]);
    add(&["-kernel", &shown(&image.kernel()), "-initrd", &shown(&image.initramfs())]);
    add(&["-append", KERNEL]);
    let console = escaped(&shown(&home.join("console")));
    add(&["-chardev", &format!("file,id=console,append=on,path={console}")]);
    add(&["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    let mut port = |id: &str, name: &str, socket: &Path| {
        let path = escaped(&shown(socket));
        add(&["-chardev", &format!("socket,id={id},server=on,wait=off,path={path}")]);
        add(&["-device", &format!("virtserialport,chardev={id},name={name}")]);
    };
    port("agent", "rowd.vm", &Qemu::agent_socket(home));
    if let Some(socket) = &shape.guest_agent {
        port("qga", "org.qemu.guest_agent.0", socket);
    }
    let mut drive = |serial: &str, source: &str, options: &str| {
        let source = escaped(source);
        add(&["-drive", &format!("if=none,id={serial},file={source},discard=unmap,{options}")]);
        add(&["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
    };
    // Nothing of it is kept, so nothing of it needs to reach a disk.
    drive("root", &shown(&home.join(OVERLAY)), "format=qcow2,cache.no-flush=on");
    for Drive { serial, source, read_only } in &shape.drives {
        let read_only = if *read_only { "on" } else { "off" };
        drive(serial, source, &format!("format=raw,readonly={read_only}"));
    }
    all
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// QEMU takes a comma for the end of a value, and two for one.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_doubled() {
        assert_eq!(escaped("/a,b"), "/a,,b");
    }
}
