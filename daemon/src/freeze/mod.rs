//! Snapshots and groups above the crash level: file systems, and the applications on them, stand still
//! while the cut is made.
//!
//! Invariants: one freeze at a time; whatever is refused is refused before anything is touched; a level
//! is recorded on a snapshot only after everything is thawed; a file system never stays frozen beyond
//! the limit, whoever dies (`helper/`, `local.rs`).
//! Absent: the cut itself (`engine/`), which knows nothing of freezing.

mod applications;
mod child;
pub mod dev;
pub mod devices;
pub mod discover;
pub mod guest;
mod helpers;
pub mod hook;
pub mod hurry;
pub mod kernel;
pub mod local;
pub mod mounts;
mod operation;
mod plan;
pub mod provider;
pub mod qga;
pub mod record;
pub mod report;
pub mod script;

#[cfg(test)]
mod testing;
mod told;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::engine::Engine;
use crate::engine::api::{Actor, Consistency, GroupInfo, GroupSpec, SnapshotInfo, SnapshotSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::histogram::Histogram;
use crate::units::DiskId;
use applications::{Applications, Sources};
use devices::Sys;
use discover::{DiskUse, Wanted, discover};
use guest::Guest;
use local::{Breaker, Local, Setup};
use operation::{Made, Operation};
use plan::{Plan, disk_use};
use provider::{Provider, Target};
use record::Record;
use report::{Phase, Report};
use script::Surroundings;
use told::{finish, told_failure};

/// The tag of a snapshot whose applications stood still.
pub const APP_TAG: &str = "APPConsistent";
/// The tag of a snapshot whose file systems stood still.
pub const FS_TAG: &str = "FsConsistent";
/// The value of both.
pub const TAG_VALUE: &str = "True";
/// The longest limit a request may ask for: an application waits as long.
pub const LIMIT_MAX: Duration = Duration::from_secs(300);
/// The longest limit of a script: a day.
pub const SCRIPT_LIMIT_MAX: Duration = Duration::from_secs(86_400);

/// How often the start tries to thaw what is left, and the pause between: for five minutes, which is longer
/// than a daemon that was killed is away. After that `rowctl check` tells.
const RECOVERY_TRIES: u32 = 60;
const RECOVERY_PAUSE: Duration = Duration::from_secs(5);

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long file systems may be frozen.
    pub limit: Duration,
    /// How long each script or hook may take.
    pub script_limit: Duration,
    /// The scripts of requests that name none.
    pub pre_script: Option<PathBuf>,
    pub post_script: Option<PathBuf>,
    /// The directory of hooks.
    pub hooks: PathBuf,
    /// Where it is written what is frozen.
    pub record: PathBuf,
    /// Files that must never be frozen, with what they are.
    pub own: Vec<(String, PathBuf)>,
}

/// What a request says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Mount points to freeze in addition to those that are found.
    pub mounts: Vec<PathBuf>,
    pub limit: Option<Duration>,
    /// Scripts in place of those of the configuration.
    pub pre_script: Option<PathBuf>,
    pub post_script: Option<PathBuf>,
    pub script_limit: Option<Duration>,
    /// Run neither scripts nor hooks.
    pub no_scripts: bool,
    /// Leave file systems alone.
    pub no_freeze: bool,
}

/// The freezes of a daemon.
#[derive(Debug)]
pub struct Freezer {
    settings: Settings,
    running: Mutex<Weak<Busy>>,
    closing: AtomicBool,
    /// For how long file systems were frozen.
    pub frozen: Histogram,
}

/// The one freeze that runs. It goes when its last owner goes, which may be a thread that waits for a
/// file system that does not answer.
#[derive(Debug)]
pub struct Busy {
    what: String,
    wanted: Consistency,
    since: SystemTime,
    progress: Mutex<Progress>,
    broken: AtomicBool,
}

#[derive(Debug)]
struct Progress {
    phase: Phase,
    targets: Vec<Target>,
    breakers: Vec<Breaker>,
}

