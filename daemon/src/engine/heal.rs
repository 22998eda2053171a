//! Healing as the engine sees it: which stored blocks are damaged, which snapshots share them, and how contents
//! that came from elsewhere are stored in their place.
//!
//! Invariants: contents are taken only if the checksum in the map says that they are what was written; nothing
//! is written over a damaged block; a block that reads well again is left alone.
//! Absent: where contents come from (`vault/heal.rs`).

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};

use super::Engine;
use super::api::Actor;
use crate::crypt::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::map::heal::{self, Move};
use crate::map::leaf::Entry;
use crate::map::view::View;
use crate::pool::crc32c;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, BlockRange, DiskId, Lba, Pbn, SnapshotId, TreeId};

/// Damaged blocks that wait to be healed; more are found again by the next read or scrub.
const WAITING_MAX: usize = 4096;

/// A stored block that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Damage {
    pub tree: TreeId,
    pub lba: Lba,
    pub pbn: Pbn,
}

/// Damaged blocks that wait to be healed.
#[derive(Debug, Default)]
pub(super) struct Damages {
    waiting: Mutex<Waiting>,
    added: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    blocks: HashSet<Damage>,
    /// Nobody heals any more.
    ended: bool,
}

impl Damages {
    pub(super) fn add(&self, damage: Damage) {
        let mut waiting = self.waiting.lock();
        if waiting.blocks.len() < WAITING_MAX && waiting.blocks.insert(damage) {
            self.added.notify_all();
        }
    }
}

/// Who may have the contents of a damaged block.
#[derive(Clone, Debug, Default)]
pub struct Sharers {
    /// Snapshots that are here and have this very block.
    pub snapshots: Vec<SnapshotId>,
    /// The disks of the family, those that are gone included as far as snapshots name them.
    pub disks: HashSet<DiskId>,
}

/// What came of contents for a damaged block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healed {
    /// They are stored.
    Done,
    /// They are not what was written.
    Differs,
    /// The block is in use no more, or reads well.
    Needless,
}

impl Engine {
    /// Waits for damaged blocks and takes them; `None` after [`Engine::damages_end`].
    #[must_use]
    pub fn damages(&self) -> Option<Vec<Damage>> {
        let damages = &self.corrupt.damages;
        let mut waiting = damages.waiting.lock();
        while waiting.blocks.is_empty() && !waiting.ended {
            damages.added.wait(&mut waiting);
        }
        (!waiting.ended).then(|| waiting.blocks.drain().collect())
    }

    /// Ends the wait of who heals.
    pub fn damages_end(&self) {
        let damages = &self.corrupt.damages;
        damages.waiting.lock().ended = true;
        damages.added.notify_all();
    }

