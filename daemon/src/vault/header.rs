//! The records of copies in a repository: what a copy is, that it is under way, that it is deleted.
//!
//! Invariants: a copy exists if and only if its header does; the key of a header says which copy of which
//! snapshot it is, and a header under another key is refused.
//! Absent: what copies hold (`table.rs`).

use serde::{Deserialize, Serialize};

use super::format::{PARTS_VERSION, RECORD_MAX, SEALED_VERSION, VERSION, open, sha256_hex};
use super::parts::{self, Parts, Root};
use super::store::Store;
use super::table::{TABLE_MAX, Table};
use crate::crypt::master::Wrapped;
use crate::engine::api::{Consistency, Tags};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, DiskId, RepoId, SnapshotId};

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
    /// Of a table in parts: how it is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// The copies whose chunks it needs.
    pub owners: Vec<CopyId>,
    /// Bytes of the disk that are held in chunks.
    pub data_bytes: u64,
    /// Bytes of blocks that were new with this copy, and what they took as objects.
    pub new_bytes: u64,
    pub new_stored: u64,
    /// Of a copy of a copy: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
    /// Of a copy of an encrypted disk: what its chunks are encrypted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

/// A copy in another repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub repo: RepoId,
    pub copy: CopyId,
}

/// How a copy is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub cipher: String,
    /// Which key it is, the same for all copies of a family of disks.
    pub key_id: String,
    /// The key, wrapped by a master key.
    pub wrapped: Wrapped,
    /// A sum that only who has the key can make: over what the copy is of, and over all it holds.
    pub sum: String,
}

/// A copy that is under way: what it may need is not to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub id: CopyId,
    /// The pool it is copied from.
    pub writer: String,
    /// When this was last written.
    pub at: u64,
    /// In the target of a copy of a copy: the header of the source, which may be deleted meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Box<Header>>,
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
        if header.version != header.right_version() {
            let message =
                format!("{key} has version {}; this rowd does not know it", header.version);
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

    /// The version of a header that says what this one does.
    #[must_use]
    pub fn right_version(&self) -> u32 {
        match (&self.parts, &self.sealed) {
            (Some(_), _) => PARTS_VERSION,
            (None, Some(_)) => SEALED_VERSION,
            (None, None) => VERSION,
        }
    }

    /// Takes note of the table, in parts of so many rows or in one piece. Returns the object to write.
    ///
    /// # Errors
    /// It is too large.
    pub fn set_table(&mut self, table: &Table, rows: Option<u32>) -> Result<Vec<u8>> {
        let (bytes, parts) = match rows {
            Some(rows) => parts::encode(table, rows).map(|(bytes, parts)| (bytes, Some(parts)))?,
            None => (table.encode()?, None),
        };
        self.parts = parts;
        self.table_sum = sha256_hex(&bytes);
        self.table_stored = bytes.len() as u64;
        self.table_raw = table.encoded_bytes();
        self.owners = table.owners();
        Ok(bytes)
    }

    /// What the sum of an encrypted copy is made of, of a copy with these contents. Neither names nor the copy's
    /// own id are in it: another repository may keep the same contents as another copy.
    #[must_use]
    pub fn signed(&self, contents: &str) -> Vec<u8> {
        let Header { snapshot, disk, size, created_at, .. } = self;
        format!("{snapshot} {disk} {size} {created_at} {contents}").into_bytes()
    }

    /// A sum of all that the table of the copy holds.
    #[must_use]
    pub fn contents(&self, table: &Table) -> String {
        match &self.parts {
            Some(parts) => parts::contents_sum(table, parts.rows),
            None => table.contents_sum(),
        }
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
        match &self.parts {
            Some(parts) => parts::decode(&key, &bytes, parts, self.size),
            None => Table::decode(&key, &bytes, self.table_raw, self.size),
        }
    }

    /// Reads the root of a table that is in parts; nothing when it is not.
    ///
    /// # Errors
    /// `Corrupt`, naming it.
    pub async fn root(&self, store: &Store) -> Result<Option<Root>> {
        let Some(parts) = &self.parts else { return Ok(None) };
        let key = self.table_key();
        let length = parts.root.min(TABLE_MAX);
        let bytes = store.get_range(&key, 0..length).await.map_err(|e| missing(&key, e))?;
        Root::read(&key, &bytes, parts, self.table_stored, self.size).map(Some)
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

/// Whether a copy that cannot be read so is left aside where others will do: it was deleted this instant, is
/// damaged, or is of a newer rowd.
#[must_use]
pub fn is_passed_over(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Unsupported)
}

/// What should be there and is not is damage.
pub fn missing(key: &str, error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::corrupt(format!("{key} in the repository is missing"))
            .hint("was the copy deleted by another daemon meanwhile?"),
        _ => error,
    }
}
