//! An NBD client that says exactly what it is told to, right or wrong.
//!
//! Invariants: nothing is checked before it is sent; every reply is checked against the form the
//! specification gives it, and a form that does not fit fails the test.
//! Absent: retries, and anything a well-behaved client would refuse to send.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rowd::nbd::wire::{
    CHUNK_HEADER_LEN, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_LEN, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, chunk_flag, command, info, option,
    option_reply,
};

/// A server that does not answer within this does not answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A request; the payload is sent as it is, whatever the length says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    pub payload: &'a [u8],
}

/// An answer, simple or of all chunks up to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    /// 0 is success.
    pub error: u32,
    /// Chunks in order: type and payload. Empty for a simple reply.
    pub chunks: Vec<(u16, Vec<u8>)>,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    pub size: u64,
    pub flags: u16,
    /// The chosen contexts, with their ids.
    pub contexts: Vec<(u32, String)>,
    structured: bool,
}

impl Client {
    /// Connects with structured replies and no contexts.
    ///
    /// # Panics
    /// The server refuses.
    #[track_caller]
    #[must_use]
    pub fn connect(socket: &Path, export: &str) -> Client {
        Client::with_contexts(socket, export, &[])
    }

    /// Connects with these metadata contexts.
    ///
    /// # Panics
    /// The server refuses, the contexts included.
    #[track_caller]
    #[must_use]
    pub fn with_contexts(socket: &Path, export: &str, contexts: &[&str]) -> Client {
        Client::try_connect(socket, export, true, contexts).expect("an NBD connection")
    }

    /// Connects without structured replies.
    ///
    /// # Panics
    /// The server refuses.
    #[track_caller]
    #[must_use]
    pub fn simple(socket: &Path, export: &str) -> Client {
        Client::try_connect(socket, export, false, &[]).expect("an NBD connection")
    }

    /// Connects, or says why not.
    ///
    /// # Errors
    /// The server closes the connection or refuses an option.
    pub fn try_connect(
        socket: &Path,
        export: &str,
        structured: bool,
        contexts: &[&str],
    ) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut hello = [0u8; 18];
        stream.read_exact(&mut hello)?;
        let magics = [INIT_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
        check(hello[..16] == magics, "the greeting of a newstyle server")?;
        // Fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        let mut client = Client { stream, size: 0, flags: 0, contexts: Vec::new(), structured };
        if structured {
            client.option(option::STRUCTURED_REPLY, &[])?;
        }
        let mut name = length(export.len()).to_be_bytes().to_vec();
        name.extend_from_slice(export.as_bytes());
        if !contexts.is_empty() {
            client.choose_contexts(&name, contexts)?;
        }
        name.extend_from_slice(&0u16.to_be_bytes());
        for reply in client.option(option::GO, &name)? {
            if reply[..2] == info::EXPORT.to_be_bytes() {
                client.size = u64::from_be_bytes(field(&reply, 2));
                client.flags = u16::from_be_bytes(field(&reply, 10));
            }
        }
        Ok(client)
    }

    fn choose_contexts(&mut self, name: &[u8], contexts: &[&str]) -> io::Result<()> {
        let mut data = name.to_vec();
        data.extend_from_slice(&length(contexts.len()).to_be_bytes());
        for context in contexts {
            data.extend_from_slice(&length(context.len()).to_be_bytes());
            data.extend_from_slice(context.as_bytes());
        }
        for reply in self.option(option::SET_META_CONTEXT, &data)? {
            let name = String::from_utf8_lossy(&reply[4..]).into_owned();
            self.contexts.push((u32::from_be_bytes(field(&reply, 0)), name));
        }
        check(self.contexts.len() == contexts.len(), "all contexts to be chosen")
    }

