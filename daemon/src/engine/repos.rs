//! Repositories as the catalogue remembers them: a name, where it is, and where its credentials are.
//!
//! Invariants: names are unique; a record holds no credential; forgetting a repository changes nothing in it.
//! Absent: talking to repositories (`vault/`); what is in them, which they say themselves.

use serde::{Deserialize, Serialize};

use super::Engine;
use super::api::Actor;
use super::catalogue::Op;
use super::names::check_name;
use crate::error::{Error, ErrorKind, Result};
use crate::units::RepoId;

/// Each is a record in memory; a host has few.
const REPOS_MAX: usize = 64;

/// A repository as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoRecord {
    pub name: String,
    pub url: String,
    /// What its format file said when it was added.
    pub id: RepoId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where the credentials are: `env`, `file:PATH`, `systemd:NAME`.
    pub credentials: String,
    /// Plain HTTP may be used beyond this host.
    #[serde(default)]
    pub allow_http: bool,
    /// Bytes per second that are sent or received at most; 0 is no limit.
    #[serde(default)]
    pub bandwidth: u64,
    pub added_at: u64,
    /// Snapshots are copied there unless somebody says otherwise.
    #[serde(default)]
    pub default: bool,
}

impl Engine {
    /// All repositories, by name.
    #[must_use]
    pub fn repos(&self) -> Vec<RepoRecord> {
        self.catalogue.read().repos.values().cloned().collect()
    }

    /// The repository of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn repo(&self, name: &str) -> Result<RepoRecord> {
        self.catalogue.read().repos.get(name).cloned().ok_or_else(|| {
            Error::not_found(format!("no repository is called {name:?}"))
                .hint("see `rowctl repo list`")
        })
    }

    /// Refuses a name that will not do or is taken.
    ///
    /// # Errors
    /// `Invalid`, `Exists`, or `Quota`.
    pub fn repo_check_new(&self, name: &str) -> Result<()> {
        check_name("repository", name)?;
        let catalogue = self.catalogue.read();
        if catalogue.repos.contains_key(name) {
            let message = format!("there is a repository {name:?} already");
            return Err(Error::new(ErrorKind::Exists, message).hint("choose another name"));
        }
        if catalogue.repos.len() >= REPOS_MAX {
            let message =
                format!("there are {REPOS_MAX} repositories, which is the most there can be");
            return Err(
                Error::new(ErrorKind::Quota, message).hint("remove some: `rowctl repo list`")
            );
        }
        Ok(())
    }

    /// Remembers a repository.
    ///
    /// # Errors
    /// As [`Engine::repo_check_new`]; `Exists` when it is known under another name.
    pub fn repo_add(&self, by: Actor, repo: RepoRecord) -> Result<()> {
        let _shape = self.shape.lock();
        self.repo_check_new(&repo.name)?;
        let known = self.repos().into_iter().find(|other| other.id == repo.id);
        if let Some(other) = known {
            let message = format!("this repository is known as {:?} already", other.name);
            return Err(Error::new(ErrorKind::Exists, message));
        }
        let message = format!("repository {} added: {}", repo.name, repo.url);
        self.change(by, Op::RepoAdd { repo }, message)
    }

    /// The repository that snapshots are copied to unless somebody says otherwise.
    #[must_use]
    pub fn default_repo(&self) -> Option<String> {
        let catalogue = self.catalogue.read();
        catalogue.repos.values().find(|repo| repo.default).map(|repo| repo.name.clone())
    }

    /// Makes a repository the default, or (`default` is false) no longer.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn repo_set_default(&self, by: Actor, name: &str, default: bool) -> Result<RepoRecord> {
        let _shape = self.shape.lock();
        let repo = self.repo(name)?;
        if repo.default != default {
            let (name, message) = match default {
                true => {
                    (Some(name.to_owned()), format!("snapshots are copied to {name} from now on"))
                }
                false => (None, "snapshots are copied nowhere by default".to_owned()),
            };
            self.change(by, Op::RepoDefault { name }, message)?;
        }
        self.repo(name)
    }

    /// Forgets a repository.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn repo_remove(&self, by: Actor, name: &str) -> Result<()> {
        let _shape = self.shape.lock();
        self.repo(name)?;
        let message = format!("repository {name} removed; what is in it stays");
        self.change(by, Op::RepoRemove { name: name.to_owned() }, message)
    }
}
