//! Virtual machines with systemd and a kernel that has an NBD client, for what this host cannot show.
//!
//! Invariants: no more machines run at a time on a host than it has processors, whoever starts them: a
//! lock in the cache for each; a machine never outlives its owner; every command has a time limit; a test that fails shows the console and the
//! journal of rowd.
//! Absent: networks, and several commands at a time (a script may start units that go on).

pub mod agent;
pub mod image;
pub mod native;
pub mod payload;
pub mod qemu;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::tool::Outcome;
use crate::wait;
use agent::Agent;
use image::Image;
use payload::Placed;
use qemu::{Drive, Qemu, Shape};

/// How long a machine may take to start: five times what it takes on two busy cores.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long it may take to stop in order: longer than systemd waits for a unit that does not stop.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(150);
/// How long a command may take that is given no limit of its own.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How long others may keep all machines of this host to themselves.
const TURN_LIMIT: Duration = Duration::from_secs(3600);
/// Lines of the console and of the journal that a failed test prints.
const LINES: usize = 60;

/// The archive for the first boot, as a drive.
const PAYLOAD: &str = "payload";

/// How a machine is made.
#[derive(Clone, Debug)]
pub struct Spec {
    shape: Shape,
    install: bool,
    files: Vec<Placed>,
}

impl Default for Spec {
    fn default() -> Self {
        let shape = Shape { memory_mib: 1024, drives: Vec::new(), guest_agent: None };
        Spec { shape, install: true, files: Vec::new() }
    }
}

impl Spec {
    /// Without rowd inside: a machine that only uses one.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.install = false;
        self
    }

    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.shape.memory_mib = mib;
        self
    }

    /// One more block device, `/dev/disk/by-id/virtio-SERIAL` in the guest, of a file or of an address
    /// such as `nbd+unix:///disk?socket=/run/x`.
    ///
    /// # Panics
    /// The serial number is longer than 20 characters.
    #[must_use]
    pub fn drive(mut self, serial: &str, source: &str) -> Self {
        assert!(serial.len() <= 20, "{serial}: virtio cuts it to 20 characters");
        let (serial, source) = (serial.to_owned(), source.to_owned());
        self.shape.drives.push(Drive { serial, source, read_only: false });
        self
    }

    /// With the QEMU guest agent at this socket, which QEMU makes.
    #[must_use]
    pub fn guest_agent(mut self, socket: &Path) -> Self {
        self.shape.guest_agent = Some(socket.to_owned());
        self
    }

    /// A file that is in the guest from its first boot on, with its permissions.
    #[must_use]
    pub fn file(mut self, from: &Path, to: &str) -> Self {
        self.files.push(Placed { from: from.to_owned(), to: to.to_owned() });
        self
    }

    /// Boots it, waits for it to be up, and installs what it was given.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn boot(self) -> Vm {
        let turn = turn();
        let image = Image::get();
        let home = TempDir::with_prefix("rowd-vm-").expect("a temporary directory");
        Qemu::overlay(home.path(), &image);
        let mut shape = self.shape.clone();
        let has_payload = self.install || !self.files.is_empty();
        if has_payload {
            let archive = payload::pack(home.path(), self.install, &self.files);
            let source = archive.display().to_string();
            shape.drives.push(Drive { serial: PAYLOAD.into(), source, read_only: true });
        }
        let mut vm = Vm::start(home, image, shape, turn);
        if has_payload {
            vm.sh(&format!("tar -xf /dev/disk/by-id/virtio-{PAYLOAD} --no-overwrite-dir -C /"))
                .ok();
        }
        if self.install {
            vm.sh(AFTER_INSTALL).ok();
        }
        vm
    }
}

/// What a package does after it has put its files in place.
const AFTER_INSTALL: &str = "
    systemd-sysusers
    systemd-tmpfiles --create
    udevadm control --reload
    systemctl daemon-reload
    systemctl restart systemd-modules-load
";

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    // In the order of their end: the machine before its files, the turn last.
    qemu: Qemu,
    agent: Agent,
    shape: Shape,
    image: Image,
    home: TempDir,
    turn: File,
}

impl Vm {
    /// A machine with rowd installed, but not started.
    #[must_use]
    pub fn new() -> Vm {
        Spec::default().boot()
    }

    fn start(home: TempDir, image: Image, shape: Shape, turn: File) -> Vm {
        let started = Instant::now();
        let qemu = Qemu::start(home.path(), &image, &shape);
        let agent = Agent::connect(&Qemu::agent_socket(home.path()));
        let mut vm = Vm { qemu, agent, shape, image, home, turn };
        vm.wait_up();
        eprintln!("the VM is up after {:.1} s", started.elapsed().as_secs_f32());
        vm
    }

