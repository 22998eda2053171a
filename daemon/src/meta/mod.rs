//! The metadata store: the map and the catalogue in RocksDB, changed by checkpoints only.
//!
//! Invariants: this is the only module that names `rocksdb`; a checkpoint is flushed over all column
//! families at once, with the last applied record in it, and nothing else begins a flush: on disk the
//! store is at one point in the order of effects or at the point before. Its write-ahead log is off, the journal is the log.
//! Absent: caching of leaves (`map/view.rs`) and the meaning of catalogue values (`engine/`).

pub mod keys;
mod manifest;

use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIterator, Direction, FlushOptions, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::map::leaf::Leaf;
use crate::map::lineage::Sees;
use crate::units::{Epoch, LeafIndex, Seq, TreeId};

const FAMILIES: [&str; 4] = ["map", "own", "bits", "catalogue"];
const STATE_KEY: &[u8] = b"state";
/// Memory for RocksDB's own block cache; leaves are cached above it.
const BLOCK_CACHE: usize = 32 << 20;
/// Larger than any checkpoint (it is RocksDB's largest), so that only [`Meta::commit`] begins a flush.
const WRITE_BUFFER: usize = 64 << 30;
/// A checkpoint is handed over in batches of about this size, so that it is in memory once and not twice.
const BATCH_BYTES: usize = 1 << 20;

/// At which point the store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The pool it belongs to, as hexadecimal digits.
    pub pool: String,
    /// The opening that wrote it.
    pub opening: u32,
    /// All records up to this one are in it, none after.
    pub applied: Seq,
}

/// Everything a checkpoint changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Values of `None` delete the version.
    pub leaves: Vec<(TreeId, LeafIndex, Epoch, Option<Arc<Leaf>>)>,
    pub dropped: Vec<(TreeId, LeafIndex, Epoch)>,
    pub bits: Vec<(u32, Vec<u64>)>,
    /// Values of `None` delete the key.
    pub catalogue: Vec<(String, Option<Vec<u8>>)>,
}

/// The open store.
#[derive(Debug)]
pub struct Meta {
    db: DB,
}

impl Meta {
    /// Makes an empty store for a pool.
    ///
    /// # Errors
    /// There is one, or the file system refuses.
    pub fn create(path: &Path, state: &State) -> Result<Meta> {
        let mut options = database_options();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_error_if_exists(true);
        let meta = Meta { db: open(path, &options)? };
        meta.commit(&Changes::default(), state)?;
        Ok(meta)
    }

