//! The kernel's NBD client by generic netlink: connect a device, replace its sockets, disconnect it.
//!
//! Only what rowd says is here: four requests and their answers (linux/nbd-netlink.h, linux/genetlink.h).
//!
//! Invariants:
//! - one socket per call, so that answers cannot be mixed up, and each answer is checked for its number;
//! - nothing the kernel answers can make the parser read outside the message;
//! - a call may wait for I/O that this very process has to serve: never from a thread that serves any.
//!
//! Absent: the multicast group that tells of dead links. rowd holds the other end of each link and sees
//! it die there, earlier. Status: /sys tells more (`sysfs.rs`).

#![expect(clippy::host_endian_bytes, reason = "netlink speaks in the byte order of the host")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Message types and flags of netlink.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const HEADER_LEN: usize = 16;
/// Of generic netlink, behind the header.
const GENERIC_LEN: usize = 4;
/// The family that knows the numbers of the others.
const CONTROL_FAMILY: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_ATTR_ID: u16 = 1;
const CONTROL_ATTR_NAME: u16 = 2;
/// Set on attributes that hold attributes; not part of the type.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

const FAMILY: &str = "nbd";
const FAMILY_VERSION: u8 = 1;
/// Answers are a few dozen bytes; the one about a family is a few hundred.
const ANSWER_MAX: usize = 16 << 10;

/// Commands of the family.
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
}

/// Attributes of the family.
mod attr {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const CLIENT_FLAGS: u16 = 6;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    pub const SOCK_ITEM: u16 = 1;
    pub const SOCK_FD: u16 = 1;
}

/// A device as the kernel is to make it.
#[derive(Debug)]
pub struct Connect<'a> {
    pub index: u32,
    pub size: u64,
    pub block_size: u64,
    /// The flags an NBD server would send.
    pub server_flags: u16,
    /// Seconds that requests wait for a new connection when all are dead.
    pub dead_connection_s: u64,
    pub backend: &'a str,
    /// The kernel's ends; it keeps its own references.
    pub sockets: &'a [BorrowedFd<'a>],
}

/// What is to change at a device.
#[derive(Debug, Default)]
pub struct Reconfigure<'a> {
    pub index: u32,
    /// The kernel refuses when the device has another one.
    pub backend: &'a str,
    pub size: Option<u64>,
    pub dead_connection_s: Option<u64>,
    /// Each takes the place of a dead one; one too many is dropped in silence.
    pub sockets: &'a [BorrowedFd<'a>],
}

/// Why the kernel did not do it.
#[derive(Debug)]
pub enum Refusal {
    /// It has no NBD client: the module is not loaded.
    NoClient,
    Errno(Errno),
    /// The answer makes no sense.
    Garbled(&'static str),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::NoClient => f.write_str("this kernel has no NBD client loaded"),
            Refusal::Errno(errno) => write!(f, "{}", io::Error::from(*errno)),
            Refusal::Garbled(what) => write!(f, "an answer of the kernel makes no sense: {what}"),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Errno(errno)
    }
}

/// Makes a device out of sockets.
///
/// # Errors
/// `EBUSY` when the index is in use, `EPERM` without `CAP_SYS_ADMIN`.
pub fn connect(device: &Connect<'_>) -> Result<(), Refusal> {
    let mut body = Body::default();
    body.put_u32(attr::INDEX, device.index);
    body.put_u64(attr::SIZE_BYTES, device.size);
    body.put_u64(attr::BLOCK_SIZE_BYTES, device.block_size);
    // No limit on slow requests: with one, a slow disk below would end as I/O errors above.
    body.put_u64(attr::TIMEOUT, 0);
    body.put_u64(attr::DEAD_CONN_TIMEOUT, device.dead_connection_s);
    body.put_u64(attr::SERVER_FLAGS, u64::from(device.server_flags));
    // Neither DESTROY_ON_DISCONNECT nor DISCONNECT_ON_CLOSE: the last close of a remount must not end
    // the device.
    body.put_u64(attr::CLIENT_FLAGS, 0);
    body.put_string(attr::BACKEND_IDENTIFIER, device.backend);
    body.put_sockets(device.sockets);
    Link::open()?.ask(command::CONNECT, &body)
}