impl Busy {
    fn enter(&self, phase: Phase) {
        self.progress.lock().phase = phase;
    }

    /// Whether the operation may go on.
    fn check(&self) -> Result<()> {
        if !self.broken.load(Ordering::SeqCst) {
            return Ok(());
        }
        let message = "the freeze was called off before the snapshot was made";
        Err(Error::new(ErrorKind::Cancelled, message))
    }

    fn call_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.progress.lock().breakers.iter().for_each(Breaker::thaw);
    }
}

/// What is frozen now, or what is left of an earlier freeze.
#[derive(Clone, Debug)]
pub struct Status {
    pub running: Option<Running>,
    /// The record of a freeze that no running one owns.
    pub left: Option<Record>,
}

/// What a freeze would do.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The level it would reach.
    pub level: Consistency,
    pub notes: Vec<String>,
    pub targets: Vec<Target>,
    /// Scripts and hooks, in their order.
    pub applications: Vec<String>,
}

/// A freeze that runs.
#[derive(Clone, Debug)]
pub struct Running {
    pub what: String,
    pub wanted: Consistency,
    pub since: SystemTime,
    pub phase: Phase,
    pub targets: Vec<Target>,
}

impl Freezer {
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Freezer> {
        let (running, closing) = (Mutex::new(Weak::new()), AtomicBool::new(false));
        Arc::new(Freezer { settings, running, closing, frozen: Histogram::default() })
    }

    /// What a freeze of these disks would freeze and whom it would tell; nothing is touched.
    ///
    /// # Errors
    /// What would refuse it.
    pub fn check(
        &self,
        engine: &Engine,
        disks: &[DiskId],
        level: Consistency,
        options: &Options,
    ) -> Result<Preview> {
        let disks = disks.iter().map(|id| disk_use(engine, id)).collect::<Result<_>>()?;
        let plan = Plan::new(level, disks, None, true);
        let (mut applications, mut notes, mut targets) = (None, Vec::new(), Vec::new());
        if level == Consistency::App {
            (applications, notes) = self.applications(&plan, options, self.settings.script_limit);
        }
        if !options.no_freeze {
            let own = &self.settings.own;
            let wanted = Wanted { disks: &plan.disks, named: &options.mounts, own };
            let members = discover(&Sys::default(), wanted)?;
            local::helper_program()?;
            targets = members.into_iter().map(|member| member.target).collect();
        }
        let level = match (&applications, options.no_freeze) {
            (Some(_), _) => Consistency::App,
            (None, false) => Consistency::Fs,
            (None, true) => Consistency::Crash,
        };
        let applications = applications.iter().flat_map(Applications::names).collect();
        Ok(Preview { level, notes, targets, applications })
    }

    /// Makes a snapshot of a disk at a level above `crash`, or at a lower one with the reason why.
    ///
    /// # Errors
    /// See [`ErrorKind`]; after `TagFailed`, `ThawFailed` and `ThawScript` the snapshot is there.
    pub fn snapshot_create(
        &self,
        engine: &Engine,
        by: Actor,
        spec: SnapshotSpec,
        level: Consistency,
        options: &Options,
    ) -> Result<(SnapshotInfo, Report)> {
        engine.snapshot_check(&spec)?;
        let _making = engine.snapshot_begins(std::slice::from_ref(&spec.disk), false)?;
        let of = (&spec.disk.clone(), spec.name.clone());
        self.snapshot_around(engine, by, of, (level, options), || engine.snapshot_create(by, spec))
    }

