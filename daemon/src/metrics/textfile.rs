//! The file of metrics, for collectors that read files, such as the one of node_exporter.
//!
//! Invariants: a reader sees a whole file or none; the file is gone when the daemon ends in order, so that old numbers
//! do not pass for new ones; a file that cannot be written is told once, not at every turn.
//! Absent: who may read it beyond its mode, which is 0644.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::Metrics;
use crate::error::{Error, Result};

/// Keeps the file up to date until `shutdown` becomes true.
pub async fn keep(
    metrics: Arc<Metrics>,
    path: PathBuf,
    every: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut well = true;
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => break,
            _ = ticks.tick() => {}
        }
        let (metrics, target) = (Arc::clone(&metrics), path.clone());
        let written = spawn_blocking(move || write(&target, &metrics.text()?)).await;
        let failed = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        match &failed {
            Some(error) if well => tracing::warn!(error, "metrics.textfile cannot be written"),
            None if !well => tracing::info!("metrics.textfile can be written again"),
            _ => {}
        }
        well = failed.is_none();
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "metrics.textfile is not removed");
        }
        _ => {}
    }
}

/// Writes the whole file beside its place and moves it there.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let failed = |e: io::Error| Error::io(format!("write {}", draft.display()), &e);
    let mut file = File::create(&draft).map_err(failed)?;
    // Whatever the service's mask is: readers are other users.
    file.set_permissions(Permissions::from_mode(0o644)).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    drop(file);
    fs::rename(&draft, path).map_err(|e| Error::io(format!("replace {}", path.display()), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_whole_and_may_be_read_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rowd.prom");
        write(&path, "a 1\n").unwrap();
        write(&path, "b 2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b 2\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = write(Path::new("/nonexistent/rowd.prom"), "").unwrap_err();
        assert!(error.message().contains("/nonexistent/rowd.prom"), "{error}");
    }
}
