//! Keys of encrypted disks on the wire.
//!
//! Invariants: no key is ever on the wire, wrapped or not.
//! Absent: where master keys are, which is the daemon's configuration.

use serde::{Deserialize, Serialize};

/// Tells which master key wraps the keys of which disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyShow {}

/// Reads the master keys again and wraps every key with the present one, all in one change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotate {}

/// The keys of encrypted disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Where the master key is expected, as `[encryption] master_key` says.
    pub source: String,
    /// The id of the master key, if there is one.
    pub master: Option<String>,
    /// Why there is none.
    pub trouble: Option<String>,
    /// Why the previous master key cannot be read, if it cannot.
    pub previous_trouble: Option<String>,
    pub keys: Vec<Key>,
}

/// The key of disks and snapshots that share blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The id of the master key that wraps it.
    pub master: String,
    pub disks: Vec<KeyDisk>,
    /// Snapshots that need it, those of deleted disks included.
    pub snapshots: u64,
    /// Why it cannot be used, if it cannot.
    pub locked: Option<String>,
}

/// A disk that a key is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDisk {
    pub id: String,
    pub name: String,
}

/// The reply to `key.rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysRotated {
    /// Keys that another master key wrapped before.
    pub rotated: u64,
    pub keys: Keys,
}
