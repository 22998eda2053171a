//! The records of copies in a repository: what a copy is, that it is under way, that it is deleted.
//!
//! Invariants: a copy exists if and only if its header does; the key of a header says which copy of which
//! snapshot it is, and a header under another key is refused.
//! Absent: what copies hold (`table.rs`).

use serde::{Deserialize, Serialize};

use super::format::{RECORD_MAX, VERSION, open, sha256_hex};
use super::store::Store;
use super::table::{TABLE_MAX, Table};
use crate::engine::api::{Consistency, Tags};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, DiskId, SnapshotId};

pub const COPIES: &str = "copies";
pub const UPLOADS: &str = "uploads";
pub const DELETED: &str = "deleted";

/// A copy that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub version: u32,
    pub id: CopyId,
    pub snapshot: SnapshotId,
    pub snapshot_name: String,
    pub disk: DiskId,
    pub disk_name: String,
    /// Bytes of the disk at the instant of the snapshot.
    pub size: u64,
    /// When the snapshot was made.
    pub created_at: u64,
    /// When the copy was complete.
    pub copied_at: u64,
    /// The pool it was copied from.
    pub writer: String,
    pub consistency: Consistency,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub tags: Tags,
    /// The copy that it was made as changes of.
    #[serde(default)]
    pub base: Option<CopyId>,
    /// SHA-256 of the object with the table.
    pub table_sum: String,
    /// Bytes of that object, and of the table in it.
    pub table_stored: u64,
    pub table_raw: u64,
    /// The copies whose chunks it needs.
    pub owners: Vec<CopyId>,
    /// Bytes of the disk that are held in chunks.
    pub data_bytes: u64,
    /// Bytes of blocks that were new with this copy, and what they took as objects.
    pub new_bytes: u64,
    pub new_stored: u64,
}

/// A copy that is under way: what it may need is not to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub id: CopyId,
    /// The pool it is copied from.
    pub writer: String,
    /// When this was last written.
    pub at: u64,
}

/// A copy that is deleted, and some of whose chunks may still be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    pub id: CopyId,
    pub at: u64,
}

impl Header {
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.id, &self.snapshot)
    }

    #[must_use]
    pub fn table_key(&self) -> String {
        table_key(&self.id)
    }

    /// Reads the header under a key.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`, naming it; `Unsupported`.
    pub async fn read(store: &Store, key: &str) -> Result<Header> {
        let header: Header = open(key, &store.get(key, RECORD_MAX).await?)?;
        if header.version != VERSION {
            let message =
                format!("{key} has version {}; this rowd knows {VERSION}", header.version);
            return Err(Error::new(ErrorKind::Unsupported, message).hint("use a newer rowd"));
        }
        if header.key() != key {
            let id = &header.id;
            return Err(Error::corrupt(format!(
                "{key} in the repository is damaged: it is of {id}"
            )));
        }
        Ok(header)
    }

    /// Reads the table of the copy.
    ///
    /// # Errors
    /// `Corrupt`, naming it.
    pub async fn table(&self, store: &Store) -> Result<Table> {
        let key = self.table_key();
        let bytes = store.get(&key, TABLE_MAX).await.map_err(|error| missing(&key, error))?;
        if bytes.len() as u64 != self.table_stored || sha256_hex(&bytes) != self.table_sum {
            let message = format!("{key} in the repository is damaged: it is not what was written");
            return Err(Error::corrupt(message));
        }
        Table::decode(&key, &bytes, self.table_raw, self.size)
    }
}

/// The key of a header.
#[must_use]
pub fn key(id: &CopyId, snapshot: &SnapshotId) -> String {
    format!("{COPIES}/{id}.{snapshot}")
}

#[must_use]
pub fn table_key(id: &CopyId) -> String {
    format!("tables/{id}")
}

/// The copy and the snapshot that the key of a header names.
#[must_use]
pub fn parse_key(key: &str) -> Option<(CopyId, SnapshotId)> {
    let (id, snapshot) = key.strip_prefix(COPIES)?.strip_prefix('/')?.split_once('.')?;
    Some((CopyId::from(id), SnapshotId::from(snapshot)))
}

/// What should be there and is not is damage.
pub fn missing(key: &str, error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::corrupt(format!("{key} in the repository is missing"))
            .hint("was the copy deleted by another daemon meanwhile?"),
        _ => error,
    }
}
