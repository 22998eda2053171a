//! What killed writers have left in a repository that is a directory.
//!
//! A file is written under its name with `#` and a number behind, and renamed when it is whole. A writer that is killed
//! between leaves it, and nobody lists it as an object.
//!
//! Invariants: nothing is removed that could be an object, or that somebody may still be writing: a week is what an
//! upload has too until it is taken for abandoned.
//! Absent: object stores, which have no such files.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::Vault;
use super::address::Address;
use super::collect::ABANDONED;
use super::work::Work;
use crate::engine::repos::RepoRecord;
use crate::error::{Error, Result};

/// Looking takes a walk through all names, so it is not done more often.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// `chunks/COPY/SUM` has the most parts.
const DEPTH: u32 = 2;

impl Vault {
    /// Removes what killed writers have left in a repository, if it is a directory and it is time. Says how many
    /// files that were.
    pub(super) fn sweep(&self, work: &Work, repo: &RepoRecord) -> Result<u64> {
        let Some(dir) = Address::parse(&repo.url)?.dir() else { return Ok(0) };
        {
            let mut swept = self.swept.lock();
            if swept.get(&repo.id).is_some_and(|last| last.elapsed() < EVERY) {
                return Ok(0);
            }
            swept.insert(repo.id.clone(), Instant::now());
        }
        let before = SystemTime::now().checked_sub(Duration::from_secs(ABANDONED));
        let Some(before) = before else { return Ok(0) };
        let mut removed = 0;
        walk(&dir, DEPTH, &mut |path| {
            work.check()?;
            if is_left(path, before)? {
                fs::remove_file(path)
                    .map_err(|e| Error::io(format!("remove {}", path.display()), &e))?;
                tracing::info!(path = %path.display(), "removed what a killed writer has left");
                removed += 1;
            }
            Ok(())
        })?;
        Ok(removed)
    }
}

fn walk(dir: &Path, depth: u32, each: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let failed = |e: io::Error| Error::io(format!("look through {}", dir.display()), &e);
    let entries = match fs::read_dir(dir) {
        // Somebody freed the last chunk of a copy.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = match entry.file_type() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            kind => kind.map_err(failed)?,
        };
        if kind.is_dir() && depth > 0 {
            walk(&entry.path(), depth - 1, each)?;
        } else if kind.is_file() {
            each(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file is one that was never whole, and was last written before that time.
fn is_left(path: &Path, before: SystemTime) -> Result<bool> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let unfinished = name.split_once('#').is_some_and(|(name, number)| {
        !name.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    if !unfinished {
        return Ok(false);
    }
    match fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        written => {
            let written =
                written.map_err(|e| Error::io(format!("look at {}", path.display()), &e))?;
            Ok(written < before)
        }
    }
}
