//! The reference model: what disks and snapshots hold, in plain maps, with every stored block's identity.
//!
//! Invariants: a node is one state of one disk, whole in itself; a block is in use while some node has
//! it. A released node goes when it has fewer than two children, as `map/reclaim.rs` has it; one that lacks blocks
//! with its only child waits.
//! Absent: everything that makes it fast, and every idea of how rowd does it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use rowd::disk::lazy::Span;
use rowd::units::{BLOCK_BYTES, BLOCK_SIZE, BlockRange, ByteRange, DiskId, GroupId, SnapshotId};

use super::copies::Presence;
use super::images::Image;

pub type NodeId = u64;

/// A block that takes space.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Differs from that of every other block ever written.
    pub identity: u64,
    /// In the pool, and not only in the copy that a disk is filled from.
    pub here: bool,
    pub bytes: Rc<[u8]>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub tree: u64,
    pub parent: Option<NodeId>,
    pub blocks: Rc<BTreeMap<u64, Stored>>,
    pub released: bool,
    /// Nodes that went and whose only child it was, or a node among these.
    pub absorbed: BTreeSet<NodeId>,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub id: DiskId,
    pub name: String,
    pub size: u64,
    pub head: NodeId,
    pub origin: Option<SnapshotId>,
}

/// What lacks blocks of a copy: a disk, or all that descends from what it was when it was first kept meanwhile.
#[derive(Clone, Debug)]
pub struct Filling {
    /// Which may be gone.
    pub disk: DiskId,
    pub root: Option<NodeId>,
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub name: String,
    pub disk: DiskId,
    pub size: u64,
    /// Gone, when the snapshot is in the repository only.
    pub node: NodeId,
    pub undo: bool,
    pub presence: Option<Presence>,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub id: GroupId,
    pub name: String,
    /// The disks and snapshots it was made with, which may be gone.
    pub members: Vec<(DiskId, SnapshotId)>,
}

/// One effect that happens whole or not at all.
#[derive(Clone, Debug)]
pub enum Effect {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Clear(BlockRange),
    /// These blocks of a node come from the copy, for all who have them.
    Fetch(NodeId, Vec<u64>),
}

/// The whole pool.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub nodes: BTreeMap<NodeId, Node>,
    pub disks: Vec<Disk>,
    pub snapshots: Vec<Snapshot>,
    pub fillings: Vec<Filling>,
    pub groups: Vec<Group>,
    /// In the order in which they were made.
    pub images: Vec<Image>,
    next: u64,
}

impl Reference {
    pub fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn add_node(&mut self, parent: Option<NodeId>) -> NodeId {
        let id = self.fresh();
        let (tree, blocks) = match parent {
            Some(parent) => (self.nodes[&parent].tree, Rc::clone(&self.nodes[&parent].blocks)),
            None => (id, Rc::default()),
        };
        self.nodes
            .insert(id, Node { tree, parent, blocks, released: false, absorbed: BTreeSet::new() });
        id
    }

    pub fn apply(&mut self, disk: usize, effect: &Effect) {
        if let Effect::Fetch(node, lbas) = effect {
            lbas.iter().for_each(|lba| self.arrive(*node, *lba));
            return;
        }
        let mut blocks = Rc::clone(&self.nodes[&self.disks[disk].head].blocks);
        let map = Rc::make_mut(&mut blocks);
        match effect {
            Effect::Fetch(..) => unreachable!("done above"),
            Effect::Clear(range) => map.retain(|lba, _| !(range.start..range.end).contains(lba)),
            Effect::Write { offset, data } => {
                let range = ByteRange::new(*offset, data.len() as u64).expect("small");
                let outer = if range.is_empty() { 0..0 } else { of(range.outer_blocks()) };
                for lba in outer {
                    let mut bytes = map.get(&lba).map_or_else(zeros, |s| s.bytes.to_vec());
                    let from = range.start.max(lba * BLOCK_SIZE);
                    let to = range.end.min((lba + 1) * BLOCK_SIZE);
                    let (into, source) = (index(from - lba * BLOCK_SIZE), index(from - offset));
                    let len = index(to - from);
                    bytes[into..into + len].copy_from_slice(&data[source..source + len]);
                    self.next += 1;
                    let (identity, bytes) = (self.next, bytes.into());
                    map.insert(lba, Stored { identity, here: true, bytes });
                }
            }
        }
        let head = self.disks[disk].head;
        self.nodes.get_mut(&head).expect("a head").blocks = blocks;
    }

    pub fn create_disk(&mut self, id: DiskId, name: &str, size: u64, from: Option<usize>) {
        let parent = from.map(|snapshot| self.snapshots[snapshot].node);
        let origin = from.map(|snapshot| self.snapshots[snapshot].id.clone());
        let head = self.add_node(parent);
        self.disks.push(Disk { id, name: name.to_owned(), size, head, origin });
    }

