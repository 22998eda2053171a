//! Credentials of a repository: where they are taken from, and that they are told to nobody.
//!
//! Invariants: the catalogue remembers where credentials are, never what they are; they are read each time a
//! repository is opened, so that they can be changed; no message that leaves the vault contains one.
//! Absent: credentials on the command line or in a URL, and those that a cloud gives its own machines.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;

use crate::error::{Error, ErrorKind, Result};

/// No credential file is longer: a service account's key has 3 KiB.
const FILE_MAX: u64 = 64 << 10;
/// Texts shorter than this are not scrubbed from messages: they would stand in any text.
const SECRET_MIN: usize = 6;

const S3_KEYS: &[(&str, AmazonS3ConfigKey)] = &[
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
];
const AZURE_KEYS: &[(&str, AzureConfigKey)] = &[
    ("AZURE_STORAGE_ACCOUNT_NAME", AzureConfigKey::AccountName),
    ("AZURE_STORAGE_ACCOUNT_KEY", AzureConfigKey::AccessKey),
    ("AZURE_STORAGE_SAS_TOKEN", AzureConfigKey::SasKey),
];
const GOOGLE_KEY: &str = "GOOGLE_SERVICE_ACCOUNT_KEY";

/// Where credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The daemon's environment.
    Environment,
    /// A file of `NAME=VALUE` lines.
    File(PathBuf),
    /// A credential that systemd passes to the service.
    Systemd(String),
}

impl Source {
    /// Reads `env`, `file:PATH` or `systemd:NAME`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Source> {
        let usage = "env, file:/absolute/path or systemd:NAME";
        match text.split_once(':') {
            None if text == "env" => Ok(Source::Environment),
            Some(("file", path)) if Path::new(path).is_absolute() => Ok(Source::File(path.into())),
            Some(("systemd", name)) if is_plain(name) => Ok(Source::Systemd(name.to_owned())),
            // Not repeated: it may be the credential itself.
            _ => Err(Error::invalid("the source of credentials is not understood").hint(usage)),
        }
    }
}

fn is_plain(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fits)
}

/// Credentials as they were found. Debug tells the names only.
#[derive(Clone, Default)]
pub struct Credentials {
    values: BTreeMap<String, String>,
    origin: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?} from {})", self.values.keys(), self.origin)
    }
}

