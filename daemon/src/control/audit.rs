//! The audit log: every call that would change something, by whom, and what came of it; the refused ones too.
//!
//! Invariants: an entry is one line of JSON, written whole before the caller is answered; the log is bounded, the
//! oldest half goes; no free text of a request is in it and nothing secret, only names, ids, sizes and switches.
//! Absent: calls that only read, which nobody is refused; protection against root, who can change any file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rowd_proto::{AuditEntry, Moment};
use serde_json::{Map, Value};

use crate::engine::api::Actor;
use crate::error::{Error, Result};

/// The file is set aside at this size, and the one set aside before goes.
const BYTES_MAX: u64 = 8 << 20;
/// Parameters that say what a call is about. Others, such as descriptions, tags and addresses, are left out.
const TELLING: &[&str] = &[
    "bandwidth",
    "bytes_per_second",
    "consistency",
    "copy",
    "device",
    "disk",
    "disks",
    "encrypted",
    "existing",
    "family",
    "force",
    "from",
    "group",
    "image",
    "instance",
    "job",
    "keys",
    "max_bytes",
    "name",
    "object",
    "policy",
    "protected",
    "read_only",
    "repo",
    "shrink",
    "size",
    "snapshot",
    "to",
];
/// Text of one parameter beyond this is cut off.
const TEXT_MAX: usize = 256;

/// A call that is over.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) by: Actor,
    pub(super) role: &'static str,
    pub(super) method: &'a str,
    pub(super) params: Map<String, Value>,
    pub(super) millis: u64,
    /// Kind and message of the error, if it failed or was refused.
    pub(super) failed: Option<(String, String)>,
}

/// The log.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    file: Option<(File, u64)>,
    /// It could not be written, which has been told.
    broken: bool,
}

impl Audit {
    #[must_use]
    pub fn new(path: PathBuf) -> Audit {
        Audit { path, open: Mutex::default() }
    }

    /// Writes one entry. A log that cannot be written is told once, and keeps nobody from working: the system log has
    /// the same entries.
    pub(super) fn record(&self, call: Call<'_>) {
        let entry = entry(call);
        let AuditEntry { uid, pid, method, result, message, .. } = &entry;
        let told = message.as_deref().unwrap_or("done");
        tracing::info!(target: "rowd::audit", method, result, actor_uid = uid, actor_pid = pid, "{told}");
        let mut open = self.open.lock();
        let written = line(&entry).and_then(|line| self.write(&mut open, &line));
        match written {
            Ok(()) if open.broken => {
                tracing::info!(path = %self.path.display(), "the audit log is written again");
                open.broken = false;
            }
            Err(error) if !open.broken => {
                tracing::error!(%error, path = %self.path.display(), "no audit log");
                *open = Open { file: None, broken: true };
            }
            Ok(()) => {}
            Err(_) => open.file = None,
        }
    }

    fn write(&self, open: &mut Open, line: &[u8]) -> io::Result<()> {
        let full = open.file.as_ref().is_some_and(|(_, bytes)| *bytes >= BYTES_MAX);
        if full {
            open.file = None;
            fs::rename(&self.path, self.set_aside())?;
        }
        let (file, bytes) = match &mut open.file {
            Some(file) => file,
            place => {
                let mut options = OpenOptions::new();
                let file = options.append(true).create(true).mode(0o600).open(&self.path)?;
                let bytes = file.metadata()?.len();
                place.insert((file, bytes))
            }
        };
        file.write_all(line)?;
        *bytes += line.len() as u64;
        Ok(())
    }

    fn set_aside(&self) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(".1");
        PathBuf::from(path)
    }

    /// The last entries, oldest first.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn last(&self, limit: usize) -> Result<Vec<AuditEntry>> {
        let mut all = entries(&self.set_aside())?;
        all.extend(entries(&self.path)?);
        Ok(all.split_off(all.len().saturating_sub(limit)))
    }
}

/// A line that was cut off by the end of the daemon is left out.
fn entries(path: &Path) -> Result<Vec<AuditEntry>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(format!("read {}", path.display()), &error)),
    }
}

fn entry(call: Call<'_>) -> AuditEntry {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    let (result, message) = match call.failed {
        None => ("ok".to_owned(), None),
        Some((kind, message)) => (kind, Some(message)),
    };
    AuditEntry {
        at: Moment::from_unix_micros(micros),
        uid: call.by.uid,
        pid: call.by.pid,
        role: call.role.to_owned(),
        method: call.method.chars().take(TEXT_MAX).collect(),
        params: call
            .params
            .into_iter()
            .filter(|(name, _)| TELLING.contains(&name.as_str()))
            .map(|(name, value)| (name, short(value)))
            .collect(),
        result,
        message,
        millis: call.millis,
    }
}

/// Long text and long lists are cut off, objects are left out: what they say is free text.
fn short(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.chars().take(TEXT_MAX).collect()),
        Value::Array(list) => Value::Array(list.into_iter().take(64).map(short).collect()),
        Value::Object(_) => Value::Null,
        plain => plain,
    }
}

fn line(entry: &AuditEntry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(method: &str, params: Value) -> Call<'_> {
        let Value::Object(params) = params else { unreachable!("an object") };
        let by = Actor { uid: 1000, pid: 7 };
        Call { by, role: "admin", method, params, millis: 1, failed: None }
    }

    #[test]
    fn free_text_and_addresses_are_left_out() {
        let params = json!({
            "name": "data1", "size": 5, "description": "hush", "tags": {"k": "hush"},
            "url": "s3://hush", "credentials": "hush", "from": {"x": "hush"},
        });
        let text = String::from_utf8(line(&entry(call("disk.create", params))).unwrap()).unwrap();
        assert!(text.contains("data1") && text.contains("\"size\":5"), "{text}");
        assert!(!text.contains("hush"), "{text}");
    }

    #[test]
    fn the_log_is_bounded_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path().join("audit.jsonl"));
        let disks: Vec<String> = (0..64).map(|_| "x".repeat(TEXT_MAX)).collect();
        let entries = 3 * BYTES_MAX / (64 * TEXT_MAX as u64);
        for _ in 0..entries {
            audit.record(call("group.create", json!({ "disks": disks })));
        }
        audit.record(call("disk.delete", json!({"disk": "last"})));
        let bytes: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|one| one.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes < 2 * BYTES_MAX + (64 << 10), "{bytes}");
        assert_eq!(fs::metadata(&audit.path).unwrap().permissions().mode() & 0o777, 0o600);
        let last = audit.last(1).unwrap();
        assert_eq!((&*last[0].method, &last[0].params["disk"]), ("disk.delete", &json!("last")));
    }

    #[test]
    fn half_a_line_is_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path().join("audit.jsonl"));
        audit.record(call("disk.create", json!({})));
        let mut text = fs::read(&audit.path).unwrap();
        text.extend_from_slice(b"{\"at\":\"2026-");
        fs::write(&audit.path, text).unwrap();
        assert_eq!(audit.last(10).unwrap().len(), 1);
    }
}
