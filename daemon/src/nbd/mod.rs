//! The NBD server: accept, negotiate, then one thread per connection.
//!
//! Invariants: an export is opened only when a client enters the transmission phase; the number of
//! connections is bounded; connections end before the engine closes.
//! Absent: TLS, which TCP beyond loopback will need. Such addresses are refused until then.

pub mod activation;
mod budget;
mod bulk;
mod cold;
mod execute;
pub mod exports;
mod gather;
pub mod handshake;
mod helpers;
pub mod keep;
mod leave;
pub mod listen;
mod options;
mod parking;
mod remote;
mod reply;
mod session;
pub mod siblings;
mod slots;
mod socket;
mod tally;
pub mod wire;
mod wire_option;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::engine::{Engine, Target};
use crate::error::{Error, ErrorKind, Result};
use exports::{Capabilities, ExportInfo, Exports, Listing, Negotiated, Opened, SelectedContext};
use keep::Kept;
use leave::Leave;
use listen::{Listener, Peer, Stream};
pub use session::End;
use session::{Common, Session};
use siblings::Siblings;
use slots::{Slot, Slots};
use socket::Socket;

/// Connections at a time: each takes a thread and a MiB of buffers.
const CONNECTIONS_MAX: usize = 256;
/// Threads that wait for the device on behalf of connections.
const HELPERS: usize = 8;

/// The server of one engine's disks.
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    common: Common,
    slots: Slots,
    closing: AtomicBool,
    /// Connections that stopped at a message boundary.
    kept: Mutex<Vec<(OwnedFd, Kept)>>,
}

/// A connection without a handshake: of a kernel device, or from the process before this one.
#[derive(Debug)]
pub struct Resumed {
    pub fd: OwnedFd,
    pub kept: Kept,
    /// Of a kernel device: its other connections, and who is told of the end of this one.
    pub device: Option<(Arc<Siblings>, OnEnd)>,
}

/// Told when a connection has ended, unless another process goes on with it.
pub struct OnEnd(pub Box<dyn FnOnce(End) + Send>);

impl std::fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnd")
    }
}

impl Server {
    /// A server that spins `busy_poll` for the next request before it sleeps.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn new(engine: &Arc<Engine>, busy_poll: Duration) -> Result<Arc<Server>> {
        let common = Common {
            helpers: helpers::Helpers::start(HELPERS)?,
            budget: Arc::default(),
            buffers: Arc::default(),
            leave: Arc::new(Leave::new().map_err(|e| Error::io("make an event", &e))?),
            spin: busy_poll,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Arc::new(Server {
            engine: Arc::clone(engine),
            common,
            slots: Slots::new(CONNECTIONS_MAX),
            closing: AtomicBool::new(false),
            kept: Mutex::default(),
        }))
    }

    /// Accepts connections until `shutdown` becomes true.
    pub async fn serve(self: Arc<Self>, listener: Listener, mut shutdown: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let server = Arc::clone(&self);
                    tokio::spawn(server.connection(stream, peer));
                }
                Err(error) => tracing::warn!(%error, "accept"),
            }
        }
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Has every connection stop at its next message boundary, so that another process can go on.
    ///
    /// # Errors
    /// Those that wait for requests could not be woken.
    pub fn leave(&self) -> Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        self.common.leave.give().map_err(|e| Error::io("wake the connections", &e))
    }

    /// Waits until every connection has ended or stopped; `false` when the time is over.
    #[must_use]
    pub fn drained(&self, limit: Duration) -> bool {
        self.slots.wait_free(limit)
    }

    /// The connections that stopped at a message boundary.
    #[must_use]
    pub fn take_kept(&self) -> Vec<(OwnedFd, Kept)> {
        std::mem::take(&mut *self.kept.lock())
    }

    /// Serves a connection that needs no handshake. Its first message may have arrived already.
    ///
    /// # Errors
    /// The export is gone or being changed; there are too many connections, or no threads.
    pub fn resume(self: &Arc<Self>, resumed: Resumed) -> Result<()> {
        let Resumed { fd, mut kept, device } = resumed;
        let unanswered = std::mem::take(&mut kept.unanswered);
        let slot = self.slots.take().ok_or_else(too_many)?;
        let export = self.engine.export_of_id(&kept.export)?;
        listen::enlarge_send_buffer(&fd).map_err(|e| Error::io("a socket's buffer", &e))?;
        let socket = Arc::new(Socket::new(fd));
        let peer = Peer { pid: kept.pid, uid: None, label: kept.peer.clone() };
        let shown = Shown { server: self, peer: &peer, socket: &socket };
        let Opened { target, info } = shown.open(&export.name)?;
        let contexts = kept.contexts.iter();
        let negotiated = Negotiated {
            target,
            export: info.name,
            size: info.size,
            capabilities: info.capabilities,
            structured: kept.structured,
            contexts: contexts
                .map(|(id, name)| SelectedContext { id: *id, name: name.clone() })
                .collect(),
            no_zeroes: true,
        };
        let session = Session::new(Arc::clone(&socket), negotiated, self.common.clone());
        let session = session.after(&unanswered);
        let (session, on_end) = match device {
            None => (session, None),
            Some((siblings, on_end)) => (session.among(siblings.join(&socket)), Some(on_end)),
        };
        self.start(session, Running { socket, kept, slot, on_end })
    }

    async fn connection(self: Arc<Self>, mut stream: Stream, peer: Peer) {
        let Some(slot) = self.slots.take() else {
            tracing::warn!(peer = peer.label, "refused: {CONNECTIONS_MAX} connections are open");
            return;
        };
        let socket = match stream.duplicate() {
            Ok(fd) => Arc::new(Socket::new(fd)),
            Err(error) => {
                tracing::warn!(%error, "connection");
                return;
            }
        };
        let shown = Shown { server: &self, peer: &peer, socket: &socket };
        let negotiated = match handshake::negotiate(&mut stream, &shown).await {
            Ok(Some(negotiated)) => negotiated,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, peer = peer.label, "handshake");
                return;
            }
        };
        if let Err(error) = stream.into_std_blocking() {
            tracing::debug!(%error, peer = peer.label, "connection");
            return;
        }
        tracing::debug!(peer = peer.label, export = negotiated.export, "connected");
        let contexts = negotiated.contexts.iter();
        let kept = Kept {
            export: negotiated.target.export_id().to_owned(),
            peer: peer.label,
            pid: peer.pid,
            structured: negotiated.structured,
            contexts: contexts.map(|one| (one.id, one.name.clone())).collect(),
            device: None,
            unanswered: Vec::new(),
        };
        let session = Session::new(Arc::clone(&socket), negotiated, self.common.clone());
        if let Err(error) = self.start(session, Running { socket, kept, slot, on_end: None }) {
            tracing::warn!(%error, "connection");
        }
    }

    /// Starts the thread of a connection.
    fn start(self: &Arc<Self>, session: Session, running: Running) -> Result<()> {
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().name("nbd".to_owned()).spawn(move || {
            let Running { socket, kept, slot, on_end } = running;
            // The session is gone after this, and the disk free of it.
            let (end, unanswered) = session.run();
            match end {
                End::Boundary => server.keep(&socket, Kept { unanswered, ..kept }),
                End::Left | End::Closed => {}
            }
            drop(socket);
            if let (Some(OnEnd(told)), End::Left | End::Closed) = (on_end, end) {
                told(end);
            }
            drop(slot);
        });
        thread.map(drop).map_err(|e| Error::io("start a thread for a connection", &e))
    }

    fn keep(&self, socket: &Socket, kept: Kept) {
        match socket.as_fd().try_clone_to_owned() {
            Ok(fd) => self.kept.lock().push((fd, kept)),
            Err(error) => tracing::warn!(%error, peer = kept.peer, "a connection is not kept"),
        }
    }
}

