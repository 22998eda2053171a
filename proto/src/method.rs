//! The table of methods: name, who may call it, parameters, reply.
//!
//! Invariants: this table is the only list of methods; the daemon's dispatcher matches on
//! [`Method`], so a row without a handler does not compile, and a test holds `PROTOCOL.md` against
//! it.
//! Absent: what the methods do.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{AuditList, AuditPage, ConfigPage, ConfigShow, Usage, UsageShow};
use crate::{
    Chain, ChainList, ChainShow, Chains, DiffPage, Disk, DiskAttach, DiskCreate, DiskDelete,
    DiskDetach, DiskList, DiskReinit, DiskRename, DiskResize, DiskRollback, DiskSet, DiskShow,
    DiskUndo, Disks, Done, EventsFrom, EventsList, EventsPage, EventsSubscribe, FreezeCheck,
    FreezePreview, FreezeShow, FreezeStatus, FreezeThaw, Group, GroupCreate, GroupDelete,
    GroupDeleted, GroupList, GroupMade, GroupRollback, GroupRolledBack, GroupSet, GroupShow,
    Groups, Image, ImageAssemble, ImageCreate, ImageDelete, ImageDeleted, ImageDeploy, ImageList,
    ImagePublish, ImagePublished, ImageSet, ImageShow, ImageWithdraw, Images, Instance,
    InstanceAdd, InstanceList, InstanceRemove, InstanceRemoved, InstanceSet, InstanceShow,
    Instances, Job, JobCancel, JobList, JobShow, Jobs, KeyRotate, KeyShow, Keys, KeysRotated,
    PoolResize, PoolShow, PoolStatus, RepoImage, RepoImages, RolledBack, ScrubStart, Snapshot,
    SnapshotCreate, SnapshotDelete, SnapshotDeleted, SnapshotDiff, SnapshotList, SnapshotMade,
    SnapshotSet, SnapshotShow, Snapshots, Tagged, TagsRemove, TagsSet,
};
use crate::{
    Copies, Copy, CopyCreate, CopyDelete, CopyDeleted, CopyList, CopyRestore, CopyRestored,
    CopyRetry, CopyShow, CopyVerify,
};
use crate::{
    DiskDeleted, DiskFreed, DiskFreedBytes, Trash, TrashList, TrashPurge, TrashPurged, TrashRestore,
};
use crate::{MetricsPage, MetricsShow, Stats, StatsShow};
use crate::{
    Policies, Policy, PolicyApply, PolicyCancel, PolicyCreate, PolicyDelete, PolicyDeleted,
    PolicyInstance, PolicyList, PolicyPreview, PolicyPreviewed, PolicyResume, PolicyResumed,
    PolicySet, PolicyShow,
};
use crate::{
    Repo, RepoAdd, RepoCheck, RepoChecked, RepoList, RepoRemove, RepoSet, RepoShow, Repos,
};
use crate::{SnapshotFreed, SnapshotsFreed};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing: allowed on both sockets.
    Read,
    /// Changes something: the admin socket only.
    Admin,
}

/// The parameters of a method, which name the method and the reply.
pub trait Call: Serialize + DeserializeOwned {
    const METHOD: Method;
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($params:ident = $name:literal, $access:ident => $reply:ident;)*) => {
        /// Every method.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Method { $($params),* }

        impl Method {
            /// All of them, in the order of the document.
            pub const ALL: &'static [Method] = &[$(Method::$params),*];

            /// The name on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Method::$params => $name),* }
            }

            #[must_use]
            pub fn access(self) -> Access {
                match self { $(Method::$params => Access::$access),* }
            }

            /// The names of the parameter and reply types, as the document uses them.
            #[must_use]
            pub fn types(self) -> (&'static str, &'static str) {
                match self { $(Method::$params => (stringify!($params), stringify!($reply))),* }
            }

            /// Whether these parameters would be understood.
            ///
            /// # Errors
            /// What is wrong with them, in words.
            pub fn check_params(self, params: &serde_json::Value) -> Result<(), String> {
                match self {
                    $(Method::$params => serde_json::from_value::<$params>(params.clone())
                        .map(drop)
                        .map_err(|e| e.to_string())),*
                }
            }

            /// Whether a client would understand this reply.
            ///
            /// # Errors
            /// What is wrong with it, in words.
            pub fn check_reply(self, reply: &serde_json::Value) -> Result<(), String> {
                match self {
                    $(Method::$params => serde_json::from_value::<$reply>(reply.clone())
                        .map(drop)
                        .map_err(|e| e.to_string())),*
                }
            }
        }

        $(impl Call for $params {
            const METHOD: Method = Method::$params;
            type Reply = $reply;
        })*
    };
}

