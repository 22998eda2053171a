//! The methods: one function each, and the only place where protocol types meet engine types.
//!
//! Invariants: every row of the table of methods has a handler, or this does not compile; a handler
//! resolves names, calls the engine once, and converts; nothing here keeps state.
//! Absent: permissions (checked before) and threads (the caller's).

use std::sync::Arc;
use std::time::Duration;

use rowd_proto as proto;
use rowd_proto::{
    Call, DIFF_PAGE_MAX, ErrorBody, Id, Method, Notification, Reply, Version2, to_line,
};
use serde_json::{Map, Value};

use crate::engine::Engine;
use crate::engine::api::{
    Actor, DiskChange, DiskInfo, DiskSpec, GroupInfo, ImageInfo, InstanceInfo, SnapshotChange,
    SnapshotInfo,
};
use crate::error::{Error, Result};

use super::convert::{chain, diff_range, disk, error_body, event, job, pool_status, snapshot};
use super::instances;
use super::resolve::{self, Object, Origin};
use super::{
    Services, attach, copies, freezing, groups, images, keys, meters, policies, presence,
    repo_images, repos, trash, usage,
};

/// Ranges in a page of a diff unless the client asks for more.
const DIFF_PAGE_DEFAULT: u32 = 1000;
/// Events in a page: about 200 KiB of JSON.
const EVENTS_PAGE_MAX: usize = 1000;

/// What a method came to.
pub(super) enum Outcome {
    /// The line of the reply.
    Reply(Vec<u8>),
    /// Reply, then send events after this one.
    Subscribe { after: u64, reply: Vec<u8> },
}

/// Why there is no outcome.
pub(super) enum Failure {
    /// The parameters do not fit.
    Params(String),
    Failed(ErrorBody),
}

