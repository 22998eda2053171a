//! What the handshake asks of the rest of the daemon, and what it hands over.
//!
//! Invariants:
//! - only [`Exports::open`] may keep anything of an export in use, and it is called once, when the
//!   client enters the transmission phase;
//! - [`Capabilities`] alone decide the transmission flags: a client sees no flag from elsewhere.
//!
//! Absent: how disks and snapshots are found, and what their requests do.

use super::wire::transmission_flag as flag;
use crate::error::Result;

/// The metadata context of holes and data, which every export offers.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The metadata contexts of what changed since a snapshot: this, and the snapshot's name.
pub const DIRTY_PREFIX: &str = "rowd:dirty:";

/// The exports of a server. The real one knows disks by name and snapshots as `disk@snapshot`.
///
/// All calls run on a thread of the async runtime and have to answer from memory.
pub trait Exports {
    /// What an open export is to the transmission phase.
    type Target;

    /// Options other than `ABORT` are refused from then on.
    fn shutting_down(&self) -> bool;

    /// The exports a client may be shown. Others may exist and open by name.
    fn list(&self) -> Vec<Listing>;

    /// The export that an empty name means: the only disk, where there is exactly one.
    fn default_export(&self) -> Option<String>;

    /// Looks an export up, without keeping it in use.
    fn describe(&self, name: &str) -> Result<ExportInfo>;

    /// The snapshots that changes of this export can be told against, by name.
    fn dirty_bases(&self, name: &str) -> Result<Vec<String>>;

    /// Takes an export into use for one connection.
    fn open(&self, name: &str) -> Result<Opened<Self::Target>>;
}

/// One export in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// What a client learns about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name proper, whatever the client called it: equal names mean the same export.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Bytes.
    pub size: u64,
    pub capabilities: Capabilities,
}

/// An export in use by one connection, until the target is dropped.
#[derive(Debug)]
pub struct Opened<T> {
    pub target: T,
    pub info: ExportInfo,
}

/// What an export can do. Each one set here is a promise that a test keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub read_only: bool,
    pub flush: bool,
    pub fua: bool,
    pub trim: bool,
    pub write_zeroes: bool,
    /// `WRITE_ZEROES` that would be slow is refused when the client asks for that.
    pub fast_zero: bool,
    pub cache: bool,
    /// A flush on one connection covers the writes answered on all, and all see the same content.
    pub multi_conn: bool,
}

impl Capabilities {
    /// A disk.
    pub const WRITABLE: Capabilities = Capabilities {
        read_only: false,
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        cache: true,
        multi_conn: true,
    };

    /// A snapshot, or a disk set read-only. Flush and FUA stay: clients send them to any export,
    /// and nothing there can be lost.
    pub const READ_ONLY: Capabilities = Capabilities {
        read_only: true,
        trim: false,
        write_zeroes: false,
        fast_zero: false,
        ..Capabilities::WRITABLE
    };

    /// The transmission flags ("NBD protocol", doc/proto.md, "Transmission flags").
    ///
    /// `SEND_DF` depends on structured replies; `SEND_FAST_ZERO` must not be there without
    /// `SEND_WRITE_ZEROES`, and nothing that changes data with `READ_ONLY`.
    #[must_use]
    pub fn transmission_flags(self, structured: bool) -> u16 {
        let writable = !self.read_only;
        let write_zeroes = self.write_zeroes && writable;
        let table = [
            (true, flag::HAS_FLAGS),
            (self.read_only, flag::READ_ONLY),
            (self.flush, flag::SEND_FLUSH),
            (self.fua, flag::SEND_FUA),
            (self.trim && writable, flag::SEND_TRIM),
            (write_zeroes, flag::SEND_WRITE_ZEROES),
            (write_zeroes && self.fast_zero, flag::SEND_FAST_ZERO),
            (self.cache, flag::SEND_CACHE),
            (self.multi_conn, flag::CAN_MULTI_CONN),
            (structured, flag::SEND_DF),
        ];
        table.iter().filter(|(set, _)| *set).fold(0, |flags, (_, bit)| flags | bit)
    }
}

/// A metadata context the client chose for its block status requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedContext {
    /// Names the context in block status chunks.
    pub id: u32,
    pub name: String,
}

impl SelectedContext {
    /// The snapshot whose changes this context tells; `None` for `base:allocation`.
    #[must_use]
    pub fn dirty_base(&self) -> Option<&str> {
        self.name.strip_prefix(DIRTY_PREFIX)
    }
}

/// A handshake that ended with an export in use: everything the transmission phase depends on.
#[derive(Debug)]
pub struct Negotiated<T> {
    pub target: T,
    /// The export's name proper.
    pub export: String,
    /// Bytes, as told to the client.
    pub size: u64,
    pub capabilities: Capabilities,
    /// Replies to reads have to be structured, and all may be.
    pub structured: bool,
    /// Empty when block status must be refused.
    pub contexts: Vec<SelectedContext>,
    /// The client did without padding; of interest to logs only.
    pub no_zeroes: bool,
}

impl<T> Negotiated<T> {
    /// The transmission flags, as told to the client.
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.capabilities.transmission_flags(self.structured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transmission_flags_of_disks_and_snapshots() {
        let table = [
            (Capabilities::WRITABLE, false, 0b1101_0110_1101),
            (Capabilities::WRITABLE, true, 0b1101_1110_1101),
            (Capabilities::READ_ONLY, false, 0b0101_0000_1111),
            (Capabilities::READ_ONLY, true, 0b0101_1000_1111),
        ];
        for (capabilities, structured, expected) in table {
            let flags = capabilities.transmission_flags(structured);
            assert_eq!(flags, expected, "{capabilities:?} {structured} gave {flags:#b}");
        }
    }

    #[test]
    fn flags_that_need_another_are_never_alone() {
        let no_zeroes = Capabilities { write_zeroes: false, ..Capabilities::WRITABLE };
        assert_eq!(no_zeroes.transmission_flags(true) & flag::SEND_FAST_ZERO, 0);

        let frozen = Capabilities { read_only: true, ..Capabilities::WRITABLE };
        assert_eq!(
            frozen.transmission_flags(true),
            Capabilities::READ_ONLY.transmission_flags(true)
        );
    }

    #[test]
    fn a_context_knows_the_snapshot_it_compares_with() {
        let context = |name: &str| SelectedContext { id: 1, name: name.to_owned() };
        assert_eq!(context(BASE_ALLOCATION).dirty_base(), None);
        assert_eq!(context("rowd:dirty:a:b").dirty_base(), Some("a:b"));
    }
}
