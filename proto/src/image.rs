//! Images on the wire: templates of disks.
//!
//! Invariants: an `image` parameter takes an id, a unique prefix of one, or the name of an image; where it
//! says so also a family, which means its newest image that is not deprecated.
//! Absent: export and import, which clients do over NBD: the snapshots of an image are exports.

use serde::{Deserialize, Serialize};

use crate::{Tags, Time};

/// Makes an image, of snapshots or of the present of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    pub name: String,
    /// The snapshot of the system disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Snapshots of data disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Instead of snapshots: an instance, whose disks are all snapshotted at this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The system disk of the instance; may be left out where it has one disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Bytes of further data disks that begin empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blank: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// Lists images, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageList {}

/// Describes one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageShow {
    /// Also a family.
    pub image: String,
}

/// Changes properties of an image; those left out stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSet {
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An empty text takes it out of its family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Its family no longer means it, or may mean it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprecated: Option<bool>,
}

/// Deletes an image. Disks that were made from it stay whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDelete {
    pub image: String,
    /// Its snapshots too; without it they stay.
    #[serde(default)]
    pub snapshots: bool,
    /// Delete the snapshots although disks were made from them or clients read them.
    #[serde(default)]
    pub force: bool,
}

/// Makes a disk of each disk of an image; all of them, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDeploy {
    /// Also a family.
    pub image: String,
    /// The name of the system disk; data disks have `-data1` and so on added.
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// The instance whose disks they are; left out: `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
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
