//! Images in repositories on the wire.
//!
//! Invariants: such an image names copies of its repository, which stay as long as it is there.
//! Absent: making disks of one, which is done copy by copy (`copy.restore`).

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Tags, Time};

params! {
    /// Puts an image into a repository that has copies of all its snapshots.
    ImagePublish {
        /// Id or name.
        image: String,
        repo: String,
    }

    /// Lists the images in a repository.
    ImagePublished {
        repo: String,
    }

    /// Takes an image out of a repository; its copies stay.
    ImageWithdraw {
        /// The whole id.
        image: String,
        repo: String,
    }
}

/// Makes an image of copies, in their repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageAssemble {
    pub repo: String,
    pub name: String,
    /// The system disk: the id of a copy, or a snapshot that has one there.
    pub from: String,
    /// The data disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Sizes of data disks that begin empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blank: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// The reply to `image.published`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoImages {
    pub images: Vec<RepoImage>,
}

/// An image in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoImage {
    pub id: String,
    pub repo: String,
    pub name: String,
    pub description: String,
    pub family: Option<String>,
    pub deprecated: bool,
    pub created_at: Time,
    /// The pool it comes from.
    pub writer: String,
    /// The system disk first.
    pub disks: Vec<RepoImageDisk>,
    pub tags: Tags,
}

/// One disk of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoImageDisk {
    pub size: u64,
    /// So are disks that are made of it.
    pub encrypted: bool,
    /// The copy with its contents; `null` for a disk that begins empty.
    pub copy: Option<String>,
    /// `disk@snapshot`, as it was called.
    pub snapshot_name: Option<String>,
}
