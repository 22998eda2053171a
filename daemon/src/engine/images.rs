//! Verbs of images: templates of disks, made of snapshots, which stay as long as the image does.
//!
//! Invariants: an image has one system disk and is never changed in what it holds; each verb is one journal
//! record, also where it freezes several heads or makes several disks. A snapshot that an image is made
//! of is deleted by nobody, with force neither. Names of images and of families are one set: a name means
//! one of the two.
//! Absent: export and import, which are the client's: an image's snapshots are exports like any other.

use std::collections::BTreeMap;

use super::api::{
    Actor, DiskInfo, ImageChange, ImageDeploy, ImageDiskInfo, ImageInfo, ImageSource, ImageSpec,
    SnapshotSpec, Tags,
};
use super::catalogue::{
    Cut, DataRecord, DiskRecord, ImageRecord, Kind, NewDisk, Op, SnapshotRecord,
};
use super::disks::{change_tags, check_size, check_tags};
use super::names::{by_prefix, check_name, timed_name};
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, Epoch, ImageId, InstanceId, SnapshotId, TreeId};

/// Disks of one image, as many as a group has.
pub const DISKS_MAX: usize = super::groups::DISKS_MAX;
/// Each is a record in memory, and a search through all of them when a snapshot is deleted.
const IMAGES_MAX: usize = 1024;

/// A disk that is to be made: a snapshot's contents, or nothing of this size.
enum Part {
    Of(Box<SnapshotRecord>),
    Blank(u64),
}

impl Engine {
    /// Makes an image of snapshots, or of the present of all disks of an instance.
    ///
    /// # Errors
    /// A name is taken or will not do; `Quota` for too many; `NoEligibleDisk` when the instance has no disk.
    pub fn image_create(&self, by: Actor, spec: ImageSpec) -> Result<ImageInfo> {
        check_words(&spec.name, spec.family.as_deref(), &spec.tags)?;
        spec.blank.iter().try_for_each(|size| check_size(*size))?;
        let _shape = self.shape.lock();
        self.check_new_image_name(&spec.name)?;
        let family = spec.family.map(|family| self.checked_family(family, None)).transpose()?;
        let at = now();
        let (system, snapshots, cuts) = match spec.source {
            ImageSource::Snapshots { system, data } => (system, data, Vec::new()),
            ImageSource::Instance { instance, system } => {
                let cuts = self.instance_cuts(&instance, system.as_ref(), &spec.name, at)?;
                let mut made = cuts.iter().map(|cut| cut.snapshot.id.clone());
                let system = made.next().ok_or_else(|| Error::internal("an image of nothing"))?;
                (system, made.collect(), cuts)
            }
        };
        if cuts.is_empty() {
            snapshots
                .iter()
                .chain([&system])
                .try_for_each(|id| self.check_usable(&self.snapshot_record(id)?))?;
        }
        let data = snapshots.into_iter().map(DataRecord::Snapshot);
        let data: Vec<_> = data.chain(spec.blank.into_iter().map(DataRecord::Blank)).collect();
        check_count(data.len() + 1)?;
        let image = ImageRecord {
            id: ImageId::random()?,
            name: spec.name,
            description: spec.description,
            family,
            deprecated: false,
            number: self.next_image_number()?,
            created_at: at,
            system,
            data,
            tags: spec.tags,
        };
        let id = image.id.clone();
        let message = format!("image {} made of {} disks", image.name, image.data.len() + 1);
        self.change(by, Op::ImageCreate { image, cuts }, message)?;
        self.image(&id)
    }