    /// Freezes a disk around a cut that makes a snapshot of it, whose name is known or not.
    ///
    /// # Errors
    /// As [`Freezer::snapshot_create`].
    pub fn snapshot_around(
        &self,
        engine: &Engine,
        by: Actor,
        (disk, name): (&DiskId, Option<String>),
        (level, options): (Consistency, &Options),
        cut: impl FnOnce() -> Result<SnapshotInfo>,
    ) -> Result<(SnapshotInfo, Report)> {
        let disks = vec![disk_use(engine, disk)?];
        let plan = Plan::new(level, disks, name, false);
        let operation = self.prepare(plan, options)?;
        let made = operation
            .run(cut, |made: SnapshotInfo| engine.snapshot_delete(by, &made.id, true).map(drop));
        let Made { made, report, trouble } = made.inspect_err(|e| told_failure(engine, by, e))?;
        self.count(&report);
        let label = engine.snapshot_full_name(&made.id)?;
        let report = finish(engine, by, std::slice::from_ref(&made.id), report, trouble, &label)?;
        Ok((engine.snapshot(&made.id)?, report))
    }

    /// Makes a group, as [`Freezer::snapshot_create`] a snapshot.
    ///
    /// # Errors
    /// As there.
    pub fn group_create(
        &self,
        engine: &Engine,
        by: Actor,
        spec: GroupSpec,
        level: Consistency,
        options: &Options,
    ) -> Result<(GroupInfo, Report)> {
        engine.group_check(&spec)?;
        let chosen = engine.group_choice(&spec)?;
        let _making = engine.snapshot_begins(&chosen, false)?;
        let of = (&chosen[..], spec.name.clone());
        self.group_around(engine, by, of, (level, options), || engine.group_create(by, spec))
    }

    /// Freezes disks around a cut that makes a group of them, whose name is known or not.
    ///
    /// # Errors
    /// As [`Freezer::snapshot_create`].
    pub fn group_around(
        &self,
        engine: &Engine,
        by: Actor,
        (disks, name): (&[DiskId], Option<String>),
        (level, options): (Consistency, &Options),
        cut: impl FnOnce() -> Result<GroupInfo>,
    ) -> Result<(GroupInfo, Report)> {
        let disks: Vec<DiskUse> =
            disks.iter().map(|id| disk_use(engine, id)).collect::<Result<_>>()?;
        let plan = Plan::new(level, disks, name, true);
        let operation = self.prepare(plan, options)?;
        let made =
            operation.run(cut, |made: GroupInfo| engine.group_delete(by, &made.id, true).map(drop));
        let Made { made, report, trouble } = made.inspect_err(|e| told_failure(engine, by, e))?;
        self.count(&report);
        let ids: Vec<_> = made.members.iter().map(|member| member.snapshot_id.clone()).collect();
        let report = finish(engine, by, &ids, report, trouble, &format!("group {}", made.name))?;
        Ok((engine.group(&made.id)?, report))
    }

    fn count(&self, report: &Report) {
        if report.frozen_at.is_some() {
            self.frozen.add(1, report.frozen_for());
        }
    }

    /// Finds and checks everything; nothing is touched yet.
    fn prepare(&self, plan: Plan, options: &Options) -> Result<Operation> {
        let begun = Instant::now();
        let limit = within("freeze", options.limit, self.settings.limit, LIMIT_MAX)?;
        let script_limit = self.settings.script_limit;
        let script_limit = within("script", options.script_limit, script_limit, SCRIPT_LIMIT_MAX)?;
        guest::check_one_instance(plan.wanted, &plan.disks)?;
        let busy = self.occupy(&plan.what, plan.wanted)?;
        let mut report = Report::new(plan.wanted);
        let mut applications = None;
        if plan.wanted == Consistency::App {
            (applications, report.notes) = self.applications(&plan, options, script_limit);
        }
        let mut providers: Vec<Box<dyn Provider>> = Vec::new();
        if !options.no_freeze {
            providers = self.providers(&plan, options, limit, &busy)?;
        }
        report.targets = providers.iter().flat_map(|provider| provider.targets()).collect();
        busy.progress.lock().targets.clone_from(&report.targets);
        for target in &report.targets {
            tracing::info!(what = busy.what, %target, "to be frozen");
        }
        for name in applications.iter().flat_map(Applications::names) {
            tracing::info!(what = busy.what, name, "application to be made quiet");
        }
        report.phases.push((Phase::Prepare, begun.elapsed()));
        Ok(Operation { busy, applications, providers, report })
    }

