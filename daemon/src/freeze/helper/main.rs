//! The program `rowd-freeze`: freezes file systems for the daemon, and thaws them whatever happens to it.
//!
//! Invariants: what it has frozen it thaws on an order, at the deadline, and when the daemon is gone,
//! whichever comes first; it ends only when nothing of its own is frozen; each ioctl runs on a thread of
//! its own, because nothing can interrupt it, and one that freezes too late is thawed at once. While
//! something is frozen it opens no file, starts no program and writes no log.
//! Absent: finding file systems (`discover.rs`), and the library of rowd: this program is built of the few
//! files below alone, so that it is small enough to be locked in memory.

#[path = "../dev.rs"]
mod dev;
mod guest;
#[path = "../hurry.rs"]
mod hurry;
#[path = "../kernel.rs"]
mod kernel;
#[path = "../qga.rs"]
mod qga;
#[path = "../record.rs"]
mod record;
mod recorded;
#[path = "../wire.rs"]
mod wire;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::SigSet;
use nix::unistd::{setsid, syncfs};

use hurry::Hurry;
use wire::{Order, Report};

/// How often a thaw that failed is tried again, and the pause between.
const THAW_TRIES: u32 = 5;
const THAW_PAUSE: Duration = Duration::from_millis(200);
/// A thread here calls one function; a small stack locks little memory.
const STACK_BYTES: usize = 64 << 10;

const USAGE: &str = "usage: rowd-freeze thaw --recorded FILE [--limit SECONDS]

Thaws the file systems and machines that FILE, the record of a freeze, names. The daemon starts
`rowd-freeze serve` and `rowd-freeze guest` itself.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve"] => serve(),
        ["guest", path] => serve_guest(&PathBuf::from(path)),
        ["thaw-guest", path] => guest::thaw_one(&PathBuf::from(path)),
        ["thaw", "--recorded", file] => recorded::thaw(&PathBuf::from(file), recorded::LIMIT),
        ["thaw", "--recorded", file, "--limit", limit] => match limit.parse() {
            Ok(limit) => recorded::thaw(&PathBuf::from(file), Duration::from_secs(limit)),
            Err(_) => usage(),
        },
        ["thaw-one", dev, path] => recorded::thaw_one(dev, &PathBuf::from(path)),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        ["--version" | "-V"] => {
            println!("rowd-freeze {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// What can happen.
enum Event {
    Order(Order, Vec<OwnedFd>),
    /// The daemon is gone.
    Alone,
    Synced(usize),
    Froze(usize, Result<u64, Errno>),
    Thawed(usize, Result<(), Errno>),
}

/// Where one file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Loose,
    Syncing,
    Freezing,
    Frozen,
    Thawing,
}

/// What the helper is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Idle,
    Sync,
    Freeze,
    Hold,
    Thaw,
}

struct Member {
    directory: Arc<OwnedFd>,
    depth: usize,
    state: State,
}

struct Helper {
    socket: Arc<OwnedFd>,
    events: Sender<Event>,
    members: Vec<Member>,
    aim: Aim,
    deadline: Option<Instant>,
    alone: bool,
    hurry: Hurry,
    micros: Vec<u64>,
    errnos: Vec<i32>,
    /// The result of the last thaw has to be told.
    owes: bool,
}

/// Cut off from signals and the terminal as the one for file systems is.
fn serve_guest(path: &std::path::Path) -> ExitCode {
    // What is refused is no reason not to freeze: the daemon's end is noticed all the same.
    let _deaf = (SigSet::all().thread_block(), setsid());
    let _spared = fs::write("/proc/self/oom_score_adj", "-1000");
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => guest::serve(path, socket),
        Err(_) => usage(),
    }
}

