//! Images in the model test: made of any snapshots, deleted with them or without, and disks made of them.
//!
//! Invariants: while an image is there its snapshots are, whatever else is deleted; what the engine refuses,
//! it refuses for the reason the model knows, and changes nothing.
//! Absent: families, which change no blocks (`images.rs` of the tests).

use rowd::engine::api::{ImageDeploy, ImageSource, ImageSpec, Tags};
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_SIZE, ImageId, SnapshotId};

use super::compare::equal;
use super::groups::masked;
use super::machine::{BY, DISKS_MAX, Machine, Outcome, text};
use super::reference::Reference;

const IMAGES_MAX: usize = 2;
/// Snapshots of one image; its disks have to fit the pool.
const PARTS_MAX: usize = 3;
const BLANK_BYTES: u64 = 40 * BLOCK_SIZE;

/// An image as the model knows it.
#[derive(Clone, Debug)]
pub struct Image {
    pub id: ImageId,
    pub name: String,
    /// The system's first; one may be there twice.
    pub snapshots: Vec<SnapshotId>,
}

impl Reference {
    /// Whether an image is made of a snapshot.
    pub fn pinned(&self, snapshot: &SnapshotId) -> bool {
        self.images.iter().any(|image| image.snapshots.contains(snapshot))
    }

    fn place(&self, snapshot: &SnapshotId) -> usize {
        let found = self.snapshots.iter().position(|one| one.id == *snapshot);
        found.expect("the snapshots of an image are there")
    }
}

impl Machine {
    /// Makes room for snapshots: one goes that no image is made of, or else an image.
    pub fn shed(&mut self) -> Outcome {
        let free = self.reference.snapshots.iter().position(|one| !self.reference.pinned(&one.id));
        match free.and_then(|at| u8::try_from(at).ok()) {
            Some(at) => self.delete_snapshot(at, true),
            None => self.delete_image(0, false, false),
        }
    }

    /// Makes an image of the snapshots whose bit is set, with an empty data disk.
    pub fn make_image(&mut self, mask: u8) -> Outcome {
        let all: Vec<SnapshotId> = self.reference.snapshots.iter().map(|s| s.id.clone()).collect();
        let mut snapshots = masked(&all, mask);
        snapshots.truncate(PARTS_MAX);
        let Some(system) = snapshots.first().cloned() else { return Ok(()) };
        if self.reference.images.len() >= IMAGES_MAX {
            return self.delete_image(mask, false, false);
        }
        let name = self.new_name();
        let spec = ImageSpec {
            name: name.clone(),
            description: String::new(),
            family: None,
            source: ImageSource::Snapshots { system, data: snapshots[1..].to_vec() },
            blank: vec![BLANK_BYTES],
            tags: Tags::new(),
        };
        let usable = |id: &SnapshotId| self.reference.snapshots[self.reference.place(id)].usable();
        let all_usable = snapshots.iter().all(usable);
        let made = match self.engine().image_create(BY, spec) {
            Err(error) if error.kind() == ErrorKind::WrongState && !all_usable => return Ok(()),
            Ok(_) if !all_usable => return Err("an image of what cannot be used".to_owned()),
            made => made.map_err(text)?,
        };
        self.reference.images.push(Image { id: made.id, name, snapshots });
        Ok(())
    }

    pub fn delete_image(&mut self, image: u8, with_snapshots: bool, force: bool) -> Outcome {
        let Some(at) = self.pick_image(image) else { return Ok(()) };
        let Image { id, snapshots, .. } = self.reference.images[at].clone();
        let others = self.reference.images.iter().filter(|other| other.id != id);
        let shared = others.flat_map(|other| &other.snapshots).any(|id| snapshots.contains(id));
        let origins = self.reference.disks.iter().filter_map(|disk| disk.origin.as_ref());
        let made = origins.into_iter().any(|origin| snapshots.contains(origin));
        let refused = with_snapshots && (shared || made && !force);
        match self.engine().image_delete(BY, &id, with_snapshots, force) {
            Ok(_) if refused => Err("an image took snapshots that are in use".to_owned()),
            Ok(count) => {
                self.reference.images.remove(at);
                let mut gone = if with_snapshots { snapshots } else { Vec::new() };
                gone.sort();
                gone.dedup();
                equal("snapshots that went", count, gone.len() as u64)?;
                for snapshot in gone {
                    let at = self.reference.place(&snapshot);
                    self.reference.delete_snapshot(at);
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::InUse && refused => Ok(()),
            Err(error) => Err(text(error)),
        }
    }

    /// Makes all disks of an image.
    pub fn deploy(&mut self, image: u8) -> Outcome {
        let Some(at) = self.pick_image(image) else { return Ok(()) };
        let Image { id, snapshots, .. } = self.reference.images[at].clone();
        // The empty one too.
        let count = snapshots.len() + 1;
        if self.reference.disks.len() + count > DISKS_MAX + 1 {
            return Ok(());
        }
        let (name, description, tags) = (self.new_name(), String::new(), Tags::new());
        let deploy = ImageDeploy { image: id, name, description, tags, instance: None };
        let made = self.engine().image_deploy(BY, deploy).map_err(text)?;
        equal("disks of an image", made.len(), count)?;
        for (number, disk) in made.into_iter().enumerate() {
            let from = snapshots.get(number).map(|id| self.reference.place(id));
            let size = from.map_or(BLANK_BYTES, |at| self.reference.snapshots[at].size);
            equal("the size of a disk of an image", disk.size, size)?;
            self.reference.create_disk(disk.id, &disk.name, disk.size, from);
            self.compare_disk(self.reference.disks.len() - 1)?;
        }
        Ok(())
    }

    /// The images are those of the model, and so is what they hold on to.
    pub fn compare_images(&self, reference: &Reference) -> Outcome {
        let told = self.engine().images();
        equal("images", told.len(), reference.images.len())?;
        for (told, truth) in told.iter().zip(&reference.images) {
            equal("an image", (&told.id, &told.name), (&truth.id, &truth.name))?;
            let snapshots = told.disks.iter().filter_map(|disk| disk.snapshot.as_ref());
            let snapshots: Vec<&SnapshotId> = snapshots.map(|(id, _)| id).collect();
            equal("snapshots of an image", snapshots, truth.snapshots.iter().collect())?;
        }
        for snapshot in &reference.snapshots {
            let told = self.engine().snapshot(&snapshot.id).map_err(text)?.images;
            equal("whether a snapshot is held", !told.is_empty(), reference.pinned(&snapshot.id))?;
        }
        Ok(())
    }

    fn pick_image(&self, number: u8) -> Option<usize> {
        let count = self.reference.images.len();
        (count > 0).then(|| usize::from(number) % count)
    }
}
