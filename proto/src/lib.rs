//! The control protocol of rowd: what a client may ask over the control socket, and what it is
//! told.
//!
//! Invariants: JSON-RPC 2.0, one object per line, named parameters only. A reply may gain fields
//! within a major version and a client ignores those it does not know; a parameter the daemon does
//! not know is an error. Bytes are integers, times are RFC 3339 in UTC. `PROTOCOL.md` describes
//! every method, and a test holds it against the table in `method.rs`.
//! Absent: sockets, threads, and anything that knows how the engine works.

mod audit;
mod copy;
mod disk;
mod error;
mod event;
mod frame;
mod freeze;
mod group;
mod image;
mod instance;
mod job;
mod key;
mod meter;
mod method;
mod params;
mod policy;
mod pool;
mod presence;
mod repo;
mod repo_image;
pub mod size;
mod snapshot;
mod tag;
mod time;
mod trash;
mod usage;

pub use audit::{AuditEntry, AuditList, AuditPage};
pub use copy::{
    Copies, Copy, CopyCreate, CopyDelete, CopyDeleted, CopyDetail, CopyList, CopyRestore,
    CopyRestored, CopyRetry, CopyShow, CopyStatus, CopyVerify,
};
pub use disk::{
    Attachment, AttachmentState, Client, Disk, DiskAttach, DiskCreate, DiskDelete, DiskDetach,
    DiskFilling, DiskList, DiskPolicy, DiskReinit, DiskRename, DiskResize, DiskRollback, DiskSet,
    DiskShow, DiskUndo, Disks, Origin, OriginImage, RolledBack,
};
pub use error::{EXIT_CODES, ErrorBody, ErrorKind, ExitMeaning, exit};
pub use event::{Event, EventsFrom, EventsList, EventsPage, EventsSubscribe};
pub use frame::{
    Greeting, Id, LineBuffer, LineTooLong, Notification, PROTOCOL, ProtocolVersion,
    REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Rejection, Reply, Request, Response, ServerInfo,
    ServerLine, Version2, WireError, WireErrorData, parse_reply, parse_request, parse_server_line,
    to_line,
};
pub use freeze::{
    FreezeCheck, FreezeOptions, FreezePhase, FreezePreview, FreezeReport, FreezeRunning,
    FreezeShow, FreezeStatus, FreezeTarget, FreezeThaw, GroupMade, SnapshotMade,
};
pub use group::{
    Group, GroupCreate, GroupDelete, GroupDeleted, GroupList, GroupMember, GroupRollback,
    GroupRolledBack, GroupSet, GroupShow, Groups,
};
pub use image::{
    Image, ImageCreate, ImageDelete, ImageDeleted, ImageDeploy, ImageDisk, ImageList, ImageRole,
    ImageSet, ImageShow, Images,
};
pub use instance::{
    Instance, InstanceAdd, InstanceDisk, InstanceList, InstancePolicy, InstanceRemove,
    InstanceRemoved, InstanceSet, InstanceShow, Instances, LOCAL_INSTANCE,
};
pub use job::{Job, JobCancel, JobList, JobShow, JobState, Jobs, ScrubStart};
pub use key::{Key, KeyDisk, KeyRotate, KeyShow, Keys, KeysRotated};
pub use meter::{
    ConfigPage, ConfigShow, MetricsPage, MetricsShow, OperationStats, RequestStats, Stats,
    StatsShow,
};
pub use method::{Access, Call, Method};
pub use policy::{
    Policies, Policy, PolicyApply, PolicyCancel, PolicyCatchUp, PolicyCopy, PolicyCreate,
    PolicyDelete, PolicyDeleted, PolicyDisk, PolicyHold, PolicyInstance, PolicyKeep, PolicyList,
    PolicyOwner, PolicyPreview, PolicyPreviewed, PolicyPruneReason, PolicyPruned, PolicyPrunedCopy,
    PolicyResume, PolicyResumed, PolicyRun, PolicySchedule, PolicySet, PolicyShow,
};
pub use pool::{PoolResize, PoolShow, PoolStatus, ScrubReport};
pub use presence::{InstantAccess, Place};
pub use repo::{
    Repo, RepoAdd, RepoCheck, RepoChecked, RepoList, RepoRemove, RepoSet, RepoShow, RepoStep, Repos,
};
pub use repo_image::{
    ImageAssemble, ImagePublish, ImagePublished, ImageWithdraw, RepoImage, RepoImageDisk,
    RepoImages,
};
pub use snapshot::{
    Chain, ChainList, ChainShow, Chains, Consistency, DIFF_PAGE_MAX, DiffPage, DiffRange, Snapshot,
    SnapshotAction, SnapshotCreate, SnapshotDelete, SnapshotDeleted, SnapshotDiff, SnapshotFreed,
    SnapshotKind, SnapshotList, SnapshotSet, SnapshotShow, SnapshotStatus, Snapshots,
    SnapshotsFreed,
};
pub use tag::{Tagged, TaggedKind, TagsRemove, TagsSet};
pub use time::{Moment, Time};
pub use trash::{
    DiskDeleted, DiskFreed, DiskFreedBytes, Trash, TrashList, TrashPurge, TrashPurged,
    TrashRestore, TrashedDisk,
};
pub use usage::{DiskUsage, Held, RepoUsage, Usage, UsageSample, UsageShow};

use std::collections::BTreeMap;

/// Tags of an object: `key = value`, each key once.
pub type Tags = BTreeMap<String, String>;

/// What a reply without content looks like: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Done {}
