//! Comparing the engine with the model: contents, counters, differences, and the engine's own check.
//!
//! Invariants: contents are read as clients read them; counters are compared when nothing is left to
//! reclaim, and then they have to be exact.
//! Absent: what to do about a difference; the case fails with it.

use std::collections::BTreeSet;

use rowd::disk::Disk;
use rowd::disk::lane::Lane;
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_SIZE, ByteRange, SnapshotId};

use super::machine::{Machine, Outcome, text, unusable};
use super::reference::{NodeId, Reference};

/// Blocks read at a time.
const AT_ONCE: u64 = 256;

impl Machine {
    /// The contents of one disk.
    pub fn compare_disk(&mut self, disk: usize) -> Outcome {
        let (head, size) = (self.reference.disks[disk].head, self.reference.disks[disk].size);
        let label = self.reference.disks[disk].name.clone();
        self.session(disk)?;
        let session = self.sessions.get_mut(&self.reference.disks[disk].id).expect("opened");
        compare_lane(&mut session.lane, &self.reference, head, size, &label)
    }

    /// As [`Machine::compare_disk`], and which blocks take space: stored zeros read like none.
    pub fn compare_stored(&mut self, disk: usize) -> Outcome {
        self.compare_disk(disk)?;
        let (head, id) = (self.reference.disks[disk].head, &self.reference.disks[disk].id);
        let session = self.sessions.get(id).expect("opened");
        compare_extents(&session.target.disk, &self.reference, head, id.as_str())
    }

    /// Contents and sizes of everything, against any model.
    pub fn compare_contents(&self, reference: &Reference) -> Outcome {
        let engine = self.engine();
        let told = engine.disks();
        equal("disks", told.len(), reference.disks.len())?;
        for disk in &reference.disks {
            let info = engine.disk(&disk.id).map_err(text)?;
            equal(&format!("size of {}", disk.name), info.size, disk.size)?;
            let mapped = reference.mapped(disk.head) * BLOCK_SIZE;
            equal(&format!("mapped bytes of {}", disk.name), info.mapped_bytes, mapped)?;
            self.compare_export(&disk.name, reference, disk.head, disk.size)?;
        }
        equal("snapshots", engine.snapshots(None).len(), reference.snapshots.len())?;
        for snapshot in &reference.snapshots {
            let name = format!("{}@{}", snapshot.disk, snapshot.name);
            self.compare_presence(snapshot)?;
            if !snapshot.usable() {
                let opened = self.engine().open_export(&name, "model", None, Box::new(|| {}));
                let kind = opened.map(|_| "opened").map_err(|error| error.kind());
                equal(&name, kind, Err(ErrorKind::WrongState))?;
                continue;
            }
            self.compare_export(&name, reference, snapshot.node, snapshot.size)?;
        }
        self.compare_groups(reference)?;
        self.compare_images(reference)
    }

    fn compare_export(
        &self,
        name: &str,
        reference: &Reference,
        node: NodeId,
        size: u64,
    ) -> Outcome {
        let target = self.engine().open_export(name, "model", None, Box::new(|| {}));
        let target = target.map_err(text)?;
        equal(&format!("size of {name}"), target.disk.size(), size)?;
        compare_extents(&target.disk, reference, node, name)?;
        compare_lane(&mut Lane::new(&target.disk), reference, node, size, name)
    }

    /// Everything, counters included; reclaims first.
    pub fn compare_all(&mut self) -> Outcome {
        self.reference.collapse();
        let reference = self.reference.clone();
        self.compare_with(&reference)
    }

    pub fn compare_with(&self, reference: &Reference) -> Outcome {
        self.compare_contents(reference)?;
        let engine = self.engine();
        engine.reclaim_all().map_err(text)?;
        let mut reference = reference.clone();
        reference.collapse();
        let used = engine.status().used_bytes / BLOCK_SIZE;
        equal("blocks in use", used, reference.used())?;
        for disk in &reference.disks {
            let told = engine.disk(&disk.id).map_err(text)?.exclusive_bytes / BLOCK_SIZE;
            let what = format!("exclusive blocks of {}", disk.name);
            equal(&what, told, reference.exclusive(disk.head))?;
        }
        for snapshot in &reference.snapshots {
            let told = engine.snapshot(&snapshot.id).map_err(text)?.exclusive_bytes / BLOCK_SIZE;
            let what = format!("exclusive blocks of {}@{}", snapshot.disk, snapshot.name);
            let held = snapshot.held();
            equal(&what, told, if held { reference.exclusive(snapshot.node) } else { 0 })?;
        }
        self.compare_contents(&reference)?;
        self.compare_diffs(&reference)
    }

