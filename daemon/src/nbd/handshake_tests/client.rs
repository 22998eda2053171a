//! A client made of bytes, and exports for it to ask for.
//!
//! Absent: tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::negotiate;
use crate::error::{Error, Result};
use crate::nbd::exports::{Capabilities, ExportInfo, Exports, Listing, Negotiated, Opened};
use crate::nbd::wire::{option, option_reply as reply};

/// Two disks, `db` and `web`, with a snapshot of every name; changes can be told for `db` only.
pub struct Shelf {
    pub disks: Vec<&'static str>,
    pub bases: Vec<String>,
    pub shutting_down: bool,
    pub in_use: Arc<AtomicUsize>,
    pub opened: AtomicUsize,
}

/// An open export, counted while it lives.
#[derive(Debug)]
pub struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shelf {
    pub fn new() -> Shelf {
        Shelf {
            disks: vec!["db", "web"],
            bases: vec!["mon".to_owned(), "tue".to_owned()],
            shutting_down: false,
            in_use: Arc::default(),
            opened: AtomicUsize::new(0),
        }
    }
}

pub const SIZE: u64 = 0x1_0000_1000;

impl Exports for Shelf {
    type Target = Held;

    fn shutting_down(&self) -> bool {
        self.shutting_down
    }

    fn list(&self) -> Vec<Listing> {
        let listing =
            |name: &&str| Listing { name: (*name).to_owned(), description: "a disk".to_owned() };
        self.disks.iter().map(listing).collect()
    }

    fn default_export(&self) -> Option<String> {
        match self.disks[..] {
            [only] => Some(only.to_owned()),
            _ => None,
        }
    }

    fn describe(&self, name: &str) -> Result<ExportInfo> {
        let (disk, snapshot) = name.split_once('@').unzip();
        if !self.disks.contains(&disk.unwrap_or(name)) {
            return Err(Error::not_found(format!("there is no disk {name:?}")));
        }
        let capabilities = match snapshot {
            Some(_) => Capabilities::READ_ONLY,
            None => Capabilities::WRITABLE,
        };
        let description = if name == "web" { String::new() } else { format!("this is {name}") };
        Ok(ExportInfo { name: name.to_owned(), description, size: SIZE, capabilities })
    }

    fn dirty_bases(&self, name: &str) -> Result<Vec<String>> {
        Ok(if name == "db" { self.bases.clone() } else { Vec::new() })
    }

    fn open(&self, name: &str) -> Result<Opened<Held>> {
        let info = self.describe(name)?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Ok(Opened { target: Held(Arc::clone(&self.in_use)), info })
    }
}

/// The bytes a client sends.
#[derive(Clone)]
pub struct Script(pub Vec<u8>);

impl Script {
    /// A client that sets both handshake flags.
    pub fn new() -> Script {
        Script::with_flags(3)
    }

    pub fn with_flags(flags: u32) -> Script {
        Script(flags.to_be_bytes().to_vec())
    }

    pub fn option(self, option: u32, data: &[u8]) -> Script {
        let length = u32::try_from(data.len()).unwrap();
        self.header(option, length).bytes(data)
    }

    pub fn header(mut self, option: u32, length: u32) -> Script {
        self.0.extend_from_slice(b"IHAVEOPT");
        self.0.extend_from_slice(&option.to_be_bytes());
        self.0.extend_from_slice(&length.to_be_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Script {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn structured(self) -> Script {
        self.option(option::STRUCTURED_REPLY, &[])
    }

    pub fn go(self, export: &str) -> Script {
        self.option(option::GO, &info_data(export, &[]))
    }

    pub fn set_contexts(self, export: &str, queries: &[&str]) -> Script {
        self.option(option::SET_META_CONTEXT, &context_data(export, queries))
    }
}

pub fn string_data(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

pub fn info_data(export: &str, wanted: &[u16]) -> Vec<u8> {
    let count = u16::try_from(wanted.len()).unwrap();
    let wanted: Vec<u8> = wanted.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [string_data(export), count.to_be_bytes().to_vec(), wanted].concat()
}

pub fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string_data(query)).collect();
    [string_data(export), count.to_be_bytes().to_vec(), queries].concat()
}

/// One option reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub option: u32,
    pub code: u32,
    pub data: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8(self.data.clone()).unwrap()
    }
}

/// What came of a script.
pub struct Outcome {
    pub result: Result<Option<Negotiated<Held>>>,
    /// Everything after the greeting.
    pub sent: Vec<u8>,
    /// What the handshake left unread.
    pub unread: Vec<u8>,
}

impl Outcome {
    pub fn replies(&self) -> Vec<Reply> {
        let mut rest = &self.sent[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(&rest[..8], b"\0\x03\xe8\x89\x04\x55\x65\xa9");
            let end = 20 + usize::try_from(word(16)).unwrap();
            replies.push(Reply { option: word(8), code: word(12), data: rest[20..end].to_vec() });
            rest = &rest[end..];
        }
        replies
    }

    pub fn codes(&self) -> Vec<u32> {
        self.replies().iter().map(|reply| reply.code).collect()
    }

    pub fn negotiated(&self) -> &Negotiated<Held> {
        self.result.as_ref().unwrap().as_ref().expect("an export in use")
    }

    pub fn left(&self) -> bool {
        matches!(self.result, Ok(None))
    }
}

/// Plays a script against a fresh handshake. The client reads everything and closes after its last
/// byte.
pub async fn play(exports: &Shelf, script: &[u8]) -> Outcome {
    let (client, mut server) = tokio::io::duplex(1 << 12);
    let (mut from_server, mut to_server) = tokio::io::split(client);
    let serve = async {
        let result = negotiate(&mut server, exports).await;
        let mut unread = Vec::new();
        if matches!(result, Ok(Some(_))) {
            server.read_to_end(&mut unread).await.unwrap();
        }
        drop(server);
        (result, unread)
    };
    let talk = async {
        // A server that closed early is no fault of the script.
        if to_server.write_all(script).await.is_ok() {
            to_server.shutdown().await.unwrap();
        }
    };
    let mut sent = Vec::new();
    let ((result, unread), (), read) =
        tokio::join!(serve, talk, from_server.read_to_end(&mut sent));
    read.unwrap();
    let greeting = sent.drain(..18).collect::<Vec<u8>>();
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
    Outcome { result, sent, unread }
}

pub async fn run(script: Script) -> Outcome {
    play(&Shelf::new(), &script.0).await
}

/// Sends one option and then `ABORT`, and returns the code of the option's last reply. That the
/// `ABORT` is acknowledged shows that the server kept in step.
pub async fn probe(script: Script, option: u32, data: &[u8]) -> Reply {
    let outcome = run(script.option(option, data).option(option::ABORT, &[])).await;
    assert!(outcome.left(), "{:?}", outcome.result);
    let mut replies = outcome.replies();
    let last = replies.pop().unwrap();
    assert_eq!((last.option, last.code), (option::ABORT, reply::ACK));
    let answer = replies.pop().unwrap();
    assert_eq!(answer.option, option);
    answer
}
