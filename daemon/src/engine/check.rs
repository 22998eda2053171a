//! The offline check: walks everything a stopped pool holds and compares its parts with each other.
//!
//! Invariants: the check changes nothing but what every start changes; repair rewrites the allocator's
//! bitmaps from the map, and nothing else.
//! Absent: repair of data or of the map; a damaged block has to come from a copy.

use std::collections::{BTreeMap, HashMap};

use super::{Engine, Settings};
use crate::error::{Error, Result};
use crate::map::lineage::EpochSet;
use crate::map::tree::{Node, Nodes, Tree};
use crate::pool::crc32c;
use crate::units::{BLOCK_SIZE, Epoch, Lba, LeafIndex, Pbn, TreeId};

/// Findings listed of one kind; more are counted.
const LISTED_MAX: usize = 100;

/// What the check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub leaves: u64,
    pub blocks: u64,
    /// Damage: one line each.
    pub findings: Vec<String>,
    pub findings_count: u64,
    /// What was repaired.
    pub repaired: Vec<String>,
}

impl Report {
    fn found(&mut self, line: String) {
        self.findings_count += 1;
        if self.findings.len() < LISTED_MAX {
            self.findings.push(line);
        }
    }
}

/// Who owns a block, and what it holds, as the map says.
struct Owner {
    tree: TreeId,
    node: Epoch,
    lba: Lba,
    birth: Epoch,
    crc: u32,
}

/// Checks a pool that no daemon serves. Opening it replays its journal first, as a start does.
///
/// # Errors
/// It cannot be opened at all; the error says why.
pub fn check(mut settings: Settings, data: bool, repair: bool) -> Result<Report> {
    settings.background = false;
    if !settings.pool.exists() {
        return Err(Error::not_found(format!("no pool in {}", settings.dir.display())));
    }
    let engine = Engine::open(settings)?;
    let mut report = engine.check(data, repair)?;
    if !report.repaired.is_empty() {
        // What is left after the repair is what counts.
        let repaired = std::mem::take(&mut report.repaired);
        report = engine.check(data, false)?;
        report.repaired = repaired;
    }
    engine.close()?;
    Ok(report)
}

impl Engine {
    /// Walks the map against the allocator, the counters and, with `data`, the blocks themselves.
    ///
    /// # Errors
    /// The store or the pool file cannot be read.
    pub fn check(&self, data: bool, repair: bool) -> Result<Report> {
        self.checkpoint()?;
        let mut report = Report::default();
        let mut owners: HashMap<Pbn, Owner> = HashMap::new();
        for tree in self.all_trees() {
            self.walk_tree(&tree, &mut owners, &mut report)?;
        }
        self.compare_allocator(&owners, repair, &mut report)?;
        for tree in self.all_trees() {
            compare_counters(&tree, &owners, &mut report);
        }
        if data {
            self.compare_data(&owners, &mut report);
        }
        Ok(report)
    }

