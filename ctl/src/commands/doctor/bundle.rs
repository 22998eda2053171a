//! `rowctl doctor --bundle`: what helps to find a cause, in one tar file.
//!
//! Invariants: no data of disks, no keys, no credentials; free text that people wrote (descriptions, tags) and addresses
//! are left out, since nobody knows what is in them; what cannot be had is named in the bundle, and the rest goes on;
//! the file is its owner's alone, and an existing one is not overwritten.
//! Absent: the daemon's log, which the system log has: `journalctl -u rowd`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rowd_proto::{
    AuditList, Call, ChainList, ConfigShow, DiskList, EventsList, FreezeShow, GroupList, ImageList,
    InstanceList, JobList, KeyShow, MetricsShow, PoolShow, RepoList, SnapshotList, StatsShow,
    UsageShow,
};
use serde::Serialize;
use serde_json::Value;

use crate::client::Client;
use crate::error::{Failure, Outcome, Result};

use super::super::Context;
use super::Examination;

/// Fields whose content people wrote, or that say where something is outside this host.
const LEFT_OUT: &[&str] = &["description", "tags", "url", "endpoint", "credentials"];
/// The last events, as many as a page has.
const EVENTS: u64 = 1000;

const ABOUT: &str = "What rowctl doctor --bundle collected of rowd on this host.

No data of disks, no keys, no credentials. Descriptions, tags and addresses of repositories are left
out. Names of disks, snapshots, repositories and programs are in it, and who asked for what.
A file that ends in .error says why the one it is named after could not be had.
";

/// What came of it, as JSON.
#[derive(Debug, Serialize)]
struct Written {
    file: String,
    members: Vec<String>,
}

/// Writes the bundle.
pub fn write(path: &Path, examinations: &[Examination], context: &Context) -> Result<Outcome> {
    let failed = |e: io::Error| Failure::io(format!("cannot write {}", path.display()), &e);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut bundle =
        Bundle { tar: tar::Builder::new(file), now: context.output.now, names: Vec::new() };
    let collected = bundle.collect(examinations, context);
    let written = collected.and_then(|()| bundle.tar.into_inner()).and_then(|mut file| {
        file.flush()?;
        file.sync_all()
    });
    if let Err(error) = written {
        // Half a bundle is none.
        let removed = std::fs::remove_file(path);
        let failure = failed(error);
        return Err(match removed {
            Ok(()) => failure,
            Err(left) => failure.hint(format!("and what is there is not removed: {left}")),
        });
    }
    let written = Written { file: path.display().to_string(), members: bundle.names };
    context.output.object(&written, &written.file, |_| {
        format!(
            "{} has {} files; look at them before you pass it on",
            written.file,
            written.members.len()
        )
    })?;
    Ok(Outcome::Done)
}

struct Bundle {
    tar: tar::Builder<File>,
    now: u64,
    names: Vec<String>,
}

impl Bundle {
    fn collect(&mut self, examinations: &[Examination], context: &Context) -> io::Result<()> {
        self.add("README", ABOUT.as_bytes())?;
        self.json("doctor.json", examinations)?;
        let mut client = match context.client() {
            Ok(client) => client,
            Err(failure) => return self.error("daemon", &failure),
        };
        self.json("daemon.json", &client.server.clone())?;
        let system = nix::sys::utsname::uname().map_err(io::Error::from)?;
        let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
        let kernel = format!("{} {}\n", text(system.sysname()), text(system.release()));
        let versions = format!(
            "rowctl {}\nrowd {}\n{kernel}",
            env!("CARGO_PKG_VERSION"),
            client.server.version
        );
        self.add("versions.txt", versions.as_bytes())?;
        self.ask(&mut client, "status.json", &PoolShow {})?;
        self.ask(&mut client, "disks.json", &DiskList {})?;
        self.ask(&mut client, "snapshots.json", &SnapshotList { disk: None })?;
        self.ask(&mut client, "chains.json", &ChainList {})?;
        self.ask(&mut client, "groups.json", &GroupList {})?;
        self.ask(&mut client, "instances.json", &InstanceList {})?;
        self.ask(&mut client, "images.json", &ImageList {})?;
        self.ask(&mut client, "repos.json", &RepoList {})?;
        self.ask(&mut client, "jobs.json", &JobList {})?;
        self.ask(&mut client, "freeze.json", &FreezeShow {})?;
        self.ask(&mut client, "keys.json", &KeyShow {})?;
        self.ask(&mut client, "usage.json", &UsageShow::default())?;
        self.ask(&mut client, "stats.json", &StatsShow {})?;
        self.ask(&mut client, "audit.json", &AuditList { limit: None })?;
        self.events(&mut client)?;
        match client.call(&ConfigShow {}) {
            Ok(page) => self.add("config.txt", page.text.as_bytes())?,
            Err(failure) => self.error("config.txt", &failure)?,
        }
        match client.call(&MetricsShow {}) {
            Ok(page) => self.add("metrics.txt", page.text.as_bytes()),
            Err(failure) => self.error("metrics.txt", &failure),
        }
    }

    fn events(&mut self, client: &mut Client) -> io::Result<()> {
        // The number of the last event is not asked for by itself: the pool tells it in its metrics only.
        let mut after = 0;
        loop {
            match client.call(&EventsList { after, limit: None }) {
                Ok(page) => match page.events.last().map(|last| last.seq) {
                    Some(last) if page.events.len() as u64 == EVENTS => after = last,
                    _ => break,
                },
                Err(failure) => return self.error("events.json", &failure),
            }
        }
        let ask = EventsList { after: after.saturating_sub(EVENTS), limit: None };
        self.ask(client, "events.json", &ask)
    }

    fn ask<C: Call>(&mut self, client: &mut Client, name: &str, call: &C) -> io::Result<()> {
        match client.call(call) {
            Ok(reply) => self.json(name, &reply),
            Err(failure) => self.error(name, &failure),
        }
    }

    fn json<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> io::Result<()> {
        let value = redacted(serde_json::to_value(value)?);
        let mut text = serde_json::to_vec_pretty(&value)?;
        text.push(b'\n');
        self.add(name, &text)
    }

    fn error(&mut self, name: &str, failure: &Failure) -> io::Result<()> {
        let Failure::Told(body) = failure else { return Ok(()) };
        self.add(&format!("{name}.error"), format!("{}\n", body.message).as_bytes())
    }

    fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        self.tar.append_data(&mut header, format!("rowd-bundle/{name}"), content)?;
        self.names.push(name.to_owned());
        Ok(())
    }
}

/// The same without what is left out, however deep.
fn redacted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
            Value::Object(kept.map(|(name, value)| (name, redacted(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(redacted).collect()),
        Value::String(text) if text.contains("://") => Value::String(without_addresses(&text)),
        plain => plain,
    }
}

/// Messages name addresses too.
fn without_addresses(text: &str) -> String {
    let words = text.split(' ');
    let words = words.map(|word| if word.contains("://") { "(address)" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_left_out_however_deep() {
        let value = serde_json::json!([{
            "name": "data1", "description": "hush",
            "within": {"tags": {"a": "hush"}, "url": "s3://hush", "size": 5},
        }]);
        let text = redacted(value).to_string();
        assert_eq!(text, r#"[{"name":"data1","within":{"size":5}}]"#);
        let told = redacted(serde_json::json!("repository away added: s3://hush/x and more"));
        assert_eq!(told, "repository away added: (address) and more");
    }
}
