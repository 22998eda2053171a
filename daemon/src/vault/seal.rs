//! How the chunks of a copy are stored: as they are, or encrypted with the key that the copy carries.
//!
//! Invariants: a copy of an encrypted disk is never sent as it is; a copy is read with its key only if the sum
//! that the key makes says that header and table belong together.
//! Absent: the encryption (`crypt/copy.rs`).

use std::sync::Arc;

use super::format::{from_hex, hex};
use super::header::{self, COPIES, Header, Sealed};
use super::parts::Root;
use super::store::Store;
use super::table::Table;
use crate::crypt::copy::CopyKey;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::units::SnapshotId;

/// What chunks are encrypted with. It names the compression too: zstd comes first.
const CIPHER: &str = "aes-256-gcm";

/// How chunks are stored.
#[derive(Clone, Debug)]
pub enum Seal {
    Plain,
    Sealed(Arc<CopyKey>),
    /// Encrypted, and there is no key: why.
    Locked(Error),
}

impl Seal {
    /// The key, if there is one.
    ///
    /// # Errors
    /// The chunks are encrypted, and there is no key.
    pub fn key(&self) -> Result<Option<&CopyKey>> {
        match self {
            Seal::Plain => Ok(None),
            Seal::Sealed(key) => Ok(Some(key)),
            Seal::Locked(why) => Err(why.clone()),
        }
    }

    /// How a copy is stored that is in a repository. Another copy of the same disk may carry its key wrapped by
    /// a later master key.
    ///
    /// # Errors
    /// The store does not answer; `Unsupported` for a cipher that is not known.
    pub async fn of(engine: &Engine, store: &Store, header: &Header) -> Result<Seal> {
        let Some(sealed) = &header.sealed else { return Ok(Seal::Plain) };
        if sealed.cipher != CIPHER {
            let message = format!("copy {} is encrypted with {:?}", header.id, sealed.cipher);
            return Err(Error::new(ErrorKind::Unsupported, message).hint("use a newer rowd"));
        }
        let why = match opened(engine, sealed) {
            Ok(key) => return Ok(Seal::Sealed(Arc::new(key))),
            Err(error) if error.kind() == ErrorKind::Condition => error,
            Err(error) => return Err(error.context(format!("copy {}", header.id))),
        };
        for key in store.list(COPIES).await? {
            let other = match Header::read(store, &key).await {
                Ok(other) => other.sealed,
                Err(error) if header::is_passed_over(&error) => None,
                Err(error) => return Err(error),
            };
            let same = other.filter(|other| other.key_id == sealed.key_id);
            if let Some(Ok(key)) = same.map(|other| opened(engine, &other)) {
                return Ok(Seal::Sealed(Arc::new(key)));
            }
        }
        Ok(Seal::Locked(why.context(format!("copy {} is encrypted", header.id))))
    }

    /// Refuses a table that is not what the key says of its header.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check(&self, header: &Header, table: &Table) -> Result<()> {
        self.check_contents(header, || header.contents(table))
    }

    /// As [`Seal::check`], of a table in parts by what its root says of them.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_root(&self, header: &Header, root: &Root) -> Result<()> {
        self.check_contents(header, || root.contents_sum())
    }

    fn check_contents(&self, header: &Header, contents: impl FnOnce() -> String) -> Result<()> {
        let (Seal::Sealed(key), Some(sealed)) = (self, &header.sealed) else { return Ok(()) };
        let sum = from_hex(&sealed.sum).unwrap_or_default();
        match key.is_sum(&header.signed(&contents()), &sum) {
            true => Ok(()),
            false => Err(Error::corrupt(format!(
                "{} in the repository is damaged: it is not what its key was used for",
                header.key()
            ))),
        }
    }
}

fn opened(engine: &Engine, sealed: &Sealed) -> Result<CopyKey> {
    let key = engine.open_copy_key(&sealed.wrapped)?;
    match key.id() == sealed.key_id {
        true => Ok(key),
        false => Err(Error::corrupt("the key it carries is another one")),
    }
}

/// How a copy is going to be stored.
#[derive(Debug)]
pub struct Sealing {
    pub seal: Seal,
    /// What its header is going to say, but for the sum.
    sealed: Option<Sealed>,
}

impl Sealing {
    /// For a copy of a snapshot that is here.
    ///
    /// # Errors
    /// `Condition` when a key is not there.
    pub fn of_snapshot(engine: &Engine, snapshot: &SnapshotId) -> Result<Sealing> {
        let Some((key, wrapped)) = engine.copy_key(snapshot)? else {
            return Ok(Sealing { seal: Seal::Plain, sealed: None });
        };
        let (cipher, key_id, sum) = (CIPHER.to_owned(), key.id().to_owned(), String::new());
        let sealed = Some(Sealed { cipher, key_id, wrapped, sum });
        Ok(Sealing { seal: Seal::Sealed(Arc::new(key)), sealed })
    }

    /// Whether a copy is stored alike, with the same key, and is what its key says.
    #[must_use]
    pub fn fits(&self, header: &Header, table: &Table) -> bool {
        let id = |sealed: &Option<Sealed>| sealed.as_ref().map(|sealed| sealed.key_id.clone());
        id(&self.sealed) == id(&header.sealed) && self.seal.check(header, table).is_ok()
    }

    /// What the header of a copy says, which is complete but for this.
    ///
    /// # Errors
    /// There is no key.
    pub fn sign(&self, header: &Header, table: &Table) -> Result<Option<Sealed>> {
        let key = self.seal.key()?;
        let signed = |key: &CopyKey| key.sum(&header.signed(&header.contents(table)));
        let sum = key.map(|key| hex(&signed(key))).unwrap_or_default();
        Ok(self.sealed.clone().map(|sealed| Sealed { sum, ..sealed }))
    }
}