impl Failure {
    /// Its kind and message.
    pub(super) fn told(&self) -> (String, String) {
        match self {
            Failure::Params(why) => (proto::ErrorKind::Invalid.name().to_owned(), why.clone()),
            Failure::Failed(body) => (body.kind.name().to_owned(), body.message.clone()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Failed(error_body(&error))
    }
}

/// Calls a method with parameters as they came.
#[expect(clippy::too_many_lines, reason = "a table with a line for each method")]
pub(super) fn call(
    services: &Services,
    by: Actor,
    (id, method): (&Id, Method),
    params: Map<String, Value>,
) -> Result<Outcome, Failure> {
    let ask = Ask { services, by, id, params };
    match method {
        Method::DiskCreate => ask.serve(disk_create),
        Method::DiskList => ask.reply(disk_list),
        Method::DiskShow => ask.reply(disk_show),
        Method::DiskDelete => ask.reply(trash::delete),
        Method::DiskRename => ask.reply(disk_rename),
        Method::DiskResize => ask.serve(attach::resize),
        Method::DiskReinit => ask.serve(attach::reinit),
        Method::DiskSet => ask.reply(disk_set),
        Method::DiskRollback => ask.serve(attach::rollback),
        Method::DiskUndo => ask.serve(attach::undo),
        Method::DiskAttach => ask.serve(attach::attach),
        Method::DiskDetach => ask.serve(attach::detach),
        Method::SnapshotCreate => ask.serve(freezing::snapshot_create),
        Method::SnapshotList => ask.reply(snapshot_list),
        Method::SnapshotShow => ask.reply(snapshot_show),
        Method::SnapshotDelete => ask.serve(snapshot_delete),
        Method::SnapshotFreed => ask.reply(usage::freed),
        Method::SnapshotSet => ask.reply(snapshot_set),
        Method::SnapshotDiff => ask.reply(snapshot_diff),
        Method::GroupCreate => ask.serve(freezing::group_create),
        Method::GroupList => ask.reply(groups::list),
        Method::GroupShow => ask.reply(groups::show),
        Method::GroupSet => ask.reply(groups::set),
        Method::GroupDelete => ask.serve(groups::delete),
        Method::GroupRollback => ask.serve(groups::rollback),
        Method::InstanceAdd => ask.reply(instances::add),
        Method::InstanceList => ask.reply(instances::list),
        Method::InstanceShow => ask.reply(instances::show),
        Method::InstanceSet => ask.reply(instances::set),
        Method::InstanceRemove => ask.reply(instances::remove),
        Method::ImageCreate => ask.reply(images::create),
        Method::ImageList => ask.reply(images::list),
        Method::ImageShow => ask.reply(images::show),
        Method::ImageSet => ask.reply(images::set),
        Method::ImageDelete => ask.reply(images::delete),
        Method::ImagePublish => ask.serve(repo_images::publish),
        Method::ImagePublished => ask.serve(repo_images::list),
        Method::ImageWithdraw => ask.serve(repo_images::withdraw),
        Method::ImageAssemble => ask.serve(repo_images::assemble),
        Method::ImageDeploy => ask.reply(images::deploy),
        Method::RepoAdd => ask.serve(repos::add),
        Method::RepoList => ask.reply(repos::list),
        Method::RepoShow => ask.reply(repos::show),
        Method::RepoSet => ask.reply(repos::set),
        Method::RepoRemove => ask.serve(repos::remove),
        Method::RepoCheck => ask.serve(repos::check),
        Method::CopyCreate => ask.serve(copies::create),
        Method::CopyList => ask.serve(copies::list),
        Method::CopyShow => ask.serve(copies::show),
        Method::CopyVerify => ask.serve(copies::verify),
        Method::CopyRetry => ask.serve(copies::retry),
        Method::CopyDelete => ask.serve(copies::delete),
        Method::CopyRestore => ask.serve(copies::restore),
        Method::FreezeCheck => ask.serve(freezing::check),
        Method::FreezeShow => ask.serve(freezing::show),
        Method::FreezeThaw => ask.serve(freezing::thaw),
        Method::PolicyCreate => ask.serve(policies::create),
        Method::PolicyList => ask.serve(policies::list),
        Method::PolicyShow => ask.serve(policies::show),
        Method::PolicySet => ask.serve(policies::set),
        Method::PolicyDelete => ask.serve(policies::delete),
        Method::PolicyApply => ask.serve(policies::apply),
        Method::PolicyCancel => ask.serve(policies::cancel),
        Method::PolicyInstance => ask.serve(policies::instance),
        Method::PolicyPreview => ask.serve(policies::preview),
        Method::PolicyResume => ask.serve(policies::resume),
        Method::TrashList => ask.reply(trash::list),
        Method::TrashRestore => ask.reply(trash::restore),
        Method::TrashPurge => ask.reply(trash::purge),
        Method::DiskFreed => ask.reply(trash::freed),
        Method::ChainList => ask.reply(chain_list),
        Method::ChainShow => ask.reply(chain_show),
        Method::TagsSet => ask.reply(tags_set),
        Method::TagsRemove => ask.reply(tags_remove),
        Method::KeyShow => ask.reply(keys::show),
        Method::KeyRotate => ask.reply(keys::rotate),
        Method::MetricsShow => ask.serve(meters::metrics),
        Method::StatsShow => ask.reply(meters::stats),
        Method::UsageShow => ask.reply(usage::show),
        Method::AuditList => ask.serve(meters::audit),
        Method::ConfigShow => ask.serve(meters::config),
        Method::PoolShow => ask.reply(pool_show),
        Method::PoolResize => ask.reply(pool_resize),
        Method::EventsList => ask.reply(events_list),
        Method::EventsSubscribe => ask.subscribe(),
        Method::JobList => ask.reply(job_list),
        Method::JobShow => ask.reply(job_show),
        Method::JobCancel => ask.reply(job_cancel),
        Method::ScrubStart => ask.reply(scrub_start),
    }
}

/// A request on its way to its handler.
struct Ask<'a> {
    services: &'a Services,
    by: Actor,
    id: &'a Id,
    params: Map<String, Value>,
}

impl Ask<'_> {
    fn reply<C: Call>(
        self,
        handler: fn(&Arc<Engine>, Actor, C) -> Result<C::Reply>,
    ) -> Result<Outcome, Failure> {
        let params = decode(self.params)?;
        encode(self.id, &handler(&self.services.engine, self.by, params)?).map(Outcome::Reply)
    }

