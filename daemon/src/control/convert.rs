//! Engine values in the terms of the protocol.
//!
//! Invariants: a conversion asks the engine for names at most, and changes nothing.
//! Absent: parameters, which the handlers take apart.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::{ErrorBody, Time};

use super::presence;
use crate::engine::Engine;
use crate::engine::api::{
    AttachmentInfo, AttachmentState, ChainInfo, Change, ClientInfo, Consistency, DiskInfo, Event,
    FillingInfo, JobInfo, JobState, PoolStatus, Rollback, ScrubReport, SnapshotInfo, SnapshotKind,
    SnapshotStatus,
};
use crate::error::{Error, ErrorKind, Result};
use crate::memory;
use crate::units::{DiskId, ImageId};

/// An engine error in the terms of the protocol.
pub(super) fn error_body(error: &Error) -> ErrorBody {
    let kind = match error.kind() {
        ErrorKind::Invalid => proto::ErrorKind::Invalid,
        ErrorKind::NotPermitted => proto::ErrorKind::NotPermitted,
        ErrorKind::NotFound => proto::ErrorKind::NotFound,
        ErrorKind::Exists => proto::ErrorKind::Exists,
        ErrorKind::InUse => proto::ErrorKind::InUse,
        ErrorKind::WrongState => proto::ErrorKind::WrongState,
        ErrorKind::StillCopying => proto::ErrorKind::StillCopying,
        ErrorKind::MemberState => proto::ErrorKind::MemberState,
        ErrorKind::Quota => proto::ErrorKind::Quota,
        ErrorKind::NoSpace => proto::ErrorKind::NoSpace,
        ErrorKind::Corrupt => proto::ErrorKind::Corrupt,
        ErrorKind::Io => proto::ErrorKind::Io,
        ErrorKind::Stopped => proto::ErrorKind::Stopped,
        ErrorKind::ShuttingDown => proto::ErrorKind::ShuttingDown,
        ErrorKind::Cancelled => proto::ErrorKind::Cancelled,
        ErrorKind::TimedOut => proto::ErrorKind::TimedOut,
        ErrorKind::Condition => proto::ErrorKind::Condition,
        ErrorKind::NoEligibleDisk => proto::ErrorKind::NoEligibleDisk,
        ErrorKind::GroupFailed => proto::ErrorKind::GroupFailed,
        ErrorKind::GroupState => proto::ErrorKind::GroupState,
        ErrorKind::TagFailed => proto::ErrorKind::TagFailed,
        ErrorKind::FreezeScript => proto::ErrorKind::FreezeScript,
        ErrorKind::ThawScript => proto::ErrorKind::ThawScript,
        ErrorKind::FreezeFailed => proto::ErrorKind::FreezeFailed,
        ErrorKind::ThawFailed => proto::ErrorKind::ThawFailed,
        ErrorKind::Unsupported => proto::ErrorKind::Unsupported,
        ErrorKind::Internal => proto::ErrorKind::Internal,
    };
    ErrorBody { kind, message: error.message().to_owned(), hint: error.advice().map(str::to_owned) }
}

pub(super) fn disk(info: DiskInfo) -> proto::Disk {
    proto::Disk {
        id: info.id.to_string(),
        name: info.name,
        description: info.description,
        size: info.size,
        created_at: Time::from_unix(info.created_at),
        read_only: info.read_only,
        origin: info
            .origin
            .map(|(id, exists)| proto::Origin { snapshot_id: id.to_string(), exists }),
        image: info.image.map(|(id, name)| proto::OriginImage { id: id.to_string(), name }),
        exclusive_bytes: info.exclusive_bytes,
        mapped_bytes: info.mapped_bytes,
        snapshot_count: info.snapshot_count,
        instance_id: info.instance.0.to_string(),
        instance_name: info.instance.1,
        tags: info.tags,
        clients: info.clients.into_iter().map(client).collect(),
        attachment: info.attachment.map(attachment),
        encrypted: info.encrypted,
        locked: info.locked,
        policy: info.policy.map(|(id, name)| {
            let (id, instance) = (id.to_string(), info.policy_instance);
            proto::DiskPolicy { id, name, instance }
        }),
        delete_auto_snapshot: info.delete_auto,
        protected: info.protected,
        filling: info.filling.map(filling),
    }
}

fn filling(info: FillingInfo) -> proto::DiskFilling {
    let FillingInfo { repo, copy, usable, percent, job } = info;
    let job = job.map(|id| id.to_string());
    proto::DiskFilling { copy: copy.to_string(), repo, usable, percent, job }
}

fn attachment(info: AttachmentInfo) -> proto::Attachment {
    let (state, message) = match info.state {
        AttachmentState::Pending => (proto::AttachmentState::Pending, None),
        AttachmentState::Attached => (proto::AttachmentState::Attached, None),
        AttachmentState::Failed(why) => (proto::AttachmentState::Failed, Some(why)),
    };
    proto::Attachment { device: info.device, read_only: info.read_only, state, message }
}

fn client(info: ClientInfo) -> proto::Client {
    let ClientInfo { export, pid, peer, connected_at } = info;
    proto::Client { export, pid, peer, connected_at: Time::from_unix(connected_at) }
}

pub(super) fn rolled_back(
    engine: &Arc<Engine>,
    id: &DiskId,
    done: Rollback,
) -> Result<proto::RolledBack> {
    let Rollback { undo, to, disconnected, grown_since } = done;
    let to_name = match to.as_ref().map(|to| engine.snapshot_full_name(to)) {
        // A copy may be all there is of it.
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => None,
        found => found.transpose()?,
    };
    let (undo, undo_name) = undo.map(|undo| (undo.id.to_string(), undo.name)).unzip();
    Ok(proto::RolledBack {
        disk: engine.disk(id).map(disk)?,
        to: to.map(|to| to.to_string()),
        to_name,
        undo,
        undo_name,
        disconnected: disconnected.into_iter().map(client).collect(),
        grown_since,
    })
}