    /// The disk is filled from a copy of these blocks.
    pub fn promise(&mut self, disk: usize, blocks: &BTreeMap<u64, Vec<u8>>) {
        let promised = blocks.iter().map(|(lba, bytes)| {
            self.next += 1;
            let bytes = Rc::from(bytes.as_slice());
            (*lba, Stored { identity: self.next, here: false, bytes })
        });
        let promised: BTreeMap<u64, Stored> = promised.collect();
        self.fillings.push(Filling { disk: self.disks[disk].id.clone(), root: None });
        let head = self.disks[disk].head;
        self.nodes.get_mut(&head).expect("a head").blocks = Rc::new(promised);
    }

    /// A block that a node lacked is there, for all who have it.
    fn arrive(&mut self, node: NodeId, lba: u64) {
        let (tree, identity) = {
            let node = &self.nodes[&node];
            (node.tree, node.blocks[&lba].identity)
        };
        for node in self.nodes.values_mut().filter(|node| node.tree == tree) {
            if node.blocks.get(&lba).is_some_and(|stored| stored.identity == identity) {
                Rc::make_mut(&mut node.blocks).get_mut(&lba).expect("it has it").here = true;
            }
        }
    }

    /// A node and those above it, youngest first.
    fn line(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        std::iter::successors(Some(node), |node| self.nodes[node].parent)
    }

    /// What a node lacks blocks of, if it does.
    pub fn lacks(&self, node: NodeId) -> Option<&Filling> {
        let is_it = |filling: &&Filling| match filling.root {
            Some(root) => self.line(node).any(|above| above == root),
            None => self.disks.iter().any(|disk| disk.id == filling.disk && disk.head == node),
        };
        self.fillings.iter().find(is_it)
    }

    /// The node that is to be filled.
    pub fn to_fill(&self, filling: &Filling) -> NodeId {
        let founder = || self.disks.iter().find(|disk| disk.id == filling.disk);
        filling.root.unwrap_or_else(|| founder().expect("it is alone with its copy").head)
    }

    /// Forgets what nothing belongs to any more.
    pub fn end_needless(&mut self) {
        let held = self.snapshots.iter().filter(|s| s.held()).map(|s| s.node);
        let named: Vec<NodeId> = held.chain(self.disks.iter().map(|disk| disk.head)).collect();
        let needed = |filling: &Filling| match filling.root {
            Some(root) => named.iter().any(|node| self.line(*node).any(|above| above == root)),
            None => self.disks.iter().any(|disk| disk.id == filling.disk),
        };
        let all = self.fillings.iter().filter(|filling| needed(filling));
        self.fillings = all.cloned().collect();
    }

    /// Those of some blocks that a node lacks.
    pub fn lacking(&self, node: NodeId, spans: &[Span]) -> Vec<u64> {
        let blocks = &self.nodes[&node].blocks;
        let lacks = |lba: &u64| blocks.get(lba).is_some_and(|stored| !stored.here);
        spans.iter().map(|span| span.start).filter(lacks).collect()
    }

    /// Whether a node has all its contents.
    pub fn is_whole(&self, node: NodeId) -> bool {
        self.nodes[&node].blocks.values().all(|stored| stored.here)
    }

    /// Blocks of a node that take space.
    pub fn mapped(&self, node: NodeId) -> u64 {
        self.nodes[&node].blocks.values().filter(|stored| stored.here).count() as u64
    }

    pub fn delete_disk(&mut self, disk: usize) {
        let disk = self.disks.remove(disk);
        self.end_access(&disk.id);
        self.release(disk.head);
        let gone: Vec<NodeId> =
            self.snapshots.iter().filter(|s| s.undo && s.disk == disk.id).map(|s| s.node).collect();
        self.snapshots.retain(|s| !(s.undo && s.disk == disk.id));
        gone.into_iter().for_each(|node| self.release(node));
        self.end_needless();
    }

    /// Freezes the head of a disk, which goes on under `parent` (`None`: under the frozen head itself
    /// for a snapshot, empty for a reinit).
    pub fn freeze(&mut self, disk: usize, id: SnapshotId, name: &str, undo: bool) -> NodeId {
        let (of, size, node) =
            (self.disks[disk].id.clone(), self.disks[disk].size, self.disks[disk].head);
        let name = name.to_owned();
        let alone = |filling: &&mut Filling| filling.disk == of && filling.root.is_none();
        if let Some(filling) = self.fillings.iter_mut().find(alone) {
            filling.root = Some(node);
        }
        self.snapshots.push(Snapshot { id, name, disk: of, size, node, undo, presence: None });
        node
    }

    pub fn go_on(&mut self, disk: usize, parent: Option<NodeId>) {
        self.disks[disk].head = self.add_node(parent);
    }

    pub fn delete_snapshot(&mut self, snapshot: usize) {
        let snapshot = self.snapshots.remove(snapshot);
        if snapshot.held() {
            self.release(snapshot.node);
        }
        self.end_needless();
    }

