//! The sockets NBD clients come in by.
//!
//! Invariants:
//! - a Unix socket never lets anybody in that its mode does not, not even while it is being made;
//! - a file at its path is removed only if it is a socket that nobody answers on;
//! - TCP listens on loopback addresses only, however the socket came to be;
//! - running out of descriptors delays clients and never ends the listener.
//!
//! Absent: TLS, without which there is no TCP beyond loopback; the number of connections, which
//! whoever accepts has to limit.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind,
    connect, getsockname, listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::error::{Error, ErrorKind, Result};

/// Connections that may wait to be accepted. Clients open a handful at once.
const BACKLOG: i32 = 128;

/// Bytes a Unix socket may hold for a client that is slow to read: with the usual 208 KiB a server
/// that sends replies of 256 KiB and more blocks once per reply.
const SEND_BUFFER: usize = 2 << 20;

/// The first and the longest pause when the system has no descriptor or memory for a connection.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A socket that accepts NBD clients.
#[derive(Debug)]
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Who is at the other end of a connection, as far as the socket tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pid: Option<i32>,
    pub uid: Option<u32>,
    /// For people: the name of the process, or the address over TCP.
    pub label: String,
}

/// An accepted connection.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Listens on a Unix socket at `path` with the permissions `mode`. Needs a tokio runtime.
///
/// # Errors
/// Something else is at the path, another process answers there, or the system refuses.
pub fn bind_unix(path: &Path, mode: u32) -> Result<Listener> {
    let failed = |e| Error::io(format_args!("cannot listen on {}", path.display()), &e);
    let address = UnixAddr::new(path).map_err(|e| {
        let hint = "the path of a Unix socket has at most 107 bytes";
        failed(e.into()).hint(hint)
    })?;
    remove_stale(path, &address)?;
    let fd = unix_socket().map_err(failed)?;
    // The socket's own mode, cut by the umask, becomes that of the file: there is no moment at
    // which the file is open to more. The second call gives back what the umask took.
    let mode = Mode::from_bits_truncate(mode);
    fchmod(&fd, mode).map_err(|e| failed(e.into()))?;
    bind(fd.as_raw_fd(), &address).map_err(|e| failed(e.into()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode.bits())).map_err(failed)?;
    Backlog::new(BACKLOG).and_then(|backlog| listen(&fd, backlog)).map_err(|e| failed(e.into()))?;
    UnixListener::from_std(fd.into()).map(Listener::Unix).map_err(failed)
}

/// Listens on a TCP address of this host. Needs a tokio runtime.
///
/// # Errors
/// The address is not a loopback address, or the system refuses it.
pub fn bind_tcp(address: SocketAddr) -> Result<Listener> {
    let failed = |e| Error::io(format_args!("cannot listen on {address}"), &e);
    require_loopback(address)?;
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map(Listener::Tcp).map_err(failed)
}

