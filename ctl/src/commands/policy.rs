//! `rowctl policy`: snapshots that are made by themselves.
//!
//! Invariants: what is said of several disks is done for each; one that fails does not stop the others, and makes the
//! exit code.
//! Absent: what is due when, which the daemon knows.

use clap::{Args, Subcommand, ValueEnum};
use rowd_proto::{
    Consistency, Disk, DiskList, DiskPolicy, ErrorBody, Instance, Policy, PolicyApply,
    PolicyCancel, PolicyCatchUp, PolicyCreate, PolicyDelete, PolicyInstance, PolicyList,
    PolicyPreview, PolicyResume, PolicySchedule, PolicySet, PolicyShow, Tags,
};

use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Failure, Outcome, Result};
use crate::render::{Columns, Heading};

use super::args::Consent;
use super::filter::Filter;
use super::{Context, Tag, parse_tag};

mod told;
mod words;

use told::{fields, names, preview, table};
use words::{Days, Every, Hours, Keep};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a policy; `policy apply` gives it to disks
    #[command(after_help = "Examples:
  rowctl policy create nightly --at 2 --keep 30d
  rowctl policy create office --at 8,12,18 --on mon,tue,wed,thu,fri --timezone Europe/Berlin
  rowctl policy create safe --every 15m --keep last=8,hourly=24,daily=7,weekly=4,monthly=12
  rowctl policy create db --cron '30 1 * * 1-5' --keep forever --consistency app --tag app=db
  rowctl policy create offsite --at 3 --keep 7d --copy-to backup --copy-keep daily=30,monthly=12
  rowctl policy create quiet --at 2 --jitter 30m

Hours are those of the time zone, UTC unless it is named: an hour that a change of clocks leaves out
is due right after it, one that comes twice is due once. --every counts in real time, from 1970 on.

--keep last=8,daily=7 keeps the last eight, and the newest of each of the last seven days that have
any. What is kept forever goes when the disk has its full number of automatic snapshots and it is
the oldest. The newest snapshot of a disk never goes by itself.

With --jitter runs begin up to so long after their times, so that policies with the same times are
not all busy in the same second; one policy always equally long after them.

With --copy-to each snapshot is copied as well, and stays here as long as --keep says; its copy stays
as long as --copy-keep says, and is part of no quota. Neither does the newest complete copy go by itself.")]
    Create(Create),
    /// Change a policy, for snapshots that are made from now on
    #[command(after_help = "Examples:
  rowctl policy set nightly --at 3
  rowctl policy set nightly --keep 60d --catch-up once
  rowctl policy set nightly --copy-to backup --copy-keep 90d
  rowctl policy set nightly --no-copy")]
    Set(Set),
    /// Give disks, or all disks of an instance, a policy; a disk has one at most
    #[command(after_help = "Examples:
  rowctl policy apply nightly data1 data2
  rowctl policy apply nightly data1 --replace
  rowctl policy apply nightly --instance web1

With --instance all disks that the instance has at each time are snapshotted at one instant, as one
group, at the policy's level; disks that join the instance later too. Such a group goes with all of
its snapshots or stays with all of them. When one of its disks cannot be snapshotted, none is.")]
    Apply(Apply),
    /// Take their policy from disks or instances; the snapshots they have stay as long as they would have
    #[command(after_help = "Examples:
  rowctl policy cancel data1 data2
  rowctl policy cancel --instance web1")]
    Cancel(Cancel),
    /// List policies, and what of them stands still
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  rowctl policy list
  rowctl policy list --filter tag:env=test -q | xargs -n 1 -I P rowctl policy set P --keep 60d"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one policy
    #[command(after_help = "Example:\n  rowctl policy show nightly")]
    Show {
        /// Name or id
        policy: String,
    },
    /// Delete a policy; its disks have none then, and keep their snapshots
    #[command(visible_alias = "rm", after_help = "Example:\n  rowctl policy delete nightly --yes")]
    Delete(Delete),
    /// Show when a policy is due next, and which snapshots would go now
    #[command(after_help = "Example:\n  rowctl policy preview nightly --runs 10")]
    Preview {
        /// Name or id
        policy: String,
        /// How many times to tell
        #[arg(long, value_name = "N", default_value_t = 5)]
        runs: u32,
    },
    /// Agree to what stands still: removals of a disk, or a clock that was set
    #[command(after_help = "Examples:
  rowctl policy resume data1        the snapshots that have had their time may go, however many
  rowctl policy resume --instance web1      the same of the groups of an instance
  rowctl policy resume              the clock is right

