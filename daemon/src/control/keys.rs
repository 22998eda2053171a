//! The methods of keys.
//!
//! Invariants: what is told of a key is which master key wraps it, never the key.
//! Absent: master keys from clients: the daemon reads them where its configuration says.

use std::sync::Arc;

use rowd_proto as proto;

use crate::engine::Engine;
use crate::engine::api::{Actor, KeyInfo, KeysInfo};
use crate::error::Result;

pub(super) fn show(engine: &Arc<Engine>, _: Actor, _: proto::KeyShow) -> Result<proto::Keys> {
    Ok(keys(engine.keys()))
}

pub(super) fn rotate(
    engine: &Arc<Engine>,
    by: Actor,
    _: proto::KeyRotate,
) -> Result<proto::KeysRotated> {
    let rotated = engine.key_rotate(by)?;
    Ok(proto::KeysRotated { rotated, keys: keys(engine.keys()) })
}

fn keys(info: KeysInfo) -> proto::Keys {
    proto::Keys {
        source: info.source,
        master: info.master,
        trouble: info.trouble,
        previous_trouble: info.previous_trouble,
        keys: info.keys.into_iter().map(key).collect(),
    }
}

fn key(info: KeyInfo) -> proto::Key {
    let disk = |(id, name): (_, String)| {
        let id: crate::units::DiskId = id;
        proto::KeyDisk { id: id.to_string(), name }
    };
    proto::Key {
        master: info.master,
        disks: info.disks.into_iter().map(disk).collect(),
        snapshots: info.snapshots,
        locked: info.locked,
    }
}
