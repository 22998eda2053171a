//! A state, mounted and opened: whether it is one that was promised.
//!
//! Invariants: the kernel replays the file system's journal and the engine its own, as after a real
//! cut; opening a second time shows the same.
//! Absent: the making of states (`state`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rowd::config::Config;
use rowd::disk::lane::Lane;
use rowd::engine::{Engine, Settings};
use rowd::pool::file::IoMode;
use rowd::units::ByteRange;

use super::CONFIG;
use super::record::{Recording, Span};
use crate::crash::history::{Log, Op};
use crate::crash::judge::{Expect, Found, Window, judge};
use crate::crash::load::lock;
use crate::crash::stamp::{Value, parse_all};
use crate::{mount, tool};

/// What an opened pool shows: disks and snapshots by export name.
type Shown = BTreeMap<String, Vec<Value>>;

/// A state as a mounted file system.
struct Mounted<'a> {
    point: &'a Path,
}

impl Mounted<'_> {
    fn new<'a>(image: &Path, point: &'a Path) -> Mounted<'a> {
        tool::finish(tool::command("mount").args(["-o", "loop,noatime"]).arg(image).arg(point))
            .ok();
        Mounted { point }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let done = mount::unmount(self.point);
        if done.code != 0 {
            eprintln!("{done}");
        }
    }
}

/// What is known about a cut.
struct Cut<'a> {
    recording: &'a Recording,
    at: u64,
}

/// Opens the state in the file `image` and judges it as one at `cut`. Returns the records replayed.
///
/// # Errors
/// A promise is broken.
///
/// # Panics
/// The file system itself cannot be mounted.
pub fn check(
    recording: &Recording,
    cut: u64,
    image: &Path,
    point: &Path,
    io: IoMode,
) -> Result<u64, String> {
    let mounted = Mounted::new(image, point);
    let settings = Settings { io, ..settings(&mounted.point.join("pool")) };
    let (first, records) = open_and_show(&settings, true)?;
    Cut { recording, at: cut }.judge(&first)?;
    let (second, _) = open_and_show(&settings, false).map_err(|e| format!("opened again: {e}"))?;
    if first != second {
        return Err("opened a second time, it shows something else".to_owned());
    }
    Ok(records)
}

fn settings(dir: &Path) -> Settings {
    let config = Config::parse(CONFIG, Some(dir)).expect("a configuration");
    // Nothing but opening and reading happens here.
    Settings { background: false, ..config.settings }
}

fn open_and_show(settings: &Settings, walk: bool) -> Result<(Shown, u64), String> {
    let engine =
        Engine::open(settings.clone()).map_err(|e| format!("the pool does not open: {e}"))?;
    let mut names: Vec<String> = engine.exports().into_iter().map(|export| export.name).collect();
    for name in names.clone() {
        let bases = engine.dirty_bases(&name).map_err(|e| e.to_string())?;
        names.extend(bases.into_iter().map(|snapshot| format!("{name}@{snapshot}")));
    }
    let mut shown = Shown::new();
    for name in names {
        let image = read(&engine, &name).map_err(|e| format!("{name}: {e}"))?;
        shown.insert(name, image);
    }
    if walk {
        let report = engine.check(true, false).map_err(|e| format!("the check: {e}"))?;
        if report.findings_count > 0 {
            return Err(format!("the check: {}", report.findings.join("; ")));
        }
    }
    Ok((shown, engine.status().recovered_records))
}

fn read(engine: &Arc<Engine>, name: &str) -> Result<Vec<Value>, String> {
    let target =
        engine.open_export(name, "test", None, Box::new(|| {})).map_err(|e| e.to_string())?;
    let size = target.disk.size();
    let mut bytes = vec![0; usize::try_from(size).expect("a small disk")];
    let range = ByteRange::new(0, size).expect("a small disk");
    Lane::new(&target.disk).read(range, &mut bytes).map_err(|e| e.to_string())?;
    parse_all(&bytes)
}

impl Cut<'_> {
    fn judge(&self, shown: &Shown) -> Result<(), String> {
        let mut durable = self.recording.durable_at(self.at);
        let mut known = Vec::new();
        for disk in &self.recording.disks {
            self.exists(&disk.name, disk.made, None, shown)?;
            known.push(disk.name.clone());
        }
        let logs: Vec<_> = self.recording.disks.iter().map(|disk| lock(&disk.log)).collect();
        for snapshot in &self.recording.snapshots {
            let disk = &self.recording.disks[snapshot.disk];
            let name = format!("{}@{}", disk.name, snapshot.name);
            if self.exists(&name, snapshot.made, snapshot.deleted, shown)? {
                // What a snapshot that is there was made after, is there too.
                durable = durable.max(snapshot.made.asked);
                let may = snapshot.made.answered.unwrap_or(u64::MAX).min(self.at);
                let window = Window { must: snapshot.made.asked, may };
                let found = Found { name: &name, log: &logs[snapshot.disk], image: &shown[&name] };
                judge(&[found], |op| window.expect(op))?;
            }
            known.push(name);
        }
        if let Some(stray) = shown.keys().find(|name| !known.contains(name)) {
            return Err(format!("{stray} exists, and nobody made it"));
        }
        let named = self.recording.disks.iter().zip(&logs);
        let named: Vec<(&str, &Log)> =
            named.map(|(disk, log)| (disk.name.as_str(), &**log)).collect();
        let found = |(name, log)| Some(Found { name, log, image: shown.get(name)? });
        let found: Vec<Found<'_>> = named.into_iter().filter_map(found).collect();
        judge(&found, |op| self.expect(op, durable))
    }

    fn expect(&self, op: &Op, durable: u64) -> Expect {
        let answered = op.completed.filter(|at| *at < self.at);
        let kept = answered.is_some_and(|at| op.fua || at < durable);
        if kept { Expect::Must } else { Window { must: 0, may: self.at }.expect(op) }
    }

    /// Whether something exists, and whether it may.
    fn exists(
        &self,
        name: &str,
        made: Span,
        deleted: Option<Span>,
        shown: &Shown,
    ) -> Result<bool, String> {
        let before = |at: Option<u64>| at.is_some_and(|at| at < self.at);
        let exists = shown.contains_key(name);
        let must = before(made.answered) && deleted.is_none_or(|span| span.asked >= self.at);
        let cannot = made.asked >= self.at || deleted.is_some_and(|span| before(span.answered));
        if must && !exists {
            return Err(format!("{name} was made before the cut and does not exist"));
        }
        if cannot && exists {
            return Err(format!("{name} exists, though deleted before the cut or made after it"));
        }
        Ok(exists)
    }
}

/// Where states are written: memory, so that the test is not about this machine's disk.
#[must_use]
pub fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}
