//! Where a repository is: its URL and options, checked, and the client of the object store made of them.
//!
//! Invariants: plain HTTP is used for this host only, unless the repository was added with leave to; nothing
//! of the process's environment but the credentials has a say; every request has a time-out.
//! Absent: credentials themselves (`credentials.rs`), and retries of what takes several requests (`store.rs`).

use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::credentials::Credentials;
use crate::engine::repos::RepoRecord;
use crate::error::{Error, ErrorKind, Result};

/// One request, with its body: 4 MiB at 70 KiB/s.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Attempts of one request before the error is told.
const REQUEST_RETRIES: usize = 3;
/// The longest URL, endpoint or region that is taken.
const TEXT_MAX: usize = 1024;

/// The kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A directory of this host.
    File,
    S3,
    Azure,
    Google,
}

/// A URL taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub scheme: Scheme,
    /// The bucket or container; empty for a directory.
    pub bucket: String,
    /// The directory, or what all keys begin with.
    pub path: String,
}

impl Address {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong with it.
    pub fn parse(url: &str) -> Result<Address> {
        let usage = "file:///DIR, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX";
        let wrong = |why: &str| Err(Error::invalid(format!("the URL {url:?} {why}")).hint(usage));
        if url.len() > TEXT_MAX || url.chars().any(char::is_control) {
            return Err(Error::invalid("the URL is too long or has control characters").hint(usage));
        }
        if url.contains(['?', '#']) || url.split('/').nth(2).is_some_and(|host| host.contains('@'))
        {
            // Not repeated: what stands there may be a secret.
            return Err(Error::invalid("the URL has a user, a query or a fragment")
                .hint("credentials are given by the environment, a file or a systemd credential"));
        }
        let Some((scheme, rest)) = url.split_once("://") else { return wrong("has no scheme") };
        let scheme = match scheme {
            "file" => Scheme::File,
            "s3" => Scheme::S3,
            "az" => Scheme::Azure,
            "gs" => Scheme::Google,
            _ => return wrong("has a scheme that is not known"),
        };
        if rest.split('/').any(|part| part == ".." || part == ".") {
            return wrong("has '.' or '..' in it");
        }
        if scheme == Scheme::File {
            return match Path::new(rest).is_absolute() && rest != "/" {
                true => Ok(Address { scheme, bucket: String::new(), path: rest.to_owned() }),
                false => wrong("names no absolute directory"),
            };
        }
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(fits) {
            return wrong("names no bucket");
        }
        let path = path.trim_matches('/').to_owned();
        Ok(Address { scheme, bucket: bucket.to_owned(), path })
    }

    /// The directory of a `file` repository.
    #[must_use]
    pub fn dir(&self) -> Option<PathBuf> {
        (self.scheme == Scheme::File).then(|| PathBuf::from(&self.path))
    }
}

/// The client for a repository.
///
/// # Errors
/// An option does not fit, or the directory does not exist.
pub fn connect(repo: &RepoRecord, secrets: &Credentials) -> Result<Arc<dyn ObjectStore>> {
    let address = Address::parse(&repo.url)?;
    check_endpoint(repo, address.scheme)?;
    let wrong = |e: object_store::Error| {
        Error::invalid(format!("repository {}: {}", repo.name, secrets.scrub(&e.to_string())))
    };
    let (options, retry) = (client_options(repo), retries());
    if let Some(dir) = address.dir() {
        return directory(&dir).map(|store| Arc::new(store) as Arc<dyn ObjectStore>);
    }
    let bucket = address.bucket.as_str();
    match address.scheme {
        Scheme::Azure => {
            let mut builder = MicrosoftAzureBuilder::new().with_container_name(bucket);
            if let Some(endpoint) = &repo.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            for (key, value) in secrets.for_azure()? {
                builder = builder.with_config(key, value);
            }
            let store = builder.with_client_options(options).with_retry(retry).build();
            Ok(below(store.map_err(wrong)?, &address.path))
        }
        Scheme::Google => {
            let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
            if let Some(endpoint) = &repo.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            builder = builder.with_service_account_key(secrets.for_google()?);
            let store = builder.with_client_options(options).with_retry(retry).build();
            Ok(below(store.map_err(wrong)?, &address.path))
        }
        Scheme::S3 | Scheme::File => {
            let region = repo.region.as_deref().unwrap_or("us-east-1");
            let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_region(region);
            if let Some(endpoint) = &repo.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            for (key, value) in secrets.for_s3()? {
                builder = builder.with_config(key, value);
            }
            let store = builder.with_client_options(options).with_retry(retry).build();
            Ok(below(store.map_err(wrong)?, &address.path))
        }
    }
}