    /// Each snapshot against the one listed before it, and against nothing.
    fn compare_diffs(&self, reference: &Reference) -> Outcome {
        let mut before: Option<(NodeId, SnapshotId)> = None;
        for snapshot in reference.snapshots.iter().filter(|snapshot| snapshot.held()) {
            let node = snapshot.node;
            for from in std::iter::once(None).chain(before.take().map(Some)) {
                let tree = |node: NodeId| reference.nodes[&node].tree;
                if from.as_ref().is_some_and(|(other, _)| tree(*other) != tree(node)) {
                    continue;
                }
                let lacks = |node: NodeId| reference.lacks(node).is_some();
                if lacks(node) || from.as_ref().is_some_and(|(node, _)| lacks(*node)) {
                    let from = from.as_ref().map(|(_, id)| id);
                    unusable(self.engine().diff(from, &snapshot.id, 0, 3))?;
                    continue;
                }
                let told = self.diff(from.as_ref().map(|(_, id)| id), &snapshot.id)?;
                let truth = reference.changed(from.as_ref().map(|(node, _)| *node), node);
                let what = format!("changes from {from:?} to {}", snapshot.name);
                equal(&what, told, truth)?;
            }
            before = Some((node, snapshot.id.clone()));
        }
        Ok(())
    }

    fn diff(&self, from: Option<&SnapshotId>, to: &SnapshotId) -> Result<BTreeSet<u64>, String> {
        let (mut found, mut resume) = (BTreeSet::new(), Some(0));
        while let Some(from_byte) = resume {
            // A small limit, so that going on is tested too.
            let (changes, next) = self.engine().diff(from, to, from_byte, 3).map_err(text)?;
            for change in changes {
                let end = change.offset + change.length;
                found.extend(change.offset / BLOCK_SIZE..end / BLOCK_SIZE);
            }
            resume = next;
        }
        Ok(found)
    }

    /// Lets the engine look for damage, double use and leaks itself.
    pub fn check(&self) -> Outcome {
        let report = self.engine().check(true, false).map_err(text)?;
        equal("findings of the check", report.findings, Vec::new())
    }
}

fn compare_extents(disk: &Disk, reference: &Reference, node: NodeId, name: &str) -> Outcome {
    let whole = ByteRange { start: 0, end: disk.size() };
    let extents = disk.extents(whole, usize::MAX).map_err(text)?;
    let stored = extents.iter().filter(|extent| extent.stored);
    let told: BTreeSet<u64> = stored
        .flat_map(|extent| extent.range.start / BLOCK_SIZE..extent.range.end / BLOCK_SIZE)
        .collect();
    let truth = reference.nodes[&node].blocks.keys().copied().collect();
    equal(&format!("stored blocks of {name}"), told, truth)
}

fn compare_lane(
    lane: &mut Lane,
    reference: &Reference,
    node: NodeId,
    size: u64,
    name: &str,
) -> Outcome {
    let blocks = size / BLOCK_SIZE;
    let mut start = 0;
    while start < blocks {
        let end = blocks.min(start + AT_ONCE);
        let range = ByteRange { start: start * BLOCK_SIZE, end: end * BLOCK_SIZE };
        let truth = reference.bytes(node, start..end);
        let mut told = vec![0xEE; truth.len()];
        lane.read(range, &mut told).map_err(|e| format!("read {name}: {}", text(e)))?;
        if told != truth {
            let at = told.iter().zip(&truth).position(|(a, b)| a != b).expect("they differ");
            let word = |bytes: &[u8]| {
                let at = at / 8 * 8;
                u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) >> 24
            };
            let lba = start + at as u64 / BLOCK_SIZE;
            return Err(format!(
                "block {lba} of {name} has stamp {} and should have {}",
                word(&told),
                word(&truth)
            ));
        }
        start = end;
    }
    Ok(())
}

pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, told: T, truth: T) -> Outcome {
    if told == truth {
        return Ok(());
    }
    Err(format!("{what}: {told:?}, should be {truth:?}"))
}
