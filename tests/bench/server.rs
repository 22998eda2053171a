//! The servers of the race, each started as its users start it.
//!
//! Invariants: one runs at a time; all serve the same random bytes from the same file system; those that
//! serve a raw file serve the same one, so that none has a better layout.
//! Absent: tuning of anybody, ours included: defaults, with write-back where a server has the choice.

use std::fs;
use std::path::{Path, PathBuf};

use rowd_tests::tool;

use crate::daemon::Daemon;
use crate::guard::{Detached, Running, wait_listening};
use crate::machine;
use crate::nbd::Client;

/// The name of the export, of every server.
pub const EXPORT: &str = "bench";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rowd,
    Nbdkit,
    QemuRaw,
    QemuQcow2,
    NbdServer,
}

impl Kind {
    pub const ALL: [Kind; 5] =
        [Kind::Rowd, Kind::Nbdkit, Kind::QemuRaw, Kind::QemuQcow2, Kind::NbdServer];

    /// As `--server` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rowd => "rowd",
            Kind::Nbdkit => "nbdkit",
            Kind::QemuRaw => "qemu-raw",
            Kind::QemuQcow2 => "qemu-qcow2",
            Kind::NbdServer => "nbd-server",
        }
    }

    /// As the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Rowd => "rowd",
            Kind::Nbdkit => "nbdkit file",
            Kind::QemuRaw => "qemu-nbd raw",
            Kind::QemuQcow2 => "qemu-nbd qcow2",
            Kind::NbdServer => "nbd-server",
        }
    }

    /// Whether its disk is the raw file that several serve.
    fn serves_raw(self) -> bool {
        matches!(self, Kind::Nbdkit | Kind::QemuRaw | Kind::NbdServer)
    }

    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The disk of every server, not served at the moment.
#[derive(Debug)]
pub struct Stable {
    dir: PathBuf,
    size: u64,
    rowd: Option<Daemon>,
}

/// A server that runs.
#[derive(Debug)]
pub struct Serving<'a> {
    pub uri: String,
    socket: PathBuf,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    Rowd(&'a mut Daemon),
    Child(Running),
    Detached(Detached),
}

impl Stable {
    /// Fills a disk for each server that takes part, each through its server and with the same writes.
    pub fn fill(dir: &Path, program: &Path, size: u64, kinds: &[Kind]) -> Stable {
        let mut stable = Stable { dir: dir.to_owned(), size, rowd: None };
        if let Some(kind) = kinds.iter().find(|kind| kind.serves_raw()) {
            let raw = fs::File::create(dir.join("disk.raw")).expect("make a disk file");
            raw.set_len(size).expect("make a disk file");
            stable.start(*kind).refill(size);
        }
        if kinds.contains(&Kind::QemuQcow2) {
            let image = dir.join("disk.qcow2").display().to_string();
            let options = "preallocation=metadata";
            let create = ["create", "-q", "-f", "qcow2", "-o", options, &image, &size.to_string()];
            tool::run("qemu-img", &create).ok();
            stable.start(Kind::QemuQcow2).refill(size);
        }
        if kinds.contains(&Kind::Rowd) {
            let mut daemon = Daemon::start(program, dir);
            daemon.full_disk(EXPORT, size);
            daemon.stop();
            stable.rowd = Some(daemon);
        }
        machine::settle(dir);
        stable
    }

    /// Starts one server, with its caches warm and nothing left to write from before.
    pub fn serve(&mut self, kind: Kind) -> Serving<'_> {
        machine::settle(&self.dir);
        let size = self.size;
        let serving = self.start(kind);
        Client::connect(&serving.socket, EXPORT).read_all(size);
        serving
    }

    fn start(&mut self, kind: Kind) -> Serving<'_> {
        let socket = self.dir.join("peer.sock");
        if socket.exists() {
            fs::remove_file(&socket).expect("remove the socket of the server before");
        }
        let log = self.dir.join("peer.log");
        let (socket, place) = if kind == Kind::Rowd {
            let daemon = self.rowd.as_mut().expect("rowd takes part");
            daemon.relaunch();
            (daemon.nbd_socket(), Place::Rowd(daemon))
        } else {
            let place = start_peer(kind, &self.dir, &socket, &log);
            (socket, place)
        };
        wait_listening(&socket);
        let uri = format!("nbd+unix:///{EXPORT}?socket={}", socket.display());
        Serving { uri, socket, place }
    }

    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Serving<'_> {
    /// Writes the whole disk in order and ends the server. Only rowd's layout depends on the order of
    /// writes; for it this is what a disk looks like that was just filled.
    pub fn refill(self, size: u64) {
        Client::connect(&self.socket, EXPORT).fill(0, size, 2);
        self.stop();
    }

    pub fn stop(self) {
        match self.place {
            Place::Rowd(daemon) => daemon.stop(),
            Place::Child(running) => running.stop(),
            Place::Detached(detached) => drop(detached),
        }
    }
}

fn start_peer(kind: Kind, dir: &Path, socket: &Path, log: &Path) -> Place<'static> {
    let raw = dir.join("disk.raw");
    let mut command = match kind {
        Kind::Rowd => unreachable!("rowd is no peer"),
        Kind::Nbdkit => {
            let mut command = tool::command("nbdkit");
            command.arg("-f").arg("-U").arg(socket).arg("file").arg(raw);
            command
        }
        Kind::QemuRaw | Kind::QemuQcow2 => {
            let (format, file) = match kind {
                Kind::QemuRaw => ("raw", raw),
                _ => ("qcow2", dir.join("disk.qcow2")),
            };
            let mut command = tool::command("qemu-nbd");
            command.args(["--cache=writeback", "-e", "4", "--persistent", "-x", EXPORT]);
            command.arg("-f").arg(format).arg("-k").arg(socket).arg(file);
            command
        }
        Kind::NbdServer => return start_nbd_server(dir, &raw, socket, log),
    };
    Place::Child(Running::start(&mut command, log))
}

/// It serves a single client in the foreground, so it is started as the daemon it is. Without `flush` it
/// would not offer flushes, and the lines with flushes would compare nothing.
fn start_nbd_server(dir: &Path, raw: &Path, socket: &Path, log: &Path) -> Place<'static> {
    let (config, pid) = (dir.join("nbd-server.conf"), dir.join("nbd-server.pid"));
    let text = format!(
        "[generic]\nunixsock = {}\n[{EXPORT}]\nexportname = {}\nflush = true\nfua = true\n",
        socket.display(),
        raw.display()
    );
    fs::write(&config, text).expect("write a configuration");
    if pid.exists() {
        fs::remove_file(&pid).expect("remove a pid file");
    }
    let mut command = tool::command("nbd-server");
    command.arg("-C").arg(&config).arg("-p").arg(&pid);
    let starter = Running::start(&mut command, log);
    let place = Place::Detached(Detached::from_pid_file(&pid));
    starter.wait_done(rowd_tests::wait::PATIENCE, &[0]);
    place
}