fn below(store: impl ObjectStore, path: &str) -> Arc<dyn ObjectStore> {
    match path {
        "" => Arc::new(store),
        path => Arc::new(PrefixStore::new(store, path)),
    }
}

fn directory(dir: &Path) -> Result<LocalFileSystem> {
    if !dir.is_dir() {
        let message = format!("there is no directory {}", dir.display());
        return Err(Error::new(ErrorKind::NotFound, message).hint("make it, or mount it"));
    }
    let store = LocalFileSystem::new_with_prefix(dir)
        .map_err(|e| Error::new(ErrorKind::Io, format!("{}: {e}", dir.display())))?;
    // What is told as copied has to survive a power cut.
    Ok(store.with_fsync(true))
}

fn client_options(repo: &RepoRecord) -> ClientOptions {
    let http = repo.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    ClientOptions::new()
        .with_timeout(REQUEST_LIMIT)
        .with_connect_timeout(CONNECT_LIMIT)
        .with_allow_http(http)
}

fn retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: REQUEST_RETRIES, retry_timeout: REQUEST_LIMIT }
}

/// Endpoint and region fit the scheme, and plain HTTP stays on this host.
fn check_endpoint(repo: &RepoRecord, scheme: Scheme) -> Result<()> {
    for (option, text) in [("endpoint", &repo.endpoint), ("region", &repo.region)] {
        let Some(text) = text else { continue };
        if scheme == Scheme::File {
            return Err(Error::invalid(format!("a directory has no {option}")));
        }
        if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(char::is_control) {
            return Err(Error::invalid(format!("the {option} is empty or no plain text")));
        }
    }
    let Some(endpoint) = &repo.endpoint else { return Ok(()) };
    if endpoint.contains(['@', '?', '#']) {
        return Err(Error::invalid("the endpoint has a user, a query or a fragment")
            .hint("credentials are given by the environment, a file or a systemd credential"));
    }
    if endpoint.starts_with("https://") {
        return Ok(());
    }
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return Err(Error::invalid(format!("the endpoint {endpoint:?} is no http or https URL")));
    };
    let host = rest.split('/').next().unwrap_or_default();
    if repo.allow_http || is_this_host(host) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{endpoint} is plain HTTP: anybody on the way could read and change copies"
    ))
    .hint("use https, or --allow-http in a network you trust"))
}

/// Whether a `host[:port]` is a loopback address, whatever it is called.
fn is_this_host(host: &str) -> bool {
    let host = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    // `localhost` alone is looked up: other names could mean something else at the next request.
    let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) if name == "localhost" => host
            .to_socket_addrs()
            .is_ok_and(|mut all| all.all(|address| address.ip().is_loopback())),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let s3 = Address::parse("s3://bucket/a/b/").unwrap();
        assert_eq!(
            (s3.scheme, s3.bucket.as_str(), s3.path.as_str()),
            (Scheme::S3, "bucket", "a/b")
        );
        let file = Address::parse("file:///srv/vault").unwrap();
        assert_eq!(file.dir(), Some(PathBuf::from("/srv/vault")));
        assert_eq!(Address::parse("az://c").unwrap().path, "");
    }

    #[test]
    fn urls_that_make_no_sense_are_refused_and_secrets_in_them_not_repeated() {
        for url in ["", "x", "ftp://a/b", "file://rel", "file:///", "s3://", "s3:///p", "s3://a b"]
        {
            assert_eq!(Address::parse(url).unwrap_err().kind(), ErrorKind::Invalid, "{url}");
        }
        assert!(Address::parse("file:///a/../b").is_err());
        for url in ["s3://key:geheim@host/b", "az://c/p?sig=geheim"] {
            let error = Address::parse(url).unwrap_err();
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
    }

    #[test]
    fn only_loopback_is_this_host() {
        for host in ["127.0.0.1", "127.0.0.1:9000", "127.8.8.8:1", "[::1]:9000", "localhost:9000"] {
            assert!(is_this_host(host), "{host}");
        }
        for host in ["10.0.0.1:9000", "127.0.0.1.example.org", "localhost.example.org", "[::2]", ""]
        {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