/// Changes a device: new sockets for dead ones, another size.
///
/// # Errors
/// `EINVAL` when it is not connected, or has another backend.
pub fn reconfigure(change: &Reconfigure<'_>) -> Result<(), Refusal> {
    let mut body = Body::default();
    body.put_u32(attr::INDEX, change.index);
    body.put_string(attr::BACKEND_IDENTIFIER, change.backend);
    if let Some(size) = change.size {
        body.put_u64(attr::SIZE_BYTES, size);
    }
    if let Some(seconds) = change.dead_connection_s {
        body.put_u64(attr::DEAD_CONN_TIMEOUT, seconds);
    }
    if !change.sockets.is_empty() {
        body.put_sockets(change.sockets);
    }
    Link::open()?.ask(command::RECONFIGURE, &body)
}

/// Ends a device. Requests that are not answered yet fail.
///
/// # Errors
/// There is no such device.
pub fn disconnect(index: u32) -> Result<(), Refusal> {
    let mut body = Body::default();
    body.put_u32(attr::INDEX, index);
    Link::open()?.ask(command::DISCONNECT, &body)
}

/// Whether the kernel has an NBD client.
///
/// # Errors
/// `NoClient` when it has none; netlink cannot be used.
pub fn probe() -> Result<(), Refusal> {
    Link::open().map(drop)
}

/// Attributes of a message.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("attributes are short");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_ne_bytes());
    }

    fn put_string(&mut self, kind: u16, value: &str) {
        self.put(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn put_sockets(&mut self, sockets: &[BorrowedFd<'_>]) {
        let mut items = Body::default();
        for socket in sockets {
            let mut item = Body::default();
            let fd = u32::try_from(socket.as_raw_fd()).expect("an open descriptor");
            item.put_u32(attr::SOCK_FD, fd);
            items.put(attr::SOCK_ITEM | NESTED, &item.0);
        }
        self.put(attr::SOCKETS | NESTED, &items.0);
    }
}

/// A netlink socket that knows the number of the family.
struct Link {
    fd: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Link {
    fn open() -> Result<Link, Refusal> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        let mut link = Link { fd, family: CONTROL_FAMILY, sequence: 0 };
        let mut body = Body::default();
        body.put_string(CONTROL_ATTR_NAME, FAMILY);
        let mut family = None;
        let answered = link.exchange(CONTROL_GET_FAMILY, &body, |attributes| {
            family = family.or(find(attributes, CONTROL_ATTR_ID).and_then(as_u16));
        });
        match answered {
            Err(Refusal::Errno(Errno::ENOENT)) => return Err(Refusal::NoClient),
            other => other?,
        }
        link.family = family.ok_or(Refusal::Garbled("a family without a number"))?;
        Ok(link)
    }

    /// Asks for something that is answered by success or an error.
    fn ask(&mut self, command: u8, body: &Body) -> Result<(), Refusal> {
        self.exchange(command, body, |_| {})
    }

    /// Sends a request and hands the attributes of each answer to `each`, up to the acknowledgement.
    fn exchange(
        &mut self,
        command: u8,
        body: &Body,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        self.sequence += 1;
        let message = request(self.family, command, self.sequence, &body.0);
        let kernel = NetlinkAddr::new(0, 0);
        loop {
            match sendto(self.fd.as_raw_fd(), &message, &kernel, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => break,
            }
        }
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let got = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for message in messages(&buffer[..got])? {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR => return acknowledged(message.payload),
                    NLMSG_DONE => return Ok(()),
                    _ => each(message.payload.get(GENERIC_LEN..).unwrap_or_default()),
                }
            }
        }
    }
}

fn request(family: u16, command: u8, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_LEN + GENERIC_LEN + attributes.len()).expect("short messages");
    let mut message = Vec::with_capacity(HEADER_LEN + GENERIC_LEN + attributes.len());
    message.extend(len.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend([command, FAMILY_VERSION, 0, 0]);
    message.extend(attributes);
    message
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Takes a datagram apart.
fn messages(mut datagram: &[u8]) -> Result<Vec<Message<'_>>, Refusal> {
    let mut found = Vec::new();
    while datagram.len() >= HEADER_LEN {
        let len = as_u32(&datagram[..4]).unwrap_or(0) as usize;
        let (Some(whole), true) = (datagram.get(..len), len >= HEADER_LEN) else {
            return Err(Refusal::Garbled("a length outside the message"));
        };
        let kind = as_u16(&whole[4..6]).unwrap_or(0);
        let sequence = as_u32(&whole[8..12]).unwrap_or(0);
        found.push(Message { kind, sequence, payload: &whole[HEADER_LEN..] });
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// What an acknowledgement says: 0, or an errno below 0.
fn acknowledged(payload: &[u8]) -> Result<(), Refusal> {
    let code = payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    match code.ok_or(Refusal::Garbled("an acknowledgement without a code"))? {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.checked_neg().unwrap_or(i32::MAX)).into()),
    }
}

