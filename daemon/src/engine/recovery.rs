//! Opening a pool: load the last checkpoint, replay the journal behind it, begin a new opening.
//!
//! Invariants: the state after opening is the state after some record, no earlier than any record known
//! durable; records above the durable watermark count only if the data they name is there; a store
//! older than the superblock, or newer than the journal, is refused (hazard H3); nothing is accepted
//! before a record of the new opening and a checkpoint are durable.
//! Absent: repair (`engine/check.rs`).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use super::catalogue::{self, Catalogue, Entry};
use super::tail::Tail;
use super::warm::Touched;
use super::{CorruptBlocks, Engine, Recovery, Settings, hex};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::map::fill;
use crate::map::heal::{self, Move};
use crate::map::reclaim::{self, Step};
use crate::map::record::address;
use crate::map::signal::Signal;
use crate::map::view::{Budget, Shared, View};
use crate::meta::{Meta, State};
use crate::pool::allocator::Allocator;
use crate::pool::file::sync_directory;
use crate::pool::journal::{Kind, Reader, Record};
use crate::pool::superblock::Superblock;
use crate::pool::{Closed, Layout};
use crate::units::{BLOCK_SIZE, Epoch, Seq, TreeId};

/// The heads that data records are addressed to.
pub(super) type Heads = HashMap<(TreeId, Epoch), Arc<View>>;

impl Engine {
    /// Opens the pool in `settings.dir`, or makes one if there is none, and starts background work.
    ///
    /// # Errors
    /// Another daemon serves it; it is damaged or older than it should be; the host refuses.
    pub fn open(settings: Settings) -> Result<Arc<Engine>> {
        let began = Instant::now();
        let fresh = !settings.dir.join("map").join("CURRENT").exists();
        let (closed, meta) = if (fresh && !settings.pool.is_file()) || unfinished(&settings)? {
            create(&settings)?
        } else {
            open_existing(&settings)?
        };
        let mut engine = Engine::assemble(settings, closed, meta)?;
        engine.recovery.seconds = began.elapsed().as_secs_f64();
        let engine = Arc::new(engine);
        engine.start_background();
        engine.finish_returns()?;
        Ok(engine)
    }

    fn assemble(settings: Settings, mut closed: Closed, meta: Meta) -> Result<Engine> {
        let mut allocator = closed.allocator()?;
        for (segment, words) in meta.bits()? {
            allocator.load(segment, &words)?;
        }
        let state = meta.state()?;
        let found = scan(&closed, state.applied)?;
        closed.superblock.opening += 1;
        closed.superblock.store(&closed.file)?;
        let engine = Engine::without_journal(settings, closed, meta, allocator, &found)?;
        let records = engine.replay(&found, state.applied)?;
        engine.unlock();
        faults::fail_point("recovery.replayed");
        // From here on a leftover of the old tail can no longer pass for a record.
        engine.shared.pool.append(Kind::Open, &[])?;
        engine.shared.pool.sync()?;
        faults::fail_point("recovery.opened");
        engine.checkpoint()?;
        Ok(Engine { recovery: Recovery { seconds: 0.0, records }, ..engine })
    }

    fn without_journal(
        settings: Settings,
        closed: Closed,
        meta: Meta,
        allocator: Allocator,
        found: &Found,
    ) -> Result<Engine> {
        let pool = closed.start(found.position, found.last, allocator, settings.host_reserve);
        let budget = Arc::new(Budget::new(settings.map_cache));
        let shared = Arc::new(Shared {
            meta,
            pool,
            barrier: RwLock::new(()),
            budget,
            checkpoint_wanted: Signal::default(),
            resting: AtomicBool::new(false),
        });
        let mut records = Catalogue::default();
        records.load(shared.meta.catalogue("")?)?;
        let encryption = settings.encryption.clone();
        let engine = Engine {
            settings,
            shared,
            catalogue: RwLock::new(records),
            trees: RwLock::default(),
            disks: RwLock::default(),
            families: Mutex::default(),
            keys: super::keys::Keys::new(&encryption),
            opened: Mutex::default(),
            origins: std::sync::OnceLock::new(),
            shape: Mutex::new(()),
            checkpointing: Mutex::new(()),
            meters: super::meters::Meters::default(),
            clients: super::clients::Clients::default(),
            device_states: parking_lot::Mutex::default(),
            jobs: super::jobs::Jobs::default(),
            making: super::making::Makings::default(),
            corrupt: Arc::new(CorruptBlocks::default()),
            healed: AtomicU64::new(0),
            reclaim_wanted: Signal::default(),
            new_event: (Mutex::new(()), Condvar::new()),
            last_scrub: Mutex::new(None),
            recovery: Recovery::default(),
            stopping: Signal::default(),
            closing: AtomicBool::new(false),
            threads: Mutex::default(),
        };
        engine.load_trees()?;
        Ok(engine)
    }

