//! The servers of the race, each started as its users start it.
//!
//! Invariants: one runs at a time; all but the one that keeps nothing serve the same random bytes from the same file system;
//! those that serve a raw file serve the same one, so that none has a better layout.
//! Absent: tuning of anybody, ours included: defaults, with write-back where a server has the choice.

use std::fs;
use std::io::Read;
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
    /// Answers and keeps nothing: what the client and the socket can do at most.
    Nothing,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Rowd, Kind::Nbdkit, Kind::QemuRaw, Kind::QemuQcow2, Kind::NbdServer, Kind::Nothing];

    /// As `--server` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rowd => "rowd",
            Kind::Nbdkit => "nbdkit",
            Kind::QemuRaw => "qemu-raw",
            Kind::QemuQcow2 => "qemu-qcow2",
            Kind::NbdServer => "nbd-server",
            Kind::Nothing => "nothing",
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
            Kind::Nothing => "nbdkit null",
        }
    }

    /// Whether rowd is compared with it.
    pub fn is_peer(self) -> bool {
        !matches!(self, Kind::Rowd | Kind::Nothing)
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
            stable.make_empty(*kind);
            stable.start(*kind).refill(size);
        }
        if kinds.contains(&Kind::QemuQcow2) {
            stable.make_empty(Kind::QemuQcow2);
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

    /// Makes the file of a peer's disk anew, with nothing of it in memory.
    fn make_empty(&self, kind: Kind) {
        if kind.serves_raw() {
            let raw = fs::File::create(self.dir.join("disk.raw")).expect("make a disk file");
            raw.set_len(self.size).expect("make a disk file");
        }
        if kind == Kind::QemuQcow2 {
            let file = self.dir.join("disk.qcow2").display().to_string();
            let (size, options) = (self.size.to_string(), "preallocation=metadata");
            tool::run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, &file, &size])
                .ok();
        }
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
            let place = start_peer(kind, self, &socket, &log);
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

/// An image, and the disks it is put on.
#[derive(Debug)]
pub struct Images {
    image: PathBuf,
    stable: Stable,
}

impl Images {
    /// Makes the image in `dir`, as large as the disks.
    pub fn new(dir: &Path, stable: Stable) -> Images {
        let image = dir.join("image.raw");
        let random = fs::File::open("/dev/urandom").expect("open /dev/urandom");
        let mut file = fs::File::create(&image).expect("make an image");
        std::io::copy(&mut random.take(stable.size), &mut file).expect("write an image");
        Images { image, stable }
    }

    /// Puts the image on the disk of a server and starts it: as users do who come with an image, onto a new file, by
    /// `qemu-img convert` through the server. rowd has no file to make anew; all of its disk is written.
    pub fn serve(&mut self, kind: Kind) -> Serving<'_> {
        self.stable.make_empty(kind);
        let image = self.image.display().to_string();
        let serving = self.stable.start(kind);
        tool::run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &serving.uri])
            .ok();
        serving.stop();
        self.stable.serve(kind)
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

fn start_peer(kind: Kind, stable: &Stable, socket: &Path, log: &Path) -> Place<'static> {
    let dir = &stable.dir;
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
        Kind::Nothing => {
            let mut command = tool::command("nbdkit");
            command.arg("-f").arg("-U").arg(socket).arg("null").arg(stable.size.to_string());
            command
        }
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
