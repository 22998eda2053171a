//! The master key: where it comes from, and what it wraps.
//!
//! Invariants: a master key is never written anywhere; a wrapped key names the master key that unwraps it, so
//! a wrong one is told from a damaged record; a file that others may read is refused.
//! Absent: making a master key (`openssl rand -hex 32`), and asking a person for one.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes_kw::KwAes256;
use linux_keyutils::{KeyError, KeyRing, KeyRingIdentifier};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::locked::Locked;
use super::{DiskKey, KEY_BYTES};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a master key: AES-256.
const MASTER_BYTES: usize = 32;
/// A wrapped key is longer by its check value.
const WRAPPED_BYTES: usize = KEY_BYTES + 8;
/// A key as text, with room for a line end.
const TEXT_MAX: u64 = 256;
/// What a master key makes of this block is its id.
const ID_BLOCK: &[u8; 16] = b"rowd master key\0";

/// Where master keys are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub master: Source,
    /// Unwraps keys that were wrapped before the master key changed.
    pub previous: Source,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            master: Source::Credential("rowd-master-key".to_owned()),
            previous: Source::Credential("rowd-previous-master-key".to_owned()),
        }
    }
}

/// Where one master key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A credential that the service manager passes: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    File(PathBuf),
    /// A key of type `user` with this description, in the session or user keyring of the kernel.
    Keyring(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Credential(name) => write!(f, "credential:{name}"),
            Source::File(path) => write!(f, "file:{}", path.display()),
            Source::Keyring(name) => write!(f, "keyring:{name}"),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source> {
        let wrong = || {
            Error::invalid(format!(
                "{text:?}: credential:NAME, file:/PATH or keyring:NAME is possible"
            ))
        };
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "credential" if !rest.is_empty() && !rest.contains('/') => {
                Ok(Source::Credential(rest.to_owned()))
            }
            "file" if Path::new(rest).is_absolute() => Ok(Source::File(PathBuf::from(rest))),
            "keyring" if !rest.is_empty() => Ok(Source::Keyring(rest.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl Source {
    /// The key that is there; nothing when a credential was not passed.
    ///
    /// # Errors
    /// `Condition`: it cannot be read, others may read it, or it is no key.
    fn read(&self) -> Result<Option<MasterKey>> {
        let content = match self {
            Source::Credential(name) => {
                let path = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
                let path = path.map(|dir| dir.join(name)).filter(|path| path.exists());
                let Some(path) = path else { return Ok(None) };
                // The service manager has seen to who may read it.
                read_file(&path, false)?
            }
            Source::File(path) => read_file(path, true)?,
            Source::Keyring(name) => read_keyring(name)?,
        };
        let key = parse(&content).ok_or_else(|| {
            condition(format!("{self} is not a master key"))
                .hint("a master key is 32 bytes, or 64 hexadecimal digits: openssl rand -hex 32")
        })?;
        MasterKey::new(&key).map(Some)
    }
}

fn condition(message: String) -> Error {
    Error::new(ErrorKind::Condition, message)
}

fn read_file(path: &Path, private: bool) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |e: std::io::Error| {
        condition(format!("read the master key {}: {e}", path.display()))
            .hint("see [encryption] in rowd.toml")
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if private && mode & 0o077 != 0 {
        return Err(condition(format!(
            "the master key {} may be read by others (mode {mode:04o})",
            path.display()
        ))
        .hint(format!("chmod 0600 {}; if somebody has read it, make another", path.display())));
    }
    // As long as it can become: what grows leaves copies behind.
    let mut content = Zeroizing::new(Vec::with_capacity(512));
    file.take(TEXT_MAX).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

fn read_keyring(name: &str) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |e: KeyError| {
        condition(format!("read the master key keyring:{name}: {e:?}"))
            .hint(format!("as the user of rowd: keyctl padd user {name} @u < FILE"))
    };
    let search = |id| KeyRing::from_special_id(id, false).and_then(|ring| ring.search(name));
    let key = search(KeyRingIdentifier::Session)
        .or_else(|_| search(KeyRingIdentifier::User))
        .map_err(failed)?;
    key.read_to_vec().map(Zeroizing::new).map_err(failed)
}

/// 32 bytes, or 64 hexadecimal digits with white space around them.
fn parse(content: &[u8]) -> Option<Zeroizing<[u8; MASTER_BYTES]>> {
    if let Ok(bytes) = content.try_into() {
        return Some(Zeroizing::new(bytes));
    }
    let mut key = Zeroizing::new([0; MASTER_BYTES]);
    from_hex(content.trim_ascii(), &mut *key)?;
    Some(key)
}

/// Fills `out` from exactly as many pairs of digits.
fn from_hex(digits: &[u8], out: &mut [u8]) -> Option<()> {
    let pairs = digits.as_chunks::<2>();
    if !pairs.1.is_empty() || pairs.0.len() != out.len() {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs.0) {
        let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// The id of the master key that unwraps it.
    pub master: String,
    /// RFC 3394, in hexadecimal digits.
    pub key: String,
}

/// A key that wraps the keys of disks.
pub struct MasterKey {
    cipher: Locked<KwAes256>,
    id: String,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl MasterKey {
    fn new(key: &[u8; MASTER_BYTES]) -> Result<MasterKey> {
        let mut block = aes::Block::from(*ID_BLOCK);
        Aes256::new(key.into()).encrypt_block(&mut block);
        let cipher = Locked::new(|| KwAes256::new(key.into()))?;
        Ok(MasterKey { cipher, id: to_hex(&block[..8]) })
    }

    /// Tells keys apart and says nothing about the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// # Errors
    /// None; a key has a length that can be wrapped.
    pub fn wrap(&self, key: &DiskKey) -> Result<Wrapped> {
        let mut wrapped = [0; WRAPPED_BYTES];
        self.cipher
            .wrap_key(&**key, &mut wrapped)
            .map_err(|e| Error::internal(format!("wrap a key: {e}")))?;
        Ok(Wrapped { master: self.id.clone(), key: to_hex(&wrapped) })
    }

    fn unwrap(&self, wrapped: &Wrapped) -> Result<DiskKey> {
        let mut bytes = [0; WRAPPED_BYTES];
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let whole = from_hex(wrapped.key.as_bytes(), &mut bytes)
            .is_some_and(|()| self.cipher.unwrap_key(&bytes, &mut *key).is_ok());
        // The id fitted, so it is not the master key that is wrong.
        if whole { Ok(key) } else { Err(Error::corrupt("the record of the key is damaged")) }
    }
}

/// What there is of master keys.
#[derive(Debug)]
pub struct Masters {
    settings: Settings,
    current: Result<Option<MasterKey>>,
    previous: Result<Option<MasterKey>>,
}

impl Masters {
    /// Reads them. What cannot be read is no error before somebody needs it.
    #[must_use]
    pub fn read(settings: &Settings) -> Masters {
        let (current, previous) = (settings.master.read(), settings.previous.read());
        Masters { settings: settings.clone(), current, previous }
    }

    /// The master key that wraps new keys.
    ///
    /// # Errors
    /// `Condition`: there is none, and what to do about it.
    pub fn current(&self) -> Result<&MasterKey> {
        let Settings { master, .. } = &self.settings;
        match &self.current {
            Ok(Some(key)) => Ok(key),
            Ok(None) => Err(condition("there is no master key".to_owned()).hint(format!(
                "make one (openssl rand -hex 32), pass it to rowd as {master} (or name another \
                 place: [encryption] master_key in rowd.toml), and restart rowd"
            ))),
            Err(error) => Err(error.clone()),
        }
    }

    /// Where the master key is expected.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.settings.master
    }

    /// Why the previous master key cannot be read, if it cannot.
    #[must_use]
    pub fn trouble(&self) -> Option<&Error> {
        self.previous.as_ref().err()
    }

    /// # Errors
    /// `Condition` when the master key for it is not there.
    pub fn unwrap(&self, wrapped: &Wrapped) -> Result<DiskKey> {
        let fits = |key: &&MasterKey| key.id == wrapped.master;
        let all = [&self.current, &self.previous];
        let found = all.into_iter().filter_map(|key| key.as_ref().ok()?.as_ref()).find(fits);
        if let Some(master) = found {
            return master.unwrap(wrapped);
        }
        let current = self.current().map_err(|error| {
            error.context(format!("its key is wrapped by master key {}", wrapped.master))
        })?;
        Err(condition(format!(
            "its key is wrapped by master key {}, and {} is another one, {}",
            wrapped.master, self.settings.master, current.id
        ))
        .hint(format!(
            "put the right master key there, or the old one into {}, and restart rowd",
            self.settings.previous
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masters(current: Option<u8>, previous: Option<u8>) -> Masters {
        let key = |fill: Option<u8>| fill.map(|fill| MasterKey::new(&[fill; 32])).transpose();
        let (current, previous) = (key(current), key(previous));
        Masters { settings: Settings::default(), current, previous }
    }

    #[test]
    fn a_key_comes_back_by_the_master_key_that_wrapped_it() {
        let key = crate::crypt::new_key().unwrap();
        let wrapped = masters(Some(1), None).current().unwrap().wrap(&key).unwrap();
        assert_eq!(*masters(Some(1), None).unwrap(&wrapped).unwrap(), *key);
        assert_eq!(*masters(Some(2), Some(1)).unwrap(&wrapped).unwrap(), *key);
        let error = masters(Some(2), None).unwrap(&wrapped).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Condition);
        assert!(error.message().contains("another one"), "{error}");
        let error = masters(None, None).unwrap(&wrapped).unwrap_err();
        assert!(error.message().contains("no master key"), "{error}");
        let mut damaged = wrapped;
        damaged.key.replace_range(20..21, if &damaged.key[20..21] == "0" { "1" } else { "0" });
        let error = masters(Some(1), None).unwrap(&damaged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    /// RFC 3394, 4.6: 256 bits of key data with a key of 256 bits.
    #[test]
    fn wrapping_is_that_of_the_standard() {
        let mut key = [0; 32];
        from_hex(b"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", &mut key);
        let mut data = [0; 32];
        from_hex(b"00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F", &mut data);
        let mut out = [0; 40];
        MasterKey::new(&key).unwrap().cipher.wrap_key(&data, &mut out).unwrap();
        let expected =
            "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        assert_eq!(to_hex(&out), expected);
    }

    #[test]
    fn a_master_key_is_bytes_or_digits() {
        assert_eq!(*parse(&[5; 32]).unwrap(), [5; 32]);
        assert_eq!(*parse(&[b"0a".repeat(32), b"\n".to_vec()].concat()).unwrap(), [10; 32]);
        for bad in [&b""[..], &[b'0'; 63], &[b'g'; 64], &[b'0'; 65]] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn places_read_back_as_written() {
        for text in ["credential:rowd-master-key", "file:/etc/rowd/master.key", "keyring:rowd"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for bad in ["", "rowd", "file:key", "credential:", "credential:../x", "vault:x"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_of_the_kernel_is_read() {
        let name = format!("rowd-test-{}", std::process::id());
        let ring = KeyRing::from_special_id(KeyRingIdentifier::User, false).unwrap();
        let key = ring.add_key(&name, &[7; 32]).unwrap();
        let read = Source::Keyring(name).read();
        key.invalidate().unwrap();
        assert_eq!(read.unwrap().unwrap().id(), MasterKey::new(&[7; 32]).unwrap().id());
        assert_eq!(
            Source::Keyring("no-such-key".to_owned()).read().unwrap_err().kind(),
            ErrorKind::Condition
        );
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "0a".repeat(32)).unwrap();
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        set(0o640);
        let error = Source::File(path.clone()).read().unwrap_err();
        assert!(error.message().contains("0640"), "{error}");
        set(0o600);
        assert!(Source::File(path).read().unwrap().is_some());
    }
}