fn serve() -> ExitCode {
    // A session of its own, and deaf to polite signals: the daemon's end is what ends it.
    let deaf = SigSet::all().thread_block();
    let own_session = setsid();
    let locked = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).is_ok();
    // Killed for lack of memory is what it should be last. Not everybody may ask for that.
    let _spared = fs::write("/proc/self/oom_score_adj", "-1000");
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { return usage() };
    let socket = Arc::new(socket);
    let locked = locked && deaf.is_ok() && own_session.is_ok();
    let ready = Report::Ready { version: env!("CARGO_PKG_VERSION").to_owned(), locked };
    if wire::send(&socket, &ready, &[]).is_err() {
        return usage();
    }
    let (events, received) = channel();
    let (from, to) = (Arc::clone(&socket), events.clone());
    let listener = thread::Builder::new().spawn(move || listen(&from, &to));
    if listener.is_err() {
        return ExitCode::FAILURE;
    }
    let mut helper = Helper {
        socket,
        events,
        members: Vec::new(),
        aim: Aim::Idle,
        deadline: None,
        alone: false,
        hurry: Hurry::default(),
        micros: Vec::new(),
        errnos: Vec::new(),
        owes: false,
    };
    helper.run(&received);
    ExitCode::SUCCESS
}

/// Passes orders on; an order that makes no sense is as good as no daemon.
fn listen(socket: &OwnedFd, events: &Sender<Event>) {
    loop {
        let event = match wire::receive::<Order>(socket) {
            Ok(Some((order, directories))) => Event::Order(order, directories),
            Ok(None) | Err(_) => Event::Alone,
        };
        let last = matches!(event, Event::Alone);
        if events.send(event).is_err() || last {
            return;
        }
    }
}