    /// Runs a script (bash, with `-euo pipefail`) in the guest, for two minutes at most.
    ///
    /// # Panics
    /// The guest does not answer.
    #[track_caller]
    pub fn sh(&mut self, script: &str) -> Outcome {
        self.sh_within(COMMAND_LIMIT, script)
    }

    /// As [`Vm::sh`], with a time limit; what it did not finish has exit code 124.
    ///
    /// # Panics
    /// The guest does not answer.
    #[track_caller]
    pub fn sh_within(&mut self, limit: Duration, script: &str) -> Outcome {
        let done = self.agent.run(script, limit);
        done.unwrap_or_else(|silence| panic!("{silence:?} at (in the guest) {script}"))
    }

    /// Runs a script until it succeeds.
    ///
    /// # Panics
    /// It does not in time.
    #[track_caller]
    pub fn until(&mut self, what: &str, script: &str) -> Outcome {
        let mut last = None;
        let found = wait::try_until(wait::PATIENCE, || {
            let done = self.sh(script);
            last = Some(done.clone());
            (done.code == 0).then_some(done)
        });
        found.unwrap_or_else(|| panic!("{what}: not in time\n{}", last.expect("it was run")))
    }

    /// Writes a small file in the guest.
    ///
    /// # Panics
    /// It cannot be written.
    #[track_caller]
    pub fn write(&mut self, path: &str, text: &str) {
        assert!(!text.contains("END-OF-FILE"), "that ends it");
        let mkdir = format!("mkdir -p \"$(dirname '{path}')\"");
        self.sh(&format!("{mkdir}\ncat > '{path}' <<'END-OF-FILE'\n{text}\nEND-OF-FILE")).ok();
    }

    /// Restarts the guest in order, and waits until it is up again.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn reboot(&mut self) {
        self.agent.send("systemctl reboot", COMMAND_LIMIT).expect("the VM runs");
        self.qemu.wait_ended(SHUTDOWN_LIMIT);
        self.start_again();
    }

    /// Pulls the plug and boots again: what the guest's disks had not been told to keep may be gone.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn crash(&mut self) {
        self.qemu.kill();
        self.start_again();
    }

    /// A new process for each boot, as a machine that was switched off and on.
    #[track_caller]
    fn start_again(&mut self) {
        self.qemu = Qemu::start(self.home.path(), &self.image, &self.shape);
        self.agent = Agent::connect(&Qemu::agent_socket(self.home.path()));
        self.wait_up();
    }

    /// Shuts the guest down in order.
    ///
    /// # Panics
    /// It runs on.
    #[track_caller]
    pub fn power_off(mut self) {
        self.agent.send("systemctl poweroff", COMMAND_LIMIT).expect("the VM runs");
        self.qemu.wait_ended(SHUTDOWN_LIMIT);
    }

    /// A file of the test on the host, gone with the machine.
    #[must_use]
    pub fn host_file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Waits for the next boot and the end of its start jobs. Units that failed do not matter here.
    #[track_caller]
    fn wait_up(&mut self) {
        if let Err(silence) = self.agent.hello(BOOT_LIMIT) {
            panic!("the VM does not come up: {silence:?}");
        }
        let state = self.sh_within(BOOT_LIMIT, "systemctl is-system-running --wait || true").ok();
        let is_up = ["running", "degraded"].contains(&state.stdout.trim());
        assert!(is_up, "{state}");
    }

    fn show(&mut self) {
        eprintln!("{}", self.qemu.last_words(LINES));
        let script =
            format!("systemctl --failed --no-pager; journalctl -u rowd -n {LINES} --no-pager");
        match self.agent.run(&script, Duration::from_secs(20)) {
            Ok(told) => eprintln!("--- journal\n{}{}", told.stdout, told.stderr),
            Err(silence) => eprintln!("--- no journal: {silence:?}"),
        }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Vm::new()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
        self.qemu.kill();
        if let Err(error) = self.turn.unlock() {
            eprintln!("the lock of the VMs: {error}");
        }
    }
}

/// Waits until there is a processor for one more machine; an emulated one keeps one busy.
fn turn() -> File {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    let open = |number| {
        let path = image::cache().join(format!("lock-{number}"));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let mut files: Vec<File> = (0..processors).map(open).collect();
    let mut told = false;
    let taken = wait::try_until(TURN_LIMIT, || {
        let free = files.iter().position(|file| file.try_lock().is_ok());
        if free.is_none() && !told {
            eprintln!("waiting for another VM to end");
            told = true;
        }
        free
    });
    let taken = taken.unwrap_or_else(|| panic!("{processors} other VMs run for an hour"));
    files.swap_remove(taken)
}