When more than ten and more than half of the automatic snapshots of a disk, or of the groups of an
instance, would go at once, none does until somebody agrees. When the clock goes back by more than 5 minutes or ahead by more than
25 hours, nothing is made or removed until it is right again or somebody says that it is.")]
    Resume(Resume),
}

#[derive(Args, Debug)]
#[group(id = "when", required = true, multiple = false, args = ["at", "cron", "every"])]
pub struct Create {
    name: String,
    #[command(flatten)]
    schedule: ScheduleArgs,
    /// How long snapshots stay: 30d, forever, or how many: last=7,hourly=24,daily=7,weekly=4,monthly=12
    #[arg(long, value_name = "KEEP", default_value = "30d")]
    keep: Keep,
    /// How much of what runs on the disk takes part: crash, fs or app
    #[arg(long, value_name = "LEVEL", default_value = "crash")]
    consistency: Level,
    /// After a time in which runs were missed: none, or one run
    #[arg(long, value_name = "none|once", default_value = "none")]
    catch_up: CatchUp,
    /// Copy each snapshot to this repository too, in the background
    #[arg(long, value_name = "REPOSITORY")]
    copy_to: Option<String>,
    /// How long the copies stay, in the words of --keep [default: as the snapshots]
    #[arg(long, value_name = "KEEP", requires = "copy_to")]
    copy_keep: Option<Keep>,
    /// Begin runs up to so long after their times: 10m, 1h
    #[arg(long, value_name = "TIME")]
    jitter: Option<Every>,
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Given to each snapshot; may be given several times
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    tags: Vec<Tag>,
}

#[derive(Args, Debug)]
struct ScheduleArgs {
    /// Full hours, 0 to 23
    #[arg(long, value_name = "HOURS")]
    at: Option<Hours>,
    /// Days of the week for --at; left out: every day
    #[arg(long, value_name = "DAYS", requires = "at")]
    on: Option<Days>,
    /// A cron expression of five fields
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "at")]
    cron: Option<String>,
    /// An interval: 15m, 6h, 1d
    #[arg(long, value_name = "TIME", conflicts_with_all = ["at", "cron"])]
    every: Option<Every>,
    /// Whose hours these are, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
}

impl ScheduleArgs {
    /// The schedule, if there is one, and the zone.
    fn parts(self) -> (Option<PolicySchedule>, Option<String>) {
        let ScheduleArgs { at, on, cron, every, timezone } = self;
        let schedule = PolicySchedule {
            at: at.map(|hours| hours.0).unwrap_or_default(),
            on: on.map(|days| days.0).unwrap_or_default(),
            cron,
            every: every.map(|every| every.0),
        };
        (Some(schedule).filter(|one| *one != PolicySchedule::default()), timezone)
    }
}

