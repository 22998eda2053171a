//! The object store of a repository: objects, put, read, listed and deleted, with retries.
//!
//! Invariants: an object that is put as new is never overwritten, whatever is retried; no object is read
//! beyond the length it may have; errors say which repository and which object, and no credentials.
//! Absent: what objects mean (`format.rs`); writing parts of objects.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::time::sleep;

use super::address::connect;
use super::credentials::{Credentials, Source};
use crate::engine::repos::RepoRecord;
use crate::error::{Error, ErrorKind, Result};

/// How often an operation is begun again, beyond the retries of each request.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The objects of a repository.
#[derive(Clone, Debug)]
pub struct Store {
    name: String,
    inner: Arc<dyn ObjectStore>,
    secrets: Credentials,
}

impl Store {
    /// The store of a repository; nothing is sent yet.
    ///
    /// # Errors
    /// Its address or its credentials will not do.
    pub fn open(repo: &RepoRecord) -> Result<Store> {
        let local = repo.url.starts_with("file:");
        let secrets = match local {
            true => Credentials::default(),
            false => Credentials::load(&Source::parse(&repo.credentials)?)?,
        };
        let inner = connect(repo, &secrets)?;
        Ok(Store { name: repo.name.clone(), inner, secrets })
    }

    /// Reads an object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when it is longer; the store does not answer.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>> {
        let path = Path::from(key);
        self.patiently(key, "read", async || {
            let found = self.inner.get(&path).await?;
            if found.meta.size > limit {
                return Ok(Err(found.meta.size));
            }
            found.bytes().await.map(Ok)
        })
        .await?
        .map(|bytes| bytes.to_vec())
        .map_err(|size| {
            let name = &self.name;
            Error::corrupt(format!(
                "repository {name}: {key} has {size} bytes, at most {limit} are right"
            ))
        })
    }

    /// Reads some bytes of an object: those that are there, when it is shorter.
    ///
    /// # Errors
    /// `NotFound`; the store does not answer.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let path = Path::from(key);
        let read = async || self.inner.get_range(&path, range.clone()).await;
        self.patiently(key, "read", read).await.map(|bytes| bytes.to_vec())
    }

    /// Writes an object; one with that key is replaced.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let (path, payload) = (Path::from(key), PutPayload::from(bytes));
        self.patiently(key, "write", async || self.inner.put(&path, payload.clone()).await)
            .await
            .map(|_| ())
    }

    /// Writes an object if none has that key.
    ///
    /// # Errors
    /// `Exists` when there is another one; the store does not take it.
    pub async fn put_new(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let (path, payload) = (Path::from(key), PutPayload::from(bytes.clone()));
        let put = async || {
            let options = PutOptions::from(PutMode::Create);
            self.inner.put_opts(&path, payload.clone(), options).await
        };
        match self.patiently(key, "write", put).await {
            // An attempt that failed may have arrived all the same.
            Err(error) if error.kind() == ErrorKind::Exists => {
                match self.get(key, bytes.len() as u64).await {
                    Ok(found) if found == bytes => Ok(()),
                    _ => Err(error),
                }
            }
            result => result.map(|_| ()),
        }
    }

    /// The keys of all objects that begin with `prefix/`.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let path = Path::from(prefix);
        self.patiently(prefix, "list", async || {
            let mut stream = self.inner.list(Some(&path));
            let mut all = Vec::new();
            while let Some(meta) = next(&mut stream).await {
                all.push(meta?.location.to_string());
            }
            all.sort_unstable();
            Ok(all)
        })
        .await
    }

    /// The key of some object, if there is one.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn any(&self) -> Result<Option<String>> {
        self.patiently("objects", "list", async || {
            let mut stream = self.inner.list(None);
            let first = next(&mut stream).await.transpose()?;
            Ok(first.map(|meta| meta.location.to_string()))
        })
        .await
    }

    /// Whether there is an object with this key.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn exists(&self, key: &str) -> Result<bool> {
        let path = Path::from(key);
        match self.patiently(key, "look for", async || self.inner.head(&path).await).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object; one that is not there is no error.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = Path::from(key);
        match self.patiently(key, "delete", async || self.inner.delete(&path).await).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Does something again, at growing intervals, as long as the error may pass.
    async fn patiently<T>(
        &self,
        key: &str,
        doing: &str,
        mut attempt: impl AsyncFnMut() -> object_store::Result<T>,
    ) -> Result<T> {
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) if tries < ATTEMPTS && may_pass(&error) => {
                    let why = self.secrets.scrub(&error.to_string());
                    tracing::warn!(repository = self.name, key, doing, tries, why, "trying again");
                    sleep(pause).await;
                    pause *= 3;
                }
                Err(error) => return Err(self.told(key, doing, &error)),
            }
        }
        Err(Error::internal("an endless loop has ended"))
    }

    fn told(&self, key: &str, doing: &str, error: &object_store::Error) -> Error {
        use object_store::Error as E;
        let kind = match error {
            E::NotFound { .. } => ErrorKind::NotFound,
            E::AlreadyExists { .. } | E::Precondition { .. } => ErrorKind::Exists,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::NotPermitted,
            E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let why = self.secrets.scrub(&error.to_string());
        let told = Error::new(kind, format!("repository {}: {doing} {key}: {why}", self.name));
        match kind {
            ErrorKind::NotPermitted => told.hint("look at the credentials and at what they allow"),
            _ => told,
        }
    }
}

fn may_pass(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(error, E::Generic { .. } | E::JoinError { .. })
}

/// The next element of a stream.
async fn next<T>(stream: &mut (impl futures_core::Stream<Item = T> + Unpin)) -> Option<T> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx)).await
}
