//! Images in the catalogue: templates of disks, and which snapshots they hold on to.
//!
//! Invariants: an image has exactly one system snapshot; a record without one does not decode. Every snapshot
//! that an image names is in the catalogue as long as the image is.
//! Absent: the verbs (`engine/images.rs`).

use serde::{Deserialize, Serialize};

use super::Catalogue;
use crate::engine::api::Tags;
use crate::units::{DiskId, ImageId, SnapshotId};

/// A named template of disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub id: ImageId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Its family does not mean it.
    #[serde(default)]
    pub deprecated: bool,
    /// Larger than that of every image that was there when it was made: times are too coarse to order by.
    pub number: u64,
    pub created_at: u64,
    pub system: SnapshotId,
    #[serde(default)]
    pub data: Vec<DataRecord>,
    #[serde(default)]
    pub tags: Tags,
}

/// What a data disk of an image begins as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataRecord {
    Snapshot(SnapshotId),
    /// Nothing, with a size.
    Blank(u64),
}

impl ImageRecord {
    /// The snapshots it is made of, the system's first.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotId> {
        let data = self.data.iter().filter_map(|data| match data {
            DataRecord::Snapshot(id) => Some(id),
            DataRecord::Blank(_) => None,
        });
        std::iter::once(&self.system).chain(data)
    }
}

impl Catalogue {
    pub fn put_image(&mut self, image: ImageRecord) {
        self.dirty.insert(format!("image/{}", image.id));
        if let Some(old) = self.images.get(&image.id) {
            self.index.remove_image(old);
        }
        self.index.add_image(&image);
        self.images.insert(image.id.clone(), image);
    }

    pub fn remove_image(&mut self, id: &ImageId) -> Option<ImageRecord> {
        let image = self.images.remove(id)?;
        self.dirty.insert(format!("image/{id}"));
        self.index.remove_image(&image);
        Some(image)
    }

    #[must_use]
    pub fn image_named(&self, name: &str) -> Option<&ImageRecord> {
        self.images.values().find(|image| image.name == name)
    }

    /// The images of a family, oldest first.
    #[must_use]
    pub fn family(&self, name: &str) -> Vec<&ImageRecord> {
        let of = |image: &&ImageRecord| image.family.as_deref() == Some(name);
        let mut found: Vec<_> = self.images.values().filter(of).collect();
        found.sort_by_key(|image| image.number);
        found
    }

    /// The image that a family means: the newest that is not deprecated.
    #[must_use]
    pub fn current_of(&self, family: &str) -> Option<&ImageRecord> {
        self.family(family).into_iter().rfind(|image| !image.deprecated)
    }

    /// The disks that were made from an image and still exist.
    #[must_use]
    pub fn made_from_image(&self, image: &ImageId) -> Vec<DiskId> {
        let made = self.disks.values().filter(|disk| disk.image.as_ref() == Some(image));
        made.map(|disk| disk.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_system_snapshot_does_not_decode() {
        let with = r#"{"id":"m-1","name":"web","number":1,"created_at":0,"system":"s-1"}"#;
        assert!(serde_json::from_str::<ImageRecord>(with).is_ok());
        let without =
            r#"{"id":"m-1","name":"web","number":1,"created_at":0,"data":[{"snapshot":"s-1"}]}"#;
        let error = serde_json::from_str::<ImageRecord>(without).unwrap_err().to_string();
        assert!(error.contains("missing field `system`"), "{error}");
    }
}