    /// As `reply`, for a handler that needs more than the engine.
    fn serve<C: Call>(
        self,
        handler: fn(&Services, Actor, C) -> Result<C::Reply>,
    ) -> Result<Outcome, Failure> {
        let params = decode(self.params)?;
        encode(self.id, &handler(self.services, self.by, params)?).map(Outcome::Reply)
    }

    fn subscribe(self) -> Result<Outcome, Failure> {
        let params: proto::EventsSubscribe = decode(self.params)?;
        let after = params.after.unwrap_or_else(|| last_event(&self.services.engine));
        let reply = encode(self.id, &proto::EventsFrom { after })?;
        Ok(Outcome::Subscribe { after, reply })
    }
}

fn decode<C: Call>(params: Map<String, Value>) -> Result<C, Failure> {
    serde_json::from_value(Value::Object(params)).map_err(|e| Failure::Params(e.to_string()))
}

fn encode<T: serde::Serialize>(id: &Id, reply: &T) -> Result<Vec<u8>, Failure> {
    to_line(&Reply::new(id, reply)).map_err(Failure::Failed)
}

fn disk_create(services: &Services, by: Actor, ask: proto::DiskCreate) -> Result<proto::Disk> {
    let engine = &services.engine;
    let (from, image) = match ask.from.map(|name| resolve::origin(engine, &name)).transpose()? {
        None => (None, None),
        Some(Origin::Snapshot(id)) => (Some(id), None),
        Some(Origin::Image(id)) => (None, Some(id)),
    };
    let instance = ask.instance.map(|name| resolve::instance(engine, &name)).transpose()?;
    let policy = ask.policy.map(|name| resolve::policy(engine, &name)).transpose()?;
    let delete_auto = ask.delete_auto_snapshot;
    let proto::DiskCreate { name, size, description, tags, encrypted, .. } = ask;
    let spec = DiskSpec {
        name,
        size,
        from,
        image,
        description,
        tags,
        instance,
        encrypted,
        policy,
        delete_auto,
    };
    match spec.from.as_ref().map(|id| engine.away(id)).transpose()?.flatten() {
        Some(copy) => copies::disk_of(services, by, &copy, spec),
        None => engine.disk_create(by, spec).map(disk),
    }
}

fn disk_list(engine: &Arc<Engine>, _: Actor, _: proto::DiskList) -> Result<proto::Disks> {
    Ok(proto::Disks { disks: engine.disks().into_iter().map(disk).collect() })
}

fn disk_show(engine: &Arc<Engine>, _: Actor, ask: proto::DiskShow) -> Result<proto::Disk> {
    engine.disk(&resolve::disk(engine, &ask.disk)?).map(disk)
}

fn disk_rename(engine: &Arc<Engine>, by: Actor, ask: proto::DiskRename) -> Result<proto::Disk> {
    engine.disk_rename(by, &resolve::disk(engine, &ask.disk)?, &ask.name).map(disk)
}

fn disk_set(engine: &Arc<Engine>, by: Actor, ask: proto::DiskSet) -> Result<proto::Disk> {
    let id = resolve::disk(engine, &ask.disk)?;
    let instance = ask.instance.map(|name| resolve::instance(engine, &name)).transpose()?;
    let proto::DiskSet { description, read_only, protected, .. } = ask;
    let delete_auto = ask.delete_auto_snapshot;
    let change = DiskChange { description, read_only, instance, delete_auto };
    if protected.is_none() || change != DiskChange::default() {
        engine.disk_change(by, &id, change)?;
    }
    match protected {
        Some(on) => engine.disk_protect(by, &id, on),
        None => engine.disk(&id),
    }
    .map(disk)
}