impl Credentials {
    /// Reads credentials from where they are.
    ///
    /// # Errors
    /// The file or systemd credential is not there, is not private, or makes no sense.
    pub fn load(source: &Source) -> Result<Credentials> {
        let path = match source {
            Source::Environment => return Ok(Credentials::from_environment()),
            Source::File(path) => path.clone(),
            Source::Systemd(name) => {
                let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
                    return Err(Error::new(
                        ErrorKind::Condition,
                        "systemd has passed no credentials to the daemon",
                    )
                    .hint(format!("put `LoadCredential={name}:PATH` into the unit of rowd")));
                };
                PathBuf::from(dir).join(name)
            }
        };
        Credentials::parse(&read_private(&path)?, &path.display().to_string())
    }

    fn from_environment() -> Credentials {
        let names = S3_KEYS.iter().map(|(name, _)| *name);
        let names = names.chain(AZURE_KEYS.iter().map(|(name, _)| *name)).chain([GOOGLE_KEY]);
        let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let found = names.filter_map(|name| Some((name.to_owned(), value(name)?)));
        Credentials { values: found.collect(), origin: "the daemon's environment".to_owned() }
    }

    /// Lines of `NAME=VALUE`; or JSON, which is the key of a service account.
    fn parse(text: &str, origin: &str) -> Result<Credentials> {
        let mut values = BTreeMap::new();
        if text.trim_start().starts_with('{') {
            values.insert(GOOGLE_KEY.to_owned(), text.to_owned());
            return Ok(Credentials { values, origin: origin.to_owned() });
        }
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                let message = format!("{origin}: line {} is not NAME=VALUE", number + 1);
                return Err(Error::invalid(message));
            };
            let value = value.trim().trim_matches('"');
            values.insert(name.trim().to_ascii_uppercase(), value.to_owned());
        }
        Ok(Credentials { values, origin: origin.to_owned() })
    }

    /// A message without any of the credentials, on one line and not too long.
    #[must_use]
    pub fn scrub(&self, message: &str) -> String {
        let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
        for value in self.values.values().filter(|value| value.len() >= SECRET_MIN) {
            text = text.replace(value.as_str(), "***");
        }
        // Queries of URLs may be signed.
        let mut clean = String::new();
        let mut in_query = false;
        for c in text.chars().take(500) {
            in_query = if in_query { !matches!(c, ' ' | '"' | ')' | '>' | '<') } else { c == '?' };
            if !in_query {
                clean.push(c);
            }
        }
        clean
    }

    pub(super) fn for_s3(&self) -> Result<Vec<(AmazonS3ConfigKey, String)>> {
        self.needed(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])?;
        Ok(S3_KEYS.iter().filter_map(|(name, key)| Some((*key, self.get(name)?))).collect())
    }

    pub(super) fn for_azure(&self) -> Result<Vec<(AzureConfigKey, String)>> {
        self.needed(&["AZURE_STORAGE_ACCOUNT_NAME"])?;
        if self.get("AZURE_STORAGE_ACCOUNT_KEY").is_none() {
            self.needed(&["AZURE_STORAGE_SAS_TOKEN"])?;
        }
        Ok(AZURE_KEYS.iter().filter_map(|(name, key)| Some((*key, self.get(name)?))).collect())
    }

    pub(super) fn for_google(&self) -> Result<String> {
        self.needed(&[GOOGLE_KEY])?;
        Ok(self.get(GOOGLE_KEY).unwrap_or_default())
    }

    fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    fn needed(&self, names: &[&str]) -> Result<()> {
        let missing: Vec<&str> =
            names.iter().copied().filter(|name| !self.values.contains_key(*name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!("{} is not in {}", missing.join(" and "), self.origin);
        Err(Error::new(ErrorKind::Condition, message)
            .hint("name the source: --credentials env, file:/absolute/path or systemd:NAME"))
    }
}

/// The text of a file that only its owner can read.
fn read_private(path: &Path) -> Result<String> {
    let doing = || format!("read the credentials in {}", path.display());
    let file = File::open(path).map_err(|e| Error::io(doing(), &e))?;
    let meta = file.metadata().map_err(|e| Error::io(doing(), &e))?;
    if !meta.is_file() || meta.len() > FILE_MAX {
        return Err(Error::invalid(format!("{} is no file of credentials", path.display())));
    }
    if meta.mode() & 0o077 != 0 {
        let message = format!("others than its owner may use {}", path.display());
        return Err(
            Error::new(ErrorKind::Condition, message).hint(format!("chmod 600 {}", path.display()))
        );
    }
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| Error::io(doing(), &e))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_never_repeated() {
        assert_eq!(Source::parse("env").unwrap(), Source::Environment);
        assert_eq!(Source::parse("file:/etc/x").unwrap(), Source::File("/etc/x".into()));
        assert_eq!(Source::parse("systemd:s3.key").unwrap(), Source::Systemd("s3.key".into()));
        for text in ["AKIAGEHEIM", "file:rel", "systemd:../x", "systemd:", "key:geheim"] {
            let error = Source::parse(text).unwrap_err();
            assert!(!error.to_string().to_lowercase().contains("geheim"), "{error}");
        }
    }

    #[test]
    fn messages_lose_secrets_and_queries() {
        let text = "AWS_ACCESS_KEY_ID=AKIA1234\n# x\naws_secret_access_key = \"s3cretvalue\"\n";
        let found = Credentials::parse(text, "a file").unwrap();
        assert_eq!(found.for_s3().unwrap().len(), 2);
        let told = found.scrub("PUT http://h/b?X-Sig=abc failed:\n s3cretvalue (see \"x\")");
        assert_eq!(told, "PUT http://h/b failed: *** (see \"x\")");
        assert!(!format!("{found:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let found = Credentials::parse("AWS_ACCESS_KEY_ID=AKIA1234", "a file").unwrap();
        let error = found.for_s3().unwrap_err();
        assert_eq!(error.message(), "AWS_SECRET_ACCESS_KEY is not in a file");
    }
}