/// Removes what a daemon that was killed left at `path`.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<()> {
    let failed = |e| Error::io(format_args!("cannot replace {}", path.display()), &e);
    let file_type = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !file_type.is_socket() {
        let message = format!("{} exists and is not a socket", path.display());
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let probe = unix_socket().map_err(failed)?;
    match connect(probe.as_raw_fd(), address) {
        // A full backlog answers EAGAIN, which takes a listener too.
        Ok(()) | Err(nix::Error::EAGAIN) => {
            let message = format!("another process listens on {}", path.display());
            Err(Error::new(ErrorKind::InUse, message).hint("is the daemon running already?"))
        }
        Err(nix::Error::ECONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(nix::Error::ENOENT) => Ok(()),
        Err(e) => Err(failed(e.into())),
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

fn require_loopback(address: SocketAddr) -> Result<()> {
    if address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let message = format!("refusing to listen on {address}: not a loopback address");
    let hint = "beyond this host NBD needs TLS, which is not available yet; \
                use 127.0.0.1, [::1] or a Unix socket";
    Err(Error::new(ErrorKind::Unsupported, message).hint(hint))
}

impl Listener {
    /// A listening socket that came from elsewhere. Needs a tokio runtime.
    ///
    /// # Errors
    /// It is neither a Unix nor a TCP socket, or not on a loopback address.
    pub fn from_fd(fd: OwnedFd) -> Result<Listener> {
        let failed = |e| Error::io("cannot use an inherited socket", &e);
        let name: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(|e| failed(e.into()))?;
        match name.family() {
            Some(AddressFamily::Unix) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener.set_nonblocking(true).map_err(failed)?;
                UnixListener::from_std(listener).map(Listener::Unix).map_err(failed)
            }
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let listener = std::net::TcpListener::from(fd);
                require_loopback(listener.local_addr().map_err(failed)?)?;
                listener.set_nonblocking(true).map_err(failed)?;
                TcpListener::from_std(listener).map(Listener::Tcp).map_err(failed)
            }
            _ => Err(Error::invalid("an inherited socket is neither a Unix nor a TCP socket")),
        }
    }

    /// Where it listens, for logs.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Listener::Unix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|address| address.as_pathname().map(|path| path.display().to_string()))
                .unwrap_or_else(|| "an unnamed Unix socket".to_owned()),
            Listener::Tcp(listener) => listener.local_addr().map_or_else(
                |_| "an unknown TCP address".to_owned(),
                |address| address.to_string(),
            ),
        }
    }

    /// Waits for a client. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// The socket itself is unusable. What concerns one client, or passes, is waited out.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.accept_once().await {
                Ok(accepted) => return Ok(accepted),
                Err(error) => error,
            };
            match Trouble::of(&error) {
                Trouble::Client => {
                    tracing::debug!("a client was gone before it was accepted: {error}")
                }
                Trouble::Exhausted => {
                    tracing::warn!(
                        "cannot accept a client on {}, trying again: {error}",
                        self.address()
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Trouble::Socket => return Err(error),
            }
        }
    }

    async fn accept_once(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = Peer::of_unix(&stream);
                Ok((Stream::Unix(stream), peer))
            }
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let peer = Peer { pid: None, uid: None, label: address.to_string() };
                Ok((Stream::Tcp(stream), peer))
            }
        }
    }
}

/// Whose trouble a failed accept(2) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Of the one client that is gone now. accept(2) hands over the errors of a pending connection.
    Client,
    /// Of the system or the process, until descriptors or memory are free again.
    Exhausted,
    /// Of the listening socket.
    Socket,
}

impl Trouble {
    fn of(error: &io::Error) -> Trouble {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Trouble::Exhausted,
            Some(
                libc::ECONNABORTED
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET,
            ) => Trouble::Client,
            _ => Trouble::Socket,
        }
    }
}

impl Peer {
    fn of_unix(stream: &UnixStream) -> Peer {
        let Ok(credentials) = stream.peer_cred() else {
            return Peer { pid: None, uid: None, label: "an unknown process".to_owned() };
        };
        // A process of another PID namespace has the number 0 here.
        let pid = credentials.pid().filter(|&pid| pid > 0);
        let label = pid.and_then(process_name).unwrap_or_else(|| match pid {
            Some(pid) => format!("process {pid}"),
            None => "an unknown process".to_owned(),
        });
        Peer { pid, uid: Some(credentials.uid()), label }
    }
}

/// The name a process gave itself, fit to be printed.
fn process_name(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(&name);
    let name = name.trim_end_matches('\n').replace(char::is_control, "?");
    (!name.is_empty()).then_some(name)
}

impl Stream {
    /// Another descriptor of the same connection.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Stream::Unix(stream) => stream.as_fd().try_clone_to_owned(),
            Stream::Tcp(stream) => stream.as_fd().try_clone_to_owned(),
        }
    }

    /// Takes the connection out of the runtime, for a thread that reads and writes it by itself.
    ///
    /// # Errors
    /// The system refuses; the connection is closed then.
    pub fn into_std_blocking(self) -> io::Result<OwnedFd> {
        match self {
            Stream::Unix(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                let fd = stream.into();
                enlarge_send_buffer(&fd)?;
                Ok(fd)
            }
            Stream::Tcp(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                // Replies are batched here already; a reply held back is a stalled client. The send
                // buffer stays as it is: setting it would end the kernel's own tuning below its
                // maximum.
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
        }
    }
}