fn snapshot_list(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::SnapshotList,
) -> Result<proto::Snapshots> {
    let disk = ask.disk.map(|name| resolve::chain(engine, &name)).transpose()?;
    let snapshots = engine.snapshots(disk.as_ref()).into_iter().map(snapshot).collect();
    Ok(proto::Snapshots { snapshots })
}

fn snapshot_show(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::SnapshotShow,
) -> Result<proto::Snapshot> {
    engine.snapshot(&resolve::snapshot(engine, &ask.snapshot)?).map(snapshot)
}

fn snapshot_delete(
    services: &Services,
    by: Actor,
    ask: proto::SnapshotDelete,
) -> Result<proto::SnapshotDeleted> {
    let engine = &services.engine;
    let id = resolve::snapshot(engine, &ask.snapshot)?;
    let name = engine.snapshot(&id)?.name;
    let freed_bytes = engine.snapshot_delete(by, &id, ask.force)?;
    services.vault.look_after_copies()?;
    Ok(proto::SnapshotDeleted { id: id.to_string(), name, freed_bytes })
}

fn snapshot_set(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::SnapshotSet,
) -> Result<proto::Snapshot> {
    let id = resolve::snapshot(engine, &ask.snapshot)?;
    let access = ask.instant_access.map(presence::of).transpose()?;
    let proto::SnapshotSet { name, description, protected, .. } = ask;
    let change = SnapshotChange { name, description, access };
    if protected.is_none() || change != SnapshotChange::default() {
        engine.snapshot_change(by, &id, change)?;
    }
    match protected {
        Some(on) => engine.snapshot_protect(by, &id, on),
        None => engine.snapshot(&id),
    }
    .map(snapshot)
}

fn snapshot_diff(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::SnapshotDiff,
) -> Result<proto::DiffPage> {
    let from = ask.from.map(|name| resolve::snapshot(engine, &name)).transpose()?;
    let to = resolve::snapshot(engine, &ask.to)?;
    let limit = ask.limit.unwrap_or(DIFF_PAGE_DEFAULT);
    if limit == 0 || limit > DIFF_PAGE_MAX {
        return Err(Error::invalid(format!(
            "a limit of {limit} is not within 1 to {DIFF_PAGE_MAX}"
        )));
    }
    let limit = usize::try_from(limit).map_err(|e| Error::internal(e.to_string()))?;
    let (ranges, resume) = engine.diff(from.as_ref(), &to, ask.resume, limit)?;
    Ok(proto::DiffPage { ranges: ranges.into_iter().map(diff_range).collect(), resume })
}

fn chain_list(engine: &Arc<Engine>, _: Actor, _: proto::ChainList) -> Result<proto::Chains> {
    Ok(proto::Chains { chains: engine.chains().into_iter().map(chain).collect() })
}

fn chain_show(engine: &Arc<Engine>, _: Actor, ask: proto::ChainShow) -> Result<proto::Chain> {
    let found = engine.chain(&resolve::chain(engine, &ask.disk)?)?;
    let ids: Vec<_> = found.snapshots.iter().map(|one| one.id.clone()).collect();
    let freed = engine.freed_in_order(&ids)?.into_iter().sum();
    Ok(proto::Chain { exclusive_bytes: Some(freed), ..chain(found) })
}

fn tags_set(engine: &Arc<Engine>, by: Actor, ask: proto::TagsSet) -> Result<proto::Tagged> {
    change_tags(engine, by, &ask.object, &ask.tags, &[])
}

fn tags_remove(engine: &Arc<Engine>, by: Actor, ask: proto::TagsRemove) -> Result<proto::Tagged> {
    change_tags(engine, by, &ask.object, &proto::Tags::new(), &ask.keys)
}

