//! A server in trouble: a copy arrives all the same, or fails with a reason and goes on when asked.
//!
//! Absent: a server that answers with other bytes; that is a damaged repository (`copies.rs`).

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rowd_tests::process::Daemon;
use serde_json::json;

use super::copies::{contents, copied, id, noise, write};
use super::server::{S3Server, add};

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Passes,
    /// Of five connections one answers 503, one ends at once, one answers 500, one is cut off in the
    /// middle of a body, and one is slow.
    Troubles,
    /// Every connection ends at once.
    Down,
}

/// Bytes after which a connection is cut off.
const CUT: usize = 1 << 20;
const SLOW: Duration = Duration::from_millis(100);

/// A TCP proxy in front of a server. Its threads end with their connections, and with the test program.
struct Proxy {
    address: SocketAddr,
    mode: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (how, count) = (Arc::clone(&mode), Arc::clone(&connections));
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let mode = how.load(Ordering::SeqCst);
                thread::spawn(move || serve(client, server, mode, number));
            }
        });
        Proxy { address, mode, connections }
    }

    fn set(&self, mode: Mode) {
        self.mode.store(mode as usize, Ordering::SeqCst);
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(mut client: TcpStream, server: SocketAddr, mode: usize, number: usize) {
    if mode == Mode::Down as usize {
        return;
    }
    let limit = match (mode == Mode::Troubles as usize, number % 5) {
        (true, 0) => return answer(&mut client, "503 Slow Down"),
        (true, 1) => return,
        (true, 2) => return answer(&mut client, "500 Internal Server Error"),
        (true, 3) => CUT,
        (true, _) => {
            // A pause that nothing cuts short.
            let (_keep, never) = mpsc::channel::<()>();
            assert!(never.recv_timeout(SLOW).is_err());
            usize::MAX
        }
        _ => usize::MAX,
    };
    let Ok(upstream) = TcpStream::connect(server) else { return };
    let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
    let up = thread::spawn(move || pass(from, to, limit));
    pass(upstream, client, limit);
    up.join().unwrap();
}

fn answer(client: &mut TcpStream, status: &str) {
    let mut request = [0; 4096];
    if client.read(&mut request).is_ok_and(|length| length > 0) {
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        if client.write_all(reply.as_bytes()).is_err() {
            eprintln!("the client did not wait for {status}");
        }
    }
}

/// Passes bytes on until one side ends or the limit is reached; then both ends are closed.
fn pass(mut from: TcpStream, mut to: TcpStream, mut left: usize) {
    let mut buffer = [0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer) {
        let length = length.min(left);
        left -= length;
        if length == 0 || to.write_all(&buffer[..length]).is_err() || left == 0 {
            break;
        }
    }
    for end in [&from, &to] {
        if end.shutdown(Shutdown::Both).is_err() {
            // The other direction was faster.
            continue;
        }
    }
}

/// A daemon with a repository behind a proxy and a snapshot `data@one`.
fn world() -> (S3Server, Proxy, Daemon) {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let daemon = Daemon::new();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "32MiB"]);
    write(&daemon, "data", 0, &noise(3, 14 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    (server, proxy, daemon)
}

#[test]
fn a_copy_goes_through_drops_delays_errors_and_truncated_bodies_both_ways() {
    let (_server, proxy, daemon) = world();
    proxy.set(Mode::Troubles);
    let copy = copied(&daemon, "data@one", "s3");
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    let made = proxy.connections.load(Ordering::SeqCst);
    assert!(made > 10, "there was trouble: {made} connections");
    proxy.set(Mode::Passes);
    daemon.ctl(&["copy", "verify", id(&copy)]);
    let expected = contents(&daemon, "data@one", 32 << 20);
    assert!(contents(&daemon, "again", 32 << 20) == expected);
}

#[test]
fn a_copy_to_a_server_that_is_down_fails_with_a_reason_and_goes_on_when_asked() {
    let (_server, proxy, mut daemon) = world();
    proxy.set(Mode::Down);
    let begun = daemon.json(&["snapshot", "copy", "data@one", "--to", "s3"]);
    assert_eq!(begun["status"], json!("progressing"));
    let waited = daemon.try_ctl(&["copy", "wait", id(&begun)]);
    assert_eq!(waited.code, 24, "{}", waited.stdout);
    let failed = daemon.json(&["copy", "show", id(&begun)]);
    assert_eq!(failed["status"], json!("failed"));
    assert!(failed["reason"].as_str().unwrap().contains("repository s3"), "{failed}");
    proxy.set(Mode::Passes);
    daemon.crash();
    assert_eq!(daemon.json(&["copy", "show", id(&begun)])["status"], json!("failed"));
    daemon.ctl(&["copy", "retry", id(&begun)]);
    let done = daemon.json(&["copy", "wait", id(&begun)]);
    assert_eq!(done["status"], json!("accomplished"));
    daemon.ctl(&["copy", "verify", id(&begun)]);
}