    /// The present of all disks of an instance as snapshots that can be made, the system disk's first.
    fn instance_cuts(
        &self,
        instance: &InstanceId,
        system: Option<&DiskId>,
        image: &str,
        at: u64,
    ) -> Result<Vec<Cut>> {
        let name = self.instance(instance)?.name;
        let mut disks = self.catalogue.read().disks_of_instance(instance);
        check_count(disks.len())?;
        let first = match (system, disks.as_slice()) {
            (_, []) => {
                let message = format!("instance {name} has no disks");
                return Err(Error::new(ErrorKind::NoEligibleDisk, message)
                    .hint("`rowctl disk set D --instance I` gives it one"));
            }
            (None, [_]) => 0,
            (None, all) => {
                let names: Vec<&str> = all.iter().map(|disk| disk.name.as_str()).collect();
                return Err(Error::invalid(format!(
                    "instance {name} has several disks: {}",
                    names.join(", ")
                ))
                .hint("say which is its system disk: --system DISK"));
            }
            (Some(system), all) => {
                all.iter().position(|disk| disk.id == *system).ok_or_else(|| {
                    let disk = self.disk_name(system);
                    Error::invalid(format!("{disk} is no disk of instance {name}"))
                        .hint(format!("see `rowctl instance show {name}`"))
                })?
            }
        };
        disks[..=first].rotate_right(1);
        let heads = self.new_heads(&disks)?;
        let cut = |(disk, head): (&DiskRecord, Epoch)| {
            let name = timed_name(&self.catalogue.read(), &disk.id, "image", at);
            let spec = SnapshotSpec {
                disk: disk.id.clone(),
                name: Some(name),
                description: format!("made for image {image}"),
                tags: Tags::new(),
                copy: None,
            };
            self.new_cut(disk, spec, head, at).map_err(|error| error.context(&disk.name))
        };
        disks.iter().zip(heads).map(cut).collect()
    }

    /// Changes name, description, family or state of an image; what it holds never changes.
    ///
    /// # Errors
    /// A name will not do or is taken; `WrongState` to deprecate an image of no family.
    pub fn image_change(&self, by: Actor, id: &ImageId, change: ImageChange) -> Result<ImageInfo> {
        let _shape = self.shape.lock();
        let mut image = self.image_record(id)?;
        if let Some(name) = change.name.filter(|name| *name != image.name) {
            self.check_new_image_name(&name)?;
            image.name = name;
        }
        if let Some(description) = change.description {
            image.description = description;
        }
        if let Some(family) = change.family {
            image.family = family.map(|one| self.checked_family(one, Some(id))).transpose()?;
            // Only in a family does it mean anything.
            image.deprecated &= image.family.is_some();
        }
        if image.family.as_ref() == Some(&image.name) {
            return Err(Error::invalid("an image cannot have the name of its family"));
        }
        let kind = match change.deprecated.filter(|wanted| *wanted != image.deprecated) {
            None => "image.set",
            Some(true) if image.family.is_none() => {
                let message = format!("image {} is in no family", image.name);
                return Err(Error::new(ErrorKind::WrongState, message).hint(format!(
                    "only a family leaves deprecated images out: \
                     `rowctl image set {} --family F`",
                    image.name
                )));
            }
            Some(deprecated) => {
                image.deprecated = deprecated;
                if deprecated { "image.deprecate" } else { "image.restore" }
            }
        };
        self.update_image(by, image, kind)
    }

    /// Sets and removes tags of an image.
    ///
    /// # Errors
    /// There is no such image, or a tag will not do.
    pub fn tag_image(
        &self,
        by: Actor,
        id: &ImageId,
        set: &Tags,
        remove: &[String],
    ) -> Result<ImageInfo> {
        let _shape = self.shape.lock();
        let mut image = self.image_record(id)?;
        change_tags(&mut image.tags, set, remove)?;
        self.update_image(by, image, "image.tag")
    }

    fn update_image(&self, by: Actor, image: ImageRecord, kind: &str) -> Result<ImageInfo> {
        let (id, message) = (image.id.clone(), format!("image {} changed", image.name));
        self.change(by, Op::ImageUpdate { image, kind: kind.to_owned() }, message)?;
        self.image(&id)
    }