    fn load_trees(&self) -> Result<()> {
        for (key, value) in self.shared.meta.catalogue("tree/")? {
            let id = number(key.strip_prefix("tree/"), &key)?;
            let next = number(std::str::from_utf8(&value).ok(), &key)?;
            let tree = self.tree(TreeId(id));
            let mut nodes = tree.nodes.lock();
            nodes.next = next;
            nodes.kept_next = next;
        }
        for (key, value) in self.shared.meta.catalogue("node/")? {
            let mut parts = key.split('/').skip(1);
            let tree = TreeId(number(parts.next(), &key)?);
            let epoch = Epoch(number(parts.next(), &key)?);
            self.tree(tree).load(epoch, catalogue::decode(&key, &value)?);
        }
        let trees = self.trees.read().keys().map(|tree| tree.0 + 1).max().unwrap_or(1);
        let mut catalogue = self.catalogue.write();
        catalogue.next_tree = catalogue.next_tree.max(trees);
        let roots = catalogue.fillings.values().filter_map(|filling| filling.root);
        roots.for_each(|root| self.mark_root(root));
        for disk in catalogue.disks.values() {
            self.go_live(&catalogue, disk, &self.tree(disk.tree));
        }
        Ok(())
    }

    fn replay(&self, found: &Found, applied: Seq) -> Result<u64> {
        let pool = &self.shared.pool;
        let superblock = &found.superblock;
        self.warm(&found.touched)?;
        let mut reader = Reader::new(&pool.file, found.ring.clone(), superblock);
        let mut heads = self.heads();
        let mut count = 0;
        while let Some(record) = reader.next_record()?.filter(|r| r.seq <= found.last) {
            if record.seq <= applied {
                continue;
            }
            self.replay_one(&record, &mut heads)
                .map_err(|e| e.context(format!("replay of record {}", record.seq)))?;
            // Nobody leases yet, and a later record may take what this one freed: a free left waiting
            // would put that block up for lease while it is in use.
            pool.with_allocator(|a| a.reuse(record.seq, u64::MAX));
            count += 1;
        }
        Ok(count)
    }

    fn replay_one(&self, record: &Record, heads: &mut Heads) -> Result<()> {
        match record.kind {
            Kind::Open | Kind::Mark => Ok(()),
            Kind::Data => {
                let head = heads.get(&address(&record.body)?);
                let head = head.ok_or_else(|| Error::corrupt("it is for a disk that is not"))?;
                head.replay(&self.shared, record.seq, &record.body)
            }
            Kind::Reclaim => {
                let step = Step::decode(&record.body)?;
                reclaim::replay(&self.shared, &self.tree(step.tree), record.seq, &step)
            }
            Kind::Move => {
                let block = Move::decode(&record.body)?;
                heal::replay(&self.shared, &self.tree(block.tree), record.seq, block)
            }
            Kind::Fill => {
                let (tree, root) = address(&record.body)?;
                fill::replay(&self.shared, &self.tree(tree), root, record.seq, &record.body)
            }
            Kind::Catalogue => {
                let entry: Entry = catalogue::decode("in the journal", &record.body)?;
                self.apply_locked(&entry, &self.heads_of(&entry.op)?)?;
                *heads = self.heads();
                Ok(())
            }
        }
    }

    pub(super) fn heads(&self) -> Heads {
        let disks = self.disks.read();
        let views = disks.values().map(|disk| Arc::clone(&disk.view));
        views.map(|view| ((view.tree.id, view.with(|state| state.node)), view)).collect()
    }
}

fn number(text: Option<&str>, key: &str) -> Result<u32> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::corrupt(format!("catalogue record {key} is no number")))
}

/// Whether a pool was being made here when the power went: then the map is there, empty, and the pool
/// file is not yet. What there is of it is removed.
fn unfinished(settings: &Settings) -> Result<bool> {
    if settings.pool.exists() {
        return Ok(false);
    }
    let map = settings.dir.join("map");
    let missing = || format!("{} is missing", settings.pool.display());
    let state = Meta::look(&map).map_err(|error| {
        error.context(missing()).hint(format!(
            "mount or restore what holds it; only if there never was a pool here, remove {}",
            map.display()
        ))
    })?;
    if state.is_some_and(|state| state.opening > 0 || state.applied > Seq(0)) {
        return Ok(false);
    }
    // Out of the way first: half removed, it would pass for one that is damaged.
    let draft = draft(settings);
    discard(&draft)?;
    fs::rename(&map, &draft).map_err(|e| Error::io(format!("rename {}", map.display()), &e))?;
    discard(&draft)?;
    Ok(true)
}

/// Where a map is made, or unmade: what is there is never a pool's.
fn draft(settings: &Settings) -> PathBuf {
    settings.dir.join("map.new")
}

