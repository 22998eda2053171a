//! Disks on the wire.
//!
//! Invariants: a `disk` parameter takes an id, a unique prefix of one, or a name.
//! Absent: mounting, which `rowctl` does as whoever asks.

use serde::{Deserialize, Serialize};

use crate::{Tags, Time};

/// Makes a disk, blank or from a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskCreate {
    pub name: String,
    /// Bytes, a multiple of 4096. May be left out with `from`: then the size of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The snapshot the disk starts as; or an image, whose system disk it starts as, or a family of
    /// images, which means its newest that is not deprecated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// The instance whose disk it is; left out: `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Store the disk as ciphertext, with a key of its own. A disk made from a snapshot that is encrypted is
    /// so without this; one made from another snapshot cannot be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// The policy that makes snapshots of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Delete its automatic snapshots with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_auto_snapshot: bool,
}

/// Lists all disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskList {}

/// Describes one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskShow {
    pub disk: String,
}

/// Deletes a disk: into the trash, where there is one. Its snapshots stay, but for automatic ones if that was set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDelete {
    pub disk: String,
    /// Disconnect its clients first; without it a connected client means `in_use`.
    #[serde(default)]
    pub force: bool,
    /// For good, not into the trash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}

/// Gives a disk another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRename {
    pub disk: String,
    pub name: String,
}

/// Changes the size of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    pub disk: String,
    pub size: u64,
    /// Allow a smaller size, which cuts off data.
    #[serde(default)]
    pub shrink: bool,
}

/// Returns a disk to what it was when it was made: the snapshot it was made from, or blank. The
/// state before is kept as an undo snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskReinit {
    pub disk: String,
    /// Disconnect its clients first.
    #[serde(default)]
    pub force: bool,
}

/// Changes properties of a disk; those left out stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSet {
    pub disk: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Refuse writes on the disk's export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// The instance whose disk it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Whether its automatic snapshots are deleted with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_auto_snapshot: Option<bool>,
    /// Refuse to delete it, roll it back, reinitialise it or make it smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
}

/// Returns a disk to a snapshot of its chain, or to a copy of itself. The state before is kept as an undo snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRollback {
    pub disk: String,
    /// An id, `disk@snapshot`, the name of a snapshot of this disk, or the id of a copy in a repository.
    pub snapshot: String,
    /// Disconnect its clients first.
    #[serde(default)]
    pub force: bool,
}

/// Returns a disk to the state before its last rollback or reinit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskUndo {
    pub disk: String,
    /// Disconnect its clients first; drop its present state if that is not complete and cannot be kept.
    #[serde(default)]
    pub force: bool,
}

/// Makes a kernel device, `/dev/nbdN`, of a disk. It is remembered and made again at each start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskAttach {
    pub disk: String,
    /// `/dev/nbdN`; one that is free without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The kernel refuses writes.
    #[serde(default)]
    pub read_only: bool,
}

/// Takes the kernel device of a disk away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDetach {
    pub disk: String,
    /// Even if it is in use: its user gets I/O errors.
    #[serde(default)]
    pub force: bool,
}

/// The reply to `disk.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    pub disks: Vec<Disk>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub id: String,
    pub name: String,
    pub description: String,
    pub size: u64,
    pub created_at: Time,
    pub read_only: bool,
    /// The snapshot it was made from, if any.
    pub origin: Option<Origin>,
    /// The image it was made from, if any.
    #[serde(default)]
    pub image: Option<OriginImage>,
    /// Bytes of blocks only the present state of the disk holds.
    pub exclusive_bytes: u64,
    /// Bytes that read as data.
    pub mapped_bytes: u64,
    pub snapshot_count: u64,
    /// The instance whose disk it is: `local` is this host.
    pub instance_id: String,
    pub instance_name: String,
    pub tags: Tags,
    pub clients: Vec<Client>,
    /// Its kernel device, if it has one or should have one.
    #[serde(default)]
    pub attachment: Option<Attachment>,
    /// Whether it is stored as ciphertext.
    #[serde(default)]
    pub encrypted: bool,
    /// Why there is no key for it: it cannot be used then.
    #[serde(default)]
    pub locked: Option<String>,
    /// The policy that makes its automatic snapshots, if any.
    #[serde(default)]
    pub policy: Option<DiskPolicy>,
    /// Whether its automatic snapshots are deleted with it.
    #[serde(default)]
    pub delete_auto_snapshot: bool,
    /// It is not deleted, rolled back, reinitialised or made smaller, whatever the force.
    #[serde(default)]
    pub protected: bool,
    /// Where the contents come from that it does not have yet.
    #[serde(default)]
    pub filling: Option<DiskFilling>,
}

/// The policy of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPolicy {
    pub id: String,
    pub name: String,
    /// The instance whose policy it is: with it all its disks are snapshotted together. `null` when it is the disk's own.
    #[serde(default)]
    pub instance: Option<String>,
}

/// How far a disk is that is being filled from a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFilling {
    pub copy: String,
    pub repo: String,
    /// Whether it is used meanwhile: what it lacks is fetched when it is asked for.
    pub usable: bool,
    /// At most 99.
    pub percent: u8,
    pub job: Option<String>,
}

/// The kernel device of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// `/dev/nbdN`.
    pub device: String,
    pub read_only: bool,
    pub state: AttachmentState,
    /// Why it failed.
    pub message: Option<String>,
}

/// How a kernel device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentState {
    /// The daemon has not come to it yet.
    Pending,
    Attached,
    /// There is no device, see the message; `disk.attach` tries again.
    Failed,
}

/// Where a disk comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub snapshot_id: String,
    /// Whether that snapshot is still there.
    pub exists: bool,
}

/// The image that a disk was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginImage {
    pub id: String,
    /// `null` when the image has been deleted since.
    pub name: Option<String>,
}

/// A client that is connected to an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// `disk` or `disk@snapshot`.
    pub export: String,
    /// Its process, where the socket tells.
    pub pid: Option<i32>,
    /// The process name, or the remote address.
    pub peer: String,
    pub connected_at: Time,
}

/// What a rollback, its undo, or a reinit did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The disk as it is now.
    pub disk: Disk,
    /// The snapshot it returned to; absent when the disk is blank now.
    pub to: Option<String>,
    /// The same as `disk@snapshot`.
    pub to_name: Option<String>,
    /// The snapshot that holds the state before; absent when that was not complete and could not be kept.
    pub undo: Option<String>,
    pub undo_name: Option<String>,
    /// Clients that were disconnected because of `force`.
    pub disconnected: Vec<Client>,
    /// The disk is larger than the snapshot was: its file system has to be extended again.
    pub grown_since: bool,
}
