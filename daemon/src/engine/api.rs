//! What the engine tells and takes: plain values that cross from the engine to the control socket.
//!
//! Invariants: sizes are bytes, times are seconds since 1970 UTC; nothing here refers to live state.
//! Absent: wire formats (`rowd-proto` has those) and behaviour.

mod image;
pub mod policy;
mod presence;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pool::file::IoMode;
use crate::units::{CopyId, DiskId, GroupId, ImageId, InstanceId, JobId, PolicyId, SnapshotId};
pub use image::{ImageChange, ImageDeploy, ImageDiskInfo, ImageInfo, ImageSource, ImageSpec};
pub use presence::{Access, KeepSpec, PresenceInfo};

/// Tags of an object: `key = value`, each key once.
pub type Tags = BTreeMap<String, String>;

/// Who asked for a change; recorded with its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    pub uid: u32,
    /// The process at the other end of the control socket; 0 is the daemon itself.
    pub pid: i32,
}

impl Actor {
    /// The daemon acting on its own: expiry, reclaim.
    pub const DAEMON: Actor = Actor { uid: 0, pid: 0 };
}

/// How to make a disk.
#[derive(Clone, Debug, Default)]
pub struct DiskSpec {
    pub name: String,
    /// Bytes, a multiple of 4096. `None` takes the size of the snapshot it is made from.
    pub size: Option<u64>,
    /// A snapshot the disk starts as.
    pub from: Option<SnapshotId>,
    /// Instead, an image whose system disk it starts as.
    pub image: Option<ImageId>,
    pub description: String,
    pub tags: Tags,
    /// Whose disk it is; `None` is this host.
    pub instance: Option<InstanceId>,
    /// Stored as ciphertext; implied by a snapshot that is.
    pub encrypted: bool,
    /// The policy that makes its automatic snapshots.
    pub policy: Option<PolicyId>,
    /// Its automatic snapshots go with it.
    pub delete_auto: bool,
}

/// Changes to a disk; `None` leaves a property as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskChange {
    pub description: Option<String>,
    /// Refuse writes on the disk's export.
    pub read_only: Option<bool>,
    pub instance: Option<InstanceId>,
    /// Whether its automatic snapshots go with it.
    pub delete_auto: Option<bool>,
}

/// An instance to add.
#[derive(Clone, Debug, Default)]
pub struct InstanceSpec {
    pub name: String,
    pub description: String,
    /// The socket of its guest agent.
    pub agent: Option<String>,
    pub tags: Tags,
}

/// Changes to an instance; `None` leaves a property as it is.
#[derive(Clone, Debug, Default)]
pub struct InstanceChange {
    pub name: Option<String>,
    pub description: Option<String>,
    /// `Some(None)`: it has no guest agent any more.
    pub agent: Option<Option<String>>,
}

/// A user of disks: this host, or a virtual machine.
#[derive(Clone, Debug)]
pub struct InstanceInfo {
    pub id: InstanceId,
    pub name: String,
    pub description: String,
    /// `None` for this host, which is there from the start.
    pub created_at: Option<u64>,
    /// The socket of its guest agent.
    pub agent: Option<String>,
    /// By name.
    pub disks: Vec<(DiskId, String)>,
    pub tags: Tags,
    /// The policy that makes groups of all its disks.
    pub policy: Option<(PolicyId, String)>,
}

/// How to make a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotSpec {
    pub disk: DiskId,
    /// `None` makes a name from the time.
    pub name: Option<String>,
    pub description: String,
    pub tags: Tags,
    /// Keep it in a repository; else in the pool only.
    pub copy: Option<KeepSpec>,
}

/// How much of what runs on a disk took part in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// One exact instant under live I/O.
    #[default]
    Crash,
    /// The file systems were frozen.
    Fs,
    /// The applications stood still too.
    App,
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Consistency::Crash => "crash",
            Consistency::Fs => "fs",
            Consistency::App => "app",
        })
    }
}

/// Changes to a snapshot; `None` leaves a property as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotChange {
    pub name: Option<String>,
    pub description: Option<String>,
    /// Instant access from now on, or (`Some(None)`) no longer.
    pub access: Option<Option<Access>>,
}

/// How to make a group of snapshots.
#[derive(Clone, Debug, Default)]
pub struct GroupSpec {
    /// At most [`super::groups::DISKS_MAX`], each once.
    pub disks: Vec<DiskId>,
    /// All disks of these instances too.
    pub instances: Vec<InstanceId>,
    /// Disks of these instances that are left out.
    pub exclude: Vec<DiskId>,
    /// Also the name of each member snapshot. `None` makes one from the time.
    pub name: Option<String>,
    pub description: String,
    pub tags: Tags,
    /// Keep every member in a repository.
    pub copy: Option<KeepSpec>,
}

/// Changes to a group; `None` leaves a property as it is.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    pub name: Option<String>,
    pub description: Option<String>,
}

/// Snapshots of several disks at one instant.
#[derive(Clone, Debug)]
pub struct GroupInfo {
    pub id: GroupId,
    pub name: String,
    pub description: String,
    pub created_at: u64,
    pub members: Vec<MemberInfo>,
    pub tags: Tags,
    /// What made it, if that was the policy of an instance.
    pub automatic: Option<policy::AutomaticGroup>,
}

