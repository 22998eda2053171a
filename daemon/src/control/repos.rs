//! The methods of repositories.
//!
//! Invariants: only root names directories and files, since the daemon opens them with its privileges; as in
//! `handlers.rs` otherwise.
//! Absent: copies.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::Services;
use crate::engine::Engine;
use crate::engine::api::Actor;
use crate::engine::repos::RepoRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::RepoSpec;

pub(super) fn add(services: &Services, by: Actor, ask: proto::RepoAdd) -> Result<proto::Repo> {
    let proto::RepoAdd { name, url, endpoint, region, credentials, .. } = ask;
    let credentials = credentials.unwrap_or_else(|| "env".to_owned());
    let names_path = url.starts_with("file:") || credentials.starts_with("file:");
    if names_path && by.uid != 0 && by.uid != nix::unistd::geteuid().as_raw() {
        return Err(Error::new(
            ErrorKind::NotPermitted,
            "only root may name a directory or a file for the daemon to open",
        )
        .hint("ask an administrator to add the repository"));
    }
    let (allow_http, bandwidth, existing) = (ask.allow_http, ask.bandwidth, ask.existing);
    let spec =
        RepoSpec { name, url, endpoint, region, credentials, allow_http, bandwidth, existing };
    let added = services.vault.repo_add(by, spec)?;
    match ask.default {
        true => services.engine.repo_set_default(by, &added.name, true).map(repo),
        false => Ok(repo(added)),
    }
}

pub(super) fn set(engine: &Arc<Engine>, by: Actor, ask: proto::RepoSet) -> Result<proto::Repo> {
    engine.repo_set_default(by, &ask.repo, ask.default).map(repo)
}

pub(super) fn list(engine: &Arc<Engine>, _: Actor, _: proto::RepoList) -> Result<proto::Repos> {
    Ok(proto::Repos { repos: engine.repos().into_iter().map(repo).collect() })
}

pub(super) fn show(engine: &Arc<Engine>, _: Actor, ask: proto::RepoShow) -> Result<proto::Repo> {
    engine.repo(&ask.repo).map(repo)
}

pub(super) fn remove(
    services: &Services,
    by: Actor,
    ask: proto::RepoRemove,
) -> Result<proto::Done> {
    services.vault.repo_remove(by, &ask.repo)?;
    Ok(proto::Done {})
}

pub(super) fn check(
    services: &Services,
    _: Actor,
    ask: proto::RepoCheck,
) -> Result<proto::RepoChecked> {
    let checked = services.vault.repo_check(&ask.repo)?;
    let step = |(what, millis): (&str, u64)| proto::RepoStep { what: what.to_owned(), millis };
    Ok(proto::RepoChecked {
        name: ask.repo,
        id: checked.id.to_string(),
        version: checked.version,
        steps: checked.steps.into_iter().map(step).collect(),
    })
}

fn repo(record: RepoRecord) -> proto::Repo {
    let RepoRecord { name, url, id, endpoint, region, credentials, .. } = record;
    proto::Repo {
        id: id.to_string(),
        name,
        url,
        endpoint,
        region,
        credentials,
        allow_http: record.allow_http,
        bandwidth: record.bandwidth,
        default: record.default,
        added_at: Time::from_unix(record.added_at),
    }
}
