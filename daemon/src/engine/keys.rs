//! Keys of encrypted disks: one for each family of disks and snapshots that share blocks.
//!
//! Invariants: a family is encrypted from its first disk on or never, so a clone, a snapshot and a rollback
//! have the key of the blocks they share; the key goes with the last disk or snapshot of the family, in the
//! record that removes it; a disk whose key cannot be unwrapped is refused and harms no other.
//! Absent: the encryption itself (`crypt/`), and conversion of disks that exist.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Engine;
use super::api::{Actor, DiskSpec, KeyInfo, KeysInfo};
use super::catalogue::{Catalogue, KeyRecord, Op, SnapshotRecord};
use super::clients::Subject;
use super::exports::ExportRecord;
use crate::crypt::copy::{self, CopyKey};
use crate::crypt::master::{Masters, Settings, Wrapped};
use crate::crypt::{self, Cipher, Sealing};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::superblock;
use crate::units::{SnapshotId, TreeId};

/// Keys that one record has room for, each at most 220 bytes.
const ROTATE_MAX: usize = 1000;

/// What the engine has in memory of keys.
#[derive(Debug)]
pub(super) struct Keys {
    masters: Mutex<Arc<Masters>>,
    ciphers: Mutex<HashMap<TreeId, Arc<Cipher>>>,
}

impl Keys {
    pub(super) fn new(settings: &Settings) -> Keys {
        Keys { masters: Mutex::new(Arc::new(Masters::read(settings))), ciphers: Mutex::default() }
    }

    fn masters(&self) -> Arc<Masters> {
        Arc::clone(&self.masters.lock())
    }
}

impl Engine {
    /// How the blocks of a family are stored.
    pub(super) fn sealing(&self, catalogue: &Catalogue, tree: TreeId) -> Sealing {
        let Some(wrapped) = catalogue.keys.get(&tree) else { return Sealing::Plain };
        let mut ciphers = self.keys.ciphers.lock();
        if let Some(cipher) = ciphers.get(&tree) {
            return Sealing::Sealed(Arc::clone(cipher));
        }
        let made = self.keys.masters().unwrap(wrapped).and_then(|key| Cipher::new(&key));
        match made {
            Ok(cipher) => {
                let cipher = Arc::new(cipher);
                ciphers.insert(tree, Arc::clone(&cipher));
                Sealing::Sealed(cipher)
            }
            Err(error) => Sealing::Locked(error),
        }
    }

    /// Refuses an export that is encrypted and whose key cannot be had.
    pub(super) fn check_unlocked(&self, export: &ExportRecord) -> Result<()> {
        let tree = match &export.subject {
            Subject::Disk(id) => self.record(id)?.tree,
            Subject::Snapshot(id) => self.snapshot_record(id)?.tree,
        };
        let sealing = self.sealing(&self.catalogue.read(), tree);
        let what = || format!("{} is encrypted", export.name);
        sealing.cipher().map(drop).map_err(|error| error.context(what()))
    }

    /// The key of a new disk that is to be encrypted and has blocks of its own only.
    pub(super) fn key_of_new(
        &self,
        spec: &DiskSpec,
        origin: Option<&SnapshotRecord>,
    ) -> Result<Option<Wrapped>> {
        if !spec.encrypted {
            return Ok(None);
        }
        if let Some(origin) = origin {
            if self.is_encrypted(origin.tree) {
                return Ok(None);
            }
            return Err(Error::invalid(format!(
                "{} is not encrypted, and a disk made from it cannot be",
                origin.name
            ))
            .hint(
                "disks are not converted: make an encrypted disk with --size and copy into it, for \
                 example with `rowctl disk export` and `rowctl disk import --encrypted`",
            ));
        }
        self.new_key(&spec.name).map(Some)
    }

    /// A new wrapped key, for the disk of this name.
    pub(super) fn new_key(&self, name: &str) -> Result<Wrapped> {
        let masters = self.keys.masters();
        let what = || format!("{name} cannot be encrypted");
        let master = masters.current().map_err(|error| error.context(what()))?;
        let wrapped = master.wrap(&crypt::new_key()?)?;
        // An older rowd must not take the pool for one whose blocks are data as they are.
        self.shared.pool.require_version(superblock::SEALED_VERSION)?;
        Ok(wrapped)
    }

    /// The key of the copies of a snapshot, if it is encrypted, and the key as copies carry it: wrapped by the
    /// present master key.
    ///
    /// # Errors
    /// `NotFound`; `Condition` when the key of its family or a master key is not there.
    pub fn copy_key(&self, snapshot: &SnapshotId) -> Result<Option<(CopyKey, Wrapped)>> {
        let SnapshotRecord { tree, name, .. } = self.snapshot_record(snapshot)?;
        self.copy_key_of(tree).map_err(|error| error.context(format!("{name} is encrypted")))
    }

    pub(super) fn copy_key_of(&self, tree: TreeId) -> Result<Option<(CopyKey, Wrapped)>> {
        let Some(kept) = self.catalogue.read().keys.get(&tree).cloned() else { return Ok(None) };
        let masters = self.keys.masters();
        let raw = copy::derive(&masters.unwrap(&kept)?)?;
        Ok(Some((CopyKey::new(&raw)?, masters.current()?.wrap(&raw)?)))
    }