impl Helper {
    fn run(&mut self, events: &Receiver<Event>) {
        loop {
            let event = match self.deadline {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => self.expire(),
                Err(RecvTimeoutError::Disconnected) => self.alone = true,
            }
            self.settle();
            if self.alone && self.members.iter().all(|member| member.state == State::Loose) {
                return;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Order(Order::Hold { depths }, directories) => {
                let member = |(directory, depth)| Member {
                    directory: Arc::new(directory),
                    depth,
                    state: State::Loose,
                };
                self.members = directories.into_iter().zip(depths).map(member).collect();
                self.errnos = vec![0; self.members.len()];
                self.micros = vec![0; self.members.len()];
                self.tell(&Report::Held { count: self.members.len() });
            }
            Event::Order(Order::Sync { limit_ms }, _) => {
                self.aim = Aim::Sync;
                self.deadline = Some(Instant::now() + Duration::from_millis(limit_ms));
                (0..self.members.len()).for_each(|member| self.start(member, State::Syncing));
            }
            Event::Order(Order::Freeze { limit_ms }, _) => {
                self.aim = Aim::Freeze;
                self.deadline = Some(Instant::now() + Duration::from_millis(limit_ms));
                self.errnos.fill(0);
                self.hurry.begin();
                self.freeze_next();
            }
            Event::Order(Order::Thaw, _) => self.thaw(),
            Event::Alone => {
                self.alone = true;
                self.thaw();
            }
            Event::Synced(member) => self.members[member].state = State::Loose,
            Event::Froze(member, result) => self.froze(member, result),
            Event::Thawed(member, result) => {
                self.members[member].state = State::Loose;
                self.errnos[member] = result.err().map_or(0, |errno| errno as i32);
            }
        }
    }

    /// The deadline of whatever it is about has passed.
    fn expire(&mut self) {
        self.deadline = None;
        let pending = |state| matches!(state, State::Syncing | State::Freezing);
        match self.aim {
            Aim::Sync | Aim::Freeze => {
                if let Some(late) = self.members.iter().position(|member| pending(member.state)) {
                    self.tell(&Report::Late { member: late });
                }
                self.thaw();
            }
            Aim::Hold => {
                self.tell(&Report::Expired);
                self.thaw();
            }
            Aim::Idle | Aim::Thaw => {}
        }
    }

    fn froze(&mut self, member: usize, result: Result<u64, Errno>) {
        match result {
            Ok(micros) => {
                self.members[member].state = State::Frozen;
                self.micros[member] = micros;
                match self.aim {
                    Aim::Freeze => self.freeze_next(),
                    // It comes too late: nobody waits for it any more.
                    _ => self.start(member, State::Thawing),
                }
            }
            Err(errno) => {
                self.members[member].state = State::Loose;
                if self.aim == Aim::Freeze {
                    self.tell(&Report::Refused { member, errno: errno as i32 });
                    self.thaw();
                }
            }
        }
    }

    /// Freezes the next ones, all of one depth at a time: freezing what lies in a file of another writes to
    /// that, and the kernel takes tens of milliseconds for each, whatever there is to write.
    fn freeze_next(&mut self) {
        if self.members.iter().any(|member| member.state == State::Freezing) {
            return;
        }
        let loose = |member: &&Member| member.state == State::Loose;
        let Some(depth) = self.members.iter().filter(loose).map(|member| member.depth).max() else {
            self.aim = Aim::Hold;
            self.hurry.end();
            let micros = self.micros.clone();
            return self.tell(&Report::Frozen { micros });
        };
        for at in 0..self.members.len() {
            // One may fail at once and end it all.
            let next = loose(&&self.members[at]) && self.members[at].depth == depth;
            if next && self.aim == Aim::Freeze {
                self.start(at, State::Freezing);
            }
        }
    }

    fn thaw(&mut self) {
        self.aim = Aim::Thaw;
        self.deadline = None;
        self.owes = true;
        self.hurry.end();
        for member in (0..self.members.len()).rev() {
            if self.members[member].state == State::Frozen {
                self.start(member, State::Thawing);
            }
        }
    }

    /// Tells the end of what it is about, once nothing is under way any more.
    fn settle(&mut self) {
        if self.members.iter().any(|member| member.state != State::Loose) {
            return;
        }
        match self.aim {
            Aim::Sync => {
                self.aim = Aim::Idle;
                self.deadline = None;
                self.tell(&Report::Synced);
            }
            Aim::Thaw if self.owes => {
                self.owes = false;
                let errnos = self.errnos.clone();
                self.tell(&Report::Thawed { errnos });
            }
            _ => {}
        }
    }

    /// Starts a call on a thread of its own.
    fn start(&mut self, member: usize, state: State) {
        self.members[member].state = state;
        let (directory, events) =
            (Arc::clone(&self.members[member].directory), self.events.clone());
        let call = move || {
            let event = match state {
                State::Syncing => {
                    // Whatever it says: the freeze writes everything out again and tells.
                    let _said = syncfs(directory.as_fd());
                    Event::Synced(member)
                }
                State::Freezing => {
                    let begun = Instant::now();
                    let done = kernel::freeze(directory.as_fd());
                    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    Event::Froze(member, done.map(|()| micros))
                }
                State::Loose | State::Frozen | State::Thawing => {
                    Event::Thawed(member, thaw_patiently(&directory))
                }
            };
            // The receiver lives as long as the process.
            let _sent = events.send(event);
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK_BYTES).spawn(call) {
            let errno = error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw);
            match state {
                State::Syncing => self.members[member].state = State::Loose,
                State::Freezing => self.froze(member, Err(errno)),
                // No thread to be had: thaw here, whatever it holds up.
                State::Loose | State::Frozen | State::Thawing => {
                    let result = thaw_patiently(&self.members[member].directory);
                    self.handle(Event::Thawed(member, result));
                }
            }
        }
    }

    /// A daemon that does not listen any more is found out by the listener.
    fn tell(&self, report: &Report) {
        if !self.alone {
            let _sent = wire::send(&self.socket, report, &[]);
        }
    }
}

/// Thaws, and tries again when the kernel refuses; `EINVAL` means that it is not frozen.
fn thaw_patiently(directory: &OwnedFd) -> Result<(), Errno> {
    let mut tries = 1;
    loop {
        match kernel::thaw(directory.as_fd()) {
            Err(errno) if errno != Errno::EINVAL && tries < THAW_TRIES => {
                tries += 1;
                thread::sleep(THAW_PAUSE);
            }
            result => return result,
        }
    }
}