    pub fn release(&mut self, node: NodeId) {
        self.nodes.get_mut(&node).expect("a node").released = true;
    }

    fn children(&self, node: NodeId) -> Vec<NodeId> {
        let children = self.nodes.iter().filter(|(_, n)| n.parent == Some(node));
        children.map(|(id, _)| *id).collect()
    }

    /// Lets all released nodes go that can.
    pub fn collapse(&mut self) {
        loop {
            let ready = self
                .nodes
                .iter()
                .filter(|(_, node)| node.released)
                .map(|(id, node)| (*id, node.parent, self.children(*id)))
                .find(|(id, _, children)| match children.len() {
                    0 => true,
                    // What is fetched for those below goes here.
                    1 => self.lacks(*id).is_none(),
                    _ => false,
                });
            let Some((id, parent, children)) = ready else { return };
            let gone = self.nodes.remove(&id).expect("it is there");
            for child in children {
                let child = self.nodes.get_mut(&child).expect("a child");
                child.parent = parent;
                child.absorbed.insert(id);
                child.absorbed.extend(&gone.absorbed);
            }
        }
    }

    /// Blocks in use.
    pub fn used(&self) -> u64 {
        let all = self.nodes.values().flat_map(|node| node.blocks.values());
        let here = all.filter(|stored| stored.here);
        here.map(|stored| stored.identity).collect::<HashSet<_>>().len() as u64
    }

    /// Blocks that only this node has: what its release would free, or, where it has several children
    /// and stays hidden, what no other node has. The model has to be collapsed.
    pub fn exclusive(&self, node: NodeId) -> u64 {
        let children = self.children(node);
        let family = self.fillings.iter().filter_map(|filling| filling.root);
        let tree = self.nodes[&node].tree;
        if family.into_iter().any(|root| self.nodes[&root].tree == tree) {
            return self.exclusive_now(node, &children);
        }
        if children.len() < 2 {
            let mut without = self.clone();
            without.release(node);
            without.collapse();
            return self.used() - without.used();
        }
        let others = self.nodes.iter().filter(|(id, _)| **id != node);
        let held: HashSet<u64> =
            others.flat_map(|(_, other)| other.blocks.values().map(|s| s.identity)).collect();
        let own = self.nodes[&node].blocks.values();
        own.filter(|stored| !held.contains(&stored.identity)).count() as u64
    }

    /// The same where deleted nodes wait for what is fetched, by what was written in the node itself.
    fn exclusive_now(&self, node: NodeId, children: &[NodeId]) -> u64 {
        let unseen = |node: NodeId, by: &[NodeId]| {
            let has = |other: NodeId, lba: &u64, stored: &Stored| {
                let found = self.nodes[&other].blocks.get(lba);
                found.is_some_and(|found| found.identity == stored.identity)
            };
            let Node { blocks, parent, .. } = &self.nodes[&node];
            let own = blocks.iter().filter(|(lba, stored)| {
                stored.here && !parent.is_some_and(|parent| has(parent, lba, stored))
            });
            own.filter(|(lba, stored)| !by.iter().any(|other| has(*other, lba, stored))).count()
        };
        // Of a deleted parent of two that which the other one does not see.
        let parent = self.nodes[&node].parent.filter(|_| children.is_empty());
        let parent = parent.filter(|parent| self.nodes[parent].released);
        let handed = parent.map_or(0, |parent| {
            let others: Vec<NodeId> =
                self.children(parent).into_iter().filter(|child| *child != node).collect();
            if others.len() == 1 { unseen(parent, &others) } else { 0 }
        });
        (unseen(node, children) + handed) as u64
    }

    /// Blocks that are not the same block in two nodes (`None`: an empty disk).
    pub fn changed(&self, from: Option<NodeId>, to: NodeId) -> BTreeSet<u64> {
        let empty = Rc::default();
        let old = from.map_or(&empty, |from| &self.nodes[&from].blocks);
        let new = &self.nodes[&to].blocks;
        let identity = |map: &BTreeMap<u64, Stored>, lba| map.get(lba).map(|s| s.identity);
        let all = old.keys().chain(new.keys());
        all.filter(|lba| identity(old, *lba) != identity(new, *lba)).copied().collect()
    }

    /// The bytes of a node in a range of blocks.
    pub fn bytes(&self, node: NodeId, blocks: std::ops::Range<u64>) -> Vec<u8> {
        let mut out = vec![0; index((blocks.end - blocks.start) * BLOCK_SIZE)];
        for (lba, stored) in self.nodes[&node].blocks.range(blocks.clone()) {
            let at = index((lba - blocks.start) * BLOCK_SIZE);
            out[at..at + BLOCK_BYTES].copy_from_slice(&stored.bytes);
        }
        out
    }
}

fn zeros() -> Vec<u8> {
    vec![0; BLOCK_BYTES]
}

fn of(range: BlockRange) -> std::ops::Range<u64> {
    range.start..range.end
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("tiny disks")
}
