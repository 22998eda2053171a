//! The S3 server of the tests, and daemons that know it.
//!
//! Absent: the server itself (`rowd_tests::s3`).

use std::fs;
use std::path::{Path, PathBuf};

use rowd_tests::process::Daemon;
use rowd_tests::s3::write_keys;
pub use rowd_tests::s3::{BUCKET, KEY, S3Server, SECRET};

/// A file of credentials for the server, private unless `mode` says otherwise.
pub fn key_file(daemon: &Daemon, secret: &str, mode: u32) -> String {
    let path = daemon.path("s3.keys");
    write_keys(Path::new(&path), secret, mode);
    path
}

/// Makes the repository `name` below `prefix` on the server known to a daemon.
#[track_caller]
pub fn add(daemon: &Daemon, name: &str, prefix: &str, endpoint: &str) {
    let keys = format!("file:{}", key_file(daemon, SECRET, 0o600));
    let url = format!("s3://{BUCKET}/{prefix}");
    daemon.ctl(&["repo", "add", name, &url, "--endpoint", endpoint, "--credentials", &keys]);
}

/// All files below a directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
