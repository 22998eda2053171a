//! A fast NBD client for filling, trimming and reading: many requests on the way, one thread.
//!
//! Invariants: an error of the server ends the program; replies may come in any order.
//! Absent: structured replies, and checking what was read; the tests do that.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Requests on the way in bulk work.
const WINDOW: usize = 16;
/// Bytes of one request in bulk work.
const PIECE: u64 = 1 << 20;
/// What copying programs send. It matters: the page cache keeps a file in units as large as the writes that
/// made it, and small writes to large units are slow in some file systems.
const FILL_PIECE: u64 = 256 << 10;
/// The longest TRIM that a 32-bit length holds in whole blocks.
const TRIM_MAX: u64 = (1 << 32) - 4096;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;

/// A request.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    Read(u64, u32),
    /// Bytes that do not compress, different for each seed.
    Write(u64, u32, u64),
    Trim(u64, u32),
    Flush,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Client {
    input: BufReader<UnixStream>,
    output: UnixStream,
    noise: Vec<u8>,
}

impl Client {
    pub fn connect(socket: &Path, export: &str) -> Client {
        let output = UnixStream::connect(socket).expect("connect to an NBD server");
        let input = BufReader::with_capacity(1 << 20, output.try_clone().expect("a second handle"));
        let mut client = Client { input, output, noise: noise() };
        client.negotiate(export);
        client
    }

    /// Sends all requests with `depth` on the way, and takes all replies.
    pub fn drive(&mut self, depth: usize, asks: impl IntoIterator<Item = Ask>) {
        let mut asks = asks.into_iter().peekable();
        let (mut out, mut trash) = (Vec::new(), Vec::new());
        let (mut sent, mut in_flight) = (0u64, 0usize);
        while in_flight > 0 || asks.peek().is_some() {
            while in_flight < depth {
                let Some(ask) = asks.next() else { break };
                self.encode(&mut out, sent, ask);
                (sent, in_flight) = (sent + 1, in_flight + 1);
            }
            self.output.write_all(&out).expect("send to an NBD server");
            out.clear();
            self.reply(&mut trash);
            in_flight -= 1;
            // What has arrived already is taken before the next send.
            while in_flight > 0 && self.input.buffer().len() >= 16 {
                self.reply(&mut trash);
                in_flight -= 1;
            }
        }
    }

    /// Writes every byte of a range once, and flushes.
    pub fn fill(&mut self, offset: u64, length: u64, seed: u64) {
        let writes = pieces(offset, length, FILL_PIECE).map(|(at, n)| Ask::Write(at, n, seed));
        self.drive(WINDOW, writes);
        self.drive(1, [Ask::Flush]);
    }

    /// Reads a range once: the server's caches are warm then.
    pub fn read_all(&mut self, length: u64) {
        self.drive(WINDOW, pieces(0, length, PIECE).map(|(at, n)| Ask::Read(at, n)));
    }

    /// Trims a range with as few requests as possible.
    pub fn trim_all(&mut self, length: u64) {
        self.drive(WINDOW, pieces(0, length, TRIM_MAX).map(|(at, n)| Ask::Trim(at, n)));
    }

    fn negotiate(&mut self, export: &str) {
        let mut hello = [0; 18];
        self.input.read_exact(&mut hello).expect("a greeting");
        assert_eq!(&hello[8..16], OPTION_MAGIC, "not a newstyle NBD server");
        let length = u32::try_from(export.len()).expect("a short name");
        // Fixed newstyle, no zeroes.
        let mut out = 3u32.to_be_bytes().to_vec();
        out.extend_from_slice(OPTION_MAGIC);
        out.extend_from_slice(&OPT_GO.to_be_bytes());
        out.extend_from_slice(&(length + 6).to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(export.as_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        self.output.write_all(&out).expect("send to an NBD server");
        loop {
            let mut head = [0; 20];
            self.input.read_exact(&mut head).expect("a reply to an option");
            assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes(), "no reply to an option");
            let mut payload = vec![0; number(&head[16..20]).try_into().expect("a length")];
            self.input.read_exact(&mut payload).expect("a reply to an option");
            match number(&head[12..16]) {
                REPLY_ACK => return,
                REPLY_INFO => {}
                other => panic!("the server refuses {export}: {other:#x}"),
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>, index: u64, ask: Ask) {
        let (kind, offset, length) = match ask {
            Ask::Read(offset, length) => (0u16, offset, length),
            Ask::Write(offset, length, _) => (1, offset, length),
            Ask::Flush => (3, 0, 0),
            Ask::Trim(offset, length) => (4, offset, length),
        };
        // The cookie remembers how many bytes the reply brings.
        let expected = if kind == 0 { u64::from(length) } else { 0 };
        out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(index << 32 | expected).to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        if let Ask::Write(_, length, seed) = ask {
            let length = usize::try_from(length).expect("a length");
            let room = self.noise.len() - length;
            let mixed = (index ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            let start = usize::try_from(mixed).expect("a number") % (room + 1);
            out.extend_from_slice(&self.noise[start..start + length]);
        }
    }

    fn reply(&mut self, trash: &mut Vec<u8>) {
        let mut head = [0; 16];
        self.input.read_exact(&mut head).expect("a reply of the NBD server");
        assert_eq!(number(&head[..4]), SIMPLE_MAGIC, "not a simple reply");
        assert_eq!(number(&head[4..8]), 0, "the server reports an error");
        let length = usize::try_from(number(&head[12..16])).expect("a length");
        trash.resize(length.max(trash.len()), 0);
        self.input.read_exact(&mut trash[..length]).expect("the data of a reply");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut goodbye = REQUEST_MAGIC.to_be_bytes().to_vec();
        goodbye.extend_from_slice(&[0, 0, 0, 2]);
        goodbye.resize(28, 0);
        // A server that is gone needs no goodbye.
        self.output.write_all(&goodbye).ok();
    }
}

/// A range in pieces.
fn pieces(offset: u64, length: u64, piece: u64) -> impl Iterator<Item = (u64, u32)> {
    let count = length.div_ceil(piece);
    (0..count).map(move |index| {
        let at = index * piece;
        let bytes = piece.min(length - at);
        (offset + at, u32::try_from(bytes).expect("a piece is below 4 GiB"))
    })
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

/// Bytes that do not compress: four pieces, of which each write takes one from a place of its own.
pub fn noise() -> Vec<u8> {
    let mut state = 0x853c_49e6_748f_ea9b_u64;
    let words = 4 * PIECE / 8;
    (0..words).flat_map(|_| random(&mut state).to_be_bytes()).collect()
}

/// The next number of a xorshift generator, whose state is not zero.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}
