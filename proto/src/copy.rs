//! Copies on the wire: snapshots as they are kept in repositories.
//!
//! Invariants: a `copy` parameter takes an id or a unique beginning of one; without `repo` all repositories are
//! asked.
//! Absent: the repositories (`repo.rs`).

use serde::{Deserialize, Serialize};

use crate::{Disk, Job, Tags, Time};

/// Begins to copy a snapshot, or a copy in another repository, to a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyCreate {
    /// A snapshot that is here; or the id of a copy, or of a snapshot that only repositories have.
    pub snapshot: String,
    pub repo: String,
    /// The repository that has the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the snapshot is called there; left out: as it is called here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Those of the snapshot are not copied.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// Lists copies, those under way included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyList {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
}

/// Describes one copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyShow {
    pub copy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
}

/// Reads a copy back and checks every byte, as a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyVerify {
    pub copy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
}

/// Tries a copy that failed again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRetry {
    pub copy: String,
}

/// Deletes a copy, or cancels one that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyDelete {
    pub copy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
}

/// Makes a disk of a copy. It can be used at once: what it lacks is fetched when it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRestore {
    pub copy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The name of the disk.
    pub name: String,
    /// Bytes; left out: those of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Store the disk as ciphertext, with a key of its own. A disk of an encrypted copy is encrypted anyway.
    #[serde(default)]
    pub encrypted: bool,
    /// The disk can be used when it has all its contents, and not at once.
    #[serde(default)]
    pub full: bool,
}

/// How a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyStatus {
    Progressing,
    Accomplished,
    /// It stopped; `copy.retry` goes on.
    Failed,
    /// It was complete; now something is wrong with it.
    Damaged,
}

/// The reply to `copy.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    pub copies: Vec<Copy>,
}

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    pub id: String,
    pub repo: String,
    pub snapshot_id: String,
    pub status: CopyStatus,
    /// Percent; 100 only when it is accomplished.
    pub progress: u8,
    /// While it is under way.
    pub job: Option<String>,
    /// Seconds left, as far as can be told.
    pub remaining_s: Option<u64>,
    /// Why it failed, or what is wrong with it.
    pub reason: Option<String>,
    /// The id of the policy that made it, if one did.
    #[serde(default)]
    pub policy_id: Option<String>,
    /// When the policy has it deleted, if it is kept for a time.
    #[serde(default)]
    pub expires_at: Option<Time>,
    /// What follows is known of complete copies only.
    pub detail: Option<CopyDetail>,
}

/// What a complete copy says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDetail {
    pub snapshot_name: String,
    pub disk_id: String,
    pub disk_name: String,
    pub size: u64,
    /// When the snapshot was made.
    pub created_at: Time,
    /// When the copy was complete.
    pub copied_at: Time,
    pub consistency: crate::Consistency,
    pub description: String,
    pub tags: Tags,
    /// The copy it was made as changes of.
    pub base: Option<String>,
    /// Bytes of the disk that it holds.
    pub data_bytes: u64,
    /// Bytes of blocks that were new with it, and what they took when they were sent.
    pub new_bytes: u64,
    pub sent_bytes: u64,
    /// The pool it was copied from.
    pub writer: String,
    /// The copy it was made of, in another repository.
    pub source: Option<String>,
    /// It is stored as ciphertext, and a disk of it is encrypted.
    pub encrypted: bool,
    /// The id of the master key that wraps its key.
    pub master: Option<String>,
}

/// The reply to `copy.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDeleted {
    pub id: String,
}

/// The reply to `copy.restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRestored {
    pub disk: Disk,
    pub job: Job,
}
