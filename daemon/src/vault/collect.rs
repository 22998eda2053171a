//! Deleting copies, and freeing the chunks that no copy needs any more.
//!
//! Invariants: a chunk is deleted only if no copy needs it and no upload is under way that could come to need
//! it. That is so when the copies are the same before and after they were read and no upload was marked at
//! either time: an upload marks itself before it reads the copy it builds on. What is left for later is marked too.
//! Absent: a scan for objects that nothing ever named; files that are no objects (`sweep.rs`).

use std::collections::HashSet;

use super::format::{RECORD_MAX, open, seal};
use super::header::{self, COPIES, DELETED, Deleted, Header, UPLOADS, Upload, table_key};
use super::images;
use super::store::Store;
use crate::engine::now;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::units::{CopyId, SnapshotId};

/// An upload that has not been heard of for so long is abandoned: its daemon is gone for good.
pub const ABANDONED: u64 = 7 * 24 * 3600;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub chunks: u64,
    /// Files that writers left when they were killed.
    pub left_files: u64,
    /// Something is left for later, because an upload is under way.
    pub later: bool,
}

/// Deletes a copy: from here on it does not exist. Its chunks are freed by [`collect`].
pub async fn delete(store: &Store, id: &CopyId, snapshot: Option<&SnapshotId>) -> Result<()> {
    refuse_image(store, id, false).await?;
    let mark = Deleted { id: id.clone(), at: now() };
    store.put(&format!("{DELETED}/{id}"), seal(&mark)?).await?;
    faults::fail_point("delete.marked");
    if let Some(snapshot) = snapshot {
        // An image may have been made of it before the mark was seen.
        refuse_image(store, id, true).await?;
        store.delete(&header::key(id, snapshot)).await?;
    }
    // A copy that was under way: it is so no longer.
    store.delete(&format!("{UPLOADS}/{id}")).await
}

/// Refuses a copy that an image of the repository names; the mark that says it is deleted is taken back.
async fn refuse_image(store: &Store, id: &CopyId, marked: bool) -> Result<()> {
    let Some(image) = images::user(store, id).await? else { return Ok(()) };
    if marked {
        store.delete(&format!("{DELETED}/{id}")).await?;
    }
    let message = format!("copy {id} is part of image {image} in its repository");
    Err(Error::new(ErrorKind::InUse, message)
        .hint("take the image out first: `rowctl image delete IMAGE --repo REPOSITORY`"))
}

/// Frees what deleted copies have left and no other copy needs.
pub async fn collect(store: &Store) -> Result<Collected> {
    let mut done = Collected::default();
    let deleted = store.list(DELETED).await?;
    let ids: Vec<CopyId> = deleted
        .iter()
        .filter_map(|key| key.strip_prefix(DELETED)?.strip_prefix('/'))
        .map(CopyId::from)
        .collect();
    if ids.is_empty() {
        return Ok(done);
    }
    // A delete that was interrupted.
    for (id, snapshot) in store.list(COPIES).await?.iter().filter_map(|key| header::parse_key(key))
    {
        if !ids.contains(&id) {
            continue;
        }
        match refuse_image(store, &id, true).await {
            Err(error) if error.kind() == ErrorKind::InUse => {}
            done => {
                done?;
                store.delete(&header::key(&id, &snapshot)).await?;
            }
        }
    }
    if uploads(store).await? {
        return Ok(Collected { later: true, ..done });
    }
    let before = store.list(COPIES).await?;
    let needed = needed(store, &before, &ids).await?;
    if uploads(store).await? || store.list(COPIES).await? != before {
        return Ok(Collected { later: true, ..done });
    }
    for id in &ids {
        let mut left = false;
        for key in store.list(&format!("chunks/{id}")).await? {
            if needed.contains(&key) {
                left = true;
            } else {
                store.delete(&key).await?;
                done.chunks += 1;
                faults::fail_point("collect.step");
            }
        }
        store.delete(&table_key(id)).await?;
        if !left {
            store.delete(&format!("{DELETED}/{id}")).await?;
        }
    }
    Ok(done)
}

/// The chunks of deleted copies that others need. A copy that cannot be read keeps all: nothing may be freed.
async fn needed(store: &Store, copies: &[String], deleted: &[CopyId]) -> Result<HashSet<String>> {
    let mut needed = HashSet::new();
    for key in copies {
        let header = Header::read(store, key).await?;
        if header.owners.iter().any(|owner| deleted.contains(owner)) {
            let table = header.table(store).await?;
            needed.extend(table.chunks.iter().map(super::table::Chunk::key));
        }
    }
    Ok(needed)
}

/// Whether an upload is under way. Marks of abandoned ones are taken away.
async fn uploads(store: &Store) -> Result<bool> {
    let mut any = false;
    for key in store.list(UPLOADS).await? {
        let mark: Upload = match store.get(&key, RECORD_MAX).await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            bytes => open(&key, &bytes?)?,
        };
        if mark.at + ABANDONED < now() {
            tracing::warn!(copy = %mark.id, writer = mark.writer, "an abandoned upload is given up");
            delete(store, &mark.id, None).await?;
        }
        any = true;
    }
    Ok(any)
}