    /// Who may have the contents of a damaged block elsewhere.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sharers(&self, damage: &Damage) -> Result<Sharers> {
        let records: Vec<_> = {
            let catalogue = self.catalogue.read();
            catalogue.snapshots.values().filter(|s| s.tree == damage.tree).cloned().collect()
        };
        let mut found = Sharers::default();
        found.disks.extend(records.iter().map(|snapshot| snapshot.disk.clone()));
        {
            let catalogue = self.catalogue.read();
            let disks = catalogue.disks.values().filter(|disk| disk.tree == damage.tree);
            found.disks.extend(disks.map(|disk| disk.id.clone()));
        }
        // One whose blocks have left the pool is found by its disk, as one is that was deleted here.
        for snapshot in records.into_iter().filter(|snapshot| snapshot.is_held()) {
            if self.has(&self.open_snapshot(&snapshot).view, damage)? {
                found.snapshots.push(snapshot.id);
            }
        }
        Ok(found)
    }

    /// Stores the contents of a damaged block at a new place, if they are what was written. `from` says where
    /// they come from.
    ///
    /// # Errors
    /// The pool is full or has stopped; `Condition` when the key of the family is not there.
    pub fn heal(&self, damage: &Damage, contents: &[u8], from: &str) -> Result<Healed> {
        let Damage { tree, lba, pbn } = *damage;
        let family = self.tree(tree);
        let pool = &self.shared.pool;
        let Some(Entry::Data { crc, salt, .. }) = heal::find(&self.shared, &family, lba, pbn)?
        else {
            return Ok(Healed::Needless);
        };
        let mut stored = vec![0; BLOCK_BYTES];
        match pool.file.read(pbn.offset(), &mut stored) {
            Ok(()) if crc32c(&stored) == crc => return Ok(Healed::Needless),
            Err(error) if error.kind() != ErrorKind::Io => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let sealing = self.sealing(&self.catalogue.read(), tree);
        let cipher = sealing.cipher()?;
        let put = |place: Place, out: &mut [u8]| match cipher {
            Some(cipher) => cipher.seal(place, contents, out),
            None => out.copy_from_slice(contents),
        };
        put(Place { lba, pbn, salt }, &mut stored);
        if contents.len() != BLOCK_BYTES || crc32c(&stored) != crc {
            return Ok(Healed::Differs);
        }
        let (run, _) = pool.lease(1)?;
        let salt = cipher.map_or(0, |cipher| cipher.salts.next());
        put(Place { lba, pbn: run.start, salt }, &mut stored);
        let holders = self.holders_of(damage)?.join(", ");
        let block = Move { tree, lba, from: pbn, to: run.start, crc: crc32c(&stored), salt };
        match self.moved(&block, &stored) {
            Ok(true) => {}
            other => {
                pool.with_allocator(|a| a.give_back(run));
                return other.map(|_| Healed::Needless);
            }
        }
        self.healed.fetch_add(1, Ordering::Relaxed);
        let offset = lba.0 * BLOCK_SIZE;
        let message = format!("offset {offset}, held by {holders}: stored anew from {from}");
        tracing::info!(message, "a damaged block is healed");
        let _shape = self.shape.lock();
        self.note(Actor::DAEMON, "pool.heal", "pool", message)?;
        Ok(Healed::Done)
    }

    /// Writes a block to its new place and moves it there.
    fn moved(&self, block: &Move, stored: &[u8]) -> Result<bool> {
        let pool = &self.shared.pool;
        pool.file.write(block.to.offset(), stored)?;
        // Durable before anything names it: a replay does not look at it again.
        pool.sync()?;
        let mut read = vec![0; BLOCK_BYTES];
        pool.file.read(block.to.offset(), &mut read)?;
        if read != stored {
            let place = block.to;
            return Err(Error::new(ErrorKind::Io, format!("block {place} does not keep its data")));
        }
        faults::fail_point("heal.written");
        let done = {
            let _shape = self.shape.lock();
            let _room = self.shared.reserve(Move::BYTES)?;
            let _no_checkpoint = self.checkpointing.lock();
            heal::run(&self.shared, &self.tree(block.tree), *block)?
        };
        pool.sync()?;
        Ok(done)
    }

    /// The disks and snapshots that have a block.
    fn holders_of(&self, damage: &Damage) -> Result<Vec<String>> {
        let catalogue = self.catalogue.read();
        let disks = catalogue.disks.values().filter(|disk| disk.tree == damage.tree);
        let disks: Vec<_> = disks.map(|disk| (disk.id.clone(), disk.name.clone())).collect();
        drop(catalogue);
        let mut names = Vec::new();
        for (id, name) in disks {
            // One that is deleted this instant has nothing.
            let Ok(disk) = self.live(&id) else { continue };
            if self.has(&disk.view, damage)? {
                names.push(name);
            }
        }
        for id in self.sharers(damage)?.snapshots {
            names.extend(self.snapshot_record(&id).ok().map(|found| self.snapshot_label(&found)));
        }
        Ok(names)
    }

    fn has(&self, view: &View, damage: &Damage) -> Result<bool> {
        let block = BlockRange { start: damage.lba.0, end: damage.lba.0 + 1 };
        let mut has = false;
        view.look_up(&self.shared, block, |_, entry| {
            has |= matches!(entry, Entry::Data { pbn, .. } if pbn == damage.pbn);
        })?;
        Ok(has)
    }
}
