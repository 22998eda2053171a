//! The methods of copies.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: repositories (`repos.rs`).

use rowd_proto as proto;
use rowd_proto::Time;

use super::convert::{consistency, disk, job};
use super::{Services, resolve};
use crate::engine::api::{Actor, DiskSpec};
use crate::engine::copies::Source;
use crate::engine::jobs::progress;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, SnapshotId};
use crate::vault::copies::{CopyInfo, CopyOf, CopySpec, CopyState, Header, RestoreSpec};

pub(super) fn create(
    services: &Services,
    by: Actor,
    ask: proto::CopyCreate,
) -> Result<proto::Copy> {
    let proto::CopyCreate { snapshot, repo, from, name, description, tags } = ask;
    let of = copy_of(services, snapshot, from)?;
    let spec = CopySpec { of, repo, name, description, tags };
    services.vault.copy_create(by, spec).map(|made| copy(services, made))
}

/// What a name means that is to be copied: the id of a copy; a snapshot that is here; or the id of a snapshot
/// that only repositories have.
fn copy_of(services: &Services, name: String, repo: Option<String>) -> Result<CopyOf> {
    if repo.is_some() || name.starts_with(CopyId::PREFIX) {
        return Ok(CopyOf::Copy { name, repo });
    }
    match resolve::snapshot(&services.engine, &name) {
        Err(error)
            if error.kind() == ErrorKind::NotFound && name.starts_with(SnapshotId::PREFIX) =>
        {
            Ok(CopyOf::Copy { name, repo })
        }
        found => {
            let id = found?;
            Ok(match services.engine.away(&id)? {
                Some(from) => CopyOf::Copy { name: from.copy.to_string(), repo: Some(from.repo) },
                None => CopyOf::Snapshot(id),
            })
        }
    }
}

pub(super) fn list(services: &Services, _: Actor, ask: proto::CopyList) -> Result<proto::Copies> {
    let copies = services.vault.copies(ask.repo.as_deref())?;
    Ok(proto::Copies { copies: copies.into_iter().map(|one| copy(services, one)).collect() })
}

pub(super) fn show(services: &Services, _: Actor, ask: proto::CopyShow) -> Result<proto::Copy> {
    services.vault.copy(&ask.copy, ask.repo.as_deref()).map(|found| copy(services, found))
}

pub(super) fn verify(services: &Services, _: Actor, ask: proto::CopyVerify) -> Result<proto::Job> {
    services.vault.copy_verify(&ask.copy, ask.repo.as_deref()).map(job)
}

pub(super) fn retry(services: &Services, by: Actor, ask: proto::CopyRetry) -> Result<proto::Copy> {
    services.vault.copy_retry(by, &ask.copy).map(|again| copy(services, again))
}

pub(super) fn delete(
    services: &Services,
    by: Actor,
    ask: proto::CopyDelete,
) -> Result<proto::CopyDeleted> {
    let id = services.vault.copy_delete(by, &ask.copy, ask.repo.as_deref())?;
    Ok(proto::CopyDeleted { id: id.to_string() })
}

pub(super) fn restore(
    services: &Services,
    by: Actor,
    ask: proto::CopyRestore,
) -> Result<proto::CopyRestored> {
    let instance =
        ask.instance.map(|name| resolve::instance(&services.engine, &name)).transpose()?;
    let proto::CopyRestore { name, size, description, tags, encrypted, full, .. } = ask;
    let spec = RestoreSpec { name, size, description, tags, instance, encrypted, full };
    let (made, filling) = services.vault.copy_restore(by, &ask.copy, ask.repo.as_deref(), spec)?;
    Ok(proto::CopyRestored { disk: disk(made), job: job(filling) })
}

/// Makes a disk of a snapshot that only a repository has; it is filled while it is used.
pub(super) fn disk_of(
    services: &Services,
    by: Actor,
    copy: &Source,
    spec: DiskSpec,
) -> Result<proto::Disk> {
    if spec.policy.is_some() || spec.delete_auto {
        let message = format!(
            "the snapshot is only in repository {}: a disk of it gets its policy when it is there",
            copy.repo
        );
        return Err(
            Error::invalid(message).hint("`rowctl policy apply` and `rowctl disk set` do it then")
        );
    }
    let DiskSpec { name, size, description, tags, instance, encrypted, .. } = spec;
    let spec = RestoreSpec { name, size, description, tags, instance, encrypted, full: false };
    let made = services.vault.copy_restore(by, copy.copy.as_str(), Some(&copy.repo), spec)?;
    Ok(disk(made.0))
}

fn copy(services: &Services, info: CopyInfo) -> proto::Copy {
    let made = services.engine.policy_copy(&info.id);
    let mut told = proto::Copy {
        id: info.id.to_string(),
        repo: info.repo,
        snapshot_id: info.snapshot.to_string(),
        status: proto::CopyStatus::Progressing,
        progress: 0,
        job: None,
        remaining_s: None,
        reason: None,
        policy_id: made.as_ref().map(|copy| copy.automatic.policy.to_string()),
        expires_at: made.and_then(|copy| copy.expires_at).map(Time::from_unix),
        detail: None,
    };
    match info.state {
        CopyState::Progressing(None) => {}
        CopyState::Progressing(Some(job)) => {
            (told.progress, told.remaining_s) = progress(&job);
            told.job = Some(job.id.to_string());
        }
        CopyState::Accomplished(header) => {
            (told.status, told.progress) = (proto::CopyStatus::Accomplished, 100);
            told.detail = Some(detail(*header));
        }
        CopyState::Failed(why) => {
            (told.status, told.reason) = (proto::CopyStatus::Failed, Some(why));
        }
        CopyState::Damaged(why) => {
            (told.status, told.reason) = (proto::CopyStatus::Damaged, Some(why));
        }
    }
    told
}

fn detail(header: Header) -> proto::CopyDetail {
    proto::CopyDetail {
        snapshot_name: header.snapshot_name,
        disk_id: header.disk.to_string(),
        disk_name: header.disk_name,
        size: header.size,
        created_at: Time::from_unix(header.created_at),
        copied_at: Time::from_unix(header.copied_at),
        consistency: consistency(header.consistency),
        description: header.description,
        tags: header.tags,
        base: header.base.map(|id| id.to_string()),
        data_bytes: header.data_bytes,
        new_bytes: header.new_bytes,
        sent_bytes: header.new_stored,
        writer: header.writer,
        source: header.source.map(|source| source.copy.to_string()),
        encrypted: header.sealed.is_some(),
        master: header.sealed.map(|sealed| sealed.wrapped.master),
    }
}