fn change_tags(
    engine: &Arc<Engine>,
    by: Actor,
    object: &str,
    set: &proto::Tags,
    remove: &[String],
) -> Result<proto::Tagged> {
    use proto::TaggedKind as Kind;
    let (object, id, name, tags) = match resolve::object(engine, object)? {
        Object::Disk(id) => {
            let DiskInfo { id, name, tags, .. } = engine.tag_disk(by, &id, set, remove)?;
            (Kind::Disk, id.to_string(), name, tags)
        }
        Object::Snapshot(id) => {
            let SnapshotInfo { id, name, tags, .. } = engine.tag_snapshot(by, &id, set, remove)?;
            (Kind::Snapshot, id.to_string(), name, tags)
        }
        Object::Group(id) => {
            let GroupInfo { id, name, tags, .. } = engine.tag_group(by, &id, set, remove)?;
            (Kind::Group, id.to_string(), name, tags)
        }
        Object::Image(id) => {
            let ImageInfo { id, name, tags, .. } = engine.tag_image(by, &id, set, remove)?;
            (Kind::Image, id.to_string(), name, tags)
        }
        Object::Instance(id) => {
            let InstanceInfo { id, name, tags, .. } = engine.tag_instance(by, &id, set, remove)?;
            (Kind::Instance, id.to_string(), name, tags)
        }
    };
    Ok(proto::Tagged { object, id, name, tags })
}

fn pool_show(engine: &Arc<Engine>, _: Actor, _: proto::PoolShow) -> Result<proto::PoolStatus> {
    Ok(pool_status(engine.status()))
}

fn pool_resize(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::PoolResize,
) -> Result<proto::PoolStatus> {
    engine.pool_resize(by, ask.max_bytes)?;
    Ok(pool_status(engine.status()))
}

fn events_list(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::EventsList,
) -> Result<proto::EventsPage> {
    let limit = match ask.limit {
        Some(limit) => usize::try_from(limit).map_err(|e| Error::internal(e.to_string()))?,
        None => EVENTS_PAGE_MAX,
    };
    let events = engine.events(ask.after, limit.min(EVENTS_PAGE_MAX));
    Ok(proto::EventsPage { events: events.into_iter().map(event).collect() })
}

fn job_list(engine: &Arc<Engine>, _: Actor, _: proto::JobList) -> Result<proto::Jobs> {
    Ok(proto::Jobs { jobs: engine.jobs().into_iter().map(job).collect() })
}

fn job_show(engine: &Arc<Engine>, _: Actor, ask: proto::JobShow) -> Result<proto::Job> {
    engine.job(&ask.job).map(job)
}

fn job_cancel(engine: &Arc<Engine>, by: Actor, ask: proto::JobCancel) -> Result<proto::Job> {
    let id = engine.job(&ask.job)?.id;
    engine.job_cancel(by, &id)?;
    engine.job(id.as_str()).map(job)
}

fn scrub_start(engine: &Arc<Engine>, by: Actor, ask: proto::ScrubStart) -> Result<proto::Job> {
    engine.scrub_start(by, ask.bytes_per_second).map(job)
}

/// Waits for events after this one and makes messages of them; none when the time is up.
pub(super) fn next_events(
    engine: &Arc<Engine>,
    after: u64,
    wait: Duration,
) -> Vec<(u64, Notification)> {
    if !engine.wait_events(after, wait) {
        return Vec::new();
    }
    let events = engine.events(after, EVENTS_PAGE_MAX).into_iter();
    events
        .filter_map(|one| {
            let seq = one.seq;
            let params = serde_json::to_value(event(one)).ok()?;
            let method = "event".to_owned();
            Some((seq, Notification { jsonrpc: Version2::V2, method, params }))
        })
        .collect()
}

/// The number of the last event, by halving: the log may be long, and only the number is wanted.
fn last_event(engine: &Engine) -> u64 {
    let exists_after = |seq: u64| engine.wait_events(seq, Duration::ZERO);
    let mut beyond = 1;
    while exists_after(beyond - 1) && beyond < u64::MAX / 2 {
        beyond *= 2;
    }
    let mut at_least = beyond / 2;
    while beyond - at_least > 1 {
        let middle = at_least + (beyond - at_least) / 2;
        if exists_after(middle - 1) {
            at_least = middle;
        } else {
            beyond = middle;
        }
    }
    at_least
}