    /// Those who freeze: the machines that have disks, and this host.
    fn providers(
        &self,
        plan: &Plan,
        options: &Options,
        limit: Duration,
        busy: &Arc<Busy>,
    ) -> Result<Vec<Box<dyn Provider>>> {
        let mut providers: Vec<Box<dyn Provider>> = Vec::new();
        for machine in guest::machines(&plan.disks)? {
            let (record, what) = (Record::guests(&self.settings.record), plan.what.clone());
            let guest = Guest::start(guest::Setup { machine, record, what, limit })?;
            busy.progress.lock().breakers.push(guest.breaker());
            providers.push(Box::new(guest));
        }
        let here: Vec<DiskUse> =
            plan.disks.iter().filter(|disk| disk.instance.is_none()).cloned().collect();
        if !here.is_empty() || !options.mounts.is_empty() {
            let own = &self.settings.own;
            let wanted = Wanted { disks: &here, named: &options.mounts, own };
            let members = discover(&Sys::default(), wanted)?;
            let (record, what) = (self.settings.record.clone(), plan.what.clone());
            let local = Local::start(Setup { members, record, what, limit }, busy)?;
            local.sync()?;
            busy.progress.lock().breakers.push(local.breaker());
            providers.push(Box::new(local));
        }
        Ok(providers)
    }

    /// The scripts and hooks that take part, and what there is to tell of those that do not.
    fn applications(
        &self,
        plan: &Plan,
        options: &Options,
        limit: Duration,
    ) -> (Option<Applications>, Vec<String>) {
        if options.no_scripts {
            return (None, vec!["scripts and hooks are left out, as asked for".to_owned()]);
        }
        let named = options.pre_script.is_some() || options.post_script.is_some();
        let (pre, post) = if named {
            (&options.pre_script, &options.post_script)
        } else {
            (&self.settings.pre_script, &self.settings.post_script)
        };
        let hooks = self.settings.hooks.clone();
        let sources = Sources { pre: pre.clone(), post: post.clone(), hooks, limit };
        let name = plan.name.clone().unwrap_or_default();
        let (snapshot, group) =
            if plan.is_group { (String::new(), name) } else { (name, String::new()) };
        let surroundings = Surroundings {
            disks: plan.disks.iter().map(|disk| disk.name.clone()).collect(),
            snapshot,
            group,
            level: plan.wanted.to_string(),
            result: None,
        };
        Applications::choose(sources, surroundings)
    }