    fn walk_tree(
        &self,
        tree: &Tree,
        owners: &mut HashMap<Pbn, Owner>,
        report: &mut Report,
    ) -> Result<()> {
        let meta = &self.shared.meta;
        let walks = walks(&tree.nodes.lock());
        for Walk { node, own, merging, absorbed } in walks {
            for leaf in tree.touched_leaves(meta, &own, 0, usize::MAX)? {
                let Some((_, found)) = tree.newest(meta, LeafIndex(leaf), &own)? else { continue };
                let below = |end: &u64| leaf < *end;
                let node = merging.filter(|(_, end)| below(end)).map_or(node, |(child, _)| child);
                let absorbed = absorbed.as_ref().filter(|(_, end)| below(end));
                report.leaves += 1;
                for (slot, pbn, birth, crc) in found.data() {
                    let inherited = absorbed.is_some_and(|(parents, _)| parents.contains(birth));
                    if !own.contains(birth) && !inherited {
                        continue;
                    }
                    report.blocks += 1;
                    let lba = Lba(LeafIndex(leaf).first().0 + slot as u64);
                    let owner = Owner { tree: tree.id, node, lba, birth, crc };
                    if let Some(other) = owners.insert(pbn, owner) {
                        report.found(format!(
                            "pool block {pbn} is mapped twice: tree {} node {} block {} and tree {} node {node} block {lba}",
                            other.tree, other.node, other.lba, tree.id
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn compare_allocator(
        &self,
        owners: &HashMap<Pbn, Owner>,
        repair: bool,
        report: &mut Report,
    ) -> Result<()> {
        let (start, blocks) = self.shared.pool.with_allocator(|a| {
            let per = u64::from(a.geometry().segment_blocks);
            (a.geometry().start, u64::from(a.segment_count()) * per)
        });
        let (mut leaked, mut unmarked) = (0u64, 0u64);
        for block in (start..start + blocks).map(Pbn) {
            let used = self.shared.pool.with_allocator(|a| a.is_used(block));
            match (used, owners.contains_key(&block)) {
                (true, false) => leaked += 1,
                (false, true) => unmarked += 1,
                _ => {}
            }
        }
        let beyond = owners.keys().filter(|pbn| !(start..start + blocks).contains(&pbn.0)).count();
        if beyond > 0 {
            report.found(format!("{beyond} mapped blocks lie outside the pool file"));
        }
        if leaked > 0 {
            report.found(format!("{leaked} blocks are marked used and nothing maps them"));
        }
        if unmarked > 0 {
            report.found(format!("{unmarked} mapped blocks are marked free"));
        }
        if repair && leaked + unmarked > 0 && beyond == 0 {
            let used: Vec<Pbn> = owners.keys().copied().collect();
            self.shared.pool.with_allocator(|a| a.rebuild(&used))?;
            self.force_checkpoint()?;
            report.repaired.push(format!("the allocator was rebuilt from {} blocks", used.len()));
        }
        Ok(())
    }

    /// Reads every stored block, in the order of the pool file.
    fn compare_data(&self, owners: &HashMap<Pbn, Owner>, report: &mut Report) {
        let mut all: Vec<_> = owners.iter().collect();
        all.sort_unstable_by_key(|(pbn, _)| **pbn);
        let mut next = all.iter();
        let mut bad = Vec::new();
        self.shared.pool.file.read_each(all.iter().map(|(pbn, _)| pbn.offset()), |page| {
            let one = next.next().expect("as many blocks as offsets");
            if page.ok().map(crc32c) != Some(one.1.crc) {
                bad.push(*one);
            }
        });
        for (pbn, owner) in bad {
            let (offset, birth) = (owner.lba.0 * BLOCK_SIZE, owner.birth);
            let holders = self.holders(&self.tree(owner.tree), owner.node).join(", ");
            report.found(format!(
                "pool block {pbn}, offset {offset}, written in epoch {birth}: not what was written; held by {holders}"
            ));
        }
    }
}

/// A node to walk, and how far reclaim has got where it is merging two: below that leaf the blocks of
/// the parent are the child's already.
struct Walk {
    node: Epoch,
    own: EpochSet,
    /// This node goes into that child, below that leaf.
    merging: Option<(Epoch, u64)>,
    /// The epochs of a parent that goes into this node, below that leaf.
    absorbed: Option<(EpochSet, u64)>,
}

fn walks(nodes: &Nodes) -> Vec<Walk> {
    let walk = |(epoch, node): (&Epoch, &Node)| {
        let child = nodes.children(*epoch).next().filter(|_| node.released && node.cursor > 0);
        let absorbed = nodes.absorbed_by(*epoch);
        let absorbed = absorbed.and_then(|(parent, end)| Some((nodes.all.get(&parent)?, end)));
        Walk {
            node: *epoch,
            own: node.own.clone(),
            merging: child.map(|child| (child, node.cursor)),
            absorbed: absorbed.map(|(parent, end)| (parent.own.clone(), end)),
        }
    };
    nodes.all.iter().map(walk).collect()
}

fn compare_counters(tree: &Tree, owners: &HashMap<Pbn, Owner>, report: &mut Report) {
    let mut counted: BTreeMap<Epoch, u64> = BTreeMap::new();
    for owner in owners.values().filter(|owner| owner.tree == tree.id) {
        *counted.entry(owner.node).or_default() += 1;
    }
    let nodes: &Nodes = &tree.nodes.lock();
    for (epoch, node) in &nodes.all {
        let found = counted.get(epoch).copied().unwrap_or(0);
        if found != node.live {
            report.found(format!(
                "tree {} node {epoch} counts {} blocks, the map has {found}",
                tree.id, node.live
            ));
        }
    }
}