methods! {
    DiskCreate = "disk.create", Admin => Disk;
    DiskList = "disk.list", Read => Disks;
    DiskShow = "disk.show", Read => Disk;
    DiskDelete = "disk.delete", Admin => DiskDeleted;
    DiskRename = "disk.rename", Admin => Disk;
    DiskResize = "disk.resize", Admin => Disk;
    DiskReinit = "disk.reinit", Admin => RolledBack;
    DiskSet = "disk.set", Admin => Disk;
    DiskRollback = "disk.rollback", Admin => RolledBack;
    DiskUndo = "disk.undo", Admin => RolledBack;
    DiskAttach = "disk.attach", Admin => Disk;
    DiskDetach = "disk.detach", Admin => Disk;
    SnapshotCreate = "snapshot.create", Admin => SnapshotMade;
    SnapshotList = "snapshot.list", Read => Snapshots;
    SnapshotShow = "snapshot.show", Read => Snapshot;
    SnapshotDelete = "snapshot.delete", Admin => SnapshotDeleted;
    SnapshotFreed = "snapshot.freed", Read => SnapshotsFreed;
    SnapshotSet = "snapshot.set", Admin => Snapshot;
    SnapshotDiff = "snapshot.diff", Read => DiffPage;
    GroupCreate = "group.create", Admin => GroupMade;
    GroupList = "group.list", Read => Groups;
    GroupShow = "group.show", Read => Group;
    GroupSet = "group.set", Admin => Group;
    GroupDelete = "group.delete", Admin => GroupDeleted;
    GroupRollback = "group.rollback", Admin => GroupRolledBack;
    InstanceAdd = "instance.add", Admin => Instance;
    InstanceList = "instance.list", Read => Instances;
    InstanceShow = "instance.show", Read => Instance;
    InstanceSet = "instance.set", Admin => Instance;
    InstanceRemove = "instance.remove", Admin => InstanceRemoved;
    ImageCreate = "image.create", Admin => Image;
    ImageList = "image.list", Read => Images;
    ImageShow = "image.show", Read => Image;
    ImageSet = "image.set", Admin => Image;
    ImageDelete = "image.delete", Admin => ImageDeleted;
    ImageDeploy = "image.deploy", Admin => Disks;
    ImagePublish = "image.publish", Admin => RepoImage;
    ImagePublished = "image.published", Read => RepoImages;
    ImageWithdraw = "image.withdraw", Admin => Done;
    ImageAssemble = "image.assemble", Admin => RepoImage;
    RepoAdd = "repo.add", Admin => Repo;
    RepoList = "repo.list", Read => Repos;
    RepoShow = "repo.show", Read => Repo;
    RepoSet = "repo.set", Admin => Repo;
    RepoRemove = "repo.remove", Admin => Done;
    RepoCheck = "repo.check", Admin => RepoChecked;
    CopyCreate = "copy.create", Admin => Copy;
    CopyList = "copy.list", Read => Copies;
    CopyShow = "copy.show", Read => Copy;
    CopyVerify = "copy.verify", Admin => Job;
    CopyRetry = "copy.retry", Admin => Copy;
    CopyDelete = "copy.delete", Admin => CopyDeleted;
    CopyRestore = "copy.restore", Admin => CopyRestored;
    FreezeCheck = "freeze.check", Admin => FreezePreview;
    FreezeShow = "freeze.show", Read => FreezeStatus;
    FreezeThaw = "freeze.thaw", Admin => FreezeStatus;
    PolicyCreate = "policy.create", Admin => Policy;
    PolicyList = "policy.list", Read => Policies;
    PolicyShow = "policy.show", Read => Policy;
    PolicySet = "policy.set", Admin => Policy;
    PolicyDelete = "policy.delete", Admin => PolicyDeleted;
    PolicyApply = "policy.apply", Admin => Disk;
    PolicyCancel = "policy.cancel", Admin => Disk;
    PolicyInstance = "policy.instance", Admin => Instance;
    PolicyPreview = "policy.preview", Read => PolicyPreviewed;
    PolicyResume = "policy.resume", Admin => PolicyResumed;
    TrashList = "trash.list", Read => Trash;
    TrashRestore = "trash.restore", Admin => Disk;
    TrashPurge = "trash.purge", Admin => TrashPurged;
    DiskFreed = "disk.freed", Read => DiskFreedBytes;
    ChainList = "chain.list", Read => Chains;
    ChainShow = "chain.show", Read => Chain;
    TagsSet = "tag.set", Admin => Tagged;
    TagsRemove = "tag.remove", Admin => Tagged;
    KeyShow = "key.show", Read => Keys;
    KeyRotate = "key.rotate", Admin => KeysRotated;
    MetricsShow = "metrics.show", Read => MetricsPage;
    StatsShow = "stats.show", Read => Stats;
    UsageShow = "usage.show", Read => Usage;
    AuditList = "audit.list", Read => AuditPage;
    ConfigShow = "config.show", Read => ConfigPage;
    PoolShow = "pool.show", Read => PoolStatus;
    PoolResize = "pool.resize", Admin => PoolStatus;
    EventsList = "events.list", Read => EventsPage;
    EventsSubscribe = "events.subscribe", Read => EventsFrom;
    JobList = "job.list", Read => Jobs;
    JobShow = "job.show", Read => Job;
    JobCancel = "job.cancel", Admin => Job;
    ScrubStart = "scrub.start", Admin => Job;
}

impl Method {
    /// The method of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Method> {
        Method::ALL.iter().copied().find(|method| method.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        for &method in Method::ALL {
            assert_eq!(Method::from_name(method.name()), Some(method));
        }
        assert_eq!(Method::from_name("disk.explode"), None);
    }

    #[test]
    fn an_unknown_parameter_is_an_error_in_every_method() {
        let params = serde_json::json!({"surprise": 1});
        for &method in Method::ALL {
            let error = method.check_params(&params).unwrap_err();
            assert!(error.contains("surprise") || error.contains("missing"), "{method:?}: {error}");
        }
    }
}
