//! Where snapshots are kept, in the terms of the protocol.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: the rules (`engine/presence.rs`).

use rowd_proto as proto;
use rowd_proto::{InstantAccess, Place, SnapshotAction, Time};

use crate::engine::Engine;
use crate::engine::api::{Access, KeepSpec, PresenceInfo, SnapshotInfo, SnapshotStatus};
use crate::engine::jobs::progress;
use crate::error::{Error, Result};

/// How a snapshot is, as far as that has to do with where it is.
pub(super) struct Told {
    pub status: proto::SnapshotStatus,
    pub progress: u8,
    pub remaining_s: Option<u64>,
    pub reason: Option<String>,
    pub instant_access: bool,
    pub until: Option<Time>,
    pub presence: Vec<Place>,
    pub repo: Option<String>,
    pub copy: Option<String>,
}

/// Where a new snapshot is to be kept; nothing for the pool only.
pub(super) fn wanted(
    engine: &Engine,
    repo: Option<String>,
    local: bool,
    access: InstantAccess,
) -> Result<Option<KeepSpec>> {
    if local && repo.is_some() {
        return Err(Error::invalid("a repository is named, and the snapshot is to be local"));
    }
    let repo = repo.or_else(|| engine.default_repo().filter(|_| !local));
    let access = of(access)?;
    match (repo, access) {
        (Some(repo), access) => Ok(Some(KeepSpec { repo, access })),
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(Error::invalid("instant access is for snapshots that are kept in a repository")
                .hint("name one: --repo R; without, a snapshot can be used until it is deleted"))
        }
    }
}

/// A period that somebody asks for.
pub(super) fn of(access: InstantAccess) -> Result<Option<Access>> {
    match access {
        InstantAccess::Off => Ok(None),
        InstantAccess::Endless => Ok(Some(Access::Endless)),
        InstantAccess::Days(days) if (1..=InstantAccess::DAYS_MAX).contains(&days) => {
            Ok(Some(Access::Days(days)))
        }
        InstantAccess::Days(days) => {
            let most = InstantAccess::DAYS_MAX;
            Err(Error::invalid(format!("instant access for {days} days: 1 to {most} are allowed"))
                .hint("none is no end"))
        }
    }
}

/// What there is to say about where a snapshot is. One in the pool only is complete from its first instant.
pub(super) fn told(presence: Option<PresenceInfo>) -> Told {
    let Some(PresenceInfo { repo, copy, complete, held, access, job, failed }) = presence else {
        return Told {
            status: proto::SnapshotStatus::Accomplished,
            progress: 100,
            remaining_s: None,
            reason: None,
            instant_access: true,
            until: None,
            presence: vec![Place::Pool],
            repo: None,
            copy: None,
        };
    };
    let (done, remaining_s) = job.as_ref().map_or((0, None), progress);
    let (status, percent) = match (complete, &failed) {
        (true, _) => (proto::SnapshotStatus::Accomplished, 100),
        (false, Some(_)) => (proto::SnapshotStatus::Failed, done),
        (false, None) => (proto::SnapshotStatus::Progressing, done),
    };
    let places = [(held, Place::Pool), (complete, Place::Repository)];
    Told {
        status,
        progress: percent,
        remaining_s,
        reason: failed,
        instant_access: access.is_some(),
        until: access.flatten().map(Time::from_unix),
        presence: places.into_iter().filter(|(there, _)| *there).map(|(_, at)| at).collect(),
        repo: Some(repo),
        copy: Some(copy.to_string()),
    }
}

/// What a snapshot can be used for, by where it is.
pub(super) fn actions(info: &SnapshotInfo) -> Vec<SnapshotAction> {
    if matches!(info.status, SnapshotStatus::Deleting) {
        return Vec::new();
    }
    let presence = info.presence.as_ref();
    let at_once = presence.is_none_or(|presence| presence.access.is_some());
    let complete = presence.is_some_and(|presence| presence.complete);
    let usable = at_once || complete;
    let all = [
        (SnapshotAction::Rollback, usable && info.disk_name.is_some()),
        (SnapshotAction::Disk, usable),
        (SnapshotAction::Image, at_once),
        (SnapshotAction::Copy, true),
        (SnapshotAction::EndAccess, presence.is_some() && at_once && complete),
    ];
    all.into_iter().filter(|(_, can)| *can).map(|(action, _)| action).collect()
}
