//! Tags on the wire: `key = value` pairs on disks, snapshots, groups, instances and images.
//!
//! Invariants: an `object` parameter is an id, or a name: text with `@` is a snapshot, otherwise a disk
//! of that name comes first, then a group, an instance, an image, and a snapshot whose name no other has.
//! Absent: tags of anything else.

use serde::{Deserialize, Serialize};

use crate::Tags;

/// Adds tags; a key that is there gets the new value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagsSet {
    pub object: String,
    pub tags: Tags,
}

/// Removes tags by key; a key that is not there is not an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagsRemove {
    pub object: String,
    pub keys: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaggedKind {
    Disk,
    Snapshot,
    Group,
    Instance,
    Image,
}

/// The object and the tags it has now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tagged {
    pub object: TaggedKind,
    pub id: String,
    pub name: String,
    pub tags: Tags,
}