/// Lets a Unix socket hold large replies; others are left as they are.
///
/// # Errors
/// The system refuses.
pub fn enlarge_send_buffer(socket: &OwnedFd) -> io::Result<()> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    if name.family() != Some(AddressFamily::Unix) {
        return Ok(());
    }
    // Without the privilege to exceed it, the system's limit is what there is.
    if setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER)?;
    }
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::getsockopt;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_unix_socket_has_the_mode_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666] {
            let path = dir.path().join(format!("{mode:o}.sock"));
            let listener = bind_unix(&path, mode).unwrap();
            assert_eq!(mode_of(&path), mode);
            assert_eq!(listener.address(), path.display().to_string());
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        drop(bind_unix(&path, 0o600).unwrap());
        let _live = bind_unix(&path, 0o600).unwrap();

        let error = bind_unix(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_socket_with_a_full_backlog_counts_as_live() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let address = UnixAddr::new(&path).unwrap();
        let fd = unix_socket().unwrap();
        bind(fd.as_raw_fd(), &address).unwrap();
        listen(&fd, Backlog::new(0).unwrap()).unwrap();
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();

        assert_eq!(bind_unix(&path, 0o600).unwrap_err().kind(), ErrorKind::InUse);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        fs::write(&path, "precious").unwrap();
        let link = dir.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();

        for path in [&path, &link] {
            assert_eq!(bind_unix(path, 0o600).unwrap_err().kind(), ErrorKind::Exists);
        }
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_says_so() {
        let path = std::env::temp_dir().join("x".repeat(120));
        assert!(bind_unix(&path, 0o600).unwrap_err().to_string().contains("107 bytes"));
    }

    #[tokio::test]
    async fn tcp_beyond_loopback_is_refused() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809", "[::ffff:192.0.2.1]:0"] {
            let error = bind_tcp(address.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{address}");
            assert!(error.to_string().contains("TLS"), "{error}");
        }
        assert!(require_loopback("[::ffff:127.0.0.1]:0".parse().unwrap()).is_ok());
        assert!(require_loopback("[::1]:0".parse().unwrap()).is_ok());

        let inherited = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        assert!(Listener::from_fd(inherited.into()).is_err());
    }

    #[tokio::test]
    async fn an_accepted_unix_client_is_known_by_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let listener = Listener::from_fd(listener.into()).unwrap();
        let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (stream, peer) = listener.accept().await.unwrap();

        assert_eq!(peer.pid, Some(i32::try_from(std::process::id()).unwrap()));
        assert_eq!(peer.uid, Some(nix::unistd::getuid().as_raw()));
        let comm = fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap();
        assert_eq!(peer.label, comm.trim_end());

        let fd = stream.into_std_blocking().unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
        let usual = getsockopt(&client, sockopt::SndBuf).unwrap();
        assert!(getsockopt(&fd, sockopt::SndBuf).unwrap() >= usual);
        let mut server = std::os::unix::net::UnixStream::from(fd);
        server.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
    }

    #[tokio::test]
    async fn an_accepted_tcp_client_is_known_by_address() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = std::net::TcpStream::connect(listener.address()).unwrap();
        let (stream, peer) = listener.accept().await.unwrap();

        let label = client.local_addr().unwrap().to_string();
        assert_eq!(peer, Peer { pid: None, uid: None, label });
        let fd = stream.into_std_blocking().unwrap();
        assert!(getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
    }

    #[test]
    fn only_trouble_of_the_socket_itself_ends_a_listener() {
        let trouble = |errno| Trouble::of(&io::Error::from_raw_os_error(errno));
        assert_eq!(trouble(libc::EMFILE), Trouble::Exhausted);
        assert_eq!(trouble(libc::ENOMEM), Trouble::Exhausted);
        assert_eq!(trouble(libc::ECONNABORTED), Trouble::Client);
        assert_eq!(trouble(libc::EBADF), Trouble::Socket);
    }
}
