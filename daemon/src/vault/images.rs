//! Images in repositories: a name for copies that belong together, so that any daemon can make the disks of an image.
//!
//! Invariants: an image names complete copies only, and a copy that an image names is not deleted: who puts an
//! image looks for deletes afterwards, who deletes a copy looks for images after saying so, and one of
//! them gives in.
//! Absent: copying what an image is made of; that is done by copies (`copies.rs`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::copies::{CopyInfo, CopyState, refuse_unfinished};
use super::format::{RECORD_MAX, VERSION, open, seal};
use super::header::{self, DELETED};
use super::store::Store;
use super::{Vault, open_repo};
use crate::engine::api::{Actor, Tags};
use crate::engine::images::check_image;
use crate::engine::now;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, ImageId, SnapshotId};

const IMAGES: &str = "images";

/// An image as a repository keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoImage {
    pub version: u32,
    pub id: ImageId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    #[serde(default)]
    pub deprecated: bool,
    #[serde(default)]
    pub tags: Tags,
    pub created_at: u64,
    /// The pool it comes from.
    pub writer: String,
    /// The system disk first.
    pub disks: Vec<Part>,
}

/// One disk of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub size: u64,
    /// So are disks that are made of it.
    #[serde(default)]
    pub encrypted: bool,
    /// Nothing for a disk that begins empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

/// What a disk of an image begins as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub copy: CopyId,
    pub snapshot: SnapshotId,
    /// `disk@snapshot`, as it was called.
    pub name: String,
}

/// An image to make of copies.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// The name of their repository.
    pub repo: String,
    pub name: String,
    /// The system disk first.
    pub parts: Vec<PartOf>,
    /// Sizes of data disks that begin empty.
    pub blank: Vec<u64>,
    pub family: Option<String>,
    pub description: String,
    pub tags: Tags,
}

/// What a disk of an image is to begin as.
#[derive(Clone, Debug)]
pub enum PartOf {
    /// The copy whose id begins so.
    Copy(String),
    /// The copy of this snapshot.
    Snapshot(SnapshotId),
}

impl RepoImage {
    fn key(&self) -> String {
        format!("{IMAGES}/{}", self.id)
    }

    fn copies(&self) -> impl Iterator<Item = &Contents> {
        self.disks.iter().filter_map(|part| part.contents.as_ref())
    }
}

impl Vault {
    /// Puts an image into a repository that has copies of all its snapshots. One that is there is written anew.
    ///
    /// # Errors
    /// `WrongState` when a copy is missing.
    pub fn image_publish(&self, by: Actor, id: &ImageId, repo: &str) -> Result<RepoImage> {
        let info = self.engine.image(id)?;
        let copies = self.copies(Some(repo))?;
        let part = |disk: crate::engine::api::ImageDiskInfo| -> Result<Part> {
            let contents = disk.snapshot.map(|(id, name)| of_snapshot(&copies, id, name, repo));
            let contents = contents.transpose()?;
            Ok(Part { size: disk.size, encrypted: disk.encrypted, contents })
        };
        let image = RepoImage {
            version: VERSION,
            id: info.id,
            name: info.name,
            description: info.description,
            family: info.family,
            deprecated: info.deprecated,
            tags: info.tags,
            created_at: info.created_at,
            writer: self.engine.status().uuid,
            disks: info.disks.into_iter().map(part).collect::<Result<_>>()?,
        };
        self.put_image(repo, &image)?;
        let message = format!("image {} put into {repo}", image.name);
        self.engine.note(by, "image.publish", image.id.as_str(), message)?;
        Ok(image)
    }

    /// Makes an image of copies where they are. Nothing of it need be here.
    ///
    /// # Errors
    /// `Exists` when an image there has the name; `NotFound` when a copy is not there; `WrongState` when it is not
    /// complete.
    pub fn image_assemble(&self, by: Actor, spec: &Assembly) -> Result<RepoImage> {
        let Assembly { repo, name, parts, blank, family, description, tags } = spec;
        check_image((name, family.as_deref(), tags), parts.len(), blank)?;
        let same = |image: &RepoImage| image.name == *name || image.family.as_ref() == Some(name);
        if let Some(other) = self.images(repo)?.iter().find(|image| same(image)) {
            let message = format!("{repo} has an image or a family {name:?}: {}", other.id);
            return Err(Error::new(ErrorKind::Exists, message).hint("choose another name"));
        }
        let copies = self.copies(Some(repo))?;
        let disks = parts.iter().map(|part| of_copy(&copies, part, repo));
        let blank = blank.iter().map(|size| Part { size: *size, encrypted: false, contents: None });
        let mut disks = disks.collect::<Result<Vec<Part>>>()?;
        disks.extend(blank);
        let image = RepoImage {
            version: VERSION,
            id: ImageId::random()?,
            name: name.clone(),
            description: description.clone(),
            family: family.clone(),
            deprecated: false,
            tags: tags.clone(),
            created_at: now(),
            writer: self.engine.status().uuid,
            disks,
        };
        self.put_image(repo, &image)?;
        let message = format!("image {name} made of copies in {repo}");
        self.engine.note(by, "image.assemble", image.id.as_str(), message)?;
        Ok(image)
    }