    /// Deletes an image, and its snapshots too if asked to. Returns how many snapshots went. Disks that were
    /// made from it stay whole.
    ///
    /// # Errors
    /// Of its snapshots as [`Engine::snapshot_delete`], also when another image is made of one; nothing is
    /// deleted then.
    pub fn image_delete(
        &self,
        by: Actor,
        id: &ImageId,
        with_snapshots: bool,
        force: bool,
    ) -> Result<u64> {
        let _shape = self.shape.lock();
        let image = self.image_record(id)?;
        let mut snapshots: Vec<SnapshotId> = Vec::new();
        let mut alone = Vec::new();
        for snapshot in image.snapshots().filter(|_| with_snapshots) {
            if snapshots.contains(snapshot) {
                continue;
            }
            let snapshot = self.snapshot_record(snapshot)?;
            self.check_pins(&snapshot, Some(id))?;
            self.check_unused(&snapshot, force)?;
            alone.push(self.clients.exclude_snapshot(&snapshot.id, &snapshot.name, force)?);
            snapshots.push(snapshot.id);
        }
        let count = snapshots.len() as u64;
        let message = match count {
            0 => format!("image {} deleted", image.name),
            _ => format!("image {} deleted with {count} snapshots", image.name),
        };
        for snapshot in &snapshots {
            self.opened.lock().remove(snapshot);
        }
        self.change(by, Op::ImageDelete { id: id.clone(), snapshots }, message)?;
        Ok(count)
    }

    /// Makes a disk of each disk of an image: all of them, or none.
    ///
    /// # Errors
    /// A name is taken or will not do.
    pub fn image_deploy(&self, by: Actor, deploy: ImageDeploy) -> Result<Vec<DiskInfo>> {
        check_tags(&deploy.tags)?;
        let _shape = self.shape.lock();
        let image = self.image_record(&deploy.image)?;
        let instance = deploy.instance.as_ref().map(|id| self.owner(id)).transpose()?.flatten();
        let parts = self.parts(&image)?;
        let places = self.places(&parts)?;
        let encrypted = places.first().is_some_and(|(tree, _)| self.is_encrypted(*tree));
        let at = now();
        let mut disks = Vec::with_capacity(parts.len());
        for (number, (part, (tree, head))) in parts.iter().zip(places).enumerate() {
            let name = match number {
                0 => deploy.name.clone(),
                _ => format!("{}-data{number}", deploy.name),
            };
            self.check_new_disk_name(&name)?;
            let (size, origin, parent) = match part {
                Part::Of(from) => (from.size, Some(from.id.clone()), Some(from.node)),
                Part::Blank(size) => (*size, None, None),
            };
            // An empty one is as the system disk is, which comes first.
            let key = match part {
                Part::Blank(_) if encrypted => Some(self.new_key(&name)?),
                _ => None,
            };
            let disk = DiskRecord {
                id: DiskId::random()?,
                name,
                description: deploy.description.clone(),
                size,
                created_at: at,
                read_only: false,
                origin,
                image: Some(image.id.clone()),
                tree,
                head,
                tags: deploy.tags.clone(),
                instance: instance.clone(),
                attachment: None,
                policy: None,
                delete_auto: false,
                filled: None,
            };
            disks.push(NewDisk { disk, parent, key });
        }
        let ids: Vec<DiskId> = disks.iter().map(|new| new.disk.id.clone()).collect();
        let message = format!("{} disks made from image {}", disks.len(), image.name);
        self.change(by, Op::ImageDeploy { id: image.id, disks }, message)?;
        ids.iter().map(|id| self.disk(id)).collect()
    }

    fn parts(&self, image: &ImageRecord) -> Result<Vec<Part>> {
        let of = |id: &SnapshotId| {
            let snapshot = self.snapshot_record(id)?;
            self.check_held(&snapshot).map(|()| Part::Of(Box::new(snapshot)))
        };
        let data = image.data.iter().map(|data| match data {
            DataRecord::Snapshot(id) => of(id),
            DataRecord::Blank(size) => Ok(Part::Blank(*size)),
        });
        std::iter::once(of(&image.system)).chain(data).collect()
    }

