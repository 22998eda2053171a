//! Repositories on the wire: object stores that hold copies of snapshots.
//!
//! Invariants: no message has a credential in it, only where credentials are.
//! Absent: the copies (`copy.rs`).

use serde::{Deserialize, Serialize};

use crate::Time;

/// Makes a repository known, and makes it if there is none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoAdd {
    pub name: String,
    /// `file:///DIR`, `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `gs://BUCKET/PREFIX`.
    pub url: String,
    /// The server, where it is not the one of the scheme's cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `env` (the default), `file:PATH` or `systemd:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// Use plain HTTP beyond this host.
    #[serde(default)]
    pub allow_http: bool,
    /// Bytes per second at most; 0 is no limit.
    #[serde(default)]
    pub bandwidth: u64,
    /// Take what is there only, and make no new repository.
    #[serde(default)]
    pub existing: bool,
    /// Copy snapshots there unless somebody says otherwise.
    #[serde(default)]
    pub default: bool,
}

/// Changes what a repository is used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoSet {
    pub repo: String,
    /// Whether snapshots are copied there unless somebody says otherwise; of several the last one counts.
    pub default: bool,
}

/// Lists repositories by name, without asking them anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoList {}

/// Describes one repository, without asking it anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoShow {
    pub repo: String,
}

/// Forgets a repository; what is in it stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoRemove {
    pub repo: String,
}

/// Tries a repository out: read, write as new only, list, delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoCheck {
    pub repo: String,
}

/// The reply to `repo.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repos {
    pub repos: Vec<Repo>,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// What its format file says, the same for every daemon.
    pub id: String,
    pub name: String,
    pub url: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Where the credentials are.
    pub credentials: String,
    pub allow_http: bool,
    pub bandwidth: u64,
    /// Snapshots are copied there unless somebody says otherwise.
    #[serde(default)]
    pub default: bool,
    pub added_at: Time,
}

/// The reply to `repo.check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoChecked {
    pub name: String,
    pub id: String,
    /// The version of its format.
    pub version: u32,
    /// What was tried, with how long it took.
    pub steps: Vec<RepoStep>,
}

/// Something that was tried and worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoStep {
    pub what: String,
    pub millis: u64,
}