/// What goes with a connection's thread.
struct Running {
    socket: Arc<Socket>,
    kept: Kept,
    slot: Slot,
    on_end: Option<OnEnd>,
}

fn too_many() -> Error {
    Error::new(ErrorKind::Quota, format!("{CONNECTIONS_MAX} connections are open"))
}

/// The engine's disks, as one client may open them.
struct Shown<'a> {
    server: &'a Server,
    peer: &'a Peer,
    socket: &'a Arc<Socket>,
}

impl Exports for Shown<'_> {
    type Target = Arc<Target>;

    fn shutting_down(&self) -> bool {
        self.server.closing.load(Ordering::SeqCst)
    }

    fn list(&self) -> Vec<Listing> {
        let all = self.server.engine.exports().into_iter();
        all.map(|e| Listing { name: e.name, description: e.description }).collect()
    }

    fn default_export(&self) -> Option<String> {
        let mut all = self.server.engine.exports().into_iter();
        let only = all.next()?;
        all.next().is_none().then_some(only.name)
    }

    fn describe(&self, name: &str) -> Result<ExportInfo> {
        let export = self.server.engine.export(name)?;
        Ok(ExportInfo {
            name: export.name,
            description: export.description,
            size: export.size,
            capabilities: match export.read_only {
                true => Capabilities::READ_ONLY,
                false => Capabilities::WRITABLE,
            },
        })
    }

    fn dirty_bases(&self, name: &str) -> Result<Vec<String>> {
        self.server.engine.dirty_bases(name)
    }

    fn open(&self, name: &str) -> Result<Opened<Arc<Target>>> {
        if self.shutting_down() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the daemon is going down"));
        }
        let info = self.describe(name)?;
        let socket = Arc::downgrade(self.socket);
        let hangup = Box::new(move || {
            if let Some(socket) = socket.upgrade() {
                socket.hang_up();
            }
        });
        let engine = &self.server.engine;
        let target = engine.open_export(&info.name, &self.peer.label, self.peer.pid, hangup)?;
        // The size as it is now that nobody can change it unseen.
        let info = ExportInfo { size: target.disk.size(), ..info };
        Ok(Opened { target: Arc::new(target), info })
    }
}
