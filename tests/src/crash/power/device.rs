//! A block device with a volatile cache that remembers everything: an NBD server in the test.
//!
//! Invariants: requests are done one after the other, each numbered by the clock before its answer
//! leaves; what was written before a flush is durable once the flush is numbered.
//! Absent: more than one connection, and options beyond what a client needs to begin.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rowd::nbd::wire::{
    INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_LEN, Request, command, error,
    handshake_flag, info, option, option_reply, put_simple_reply, transmission_flag,
};

use crate::crash::history::Clock;

/// What a client did to the device.
#[derive(Clone, Debug)]
pub enum Change {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// Zeroing and trimming: the range reads as zeros.
    Zero {
        offset: u64,
        length: u64,
    },
    Flush,
}

/// A change with its number.
#[derive(Clone, Debug)]
pub struct Entry {
    pub at: u64,
    pub change: Change,
}

/// The served device.
#[derive(Debug)]
pub struct Device {
    socket: PathBuf,
    tape: Arc<Mutex<Tape>>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Tape {
    image: Vec<u8>,
    entries: Vec<Entry>,
}

impl Device {
    /// Serves an empty device of `size` bytes at `socket`.
    ///
    /// # Panics
    /// The socket cannot be made.
    #[must_use]
    pub fn serve(socket: &Path, size: u64, clock: Arc<Clock>) -> Device {
        let listener = UnixListener::bind(socket).expect("a socket for the device");
        let image = vec![0; usize::try_from(size).expect("a small device")];
        let tape = Arc::new(Mutex::new(Tape { image, entries: Vec::new() }));
        let notes = Arc::clone(&tape);
        let server = std::thread::spawn(move || {
            // The end of the connection is the end of the recording.
            let outcome = listener.accept().and_then(|(mut stream, _)| {
                greet(&mut stream, size)?;
                serve(&mut stream, &notes, &clock)
            });
            if let Err(error) = outcome {
                eprintln!("the recorded device: {error}");
            }
        });
        Device { socket: socket.to_owned(), tape, server: Some(server) }
    }

    /// Everything so far, in order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner).entries.clone()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A server nobody connected to waits for a client: this is one, and leaves.
        drop(UnixStream::connect(&self.socket));
        if let Some(server) = self.server.take()
            && server.join().is_err()
        {
            eprintln!("the recorded device panicked");
        }
    }
}

fn greet(stream: &mut UnixStream, size: u64) -> io::Result<()> {
    let mut hello = [INIT_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    hello.extend_from_slice(&flags.to_be_bytes());
    stream.write_all(&hello)?;
    stream.read_exact(&mut [0u8; 4])?;
    loop {
        let mut head = [0u8; 16];
        stream.read_exact(&mut head)?;
        let option = u32::from_be_bytes(head[8..12].try_into().expect("4 bytes"));
        let length = u32::from_be_bytes(head[12..].try_into().expect("4 bytes"));
        stream.read_exact(&mut vec![0; length as usize])?;
        match option {
            option::GO | option::INFO => {
                let flags = transmission_flag::HAS_FLAGS
                    | transmission_flag::SEND_FLUSH
                    | transmission_flag::SEND_TRIM
                    | transmission_flag::SEND_WRITE_ZEROES;
                let mut payload = info::EXPORT.to_be_bytes().to_vec();
                payload.extend_from_slice(&size.to_be_bytes());
                payload.extend_from_slice(&flags.to_be_bytes());
                reply(stream, option, option_reply::INFO, &payload)?;
                reply(stream, option, option_reply::ACK, &[])?;
                if option == option::GO {
                    return Ok(());
                }
            }
            option::ABORT => {
                reply(stream, option, option_reply::ACK, &[])?;
                return Err(io::Error::other("the client gave up"));
            }
            _ => reply(stream, option, option_reply::ERR_UNSUP, &[])?,
        }
    }
}

fn reply(stream: &mut UnixStream, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
    let mut message = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    let length = u32::try_from(payload.len()).expect("a short payload");
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(payload);
    stream.write_all(&message)
}

fn serve(stream: &mut UnixStream, tape: &Mutex<Tape>, clock: &Clock) -> io::Result<()> {
    loop {
        let mut head = [0u8; REQUEST_LEN];
        match stream.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let request = Request::decode(&head).ok_or_else(|| io::Error::other("no request"))?;
        let mut payload = vec![0; request.payload_len() as usize];
        stream.read_exact(&mut payload)?;
        if request.command == command::DISC {
            return Ok(());
        }
        let mut out = Vec::new();
        let mut tape = tape.lock().unwrap_or_else(PoisonError::into_inner);
        match tape.take(&request, payload, clock) {
            Some(data) => {
                put_simple_reply(&mut out, request.cookie, 0);
                out.extend_from_slice(data);
            }
            None => put_simple_reply(&mut out, request.cookie, error::EINVAL),
        }
        drop(tape);
        stream.write_all(&out)?;
    }
}

impl Tape {
    /// Does a request; what it reads, or `None` when it makes no sense.
    fn take(&mut self, request: &Request, data: Vec<u8>, clock: &Clock) -> Option<&[u8]> {
        let (offset, length) = (request.offset, u64::from(request.length));
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        let range = self.image.get_mut(start..end)?;
        let change = match request.command {
            command::READ => return Some(range),
            command::WRITE => {
                range.copy_from_slice(&data);
                Change::Write { offset, data }
            }
            command::TRIM | command::WRITE_ZEROES => {
                range.fill(0);
                Change::Zero { offset, length }
            }
            command::FLUSH => Change::Flush,
            _ => return None,
        };
        self.entries.push(Entry { at: clock.tick(), change });
        Some(&[])
    }
}