/// The value of the first attribute of a type.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let len = usize::from(as_u16(&attributes[..2])?);
        let kind = as_u16(&attributes[2..4])? & TYPE_MASK;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn as_u16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn as_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut body = Body::default();
        body.put_string(attr::BACKEND_IDENTIFIER, "rowd:d-1");
        body.put_u32(attr::INDEX, 7);
        body.put_u64(attr::SIZE_BYTES, 1 << 40);
        assert_eq!(body.0.len() % 4, 0);
        assert_eq!(find(&body.0, attr::BACKEND_IDENTIFIER), Some(&b"rowd:d-1\0"[..]));
        assert_eq!(find(&body.0, attr::INDEX).and_then(as_u32), Some(7));
        assert_eq!(find(&body.0, attr::SIZE_BYTES), Some(&(1u64 << 40).to_ne_bytes()[..]));
        assert_eq!(find(&body.0, attr::SOCKETS), None);
    }

    #[test]
    fn sockets_are_items_in_a_list() {
        let (one, two) = UnixStream::pair().unwrap();
        let mut body = Body::default();
        body.put_sockets(&[one.as_fd(), two.as_fd()]);
        let items = find(&body.0, attr::SOCKETS).unwrap();
        let first = find(items, attr::SOCK_ITEM).unwrap();
        let fd = find(first, attr::SOCK_FD).and_then(as_u32).unwrap();
        assert_eq!(i64::from(fd), i64::from(one.as_raw_fd()));
        assert_eq!(items.len(), 2 * (4 + 8), "two items of one attribute each");
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_wants_it() {
        let message = request(0x1c, command::DISCONNECT, 3, &[8, 0, 1, 0, 5, 0, 0, 0]);
        assert_eq!(message.len(), 28);
        let parsed = messages(&message).unwrap();
        assert_eq!((parsed.len(), parsed[0].kind, parsed[0].sequence), (1, 0x1c, 3));
        assert_eq!(parsed[0].payload[..2], [command::DISCONNECT, FAMILY_VERSION]);
    }

    #[test]
    fn acknowledgements_are_success_or_an_errno() {
        assert!(acknowledged(&0i32.to_ne_bytes()).is_ok());
        let refused = acknowledged(&(-16i32).to_ne_bytes());
        assert!(matches!(refused, Err(Refusal::Errno(Errno::EBUSY))), "{refused:?}");
        assert!(matches!(acknowledged(&[1]), Err(Refusal::Garbled(_))));
        assert!(acknowledged(&i32::MIN.to_ne_bytes()).is_err());
    }

    /// The kernel is trusted with the data, but not to be read beyond the end of what it sent.
    #[test]
    fn a_message_cut_anywhere_is_refused_or_shorter_and_never_overread() {
        let mut body = Body::default();
        body.put_string(CONTROL_ATTR_NAME, FAMILY);
        body.put_u32(attr::INDEX, 7);
        let whole = request(CONTROL_FAMILY, 1, 1, &body.0);
        for end in 0..whole.len() {
            let parsed = messages(&whole[..end]);
            assert!(parsed.is_err() || end < HEADER_LEN, "{end}");
        }
        for end in 0..body.0.len() {
            assert_eq!(find(&body.0[..end], attr::INDEX), None, "{end}");
        }
        for len in [0u32, 1, 15, u32::MAX] {
            let mut broken = whole.clone();
            broken[..4].copy_from_slice(&len.to_ne_bytes());
            assert!(messages(&broken).is_err(), "{len}");
        }
    }

    #[test]
    fn a_family_that_does_not_exist_is_told_from_other_trouble() {
        // Where the module is loaded there is nothing to see here.
        match probe() {
            Ok(()) | Err(Refusal::NoClient) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