    /// Where new disks go: several may be of one tree, and each empty one is a new tree.
    fn places(&self, parts: &[Part]) -> Result<Vec<(TreeId, Epoch)>> {
        let mut next_tree = self.catalogue.read().next_tree.max(1);
        let mut given: BTreeMap<TreeId, u32> = BTreeMap::new();
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            let tree = match part {
                Part::Of(snapshot) => snapshot.tree,
                Part::Blank(_) => {
                    next_tree += 1;
                    TreeId(next_tree - 1)
                }
            };
            let ahead = given.entry(tree).or_default();
            places.push((tree, self.tree(tree).epoch_ahead(*ahead)?));
            *ahead += 1;
        }
        Ok(places)
    }

    /// Refuses a snapshot that is protected, or that an image is made of; there is no force for that.
    pub(super) fn check_unpinned(&self, snapshot: &SnapshotRecord) -> Result<()> {
        self.refuse_protected_snapshot(&snapshot.id, &self.snapshot_label(snapshot))?;
        self.check_pins(snapshot, None)
    }

    /// As [`Engine::check_unpinned`], but for one image.
    fn check_pins(&self, snapshot: &SnapshotRecord, but: Option<&ImageId>) -> Result<()> {
        let catalogue = self.catalogue.read();
        let images = catalogue.images_with(&snapshot.id);
        let names: Vec<(&ImageId, &str)> = images
            .filter(|image| Some(&image.id) != but)
            .map(|image| (&image.id, image.name.as_str()))
            .collect();
        let Some((_, first)) = names.first() else { return Ok(()) };
        let all: Vec<String> = names.iter().map(|(id, name)| format!("{name} ({id})")).collect();
        let noun = if all.len() == 1 { "image" } else { "images" };
        let message = format!("{noun} {} made of snapshot {}", is_are(&all), snapshot.name);
        Err(Error::new(ErrorKind::InUse, message).hint(format!(
            "delete the image first, force does not help: `rowctl image delete {first}`"
        )))
    }

    /// Refuses a disk with which a snapshot would go that an image is made of.
    pub(super) fn check_undo_unpinned(&self, disk: &DiskRecord) -> Result<()> {
        let undo: Vec<SnapshotRecord> = {
            let catalogue = self.catalogue.read();
            let all = catalogue.snapshots_of(&disk.id);
            all.filter(|snapshot| snapshot.kind == Kind::Undo).cloned().collect()
        };
        undo.iter().try_for_each(|snapshot| {
            self.check_unpinned(snapshot)
                .map_err(|error| error.context(format!("{} cannot be deleted", disk.name)))
        })
    }

    /// # Errors
    /// There is no such image.
    pub fn image(&self, id: &ImageId) -> Result<ImageInfo> {
        self.image_info(self.image_record(id)?)
    }

    /// All images, oldest first.
    #[must_use]
    pub fn images(&self) -> Vec<ImageInfo> {
        let mut records: Vec<_> = self.catalogue.read().images.values().cloned().collect();
        records.sort_by_key(|image| image.number);
        // One that is deleted this instant is left out.
        records.into_iter().filter_map(|record| self.image_info(record).ok()).collect()
    }

    /// The image that an id, a name or a unique beginning of an id means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several ids begin so, or for a family, which is no single image.
    pub fn find_image(&self, name: &str) -> Result<ImageId> {
        let catalogue = self.catalogue.read();
        let id = ImageId::from(name);
        if catalogue.images.contains_key(&id) {
            return Ok(id);
        }
        if let Some(image) = catalogue.image_named(name) {
            return Ok(image.id.clone());
        }
        let family = catalogue.family(name);
        if !family.is_empty() {
            let names: Vec<&str> = family.iter().map(|image| image.name.as_str()).collect();
            return Err(Error::invalid(format!("{name:?} is a family of images, not one of them"))
                .hint(format!("name the image: {}", names.join(", "))));
        }
        by_prefix(ImageId::PREFIX, name, catalogue.images.keys().map(ImageId::as_str))?
            .map(ImageId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no image is called {name:?}"))
                    .hint("see `rowctl image list`")
            })
    }

    /// As [`Engine::find_image`]; a family means its newest image that is not deprecated.
    ///
    /// # Errors
    /// As [`Engine::find_image`]; `WrongState` when all images of the family are deprecated.
    pub fn find_image_or_family(&self, name: &str) -> Result<ImageId> {
        let error = match self.find_image(name) {
            Err(error) if error.kind() == ErrorKind::Invalid => error,
            found => return found,
        };
        let catalogue = self.catalogue.read();
        match (catalogue.current_of(name), catalogue.family(name).last()) {
            (Some(image), _) => Ok(image.id.clone()),
            (None, Some(newest)) => {
                let message = format!("all images of the family {name:?} are deprecated");
                let hint = format!("take one back: `rowctl image restore {}`", newest.name);
                Err(Error::new(ErrorKind::WrongState, message).hint(hint))
            }
            (None, None) => Err(error),
        }
    }

    pub(super) fn image_record(&self, id: &ImageId) -> Result<ImageRecord> {
        let found = self.catalogue.read().images.get(id).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!("no image {id}")).hint("see `rowctl image list`")
        })
    }

    fn image_info(&self, record: ImageRecord) -> Result<ImageInfo> {
        let system = self.snapshot_record(&record.system)?.tree;
        let disk = |part: Part| match part {
            Part::Of(snapshot) => {
                let (size, encrypted) = (snapshot.size, self.is_encrypted(snapshot.tree));
                let label = self.snapshot_label(&snapshot);
                ImageDiskInfo { size, snapshot: Some((snapshot.id, label)), encrypted }
            }
            Part::Blank(size) => {
                ImageDiskInfo { size, snapshot: None, encrypted: self.is_encrypted(system) }
            }
        };
        let disks = self.parts(&record)?.into_iter().map(disk).collect();
        let catalogue = self.catalogue.read();
        let current = record.family.as_ref().and_then(|family| catalogue.current_of(family));
        let current = current.is_some_and(|current| current.id == record.id);
        let made_disks = catalogue.made_from_image(&record.id);
        let ImageRecord { id, name, description, family, deprecated, created_at, tags, .. } =
            record;
        Ok(ImageInfo {
            id,
            name,
            description,
            family,
            deprecated,
            current,
            created_at,
            disks,
            made_disks,
            tags,
        })
    }

    fn check_new_image_name(&self, name: &str) -> Result<()> {
        check_name("image", name)?;
        let catalogue = self.catalogue.read();
        let taken = if catalogue.image_named(name).is_some() {
            format!("an image {name:?} exists")
        } else if !catalogue.family(name).is_empty() {
            format!("{name:?} is a family of images")
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Exists, taken).hint("choose another name"))
    }

    /// A family that an image may be in. `own`: the image, whose own name is judged later.
    fn checked_family(&self, family: String, own: Option<&ImageId>) -> Result<String> {
        check_name("family", &family)?;
        match self.catalogue.read().image_named(&family) {
            Some(image) if Some(&image.id) != own => {
                Err(Error::new(ErrorKind::Exists, format!("an image {family:?} exists"))
                    .hint("a family needs a name that no image has"))
            }
            _ => Ok(family),
        }
    }

    fn next_image_number(&self) -> Result<u64> {
        let catalogue = self.catalogue.read();
        let count = catalogue.images.len();
        if count >= IMAGES_MAX {
            let message = format!("there are {count} images, which is the most there can be");
            return Err(Error::new(ErrorKind::Quota, message)
                .hint("delete those that are no longer used: `rowctl image list`"));
        }
        Ok(catalogue.images.values().map(|image| image.number).max().unwrap_or(0) + 1)
    }
}

fn is_are(names: &[String]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", names.join(", "))
}

/// Checks what an image is to be called, wherever it is going to be.
fn check_words(name: &str, family: Option<&str>, tags: &Tags) -> Result<()> {
    check_tags(tags)?;
    check_name("image", name)?;
    family.map_or(Ok(()), |family| check_name("family", family))?;
    if family == Some(name) {
        return Err(Error::invalid("an image cannot have the name of its family")
            .hint(format!("call it {name}-1, say")));
    }
    Ok(())
}

/// Checks an image that is to be made elsewhere: its name, family and tags, and its disks, of which some begin empty.
///
/// # Errors
/// `Invalid`; `Quota` for too many disks.
pub fn check_image(
    (name, family, tags): (&str, Option<&str>, &Tags),
    disks: usize,
    blank: &[u64],
) -> Result<()> {
    check_words(name, family, tags)?;
    blank.iter().try_for_each(|size| check_size(*size))?;
    check_count(disks + blank.len())
}

fn check_count(disks: usize) -> Result<()> {
    if disks <= DISKS_MAX {
        return Ok(());
    }
    let message = format!("{disks} disks; an image has at most {DISKS_MAX}");
    Err(Error::new(ErrorKind::Quota, message).hint("make several images"))
}