#[derive(Clone, Debug)]
pub struct MemberInfo {
    pub disk_id: DiskId,
    /// `None` when the disk has been deleted since.
    pub disk_name: Option<String>,
    pub snapshot_id: SnapshotId,
    /// `None` when the snapshot has been deleted since.
    pub snapshot: Option<SnapshotInfo>,
}

/// Which disks of a group go back, and how.
#[derive(Clone, Debug, Default)]
pub struct GroupReturn {
    /// Only these; none named: all.
    pub disks: Vec<DiskId>,
    /// Disconnect clients.
    pub force: bool,
    /// Makes a group of this name of the same disks first.
    pub group_first: Option<String>,
}

/// What `group rollback` did.
#[derive(Clone, Debug)]
pub struct GroupReturned {
    /// The group that was made before.
    pub first: Option<GroupInfo>,
    pub disks: Vec<MemberRollback>,
}

/// What `group rollback` did to one disk.
#[derive(Clone, Debug)]
pub struct MemberRollback {
    pub disk: DiskId,
    pub done: Rollback,
}

/// A client that is connected to an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// The export name it asked for: `disk` or `disk@snapshot`.
    pub export: String,
    /// Its process, where the socket tells.
    pub pid: Option<i32>,
    /// The process name, or the remote address over TCP.
    pub peer: String,
    /// Seconds since 1970.
    pub connected_at: u64,
}

/// What deleting a disk came to.
#[derive(Clone, Copy, Debug)]
pub struct Released {
    /// When it goes for good; `None` when it is gone.
    pub until: Option<u64>,
    /// Automatic snapshots that went with it.
    pub snapshots: u64,
}

/// A disk in the trash.
#[derive(Clone, Debug)]
pub struct TrashInfo {
    pub id: DiskId,
    pub name: String,
    pub size: u64,
    pub deleted_at: u64,
    /// When it goes for good.
    pub until: u64,
    /// Bytes of blocks that only it holds.
    pub exclusive_bytes: u64,
    pub snapshots: u64,
}

#[derive(Clone, Debug)]
pub struct DiskInfo {
    pub id: DiskId,
    pub name: String,
    pub description: String,
    pub size: u64,
    pub created_at: u64,
    pub read_only: bool,
    /// The snapshot it was made from, if any, and whether that still exists.
    pub origin: Option<(SnapshotId, bool)>,
    /// The image it was made from, and its name if it still exists.
    pub image: Option<(ImageId, Option<String>)>,
    /// Bytes of blocks only the present state of the disk holds.
    pub exclusive_bytes: u64,
    /// Bytes the disk would read as data: everything mapped at its head.
    pub mapped_bytes: u64,
    pub snapshot_count: u64,
    /// Whose disk it is.
    pub instance: (InstanceId, String),
    /// The policy that makes its automatic snapshots.
    pub policy: Option<(PolicyId, String)>,
    /// The instance whose policy that is, if it is not the disk's own.
    pub policy_instance: Option<String>,
    /// Its automatic snapshots go with it.
    pub delete_auto: bool,
    pub tags: Tags,
    pub clients: Vec<ClientInfo>,
    pub attachment: Option<AttachmentInfo>,
    pub encrypted: bool,
    /// Why there is no key for it, if there is none.
    pub locked: Option<String>,
    /// Nothing of it may be lost.
    pub protected: bool,
    /// Where the contents come from that it does not have yet.
    pub filling: Option<FillingInfo>,
}

/// How far a disk is that is being filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillingInfo {
    pub repo: String,
    pub copy: CopyId,
    /// Whether it is used meanwhile.
    pub usable: bool,
    pub percent: u8,
    pub job: Option<JobId>,
}

/// The kernel device of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentInfo {
    /// `/dev/nbdN`.
    pub device: String,
    pub read_only: bool,
    pub state: AttachmentState,
}

/// How a kernel device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentState {
    /// The daemon has not come to it yet.
    Pending,
    /// In use.
    Attached,
    /// There is no device, and why.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    Manual,
    Auto,
    /// The state of a disk before a rollback or reinit, kept so that it can be undone.
    Undo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    Accomplished,
    /// Deleted; its blocks are being freed in the background.
    Deleting,
}

#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    pub id: SnapshotId,
    pub name: String,
    pub description: String,
    pub disk_id: DiskId,
    /// `None` when the disk has been deleted since.
    pub disk_name: Option<String>,
    /// Size of the disk at the instant of the snapshot.
    pub size: u64,
    pub created_at: u64,
    pub kind: SnapshotKind,
    pub consistency: Consistency,
    /// The policy that made it, and the instant it was due at.
    pub automatic: Option<(PolicyId, u64)>,
    pub status: SnapshotStatus,
    /// Bytes that deleting just this snapshot would free.
    pub exclusive_bytes: u64,
    /// Bytes of the blocks that this snapshot adds to its chain (written since the one before it).
    pub stored_bytes: u64,
    /// The snapshot before it in its lineage, if any.
    pub parent: Option<SnapshotId>,
    /// When it goes away by itself (undo snapshots).
    pub expires_at: Option<u64>,
    /// Disks that were made from it and still exist.
    pub made_disks: Vec<DiskId>,
    /// Images that are made of it; while there are any it stays.
    pub images: Vec<ImageId>,
    /// As its disk is.
    pub encrypted: bool,
    /// Where it is, unless it is in the pool only.
    pub presence: Option<PresenceInfo>,
    /// It may not be deleted.
    pub protected: bool,
    /// Where the contents come from that it does not have yet, if it does not have all.
    pub filling: Option<FillingInfo>,
    pub tags: Tags,
    pub clients: Vec<ClientInfo>,
}

