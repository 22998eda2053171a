//! Images on the wire: templates of disks.
//!
//! Invariants: an `image` parameter takes an id, a unique prefix of one, or the name of an image; where it
//! says so also a family, which means its newest image that is not deprecated.
//! Absent: export and import, which clients do over NBD: the snapshots of an image are exports.

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Tags, Time};

params! {
    /// Makes an image, of snapshots or of the present of an instance.
    ImageCreate {
        name: String,
        /// The snapshot of the system disk.
        from?: String,
        /// Snapshots of data disks.
        data: Vec<String> = default,
        /// Instead of snapshots: an instance, whose disks are all snapshotted at this instant.
        instance?: String,
        /// The system disk of the instance; may be left out where it has one disk.
        system?: String,
        /// Bytes of further data disks that begin empty.
        blank: Vec<u64> = default,
        family?: String,
        description: String = default,
        tags: Tags = default,
    }

    /// Lists images, oldest first.
    ImageList {}

    /// Describes one image.
    ImageShow {
        /// Also a family.
        image: String,
    }

    /// Changes properties of an image; those left out stay.
    ImageSet {
        image: String,
        name?: String,
        description?: String,
        /// An empty text takes it out of its family.
        family?: String,
        /// Its family no longer means it, or may mean it again.
        deprecated?: bool,
    }

    /// Deletes an image. Disks that were made from it stay whole.
    ImageDelete {
        image: String,
        /// Its snapshots too; without it they stay.
        snapshots: bool = default,
        /// Delete the snapshots although disks were made from them or clients read them.
        force: bool = default,
    }

    /// Makes a disk of each disk of an image; all of them, or none.
    ImageDeploy {
        /// Also a family.
        image: String,
        /// The name of the system disk; data disks have `-data1` and so on added.
        name: String,
        description: String = default,
        tags: Tags = default,
        /// The instance whose disks they are; left out: `local`.
        instance?: String,
    }
}

/// The reply to `image.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    pub images: Vec<Image>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: String,
    pub name: String,
    pub description: String,
    pub family: Option<String>,
    pub deprecated: bool,
    /// Its family means this image.
    pub current: bool,
    pub created_at: Time,
    /// Bytes of all its disks.
    pub total_size: u64,
    /// The system disk first.
    pub disks: Vec<ImageDisk>,
    /// Disks that were made from it and still exist.
    pub made_disks: Vec<String>,
    pub tags: Tags,
}

/// One disk of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDisk {
    pub role: ImageRole,
    pub size: u64,
    /// `null` for a disk that begins empty.
    pub snapshot_id: Option<String>,
    /// The same as `disk@snapshot`, with the id of a disk that is gone.
    pub snapshot_name: Option<String>,
    /// So are disks that are made of it; one that begins empty is as the system disk is.
    #[serde(default)]
    pub encrypted: bool,
}

/// What a disk of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRole {
    System,
    Data,
}

/// The reply to `image.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDeleted {
    pub id: String,
    pub name: String,
    /// Snapshots that went with it.
    pub snapshots: u64,
}