    /// Opens the store of a pool, which is known to hold the records up to `least`.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn open(path: &Path, least: Seq) -> Result<Meta> {
        if !path.join("CURRENT").exists() {
            return Err(Error::corrupt(format!("the map is missing: no {}", path.display()))
                .hint("restore the directory, or run `rowd check --dir DIR` for what is left"));
        }
        let refused = match open(path, &database_options()) {
            Err(error) if error.kind() == ErrorKind::Corrupt => error,
            other => return Ok(Meta { db: other? }),
        };
        let Some(torn) = manifest::drop_torn_end(path)? else { return Err(refused) };
        // Only to look: RocksDB removes the files that the state it opens does not name.
        let left = open_read_only(path).and_then(|db| Meta { db }.find_state());
        if !left.is_ok_and(|state| state.map_or(Seq(0), |state| state.applied) >= least) {
            torn.restore()?;
            return Err(refused);
        }
        tracing::warn!(%refused, dropped = torn.dropped, "the end of the map's manifest was torn");
        Ok(Meta { db: open(path, &database_options())? })
    }

    /// The point the store at `path` is at, if a checkpoint was ever written there. Nothing is changed,
    /// and nothing mended: what a torn store would look like says nothing about what it holds.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn look(path: &Path) -> Result<Option<State>> {
        Meta { db: open_read_only(path)? }.find_state()
    }

    /// The point the store is at.
    ///
    /// # Errors
    /// The store cannot be read, or no checkpoint was ever written.
    pub fn state(&self) -> Result<State> {
        self.find_state()?.ok_or_else(|| Error::corrupt("the map has no state record"))
    }

    /// The point the store is at, if a checkpoint was ever written.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn find_state(&self) -> Result<Option<State>> {
        let Some(bytes) = self.db.get(STATE_KEY).map_err(failed("read the state"))? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::corrupt(format!("the map's state record: {e}")))
    }

    /// The newest version of a leaf that `lineage` sees, if there is one.
    ///
    /// # Errors
    /// The store cannot be read, or the leaf cannot be decoded.
    pub fn newest(
        &self,
        tree: TreeId,
        leaf: LeafIndex,
        lineage: &impl Sees,
    ) -> Result<Option<(Epoch, Leaf)>> {
        let start = keys::version(tree, leaf, lineage.newest());
        let mut cursor = self.cursor("map", &start, keys::leaf_prefix(tree, leaf).to_vec());
        while let Some((key, value)) = cursor.item() {
            let (_, _, epoch) = keys::parse_version(key).ok_or_else(bad_key)?;
            if lineage.sees(epoch) {
                return Ok(Some((epoch, Leaf::decode(value)?)));
            }
            cursor.next();
        }
        cursor.status().map_err(failed("look a leaf up"))?;
        Ok(None)
    }

    /// All versions of a leaf, the newest first.
    ///
    /// # Errors
    /// The store cannot be read, or a leaf cannot be decoded.
    pub fn versions(&self, tree: TreeId, leaf: LeafIndex) -> Result<Vec<(Epoch, Leaf)>> {
        let start = keys::version(tree, leaf, Epoch(u32::MAX));
        let mut cursor = self.cursor("map", &start, keys::leaf_prefix(tree, leaf).to_vec());
        let mut found = Vec::new();
        while let Some((key, value)) = cursor.item() {
            let (_, _, epoch) = keys::parse_version(key).ok_or_else(bad_key)?;
            found.push((epoch, Leaf::decode(value)?));
            cursor.next();
        }
        cursor.status().map_err(failed("look all versions of a leaf up"))?;
        Ok(found)
    }

    /// The leaves of a tree in `from..to` that have a version at all, ascending; at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn leaves(&self, tree: TreeId, from: u64, to: u64, limit: usize) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        let newest = Epoch(u32::MAX);
        let start = keys::version(tree, LeafIndex(from), newest);
        let mut cursor = self.cursor("map", &start, tree.0.to_be_bytes().to_vec());
        while let Some((key, _)) = cursor.item() {
            let (_, leaf, _) = keys::parse_version(key).ok_or_else(bad_key)?;
            if leaf.0 >= to || found.len() >= limit {
                break;
            }
            found.push(leaf.0);
            cursor.next();
            let repeats = |key: &[u8]| keys::parse_version(key).is_some_and(|(_, l, _)| l == leaf);
            if cursor.item().is_some_and(|(key, _)| repeats(key)) {
                cursor.seek(keys::version(tree, LeafIndex(leaf.0 + 1), newest));
            }
        }
        cursor.status().map_err(failed("walk the map"))?;
        Ok(found)
    }

    /// The leaves from `from` on that have a version in an epoch `sees` allows, ascending; at most `limit`.
    /// The cost follows the versions of all leaves it passes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn leaves_seen(
        &self,
        tree: TreeId,
        sees: &impl Sees,
        from: u64,
        limit: usize,
    ) -> Result<Vec<u64>> {
        let newest = Epoch(u32::MAX);
        let start = keys::version(tree, LeafIndex(from), newest);
        let mut cursor = self.cursor("map", &start, tree.0.to_be_bytes().to_vec());
        let mut found = Vec::new();
        while let Some((key, _)) = cursor.item().filter(|_| found.len() < limit) {
            let (_, leaf, epoch) = keys::parse_version(key).ok_or_else(bad_key)?;
            if sees.sees(epoch) {
                found.push(leaf.0);
                cursor.seek(keys::version(tree, LeafIndex(leaf.0 + 1), newest));
            } else {
                cursor.next();
            }
        }
        cursor.status().map_err(failed("walk the map"))?;
        Ok(found)
    }

    /// The leaves touched in an epoch, from `from` on, ascending; at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn touched(&self, tree: TreeId, epoch: Epoch, from: u64, limit: usize) -> Result<Vec<u64>> {
        let start = keys::touched(tree, epoch, LeafIndex(from));
        let mut cursor = self.cursor("own", &start, start[..8].to_vec());
        let mut found = Vec::new();
        while let Some((key, _)) = cursor.item().filter(|_| found.len() < limit) {
            let (_, _, leaf) = keys::parse_touched(key).ok_or_else(bad_key)?;
            found.push(leaf.0);
            cursor.next();
        }
        cursor.status().map_err(failed("walk the touched index"))?;
        Ok(found)
    }

    /// All catalogue entries whose key begins with `prefix`, ascending.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn catalogue(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mode = IteratorMode::From(prefix.as_bytes(), Direction::Forward);
        let mut found = Vec::new();
        for item in self.db.iterator_cf(self.family("catalogue"), mode) {
            let (key, value) = item.map_err(failed("read the catalogue"))?;
            let Some(key) = std::str::from_utf8(&key).ok().filter(|k| k.starts_with(prefix)) else {
                break;
            };
            found.push((key.to_owned(), value.to_vec()));
        }
        Ok(found)
    }

    /// All kept bitmaps of segments.
    ///
    /// # Errors
    /// The store cannot be read, or an entry has an impossible length.
    pub fn bits(&self) -> Result<Vec<(u32, Vec<u64>)>> {
        let mut found = Vec::new();
        for item in self.db.iterator_cf(self.family("bits"), IteratorMode::Start) {
            let (key, value) = item.map_err(failed("read the bitmaps"))?;
            let segment = u32::from_be_bytes(key.as_ref().try_into().map_err(|_| bad_key())?);
            let (words, rest) = value.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(Error::corrupt(format!("the bitmap of segment {segment} is cut")));
            }
            found.push((segment, words.iter().map(|w| u64::from_le_bytes(*w)).collect()));
        }
        Ok(found)
    }

    /// Writes a checkpoint and makes it durable; after an error the store is as it was.
    ///
    /// # Errors
    /// The store refuses. The pool has to stop then.
    pub fn commit(&self, changes: &Changes, state: &State) -> Result<()> {
        let (map, own) = (self.family("map"), self.family("own"));
        let mut batch = WriteBatch::default();
        for (tree, leaf, epoch, value) in &changes.leaves {
            let (version, touched) =
                (keys::version(*tree, *leaf, *epoch), keys::touched(*tree, *epoch, *leaf));
            match value {
                Some(value) => {
                    batch.put_cf(map, version, value.encode());
                    batch.put_cf(own, touched, b"");
                }
                None => {
                    batch.delete_cf(map, version);
                    batch.delete_cf(own, touched);
                }
            }
            self.write_if_large(&mut batch)?;
        }
        for (tree, leaf, epoch) in &changes.dropped {
            batch.delete_cf(map, keys::version(*tree, *leaf, *epoch));
            batch.delete_cf(own, keys::touched(*tree, *epoch, *leaf));
            self.write_if_large(&mut batch)?;
        }
        for (segment, words) in &changes.bits {
            let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            batch.put_cf(self.family("bits"), segment.to_be_bytes(), value);
        }
        for (key, value) in &changes.catalogue {
            match value {
                Some(value) => batch.put_cf(self.family("catalogue"), key, value),
                None => batch.delete_cf(self.family("catalogue"), key),
            }
        }
        let json = serde_json::to_vec(state).map_err(|e| Error::internal(e.to_string()))?;
        batch.put(STATE_KEY, json);
        self.write(batch)?;
        self.flush()
    }

    fn write_if_large(&self, batch: &mut WriteBatch) -> Result<()> {
        if batch.size_in_bytes() < BATCH_BYTES {
            return Ok(());
        }
        self.write(std::mem::take(batch))
    }

    /// To memory only: what a process that ends here has written is gone.
    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(failed("write a checkpoint"))
    }

    fn flush(&self) -> Result<()> {
        let families: Vec<&ColumnFamily> =
            FAMILIES.iter().map(|name| self.family(name)).chain([self.default_family()]).collect();
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.db.flush_cfs_opt(&families, &flush).map_err(failed("flush a checkpoint"))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("all column families are opened")
    }

    fn default_family(&self) -> &ColumnFamily {
        self.family(rocksdb::DEFAULT_COLUMN_FAMILY_NAME)
    }

    /// A cursor at the first key at or behind `start` that begins with `prefix`.
    fn cursor(&self, family: &str, start: &[u8], prefix: Vec<u8>) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(successor(prefix));
        let mut cursor = self.db.raw_iterator_cf_opt(self.family(family), options);
        cursor.seek(start);
        cursor
    }
}

