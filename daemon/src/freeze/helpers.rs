//! The daemon's side of its freeze helpers: the ends of their sockets, and the record of what is about to be
//! frozen.
//!
//! Invariants: as in `wire.rs` and `record.rs`, of which the helper is built too.
//! Absent: anything that the helper needs itself: nothing in it is unused.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::record::Record;

/// The two ends: ours, and the helper's.
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Whole milliseconds of a limit.
#[must_use]
pub fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

impl Record {
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string(self)?;
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?
            .write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::super::record::{Recorded, boot};
    use super::super::wire::{Order, receive, send};
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_directories_and_the_end_is_seen() {
        let (ours, theirs) = pair().unwrap();
        let directory = std::fs::File::open("/").unwrap();
        let hold = Order::Hold { depths: vec![1, 0] };
        send(&ours, &hold, &[directory.as_fd(), directory.as_fd()]).unwrap();
        send(&ours, &Order::Freeze { limit_ms: millis(Duration::from_secs(2)) }, &[]).unwrap();
        let (order, held) = receive::<Order>(&theirs).unwrap().unwrap();
        assert_eq!((order, held.len()), (hold, 2));
        let held: std::fs::File = held.into_iter().next().unwrap().into();
        assert_eq!(held.metadata().unwrap().ino(), directory.metadata().unwrap().ino());
        let (order, held) = receive::<Order>(&theirs).unwrap().unwrap();
        assert_eq!((order, held.len()), (Order::Freeze { limit_ms: 2000 }, 0));
        drop(ours);
        assert!(receive::<Order>(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_record_counts_in_its_own_boot_only() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("frozen.json");
        assert_eq!(Record::read(&path).unwrap(), None);
        let member = Recorded { device: "7:0".to_owned(), mount_point: "/srv".to_owned() };
        let mut record =
            Record { boot: boot(), what: "db@x".to_owned(), members: vec![member], hurried: true };
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), Some(record.clone()));
        record.boot = "another".to_owned();
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), None);
        fs::write(&path, "{").unwrap();
        assert!(Record::read(&path).is_err());
        Record::remove(&path).unwrap();
        Record::remove(&path).unwrap();
    }
}
