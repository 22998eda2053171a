//! What should exist: disks, snapshots, groups, templates, and the change of them that was in flight.
//!
//! Invariants: a change is pending from before it is asked for until it is answered; after a crash the
//! pending one was done or not, never in part.
//! Absent: looking (`verify`) and acting (`actor`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::history::{Clock, Log};
use super::judge::Window;
use super::load::lock;
use super::stamp::Value;

/// The contents of a snapshot.
#[derive(Clone, Debug)]
pub enum Image {
    Exact(Arc<Vec<Value>>),
    /// Some instant of a disk under load, to be found out at the next look.
    Cut {
        disk: String,
        window: Window,
    },
}

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk {
    pub id: String,
    pub log: Arc<Mutex<Log>>,
    /// The instant it was made from, until that is found out. Nobody writes before.
    pub born: Option<Image>,
    /// Under load all the time; others are written by the actor only.
    pub busy: bool,
}

/// A snapshot, known by its id.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub name: String,
    pub disk: String,
    pub disk_id: String,
    pub image: Image,
    /// Kept by a rollback: it goes with its disk.
    pub undo: bool,
}

/// A group, known by its id.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    /// Ids of the snapshots it was made with, some of which may be gone.
    pub snapshots: Vec<String>,
}

/// An image in rowd's sense, known by its id; here that word is for contents.
#[derive(Clone, Debug)]
pub struct Template {
    pub name: String,
    /// Ids of the snapshots it is made of, which stay as long as it does.
    pub snapshots: Vec<String>,
}

/// A disk that goes back: what it goes back to, and what it held before.
#[derive(Clone, Debug)]
pub struct Turn {
    pub disk: String,
    pub image: Image,
    pub before: Image,
}

/// A change in flight.
#[derive(Clone, Debug)]
pub enum Pending {
    SnapshotCreate {
        disk: String,
        name: String,
        image: Image,
    },
    SnapshotDelete {
        id: String,
    },
    DiskCreate {
        name: String,
        image: Image,
    },
    DiskDelete {
        name: String,
    },
    Rollback(Turn),
    /// The disks and what their snapshots hold.
    GroupCreate {
        name: String,
        members: Vec<(String, Image)>,
    },
    GroupDelete {
        id: String,
    },
    GroupRollback {
        turns: Vec<Turn>,
    },
    TemplateCreate(Template),
    TemplateDelete {
        id: String,
    },
}

/// Everything that should exist.
#[derive(Debug, Default)]
pub struct World {
    pub clock: Arc<Clock>,
    pub disks: BTreeMap<String, Disk>,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub groups: BTreeMap<String, Group>,
    pub templates: BTreeMap<String, Template>,
    pub pending: Option<Pending>,
    named: u32,
}

impl World {
    /// A number for a name nobody had.
    pub fn fresh(&mut self) -> u32 {
        self.named += 1;
        self.named
    }

    /// Adds a disk; `image` is what it starts as.
    pub fn add_disk(&mut self, name: &str, id: &str, sectors: usize, image: Option<Image>) {
        let (base, born) = match image {
            None => (vec![Value::ZERO; sectors], None),
            Some(Image::Exact(base)) => (base.to_vec(), None),
            Some(cut) => (vec![Value::ZERO; sectors], Some(cut)),
        };
        let log = Arc::new(Mutex::new(Log::new(self.fresh(), base)));
        let disk = Disk { id: id.to_owned(), log, born, busy: false };
        self.disks.insert(name.to_owned(), disk);
    }

    /// Removes a disk; its snapshots stay but for those that were kept for undo.
    pub fn forget_disk(&mut self, name: &str) {
        if let Some(disk) = self.disks.remove(name) {
            self.snapshots.retain(|_, s| s.disk_id != disk.id || !s.undo);
        }
    }

    /// Removes a group and the snapshots it still has.
    pub fn forget_group(&mut self, id: &str) {
        for snapshot in self.groups.remove(id).map(|group| group.snapshots).unwrap_or_default() {
            self.snapshots.remove(&snapshot);
        }
    }

    /// Whether a template is made of a snapshot.
    #[must_use]
    pub fn pinned(&self, snapshot: &String) -> bool {
        self.templates.values().any(|template| template.snapshots.contains(snapshot))
    }

    /// What a disk holds while nothing of it is in flight.
    #[must_use]
    pub fn image_now(&self, disk: &str) -> Image {
        let disk = &self.disks[disk];
        match &disk.born {
            Some(image) => image.clone(),
            None => Image::Exact(Arc::new(lock(&disk.log).current().to_vec())),
        }
    }
}