    /// Sends an option and takes its replies up to the acknowledgement.
    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&length(data.len()).to_be_bytes());
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        let mut replies = Vec::new();
        loop {
            let mut head = [0u8; 20];
            self.stream.read_exact(&mut head)?;
            check(head[..8] == OPTION_REPLY_MAGIC.to_be_bytes(), "an option reply")?;
            check(u32::from_be_bytes(field(&head, 8)) == option, "a reply to this option")?;
            let kind = u32::from_be_bytes(field(&head, 12));
            let mut data = vec![0; u32::from_be_bytes(field(&head, 16)) as usize];
            self.stream.read_exact(&mut data)?;
            match kind {
                option_reply::ACK => return Ok(replies),
                kind if kind >> 31 == 0 => replies.push(data),
                kind => {
                    let words = String::from_utf8_lossy(&data);
                    return Err(io::Error::other(format!("option {option}: {kind:#x} {words}")));
                }
            }
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The server has closed the connection.
    pub fn send(&mut self, ask: &Ask<'_>) -> io::Result<()> {
        let mut message = Vec::with_capacity(REQUEST_LEN + ask.payload.len());
        message.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message.extend_from_slice(&ask.flags.to_be_bytes());
        message.extend_from_slice(&ask.command.to_be_bytes());
        message.extend_from_slice(&ask.cookie.to_be_bytes());
        message.extend_from_slice(&ask.offset.to_be_bytes());
        message.extend_from_slice(&ask.length.to_be_bytes());
        message.extend_from_slice(ask.payload);
        self.stream.write_all(&message)
    }

    /// A second handle of the same connection, so that one thread can send while another receives.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Client> {
        let (size, flags, structured) = (self.size, self.flags, self.structured);
        let (stream, contexts) = (self.stream.try_clone()?, self.contexts.clone());
        Ok(Client { stream, size, flags, contexts, structured })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The server has closed the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Takes one answer. `read` is the length of the read it answers: a simple reply does not say.
    ///
    /// # Errors
    /// The connection ends, or what comes is no answer.
    pub fn receive(&mut self, read: u32) -> io::Result<Answer> {
        let mut answer = Answer::default();
        loop {
            let mut magic = [0u8; 4];
            self.stream.read_exact(&mut magic)?;
            match u32::from_be_bytes(magic) {
                SIMPLE_REPLY_MAGIC => {
                    check(answer.chunks.is_empty(), "no simple reply between chunks")?;
                    return self.receive_simple(read);
                }
                STRUCTURED_REPLY_MAGIC => check(self.structured, "only simple replies")?,
                other => return Err(io::Error::other(format!("a reply with magic {other:#x}"))),
            }
            let mut head = [0u8; CHUNK_HEADER_LEN - 4];
            self.stream.read_exact(&mut head)?;
            let kind = u16::from_be_bytes(field(&head, 2));
            let cookie = u64::from_be_bytes(field(&head, 4));
            check(answer.chunks.is_empty() || cookie == answer.cookie, "chunks of one answer")?;
            let mut payload = vec![0; u32::from_be_bytes(field(&head, 12)) as usize];
            self.stream.read_exact(&mut payload)?;
            answer.cookie = cookie;
            if kind == chunk::ERROR || kind == chunk::ERROR_OFFSET {
                answer.error = u32::from_be_bytes(field(&payload, 0));
            }
            answer.chunks.push((kind, payload));
            if u16::from_be_bytes(field(&head, 0)) & chunk_flag::DONE != 0 {
                return Ok(answer);
            }
        }
    }

    fn receive_simple(&mut self, read: u32) -> io::Result<Answer> {
        let mut head = [0u8; 12];
        self.stream.read_exact(&mut head)?;
        let (error, cookie) =
            (u32::from_be_bytes(field(&head, 0)), u64::from_be_bytes(field(&head, 4)));
        check(!self.structured || read == 0 || error != 0, "reads to be answered in chunks")?;
        let mut chunks = Vec::new();
        if error == 0 && read > 0 {
            let mut payload = vec![0; 8 + read as usize];
            self.stream.read_exact(&mut payload[8..])?;
            chunks.push((chunk::OFFSET_DATA, payload));
        }
        Ok(Answer { cookie, error, chunks })
    }

    /// Sends a request and takes its answer.
    ///
    /// # Panics
    /// The connection ends, or the answer is for another request.
    #[track_caller]
    pub fn ask(&mut self, ask: Ask<'_>) -> Answer {
        self.send(&ask).expect("send a request");
        let read = if ask.command == command::READ { ask.length } else { 0 };
        let answer = self.receive(read).expect("an answer");
        assert_eq!(answer.cookie, ask.cookie, "the answer to another request");
        answer
    }

    /// A request that has to succeed.
    #[track_caller]
    fn done(&mut self, ask: Ask<'_>) {
        let answer = self.ask(ask);
        assert_eq!(answer.error, 0, "command {} at {}: {answer:?}", ask.command, ask.offset);
    }

    /// Writes, which has to succeed.
    #[track_caller]
    pub fn write(&mut self, offset: u64, payload: &[u8]) {
        let length = length(payload.len());
        self.done(Ask { command: command::WRITE, offset, length, payload, ..Ask::default() });
    }

    /// Flushes, which has to succeed.
    #[track_caller]
    pub fn flush(&mut self) {
        self.done(Ask { command: command::FLUSH, ..Ask::default() });
    }

    /// Trims, which has to succeed.
    #[track_caller]
    pub fn trim(&mut self, offset: u64, length: u32) {
        self.done(Ask { command: command::TRIM, offset, length, ..Ask::default() });
    }

    /// Reads, which has to succeed.
    ///
    /// # Panics
    /// It does not, or the chunks do not make up the range.
    #[track_caller]
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let answer = self.ask(Ask { command: command::READ, offset, length, ..Ask::default() });
        assert_eq!(answer.error, 0, "read at {offset}");
        if !self.structured {
            return answer.chunks.first().map(|(_, data)| data[8..].to_vec()).unwrap_or_default();
        }
        assemble(&answer, offset, length)
    }

    /// Says goodbye; the server has to close the connection without another word.
    ///
    /// # Panics
    /// It says something, or does not close.
    #[track_caller]
    pub fn disconnect(mut self) {
        self.send(&Ask { command: command::DISC, ..Ask::default() }).expect("send DISC");
        assert_eq!(self.stream.read(&mut [0]).expect("the end of the stream"), 0);
    }

    /// Whether the server closes the connection, whatever it still sends.
    pub fn is_closed_by_server(&mut self) -> bool {
        let mut sink = [0u8; 4096];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// The bytes of a structured answer to a read.
#[track_caller]
fn assemble(answer: &Answer, offset: u64, length: u32) -> Vec<u8> {
    let mut data = vec![0xEE; length as usize];
    let mut covered = 0;
    for (kind, payload) in &answer.chunks {
        if *kind == chunk::NONE {
            continue;
        }
        let at = u64::from_be_bytes(field(payload, 0)) - offset;
        let at = usize::try_from(at).expect("within the answer");
        let count = match *kind {
            chunk::OFFSET_DATA => {
                data[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
                payload.len() - 8
            }
            chunk::OFFSET_HOLE => {
                let count = u32::from_be_bytes(field(payload, 8)) as usize;
                data[at..at + count].fill(0);
                count
            }
            other => panic!("a chunk of type {other} in the answer to a read"),
        };
        covered += count;
    }
    assert_eq!(covered, length as usize, "the chunks make up the range, once");
    data
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of this length")
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("less than 4 GiB")
}

fn check(holds: bool, expected: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(format!("expected {expected}"))) }
}