    /// Takes the one place there is.
    fn occupy(&self, what: &str, wanted: Consistency) -> Result<Arc<Busy>> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ShuttingDown, "the daemon is going down"));
        }
        let mut running = self.running.lock();
        if let Some(other) = running.upgrade() {
            let message = format!("a freeze for {} is under way", other.what);
            return Err(Error::new(ErrorKind::InUse, message)
                .hint("one at a time: try again when it is done (`rowctl freeze status`)"));
        }
        if record(&self.settings.record)?.is_some() {
            let message = "file systems of an earlier freeze may still be frozen";
            return Err(
                Error::new(ErrorKind::Condition, message).hint("`rowctl freeze thaw` thaws them")
            );
        }
        let progress =
            Progress { phase: Phase::Prepare, targets: Vec::new(), breakers: Vec::new() };
        let busy = Arc::new(Busy {
            what: what.to_owned(),
            wanted,
            since: SystemTime::now(),
            progress: Mutex::new(progress),
            broken: AtomicBool::new(false),
        });
        *running = Arc::downgrade(&busy);
        Ok(busy)
    }

    /// What is frozen now.
    ///
    /// # Errors
    /// There is a record that cannot be read.
    pub fn status(&self) -> Result<Status> {
        let running = self.running.lock().upgrade();
        let left = match &running {
            Some(_) => None,
            None => record(&self.settings.record)?,
        };
        let running = running.map(|busy| {
            let progress = busy.progress.lock();
            Running {
                what: busy.what.clone(),
                wanted: busy.wanted,
                since: busy.since,
                phase: progress.phase,
                targets: progress.targets.clone(),
            }
        });
        Ok(Status { running, left })
    }

    /// Ends the freeze that runs, at once; one that has not cut yet makes no snapshot. Thaws what an
    /// earlier one left. Returns what it was about.
    ///
    /// # Errors
    /// `ThawFailed` when something that an earlier freeze left does not thaw.
    pub fn thaw(&self) -> Result<Status> {
        let status = self.status()?;
        if let Some(busy) = self.running.lock().upgrade() {
            busy.call_off();
        }
        if status.left.is_some() {
            local::thaw_recorded(&self.settings.record)?;
        }
        Ok(status)
    }

    /// Thaws what an earlier daemon left frozen, in the background: its devices answer only now that this
    /// one serves them.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn recover(self: &Arc<Self>, engine: &Arc<Engine>) -> Result<()> {
        match record(&self.settings.record) {
            // One of another boot is of no use.
            Ok(None) => {
                remove_record(&Record::guests(&self.settings.record))?;
                return remove_record(&self.settings.record);
            }
            Ok(Some(_)) => {}
            Err(error) => {
                tracing::error!(%error, "what an earlier freeze left is not known");
                return Ok(());
            }
        }
        let (this, engine) = (Arc::clone(self), Arc::clone(engine));
        let work = move || {
            let mut told = false;
            for _ in 0..RECOVERY_TRIES {
                let done = local::thaw_recorded(&this.settings.record);
                let message = match &done {
                    Ok(()) => "thawed what an earlier daemon left frozen".to_owned(),
                    Err(error) => error.message().to_owned(),
                };
                // The first failure, and the end of it.
                if (done.is_ok() || !told)
                    && let Err(error) =
                        engine.note(Actor::DAEMON, "freeze.recovered", "freeze", message)
                {
                    tracing::error!(%error, "an event is lost");
                }
                told = true;
                if done.is_ok() || this.closes_within(RECOVERY_PAUSE) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("thaw".to_owned()).spawn(work);
        thread.map(drop).map_err(|e| Error::io("start a thread", &e))
    }

    /// Waits, unless the daemon goes down.
    fn closes_within(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.closing.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
        }
        self.closing.load(Ordering::SeqCst)
    }

    /// Ends the freeze that runs and begins no other.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        if let Some(busy) = self.running.lock().upgrade() {
            busy.call_off();
        }
    }
}

/// The record of a freeze of this boot, if there is one: file systems of this host, and machines.
fn record(path: &Path) -> Result<Option<Record>> {
    let read = |path: &Path| {
        Record::read(path).map_err(|e| Error::io(format!("read {}", path.display()), &e))
    };
    let (here, machines) = (read(path)?, read(&Record::guests(path))?);
    Ok(match (here, machines) {
        (Some(mut here), Some(machines)) => {
            here.members.extend(machines.members);
            Some(here)
        }
        (here, machines) => here.or(machines),
    })
}

fn remove_record(path: &Path) -> Result<()> {
    Record::remove(path).map_err(|e| Error::io(format!("remove {}", path.display()), &e))
}

/// A limit as asked for, or as configured.
fn within(
    what: &str,
    asked: Option<Duration>,
    configured: Duration,
    most: Duration,
) -> Result<Duration> {
    let limit = asked.unwrap_or(configured);
    if !limit.is_zero() && limit <= most {
        return Ok(limit);
    }
    let (seconds, most) = (limit.as_secs(), most.as_secs());
    Err(Error::invalid(format!("a {what} limit of {seconds} s: 1 to {most} is possible")))
}