    /// A key of copies from what a copy carries.
    ///
    /// # Errors
    /// `Condition`, naming the master key that is not there.
    pub fn open_copy_key(&self, wrapped: &Wrapped) -> Result<CopyKey> {
        CopyKey::new(&self.keys.masters().unwrap(wrapped)?)
    }

    /// A key of copies wrapped by the present master key; nothing when a master key for that is not there.
    #[must_use]
    pub fn rewrap_copy_key(&self, wrapped: &Wrapped) -> Option<Wrapped> {
        let masters = self.keys.masters();
        let raw = masters.unwrap(wrapped).ok()?;
        masters.current().ok()?.wrap(&raw).ok()
    }

    /// Whether a family of disks is encrypted.
    #[must_use]
    pub fn is_encrypted(&self, tree: TreeId) -> bool {
        self.catalogue.read().keys.contains_key(&tree)
    }

    /// Why the disks of a family cannot be used, if they cannot for want of a key.
    pub(super) fn locked(&self, tree: TreeId) -> Option<String> {
        match self.sealing(&self.catalogue.read(), tree) {
            Sealing::Locked(why) => Some(why.message().to_owned()),
            _ => None,
        }
    }

    /// The key goes when nothing is left to read with it.
    pub(super) fn forget_unused_key(&self, catalogue: &mut Catalogue, tree: TreeId) {
        if catalogue.drop_unused_key(tree) {
            self.keys.ciphers.lock().remove(&tree);
        }
    }

    /// Master keys and the disks whose keys they wrap.
    #[must_use]
    pub fn keys(&self) -> KeysInfo {
        let masters = self.keys.masters();
        let (master, trouble) = match masters.current() {
            Ok(key) => (Some(key.id().to_owned()), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let keys = self.catalogue.read().keys.clone();
        let keys = keys.into_iter().map(|(tree, wrapped)| {
            let catalogue = self.catalogue.read();
            let disks = catalogue.disks.values().filter(|disk| disk.tree == tree);
            let disks = disks.map(|disk| (disk.id.clone(), disk.name.clone())).collect();
            let snapshots = catalogue.snapshots.values().filter(|one| one.tree == tree).count();
            drop(catalogue);
            let locked = self.locked(tree);
            KeyInfo { master: wrapped.master, disks, snapshots: snapshots as u64, locked }
        });
        KeysInfo {
            source: masters.source().to_string(),
            master,
            trouble,
            previous_trouble: masters.trouble().map(ToString::to_string),
            keys: keys.collect(),
        }
    }

    /// Reads the master keys again and wraps every key with the present one, in one change. Returns how many
    /// were not wrapped by it before.
    ///
    /// # Errors
    /// `Condition` when there is no master key, or a key cannot be unwrapped; then nothing changes.
    pub fn key_rotate(&self, by: Actor) -> Result<u64> {
        let _shape = self.shape.lock();
        let masters = Arc::new(Masters::read(&self.settings.encryption));
        let master = masters.current()?;
        let kept = self.catalogue.read().keys.clone();
        let mut keys = Vec::new();
        for (tree, wrapped) in &kept {
            if wrapped.master != master.id() {
                let key = masters.unwrap(wrapped);
                let key = key.map_err(|error| error.context(self.names_of(*tree)))?;
                keys.push(KeyRecord { tree: *tree, wrapped: master.wrap(&key)? });
            }
        }
        if keys.len() > ROTATE_MAX {
            return Err(Error::new(
                ErrorKind::Quota,
                format!("{} keys are more than the {ROTATE_MAX} one change can hold", keys.len()),
            ));
        }
        let changed = keys.len() as u64;
        if changed > 0 {
            let message = format!("{changed} keys wrapped by master key {}", master.id());
            self.change(by, Op::KeyRotate { keys }, message)?;
        }
        *self.keys.masters.lock() = masters;
        self.unlock();
        Ok(changed)
    }

    /// Gives disks their keys that had none before: the key was wrapped anew by a record that is replayed
    /// after they went live, or the master key came later. Nobody has such a disk open.
    pub(super) fn unlock(&self) {
        let catalogue = self.catalogue.read();
        let mut disks = self.disks.write();
        for record in catalogue.disks.values() {
            let Some(disk) = disks.get_mut(&record.id) else { continue };
            if matches!(disk.sealing, Sealing::Locked(_)) {
                *disk = disk.with_sealing(self.sealing(&catalogue, record.tree));
            }
            if let Sealing::Locked(why) = &disk.sealing {
                tracing::warn!(disk = record.name, "encrypted and refused: {why}");
            }
        }
    }

    fn names_of(&self, tree: TreeId) -> String {
        let catalogue = self.catalogue.read();
        let disks = catalogue.disks.values().filter(|disk| disk.tree == tree);
        let names: Vec<_> = disks.map(|disk| disk.name.as_str()).collect();
        if names.is_empty() { "snapshots of a deleted disk".to_owned() } else { names.join(", ") }
    }
}