#[derive(Args, Debug)]
pub struct Set {
    /// Name or id
    policy: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
struct Change {
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    schedule: ScheduleArgs,
    /// How long snapshots stay: 30d, forever, or how many: last=7,daily=7
    #[arg(long, value_name = "KEEP")]
    keep: Option<Keep>,
    /// How much of what runs on the disk takes part: crash, fs or app
    #[arg(long, value_name = "LEVEL")]
    consistency: Option<Level>,
    /// After a time in which runs were missed: none, or one run
    #[arg(long, value_name = "none|once")]
    catch_up: Option<CatchUp>,
    /// Copy each snapshot to this repository too, in the background
    #[arg(long, value_name = "REPOSITORY")]
    copy_to: Option<String>,
    /// How long the copies stay, in the words of --keep
    #[arg(long, value_name = "KEEP")]
    copy_keep: Option<Keep>,
    /// Copy no more; the copies there are stay as long as they would have
    #[arg(long, conflicts_with_all = ["copy_to", "copy_keep"])]
    no_copy: bool,
    /// Begin runs up to so long after their times; 0s: at their times
    #[arg(long, value_name = "TIME")]
    jitter: Option<Every>,
    #[arg(long)]
    description: Option<String>,
    /// All tags of the snapshots, in place of those before; may be given several times
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    tags: Vec<Tag>,
    /// Give the snapshots no tags
    #[arg(long, conflicts_with = "tags")]
    no_tags: bool,
}

#[derive(Args, Debug)]
pub struct Apply {
    /// Name or id
    policy: String,
    /// Names or ids
    #[arg(required_unless_present = "instances", value_name = "DISK")]
    disks: Vec<String>,
    /// All disks of this instance, together; may be given several times
    #[arg(long = "instance", value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Although a disk has another policy
    #[arg(long)]
    replace: bool,
}

#[derive(Args, Debug)]
pub struct Cancel {
    /// Names or ids
    #[arg(required_unless_present = "instances", value_name = "DISK")]
    disks: Vec<String>,
    /// The policy of this instance; may be given several times
    #[arg(long = "instance", value_name = "INSTANCE")]
    instances: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Delete {
    /// Name or id
    policy: String,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Args, Debug)]
pub struct Resume {
    /// Name or id, of a deleted disk its id; left out: the clock
    disk: Option<String>,
    /// Removals of groups of this instance
    #[arg(long, conflicts_with = "disk")]
    instance: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    Crash,
    Fs,
    App,
}

impl From<Level> for Consistency {
    fn from(level: Level) -> Self {
        match level {
            Level::Crash => Consistency::Crash,
            Level::Fs => Consistency::Fs,
            Level::App => Consistency::App,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CatchUp {
    None,
    Once,
}

impl From<CatchUp> for PolicyCatchUp {
    fn from(catch_up: CatchUp) -> Self {
        match catch_up {
            CatchUp::None => PolicyCatchUp::None,
            CatchUp::Once => PolicyCatchUp::Once,
        }
    }
}

/// Says so when a disk is to take automatic snapshots with it, and nothing makes any.
pub fn warn_without(disk: &Disk, context: &Context) {
    if disk.delete_auto_snapshot && disk.policy.is_none() {
        context.output.remark(&format!(
            "{0} has no policy, so there will be no automatic snapshots to go with it: rowctl policy apply POLICY {0}",
            disk.name
        ));
    }
}

/// What makes snapshots of a new disk, and whether they go with it.
#[derive(Args, Debug)]
pub struct Protection {
    /// The policy that makes snapshots of it
    #[arg(long, conflicts_with = "with_data")]
    pub policy: Option<String>,
    /// Delete its automatic snapshots with it
    #[arg(long, conflicts_with = "with_data")]
    pub delete_auto_snapshot: bool,
}

impl Protection {
    /// Refuses what cannot be said of a disk that is filled first.
    pub fn refuse_for_copy(&self) -> Result<()> {
        if self.policy.is_none() && !self.delete_auto_snapshot {
            return Ok(());
        }
        Err(Failure::invalid("a disk made of a copy gets its policy when it is there")
            .hint("rowctl policy apply and rowctl disk set do it then"))
    }
}

/// Leaves the disks with this policy, with any, or with none.
pub fn filter(disks: &mut Vec<Disk>, policy: Option<&str>, client: &mut Client) -> Result<()> {
    match policy {
        None => {}
        Some("any") => disks.retain(|disk| disk.policy.is_some()),
        Some("none") => disks.retain(|disk| disk.policy.is_none()),
        Some(name) => {
            let id = show(client, name.to_owned())?.id;
            disks.retain(|disk| disk.policy.as_ref().is_some_and(|policy| policy.id == id));
        }
    }
    Ok(())
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::Create(args) => create(args, &mut client, context)?,
        Verb::Set(args) => set(args, &mut client, context)?,
        Verb::Apply(Apply { policy, disks, instances, replace }) => {
            let policy = show(&mut client, policy)?.id;
            each(&disks, &instances, context, |one| match one {
                One::Disk(disk) => {
                    let policy = policy.clone();
                    client.call(&PolicyApply { policy, disk, replace }).map(|disk| vec![disk])
                }
                One::Instance(instance) => {
                    let policy = Some(policy.clone());
                    let ask = PolicyInstance { instance, policy, replace };
                    let done = client.call(&ask)?;
                    disks_of(&done, &mut client)
                }
            })?;
        }
        Verb::Cancel(Cancel { disks, instances }) => {
            each(&disks, &instances, context, |one| match one {
                One::Disk(disk) => client.call(&PolicyCancel { disk }).map(|disk| vec![disk]),
                One::Instance(instance) => {
                    let done = client.call(&PolicyInstance { instance, ..Default::default() })?;
                    disks_of(&done, &mut client)
                }
            })?;
        }
        Verb::List { filter } => {
            let mut found = client.call(&PolicyList {})?;
            filter.leave(&mut found.policies, |one| Some(&one.tags));
            let id = |one: &Policy| one.id.clone();
            context.output.list(&found.policies, id, |output| table(&found, output))?;
            for hold in &found.holds {
                context.output.remark(&hold.why);
            }
        }
        Verb::Show { policy } => print(&show(&mut client, policy)?, context)?,
        Verb::Delete(args) => delete(args, &mut client, context)?,
        Verb::Preview { policy, runs } => {
            let found = client.call(&PolicyPreview { policy, runs: Some(runs) })?;
            context.output.object(&found, &found.policy.id, |output| preview(&found, output))?;
        }
        Verb::Resume(args) => resume(args, &mut client, context)?,
    }
    Ok(Outcome::Done)
}

fn create(args: Create, client: &mut Client, context: &Context) -> Result<()> {
    let (schedule, timezone) = args.schedule.parts();
    let request = PolicyCreate {
        name: args.name,
        schedule: schedule.unwrap_or_default(),
        timezone,
        keep: args.keep.0,
        tags: args.tags.into_iter().collect(),
        consistency: args.consistency.into(),
        catch_up: args.catch_up.into(),
        description: args.description,
        copy_to: args.copy_to,
        copy_keep: args.copy_keep.map(|keep| keep.0),
        jitter: args.jitter.map_or(0, |time| time.0),
    };
    let made = client.call(&request)?;
    print(&made, context)?;
    context.output.remark(&format!("give it to disks: rowctl policy apply {} DISK...", made.name));
    Ok(())
}

fn set(args: Set, client: &mut Client, context: &Context) -> Result<()> {
    let Change { name, schedule, keep, consistency, catch_up, description, .. } = args.change;
    let Change { tags, no_tags, copy_to, copy_keep, no_copy, jitter, .. } = args.change;
    let tags: Tags = tags.into_iter().collect();
    let (schedule, timezone) = schedule.parts();
    let request = PolicySet {
        policy: args.policy,
        name,
        schedule,
        timezone,
        keep: keep.map(|keep| keep.0),
        tags: (no_tags || !tags.is_empty()).then_some(tags),
        consistency: consistency.map(Consistency::from),
        catch_up: catch_up.map(PolicyCatchUp::from),
        description,
        copy_to,
        copy_keep: copy_keep.map(|keep| keep.0),
        no_copy,
        jitter: jitter.map(|time| time.0),
    };
    let nothing = PolicySet { policy: request.policy.clone(), ..PolicySet::default() };
    if request == nothing {
        return Err(Failure::invalid("nothing is to be changed")
            .hint("say what: --at, --cron, --every, --timezone, --keep, --copy-to, --tag, --consistency, --catch-up, --jitter, --name"));
    }
    print(&client.call(&request)?, context)
}

/// What has a policy.
enum One {
    Disk(String),
    Instance(String),
}

/// The disks of an instance, as they are now.
fn disks_of(instance: &Instance, client: &mut Client) -> Result<Vec<Disk>> {
    let ids: Vec<&str> = instance.disks.iter().map(|disk| disk.id.as_str()).collect();
    let mut disks = client.call(&DiskList {})?.disks;
    disks.retain(|disk| ids.contains(&disk.id.as_str()));
    Ok(disks)
}

/// Does something to each disk and instance, whatever comes of the others; shows the disks that are concerned.
fn each(
    disks: &[String],
    instances: &[String],
    context: &Context,
    mut act: impl FnMut(One) -> Result<Vec<Disk>>,
) -> Result<()> {
    let (mut done, mut failed): (Vec<Disk>, Vec<(&str, Failure)>) = (Vec::new(), Vec::new());
    let disks = disks.iter().map(|name| (name, One::Disk(name.clone())));
    let instances = instances.iter().map(|name| (name, One::Instance(name.clone())));
    for (name, one) in disks.chain(instances) {
        let is_instance = matches!(one, One::Instance(_));
        match act(one) {
            Ok(disks) if disks.is_empty() && is_instance => {
                context.output.remark(&format!("instance {name} has no disks now"));
            }
            Ok(disks) => done.extend(disks),
            Err(failure) => failed.push((name, failure)),
        }
    }
    let id = |disk: &Disk| disk.id.clone();
    context.output.list(&done, id, |output| {
        let mut columns =
            Columns::new(&[Heading::Left("DISK"), Heading::Left("ID"), Heading::Left("POLICY")]);
        for disk in &done {
            let policy = disk.policy.as_ref().map_or_else(|| "none".to_owned(), of_disk);
            columns.row([disk.name.clone().into(), disk.id.clone().into(), policy.into()]);
        }
        columns.render(output)
    })?;
    all_or(failed)
}

/// The policy of a disk: `nightly`, or `nightly (instance web1)`.
pub fn of_disk(policy: &DiskPolicy) -> String {
    match &policy.instance {
        None => policy.name.clone(),
        Some(instance) => format!("{} (instance {instance})", policy.name),
    }
}

/// One failure that tells all of them.
fn all_or(failed: Vec<(&str, Failure)>) -> Result<()> {
    let mut all: Option<ErrorBody> = None;
    for (disk, failure) in failed {
        let body = match failure {
            Failure::Told(body) => body,
            gone @ Failure::ReaderGone => return Err(gone),
        };
        match &mut all {
            None => {
                let message = format!("{disk}: {}", body.message);
                all = Some(ErrorBody { message, ..body });
            }
            Some(first) => {
                first.message = format!("{}; {disk}: {}", first.message, body.message);
            }
        }
    }
    all.map_or(Ok(()), |body| Err(Failure::Told(body)))
}

fn delete(args: Delete, client: &mut Client, context: &Context) -> Result<()> {
    let policy = show(client, args.policy)?;
    let without = match policy.disks.len() {
        0 => String::new(),
        _ => format!(", so that {} have no policy", names(&policy)),
    };
    confirm(args.consent.yes, &format!("delete policy {}{without}", policy.name))?;
    let done = client.call(&PolicyDelete { policy: policy.id })?;
    let disks = done.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
    context.output.object(&done, &done.id, |_| match done.disks.len() {
        0 => format!("policy {} is deleted", done.name),
        _ => format!(
            "policy {} is deleted; no snapshots of {disks} are made any more, those there are stay as long as they \
             would have",
            done.name,
        ),
    })?;
    if !done.disks.is_empty() {
        context.output.remark(&format!(
            "what matters should have a policy: rowctl policy apply POLICY {}",
            disks.replace(", ", " ")
        ));
    }
    Ok(())
}

fn resume(args: Resume, client: &mut Client, context: &Context) -> Result<()> {
    let what = match (&args.disk, &args.instance) {
        (Some(disk), _) => {
            format!("remove all automatic snapshots of {disk} that have had their time")
        }
        (None, Some(instance)) => {
            format!("remove all automatic groups of instance {instance} that have had their time")
        }
        (None, None) => "go on with policies, the clock being right".to_owned(),
    };
    confirm(args.consent.yes, &what)?;
    let (by_disk, by_instance) = (args.disk.is_some(), args.instance.is_some());
    let done = client.call(&PolicyResume { disk: args.disk, instance: args.instance })?;
    context.output.object(&done, "", |_| match (by_disk, by_instance) {
        (true, _) => format!("{} snapshots and copies are removed", done.removed),
        (_, true) => format!("{} groups are removed", done.removed),
        (false, false) => "policies go on".to_owned(),
    })
}

/// Asks the daemon about a policy.
fn show(client: &mut Client, policy: String) -> Result<Policy> {
    client.call(&PolicyShow { policy })
}

fn print(policy: &Policy, context: &Context) -> Result<()> {
    context.output.object(policy, &policy.id, |output| fields(policy, output))
}