/// The smallest key behind all keys that begin with `prefix`.
fn successor(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
}

fn open(path: &Path, options: &Options) -> Result<DB> {
    DB::open_cf_descriptors(options, path, families()).map_err(failed("open the map"))
}

fn open_read_only(path: &Path) -> Result<DB> {
    DB::open_cf_descriptors_read_only(&database_options(), path, families(), false)
        .map_err(failed("look at the map"))
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(BLOCK_CACHE);
    let names = FAMILIES.into_iter().chain([rocksdb::DEFAULT_COLUMN_FAMILY_NAME]);
    names.map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache))).collect()
}

fn database_options() -> Options {
    let mut options = Options::default();
    // A checkpoint reaches all families or none.
    options.set_atomic_flush(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(-1);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(3);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_paranoid_checks(true);
    options
}

fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_format_version(6);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_write_buffer_size(WRITE_BUFFER);
    options.set_max_write_buffer_number(2);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_block_based_table_factory(&table);
    options
}

fn failed(doing: &'static str) -> impl Fn(rocksdb::Error) -> Error {
    move |error| {
        use rocksdb::ErrorKind as K;
        let kind = match error.kind() {
            K::Corruption => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{doing}: {error}"))
    }
}

fn bad_key() -> Error {
    Error::corrupt("a key of the metadata store cannot be decoded")
}