fn discard(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and those above it, each durable in the one that holds it (hazard H10).
fn make_directory(dir: &Path) -> Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::create_dir_all(dir).map_err(|e| Error::io(format!("make {}", dir.display()), &e))?;
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        let here = Path::new(".");
        sync_directory(if parent.as_os_str().is_empty() { here } else { parent })?;
    }
    Ok(())
}

fn create(settings: &Settings) -> Result<(Closed, Meta)> {
    make_directory(&settings.dir)?;
    let mut uuid = [0u8; 16];
    getrandom::fill(&mut uuid).map_err(|e| Error::internal(format!("no random numbers: {e}")))?;
    let segment_blocks = u32::try_from(settings.segment_bytes / BLOCK_SIZE)
        .map_err(|_| Error::invalid("a segment is at most 16 TiB"))?;
    let layout = Layout {
        segment_blocks,
        journal_bytes: settings.journal_bytes,
        max_bytes: settings.max_bytes,
    };
    Closed::check_target(&settings.pool, settings.io)?;
    // The map first: a directory with a pool file but no map is a pool that lost its map.
    let state = State { pool: hex(&uuid), opening: 0, applied: Seq(0) };
    // Under another name until it is whole: RocksDB makes it in steps, and a cut between two of them
    // leaves what cannot be opened.
    let (draft, map) = (draft(settings), settings.dir.join("map"));
    discard(&draft)?;
    drop(Meta::create(&draft, &state)?);
    fs::rename(&draft, &map).map_err(|e| Error::io(format!("name {}", map.display()), &e))?;
    sync_directory(&settings.dir)?;
    let meta = Meta::open(&map, Seq(0))?;
    let closed = Closed::create(&settings.pool, uuid, layout, settings.io)?;
    sync_directory(&settings.dir)?;
    Ok((closed, meta))
}

fn open_existing(settings: &Settings) -> Result<(Closed, Meta)> {
    if !settings.pool.exists() {
        return Err(Error::not_found(format!("{} is missing", settings.pool.display()))
            .hint("the map is there but its pool file is not; restore both from the same moment"));
    }
    let closed = Closed::open(&settings.pool, settings.io)?;
    let meta = Meta::open(&settings.dir.join("map"), closed.superblock.checkpoint)?;
    let state = meta.state()?;
    check_pair(&closed.superblock, &state)?;
    Ok((closed, meta))
}

/// The store must be the pool's own, and neither older nor newer than the pool file.
fn check_pair(superblock: &Superblock, state: &State) -> Result<()> {
    let (pool, map) = (hex(&superblock.uuid), &state.pool);
    if pool != *map {
        return Err(Error::corrupt(format!("the map belongs to pool {map}, the file is {pool}"))
            .hint("restore both from the same moment"));
    }
    if state.applied < superblock.checkpoint && !faults::seeded("h3-ignore-older-map") {
        return Err(Error::corrupt(format!(
            "the map is older than the pool: it ends at record {}, the pool needs {}",
            state.applied, superblock.checkpoint
        ))
        .hint("the map directory was restored or lost files; restore both from the same moment"));
    }
    if state.opening > superblock.opening {
        return Err(Error::corrupt("the pool file is older than the map")
            .hint("the pool file was restored; restore both from the same moment"));
    }
    Ok(())
}

/// What the journal holds.
struct Found {
    ring: crate::pool::journal::Ring,
    superblock: Superblock,
    /// The last record that counts.
    last: Seq,
    /// Position behind it.
    position: u64,
    touched: Touched,
}

/// Finds the end of the journal: the last record of an unbroken row whose data is all there.
fn scan(closed: &Closed, applied: Seq) -> Result<Found> {
    let (ring, superblock) = (closed.ring(), closed.superblock.clone());
    let mut reader = Reader::new(&closed.file, ring.clone(), &superblock);
    let mut durable = superblock.checkpoint.max(applied);
    let mut end = superblock.checkpoint;
    while let Some(record) = reader.next_record()? {
        durable = durable.max(record.durable);
        end = record.seq;
    }
    reader.check_end()?;
    let (mut tail, mut touched) = (Tail::default(), Touched::default());
    let mut ends = vec![(superblock.checkpoint, superblock.tail)];
    let mut reader = Reader::new(&closed.file, ring.clone(), &superblock);
    while let Some(record) = reader.next_record()?.filter(|record| record.seq <= end) {
        if record.seq > durable {
            tail.add(&record)?;
        }
        if record.seq > applied {
            touched.add(&record)?;
        }
        ends.push((record.seq, record.end));
    }
    let last = tail.last_whole(&closed.file, closed.allocator()?.limit(), end);
    if last < end {
        tracing::warn!(%last, %end, "dropping a torn tail of the journal");
    }
    if last < applied {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the journal ends at record {last}, but the map already holds {applied}"),
        )
        .hint("the pool file is damaged or was restored; restore both from the same moment"));
    }
    let kept = ends.partition_point(|(seq, _)| *seq <= last);
    let position = ends[kept - 1].1;
    Ok(Found { ring, superblock, last, position, touched })
}
