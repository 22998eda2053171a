//! What the engine tells and takes about images.
//!
//! Invariants: as in `api.rs`; the first disk of an image is its system disk.
//! Absent: what is in the snapshots of an image; they are told like any other.

use super::{DiskId, InstanceId, SnapshotId, Tags};
use crate::units::ImageId;

/// What an image is made of.
#[derive(Clone, Debug)]
pub enum ImageSource {
    Snapshots {
        system: SnapshotId,
        data: Vec<SnapshotId>,
    },
    /// The present of all disks of an instance.
    Instance {
        instance: InstanceId,
        /// Its system disk; `None` where it has only one disk.
        system: Option<DiskId>,
    },
}

/// How to make an image.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    pub name: String,
    pub description: String,
    pub family: Option<String>,
    pub source: ImageSource,
    /// Sizes of further data disks that begin empty.
    pub blank: Vec<u64>,
    pub tags: Tags,
}

/// Changes to an image; `None` leaves a property as it is.
#[derive(Clone, Debug, Default)]
pub struct ImageChange {
    pub name: Option<String>,
    pub description: Option<String>,
    /// `Some(None)` takes it out of its family.
    pub family: Option<Option<String>>,
    pub deprecated: Option<bool>,
}

/// Which disks to make from an image.
#[derive(Clone, Debug)]
pub struct ImageDeploy {
    pub image: ImageId,
    /// The name of the system disk; data disks add `-data1` and so on.
    pub name: String,
    pub description: String,
    pub tags: Tags,
    /// Whose disks they are; `None` is this host.
    pub instance: Option<InstanceId>,
}

/// A template of disks.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    pub id: ImageId,
    pub name: String,
    pub description: String,
    pub family: Option<String>,
    pub deprecated: bool,
    /// The family means this image.
    pub current: bool,
    pub created_at: u64,
    /// The system disk first.
    pub disks: Vec<ImageDiskInfo>,
    /// Disks that were made from it and still exist.
    pub made_disks: Vec<DiskId>,
    pub tags: Tags,
}

/// One disk of an image.
#[derive(Clone, Debug)]
pub struct ImageDiskInfo {
    pub size: u64,
    /// The snapshot and its full name; `None` for a disk that begins empty.
    pub snapshot: Option<(SnapshotId, String)>,
    /// So are disks that are made of it; an empty one is as the system disk is.
    pub encrypted: bool,
}
