//! The NBD server: accept, negotiate, then one thread per connection.
//!
//! Invariants: an export is opened only when a client enters the transmission phase; the number of
//! connections is bounded; connections end before the engine closes.
//! Absent: TLS, which TCP beyond loopback will need. Such addresses are refused until then.

pub mod activation;
mod budget;
mod bulk;
mod execute;
pub mod exports;
mod gather;
pub mod handshake;
mod helpers;
pub mod listen;
mod options;
mod reply;
mod session;
mod socket;
pub mod wire;
mod wire_option;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::engine::{Engine, Target};
use crate::error::{Error, ErrorKind, Result};
use exports::{Capabilities, ExportInfo, Exports, Listing, Opened};
use listen::{Listener, Peer, Stream};
use session::{Common, Session};
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
    slots: Arc<Semaphore>,
    closing: AtomicBool,
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
            spin: busy_poll,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Arc::new(Server {
            engine: Arc::clone(engine),
            common,
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            closing: AtomicBool::new(false),
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

    /// Waits until every connection has ended, after the engine has hung them up.
    pub async fn drained(&self, limit: Duration) -> bool {
        let all = u32::try_from(CONNECTIONS_MAX).expect("a small number");
        tokio::time::timeout(limit, self.slots.acquire_many(all)).await.is_ok()
    }

    async fn connection(self: Arc<Self>, mut stream: Stream, peer: Peer) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
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
        let session = Session::new(Arc::clone(&socket), negotiated, self.common.clone());
        let thread = std::thread::Builder::new().name("nbd".to_owned()).spawn(move || {
            session.run();
            drop(slot);
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for a connection");
        }
    }
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
