//! The control socket: accepts clients, asks the kernel who they are, and hands each to a
//! connection.
//!
//! Invariants: nobody is greeted before the kernel has said who it is; nothing a client sends can
//! stop the daemon; every engine call runs on a blocking thread, never on the runtime's own; a
//! socket file that somebody answers on is never taken away.
//! Absent: the data path (NBD), and what the methods do (`handlers`).

mod attach;
pub mod audit;
mod connection;
mod convert;
mod copies;
mod freezing;
mod groups;
mod handlers;
mod images;
mod instances;
mod keys;
mod meters;
mod peer;
mod policies;
mod presence;
mod repo_images;
mod repos;
mod resolve;
#[cfg(test)]
mod tests;
mod trash;
mod usage;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::attach::Attach;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::freeze::Freezer;
use crate::metrics::Metrics;
use crate::policy::Policies;
use crate::vault::Vault;

pub use peer::Access;

pub use audit::Audit;
use connection::Connection;

/// Connections to one socket. An administrator's scripts and a few event followers need a dozen;
/// each connection may hold a line of 1 MiB and a blocking thread, so that 64 are 64 MiB and 64
/// threads at worst.
const CONNECTIONS_MAX: usize = 64;
/// How long running requests may take to end when the daemon goes down. The longest single engine
/// call is one fdatasync; ten seconds of that mean a dying disk, and shutdown must not wait for it.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that the loop does not spin until one is
/// free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The exit code of a program that ends with this error, from the protocol's table.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    convert::error_body(error).kind.exit_code()
}

/// What the methods work on.
#[derive(Clone, Debug)]
pub struct Services {
    pub engine: Arc<Engine>,
    pub attach: Arc<Attach>,
    pub freezer: Arc<Freezer>,
    pub vault: Arc<Vault>,
    pub metrics: Arc<Metrics>,
    pub policies: Arc<Policies>,
    pub audit: Arc<Audit>,
    /// The configuration in words.
    pub config: Arc<str>,
}

/// What the clients of a socket may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Methods that change nothing.
    Observer,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Observer => "observer",
        }
    }
}

/// The server behind one control socket.
#[derive(Debug)]
pub struct Control {
    services: Services,
    role: Role,
    access: Access,
    slots: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
}

impl Control {
    /// Serves a socket until `shutdown` becomes true or its sender is gone, then lets running
    /// requests end.
    ///
    /// # Errors
    /// None at present: a failed accept is logged and tried again.
    pub async fn serve(
        services: Services,
        listener: UnixListener,
        role: Role,
        access: Access,
        shutdown: watch::Receiver<bool>,
    ) -> Result<()> {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let control = Control { services, role, access, slots, shutdown };
        let mut connections = JoinSet::new();
        let mut shutdown = control.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = going_down(&mut shutdown) => break,
                Some(ended) = connections.join_next() => if let Err(error) = ended {
                    warn!(%error, "a control connection ended abnormally");
                },
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => control.admit(stream, &mut connections),
                    Err(error) => {
                        warn!(%error, "cannot accept a control connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            warn!("control requests still run after {DRAIN_LIMIT:?}; going down without them");
        }
        Ok(())
    }

    /// Starts a connection for a client that may have one, or tells it why not.
    fn admit(&self, stream: UnixStream, connections: &mut JoinSet<()>) {
        let actor = match peer::identify(&stream, &self.access) {
            Ok(actor) => actor,
            Err(error) => {
                info!(%error, "control connection refused");
                return connection::refuse(&stream, error);
            }
        };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            warn!(uid = actor.uid, pid = actor.pid, "too many control connections");
            let error = Error::new(
                ErrorKind::Quota,
                format!("{CONNECTIONS_MAX} clients are connected to this socket already"),
            );
            return connection::refuse(&stream, error.hint("end some of them, or try again"));
        };
        debug!(uid = actor.uid, pid = actor.pid, role = ?self.role, "control connection");
        let services = self.services.clone();
        let connection = Connection::new(services, self.role, actor, self.shutdown.clone());
        connections.spawn(async move {
            connection.run(stream).await;
            drop(slot);
        });
    }
}

/// Waits until the daemon goes down. A sender that is gone means the same: nobody is left to say
/// so.
async fn going_down(shutdown: &mut watch::Receiver<bool>) {
    drop(shutdown.wait_for(|down| *down).await);
}

/// Makes a listening socket at `path` with these permissions. Must be called inside a tokio
/// runtime.
///
/// A socket file that nobody answers on, left by a daemon that was killed, is replaced.
///
/// # Errors `InUse` when a daemon answers there, `Exists` when the path is something other than a
/// socket, `Invalid` when the path does not fit a socket address, else the I/O error.
pub fn bind(path: &Path, mode: u32) -> Result<UnixListener> {
    clear(path)?;
    let listener = UnixListener::bind(path)
        .map_err(|e| Error::io(format!("cannot listen on {}", path.display()), &e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io(format!("cannot set the mode of {}", path.display()), &e))?;
    Ok(listener)
}

/// Makes the path free, if it may be.
fn clear(path: &Path) -> Result<()> {
    let address = UnixAddr::new(path).map_err(|_| {
        Error::invalid(format!("{} is too long for a socket", path.display()))
            .hint("a socket path has at most 107 bytes: use a shorter directory")
    })?;
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("cannot look at {}", path.display()), &error)),
    };
    if !found.file_type().is_socket() {
        let message = format!("{} exists and is not a socket", path.display());
        return Err(Error::new(ErrorKind::Exists, message).hint("move it away"));
    }
    if answers(&address)? {
        let message = format!("another daemon answers on {}", path.display());
        return Err(Error::new(ErrorKind::InUse, message).hint("stop it first"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove the stale socket {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Whether somebody listens. Non-blocking, because a hung daemon with a full backlog counts as
/// somebody.
fn answers(address: &UnixAddr) -> Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|e| Error::io("cannot make a socket", &e.into()))?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => Ok(true),
        Err(error) => Err(Error::io("cannot tell whether the socket is in use", &error.into())),
    }
}