/// The snapshots of one disk, which outlive it.
#[derive(Clone, Debug)]
pub struct ChainInfo {
    pub disk_id: DiskId,
    pub disk_name: Option<String>,
    pub disk_size: u64,
    /// Bytes of all snapshots of the chain, shared blocks counted once.
    pub snapshot_bytes: u64,
    pub quota_manual: u64,
    pub quota_auto: u64,
    /// Oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// What `disk rollback --undo` returns to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    pub id: SnapshotId,
    pub name: String,
}

/// What `disk rollback` did.
#[derive(Clone, Debug)]
pub struct Rollback {
    /// The snapshot that holds the state before; nothing where that was not complete and could not be kept.
    pub undo: Option<Undo>,
    /// Nothing: the disk is empty.
    pub to: Option<SnapshotId>,
    /// Clients that were disconnected because of `force`.
    pub disconnected: Vec<ClientInfo>,
    /// The disk is larger than the snapshot: its file system has to be extended again.
    pub grown_since: bool,
}

/// One changed stretch of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub offset: u64,
    pub length: u64,
    /// The newer side reads as zeros there.
    pub zero: bool,
}

#[derive(Clone, Debug)]
pub struct Event {
    /// Grows by one with each event; a stream can resume after it.
    pub seq: u64,
    pub at: u64,
    pub actor: Actor,
    /// `disk.create`, `snapshot.delete`, `pool.corrupt-block`, …
    pub kind: String,
    /// The id or name of what it is about.
    pub object: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    Running,
    Done,
    Failed,
    Cancelled,
}

#[derive(Clone, Debug)]
pub struct JobInfo {
    pub id: JobId,
    /// `scrub`, `reclaim`.
    pub kind: String,
    pub object: String,
    pub state: JobState,
    /// Units done and in total (bytes for scrub, blocks' leaves for reclaim); total 0 = not known yet.
    pub done: u64,
    pub total: u64,
    pub started_at: u64,
    pub ended_at: Option<u64>,
    /// The outcome in words once it ended.
    pub message: String,
}

#[derive(Clone, Debug)]
pub struct PoolStatus {
    pub uuid: String,
    pub dir: String,
    /// Why the pool accepts no writes, if it stopped.
    pub stopped: Option<String>,
    pub block_size: u64,
    /// Bytes of data blocks the pool file has now.
    pub file_bytes: u64,
    /// Bytes of data blocks it may grow to.
    pub max_bytes: u64,
    /// Bytes of blocks some disk or snapshot holds.
    pub used_bytes: u64,
    /// Bytes freed but not yet reusable (awaiting a flush or a reader).
    pub pending_bytes: u64,
    pub journal_bytes: u64,
    pub journal_used_bytes: u64,
    pub cache_bytes: u64,
    pub cache_limit: u64,
    pub last_seq: u64,
    pub durable_seq: u64,
    pub checkpoint_seq: u64,
    pub disks: u64,
    pub snapshots: u64,
    pub clients: u64,
    /// Deleted snapshots and disks whose blocks are still being freed.
    pub reclaiming: u64,
    pub corrupt_blocks: u64,
    /// Blocks that were stored anew since the start, from copies.
    pub healed_blocks: u64,
    pub last_scrub: Option<ScrubReport>,
    /// Seconds the last start needed, and records it replayed.
    pub recovery_seconds: f64,
    pub recovered_records: u64,
    /// How the pool file is read and written.
    pub io: IoMode,
}

#[derive(Clone, Debug)]
pub struct ScrubReport {
    pub started_at: u64,
    pub ended_at: u64,
    pub bytes: u64,
    /// One line per bad block: disk, offset, snapshots.
    pub bad: Vec<String>,
}

/// Master keys, and the keys they wrap.
#[derive(Clone, Debug)]
pub struct KeysInfo {
    /// Where the master key is expected.
    pub source: String,
    /// The id of the master key, if there is one.
    pub master: Option<String>,
    /// Why there is none.
    pub trouble: Option<String>,
    /// Why the previous master key cannot be read, if it cannot.
    pub previous_trouble: Option<String>,
    pub keys: Vec<KeyInfo>,
}

/// The key of a family of disks and snapshots that share blocks.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// The id of the master key that wraps it.
    pub master: String,
    /// The disks of the family, by name.
    pub disks: Vec<(DiskId, String)>,
    pub snapshots: u64,
    /// Why it cannot be used, if it cannot.
    pub locked: Option<String>,
}
