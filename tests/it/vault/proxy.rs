//! A TCP proxy in front of a server, that makes trouble when it is told to.
//!
//! Invariants: its threads end with their connections, and with the test program.
//! Absent: understanding what it passes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rowd_tests::wait;

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Passes,
    /// Of five connections one answers 503, one ends at once, one answers 500, one is cut off in the
    /// middle of a body, and one is slow.
    Troubles,
    /// Every connection ends at once, those that are open too.
    Down,
    /// What the server answers comes a little at a time.
    Slow,
    /// Nothing is passed on until the mode changes.
    Held,
}

/// Bytes after which a connection is cut off.
const CUT: usize = 1 << 20;
const SLOW: Duration = Duration::from_millis(100);

/// A TCP proxy in front of a server. Its threads end with their connections, and with the test program.
pub struct Proxy {
    pub address: SocketAddr,
    mode: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    answered: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (how, count) = (Arc::clone(&mode), Arc::clone(&connections));
        let answered = Arc::new(AtomicU64::new(0));
        let bytes = Arc::clone(&answered);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (mode, bytes) = (Arc::clone(&how), Arc::clone(&bytes));
                thread::spawn(move || serve(client, server, &mode, (number, &bytes)));
            }
        });
        Proxy { address, mode, connections, answered }
    }

    /// The bytes that the server has answered with so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as usize, Ordering::SeqCst);
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    how: &Arc<AtomicUsize>,
    (number, answered): (usize, &Arc<AtomicU64>),
) {
    let mode = how.load(Ordering::SeqCst);
    if mode == Mode::Down as usize {
        return;
    }
    let limit = match (mode == Mode::Troubles as usize, number % 5) {
        (true, 0) => return answer(&mut client, "503 Slow Down"),
        (true, 1) => return,
        (true, 2) => return answer(&mut client, "500 Internal Server Error"),
        (true, 3) => CUT,
        (true, _) => {
            pause();
            usize::MAX
        }
        _ => usize::MAX,
    };
    let Ok(upstream) = TcpStream::connect(server) else { return };
    let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
    let (up, down) = (Arc::clone(how), Arc::clone(how));
    let up = thread::spawn(move || pass(from, to, limit, &up, None));
    pass(upstream, client, limit, &down, Some(answered));
    up.join().unwrap();
}

/// A pause that nothing cuts short.
fn pause() {
    let (_keep, never) = mpsc::channel::<()>();
    assert!(never.recv_timeout(SLOW).is_err());
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
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    mut left: usize,
    how: &AtomicUsize,
    answers: Option<&AtomicU64>,
) {
    let is = |mode: Mode| how.load(Ordering::SeqCst) == mode as usize;
    let mut buffer = [0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer) {
        let held = wait::try_until(wait::PATIENCE * 4, || (!is(Mode::Held)).then_some(()));
        if held.is_none() || is(Mode::Down) {
            break;
        }
        if answers.is_some() && is(Mode::Slow) {
            pause();
        }
        let length = length.min(left);
        if let Some(answers) = answers {
            answers.fetch_add(length as u64, Ordering::SeqCst);
        }
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