    /// Writes an image, unless one of its copies is deleted meanwhile.
    fn put_image(&self, repo: &str, image: &RepoImage) -> Result<()> {
        let known = self.engine.repo(repo)?;
        self.wait(repo, async {
            let (store, _) = open_repo(&known).await?;
            store.put(&image.key(), seal(image)?).await?;
            for contents in image.copies() {
                if is_going(&store, contents).await? {
                    store.delete(&image.key()).await?;
                    let message = format!("copy {} was deleted meanwhile", contents.copy);
                    return Err(Error::new(ErrorKind::WrongState, message).hint("begin again"));
                }
            }
            Ok(())
        })
    }

    /// The images in a repository, by name.
    ///
    /// # Errors
    /// The repository does not answer, or one of them is damaged.
    pub fn images(&self, repo: &str) -> Result<Vec<RepoImage>> {
        let known = self.engine.repo(repo)?;
        let mut found = self.wait(repo, async {
            let (store, _) = open_repo(&known).await?;
            all(&store).await
        })?;
        found.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        Ok(found)
    }

    /// Takes an image out of a repository; its copies stay.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn image_withdraw(self: &Arc<Self>, by: Actor, id: &ImageId, repo: &str) -> Result<()> {
        let known = self.engine.repo(repo)?;
        let key = format!("{IMAGES}/{id}");
        self.wait(repo, async {
            let (store, _) = open_repo(&known).await?;
            match store.exists(&key).await? {
                true => store.delete(&key).await,
                false => Err(Error::not_found(format!("no image {id} in {repo}"))
                    .hint(format!("see `rowctl image list --repo {repo}`"))),
            }
        })?;
        let message = format!("image {id} taken out of {repo}; its copies stay");
        self.engine.note(by, "image.withdraw", id.as_str(), message)
    }
}

/// The complete copy of a snapshot among some.
fn of_snapshot(
    copies: &[CopyInfo],
    snapshot: SnapshotId,
    name: String,
    repo: &str,
) -> Result<Contents> {
    let fits = |copy: &&CopyInfo| {
        copy.snapshot == snapshot && matches!(copy.state, CopyState::Accomplished(_))
    };
    let copy = copies.iter().find(fits).map(|copy| copy.id.clone()).ok_or_else(|| {
        Error::new(ErrorKind::WrongState, format!("{repo} has no complete copy of {name}"))
            .hint(format!("rowctl snapshot copy {name} --to {repo} --wait"))
    })?;
    Ok(Contents { copy, snapshot, name })
}

/// A disk of an image that begins as one of some copies.
fn of_copy(copies: &[CopyInfo], part: &PartOf, repo: &str) -> Result<Part> {
    let mut fitting = copies.iter().filter(|copy| match part {
        PartOf::Copy(id) => id.len() > CopyId::PREFIX.len() && copy.id.as_str().starts_with(id),
        PartOf::Snapshot(snapshot) => copy.snapshot == *snapshot,
    });
    let what = match part {
        PartOf::Copy(id) => format!("copy {id}"),
        PartOf::Snapshot(snapshot) => format!("copy of snapshot {snapshot}"),
    };
    let Some(copy) = fitting.next() else {
        return Err(Error::not_found(format!("no {what} in {repo}"))
            .hint(format!("see `rowctl copy list --repo {repo}`")));
    };
    if matches!(part, PartOf::Copy(_)) && fitting.next().is_some() {
        return Err(Error::invalid(format!("several copies in {repo} are meant by {what}")));
    }
    refuse_unfinished(copy)?;
    let CopyState::Accomplished(header) = &copy.state else {
        return Err(Error::internal("a copy is neither complete nor not"));
    };
    let (copy, snapshot) = (copy.id.clone(), copy.snapshot.clone());
    let name = format!("{}@{}", header.disk_name, header.snapshot_name);
    let contents = Some(Contents { copy, snapshot, name });
    Ok(Part { size: header.size, encrypted: header.sealed.is_some(), contents })
}

/// Whether a copy is gone, or somebody is about to delete it.
async fn is_going(store: &Store, contents: &Contents) -> Result<bool> {
    let deleted = format!("{DELETED}/{}", contents.copy);
    let header = header::key(&contents.copy, &contents.snapshot);
    Ok(store.exists(&deleted).await? || !store.exists(&header).await?)
}

/// The name of an image that needs a copy.
pub(super) async fn user(store: &Store, copy: &CopyId) -> Result<Option<String>> {
    let images = all(store).await?;
    let uses = |image: &&RepoImage| image.copies().any(|contents| contents.copy == *copy);
    Ok(images.iter().find(uses).map(|image| format!("{} ({})", image.name, image.id)))
}

async fn all(store: &Store) -> Result<Vec<RepoImage>> {
    let mut found = Vec::new();
    for key in store.list(IMAGES).await? {
        let image: RepoImage = match store.get(&key, RECORD_MAX).await {
            // Withdrawn this instant.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            bytes => open(&key, &bytes?)?,
        };
        if image.version != VERSION || image.key() != key {
            let message = format!("{key} in the repository is damaged, or of a newer rowd");
            return Err(Error::corrupt(message));
        }
        found.push(image);
    }
    Ok(found)
}