pub(super) fn consistency(level: Consistency) -> proto::Consistency {
    match level {
        Consistency::Crash => proto::Consistency::Crash,
        Consistency::Fs => proto::Consistency::Fs,
        Consistency::App => proto::Consistency::App,
    }
}

pub(super) fn level(level: proto::Consistency) -> Consistency {
    match level {
        proto::Consistency::Crash => Consistency::Crash,
        proto::Consistency::Fs => Consistency::Fs,
        proto::Consistency::App => Consistency::App,
    }
}

pub(super) fn snapshot(info: SnapshotInfo) -> proto::Snapshot {
    let actions = presence::actions(&info);
    let where_it_is = presence::told(info.presence);
    let status = match info.status {
        SnapshotStatus::Accomplished => where_it_is.status,
        SnapshotStatus::Deleting => proto::SnapshotStatus::Deleting,
    };
    proto::Snapshot {
        id: info.id.to_string(),
        name: info.name,
        description: info.description,
        disk_id: info.disk_id.to_string(),
        disk_name: info.disk_name,
        size: info.size,
        created_at: Time::from_unix(info.created_at),
        kind: match info.kind {
            SnapshotKind::Manual => proto::SnapshotKind::Manual,
            SnapshotKind::Auto => proto::SnapshotKind::Auto,
            SnapshotKind::Undo => proto::SnapshotKind::Undo,
        },
        consistency: consistency(info.consistency),
        status,
        progress: where_it_is.progress,
        remaining_s: where_it_is.remaining_s,
        reason: where_it_is.reason,
        instant_access: where_it_is.instant_access,
        instant_access_until: where_it_is.until,
        presence: where_it_is.presence,
        repo: where_it_is.repo,
        copy: where_it_is.copy,
        actions,
        exclusive_bytes: info.exclusive_bytes,
        stored_bytes: info.stored_bytes,
        parent: info.parent.map(|id| id.to_string()),
        expires_at: info.expires_at.map(Time::from_unix),
        made_disks: info.made_disks.iter().map(DiskId::to_string).collect(),
        images: info.images.iter().map(ImageId::to_string).collect(),
        tags: info.tags,
        clients: info.clients.into_iter().map(client).collect(),
        encrypted: info.encrypted,
        policy_id: info.automatic.as_ref().map(|(policy, _)| policy.to_string()),
        scheduled_at: info.automatic.map(|(_, slot)| Time::from_unix(slot)),
        protected: info.protected,
        filling: info.filling.map(filling),
    }
}

pub(super) fn diff_range(change: Change) -> proto::DiffRange {
    proto::DiffRange { offset: change.offset, length: change.length, zero: change.zero }
}

pub(super) fn chain(info: ChainInfo) -> proto::Chain {
    proto::Chain {
        disk_id: info.disk_id.to_string(),
        disk_name: info.disk_name,
        disk_size: info.disk_size,
        exclusive_bytes: None,
        snapshot_bytes: info.snapshot_bytes,
        quota_manual: info.quota_manual,
        quota_auto: info.quota_auto,
        snapshots: info.snapshots.into_iter().map(snapshot).collect(),
    }
}

pub(super) fn event(event: Event) -> proto::Event {
    let Event { seq, at, actor, kind, object, message } = event;
    let at = Time::from_unix(at);
    proto::Event { seq, at, uid: actor.uid, pid: actor.pid, kind, object, message }
}

pub(super) fn job(info: JobInfo) -> proto::Job {
    proto::Job {
        id: info.id.to_string(),
        kind: info.kind,
        object: info.object,
        state: match info.state {
            JobState::Running => proto::JobState::Running,
            JobState::Done => proto::JobState::Done,
            JobState::Failed => proto::JobState::Failed,
            JobState::Cancelled => proto::JobState::Cancelled,
        },
        done: info.done,
        total: info.total,
        started_at: Time::from_unix(info.started_at),
        ended_at: info.ended_at.map(Time::from_unix),
        message: info.message,
    }
}

pub(super) fn pool_status(status: PoolStatus) -> proto::PoolStatus {
    let memory = memory::state();
    proto::PoolStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uuid: status.uuid,
        dir: status.dir,
        stopped: status.stopped,
        block_size: status.block_size,
        file_bytes: status.file_bytes,
        max_bytes: status.max_bytes,
        used_bytes: status.used_bytes,
        pending_bytes: status.pending_bytes,
        journal_bytes: status.journal_bytes,
        journal_used_bytes: status.journal_used_bytes,
        cache_bytes: status.cache_bytes,
        cache_limit: status.cache_limit,
        last_seq: status.last_seq,
        durable_seq: status.durable_seq,
        checkpoint_seq: status.checkpoint_seq,
        disks: status.disks,
        snapshots: status.snapshots,
        clients: status.clients,
        reclaiming: status.reclaiming,
        corrupt_blocks: status.corrupt_blocks,
        healed_blocks: status.healed_blocks,
        last_scrub: status.last_scrub.map(scrub_report),
        recovery_seconds: status.recovery_seconds,
        recovered_records: status.recovered_records,
        io_mode: status.io.name().to_owned(),
        io_flusher: memory.io_flusher,
        memory_locked: memory.memory_locked,
        oom_score_adj: memory.oom_score_adj,
    }
}

fn scrub_report(report: ScrubReport) -> proto::ScrubReport {
    proto::ScrubReport {
        started_at: Time::from_unix(report.started_at),
        ended_at: Time::from_unix(report.ended_at),
        bytes: report.bytes,
        bad: report.bad,
    }
}
