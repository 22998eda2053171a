//! Every key of `rowd.toml`: its type, unit, range, default and meaning, in one place.
//!
//! Invariants: what is parsed, what is checked, the example file, the reference and the man page come from this table;
//! a key without a meaning does not compile.
//! Absent: checks that are more than a range (`config.rs`), and how the table is written out (`reference.rs`).

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::freeze;

/// A key, as people are told about it.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    /// Lines of Markdown.
    pub meaning: &'static [&'static str],
    pub kind: Kind,
    /// Of the number.
    pub unit: Option<&'static str>,
    /// The smallest and the largest value, where nothing else is checked.
    pub range: Option<(u64, u64)>,
    pub preset: Preset,
}

/// What stands in the example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The default, as TOML.
    Default(&'static str),
    /// Something that may be written, as TOML; without it the meaning says what happens.
    Example(&'static str),
}

/// Keys under one name in brackets; those above the first have none.
#[derive(Debug)]
pub struct Section {
    pub name: &'static str,
    pub meaning: &'static [&'static str],
    pub keys: &'static [Key],
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Path,
    Text,
    Size,
    Number,
    Count,
    Octal,
    Numbers,
    Names,
    Address,
    Addresses,
    Switch,
}

/// How a value of a kind is parsed.
macro_rules! parsed {
    (Path) => { Option<PathBuf> };
    (Text) => { Option<String> };
    (Size) => { Option<String> };
    (Number) => { Option<u64> };
    (Count) => { Option<usize> };
    (Octal) => { Option<u32> };
    (Numbers) => { Vec<u32> };
    (Names) => { Vec<String> };
    (Address) => { Option<SocketAddr> };
    (Addresses) => { Vec<SocketAddr> };
    (Switch) => { Option<bool> };
}

/// `None` or `Some` of what may be left out.
macro_rules! maybe {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

/// A key: `name: Kind (unit) [low, high] Default toml`, unit and range where there are any.
macro_rules! key {
    ($doc:expr, $key:ident, $kind:ident, $unit:expr, $range:expr, $preset:expr) => {
        Key {
            name: stringify!($key),
            meaning: $doc,
            kind: Kind::$kind,
            unit: $unit,
            range: $range,
            preset: $preset,
        }
    };
}

macro_rules! keys {
    (
        top {$(
            $(#[doc = $top_doc:literal])+
            $top:ident: $top_kind:ident $top_preset:ident $top_value:literal;
        )+}
        $(
            $(#[doc = $about:literal])+
            [$section:ident] $raw:ident {$(
                $(#[doc = $doc:literal])+
                $key:ident: $kind:ident $(($unit:literal))? $([$low:expr, $high:expr])? $preset:ident $value:literal;
            )+}
        )+
    ) => {
        /// `rowd.toml` as written.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct Raw {
            $(pub(super) $top: parsed!($top_kind),)+
            $(pub(super) $section: $raw,)+
        }
        $(
            #[derive(Debug, Default, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub(super) struct $raw {
                $(pub(super) $key: parsed!($kind),)+
            }
        )+
        /// All keys, in the order in which people read of them.
        pub static SECTIONS: &[Section] = &[
            Section {
                name: "",
                meaning: &[],
                keys: &[$(
                    key!(&[$($top_doc),+], $top, $top_kind, None, None, Preset::$top_preset($top_value)),
                )+],
            },
            $(Section {
                name: stringify!($section),
                meaning: &[$($about),+],
                keys: &[$(
                    key!(
                        &[$($doc),+], $key, $kind, maybe!($($unit)?), maybe!($(($low, $high))?),
                        Preset::$preset($value)
                    ),
                )+],
            },)+
        ];
    };
}

keys! {
    top {
        /// Where the pool and the map are.
        dir: Path Default "\"/var/lib/rowd\"";
    }

    /// The pool file, its journal and the map.
    [pool] RawPool {
        /// The pool file, or a block device (that needs `DeviceAllow=` in a drop-in for `rowd.service`). In `dir`, unless
        /// it says something else.
        path: Path Default "\"/var/lib/rowd/pool\"";
        /// `"buffered"`, through the page cache of this host, or `"direct"`, past it: for hosts that mount rowd's disks
        /// themselves, so that writing back never waits for memory.
        io: Text Default "\"buffered\"";
        /// The unit in which the pool file grows and shrinks: a multiple of 256 KiB.
        segment: Size Default "\"64MiB\"";
        /// Writes between two checkpoints: a multiple of 4 KiB, from 2 MiB on. A larger one takes longer to replay after a
        /// crash.
        journal: Size Default "\"64MiB\"";
        /// The most the pool file may take, from one segment to 2 PiB.
        max_size: Size Default "\"2PiB\"";
        /// What is left free on the host's file system.
        host_reserve: Size Default "\"1GiB\"";
        /// Memory for the map; what does not fit is read from RocksDB.
        map_cache: Size Default "\"256MiB\"";
    }

    /// Where NBD clients connect.
    [nbd] RawNbd {
        /// The Unix socket; with `--dir` it is in that directory.
        socket: Path Default "\"/run/rowd/nbd.sock\"";
        /// In octal: who in the group of the socket may connect.
        socket_mode: Octal Default "0o660";
        /// Loopback addresses such as `"127.0.0.1:10809"`. There is no encryption and no password: every program on
        /// this host that may open a connection has the disks. It needs `RestrictAddressFamilies=AF_INET AF_INET6` in
        /// a drop-in for `rowd.service`.
        tcp: Addresses Default "[]";
        /// How long a connection looks for the next request before it sleeps; 0 saves power.
        busy_poll_us: Number ("of microseconds") [0, 1000] Default "50";
    }

    /// Who may control the daemon.
    [control] RawControl {
        /// The socket of `rowctl`; with `--dir` it is in that directory.
        socket: Path Default "\"/run/rowd/control.sock\"";
        /// The same for looking only.
        read_only_socket: Path Default "\"/run/rowd/control-ro.sock\"";
        /// Besides root, members of these groups may control rowd: `["rowd"]` for the group of the package.
        groups: Names Default "[]";
        /// The same by number.
        gids: Numbers Default "[]";
        /// Members of these groups may use the read-only socket, which is then open to all by its mode; the kernel says
        /// who comes. They have to reach it: `read_only_socket` in a directory of theirs, or `RuntimeDirectoryMode=0755` in
        /// a drop-in.
        read_only_groups: Names Default "[]";
        /// Where each call that would change something is written down, with its caller and result. In `dir`, unless it
        /// says something else.
        audit: Path Default "\"/var/lib/rowd/audit.jsonl\"";
    }

    /// How many there may be.
    [quota] RawQuota {
        /// Manual snapshots of one disk; further ones are refused.
        manual_snapshots: Count Default "256";
        /// Automatic snapshots of one disk; when there is one more, the oldest goes.
        automatic_snapshots: Count Default "1000";
        /// Policies of this host.
        policies: Count Default "100";
    }

    /// Deleted disks.
    [trash] RawTrash {
        /// How long a deleted disk can be brought back (`rowctl trash`); 0 for not at all. When the pool is short of space
        /// it goes before that.
        hours: Number ("of hours") [0, 8760] Default "24";
    }

    /// What the daemon does by itself.
    [background] RawBackground {
        /// How long the state before a rollback is kept for `rowctl disk rollback --undo`.
        undo_hours: Number ("of hours") [0, 8760] Default "24";
        /// At the latest after so long everything written is durable, flushed by the client or not.
        flush_ms: Number ("of milliseconds") [10, 1000] Default "1000";
        /// The longest between two checkpoints of the map.
        checkpoint_s: Number ("of seconds") [1, 3600] Default "5";
        /// What a scrub reads in a second.
        scrub_rate: Size Default "\"64MiB\"";
        /// What copies on their way to a repository may cost busy clients of what these get done. Copies rest as much as that
        /// takes, and work for so many percent of the time however much they cost; at 100 they never rest.
        copy_cost: Number ("in percent") [1, 100] Default "5";
    }

    /// Disks as kernel devices, `/dev/nbdN`.
    [attach] RawAttach {
        /// Connections of a kernel device.
        connections: Number [2, 8] Default "2";
        /// How long I/O on a kernel device waits for a daemon that is away before it fails.
        dead_connection_s: Number ("of seconds") [1, 86400] Default "600";
        /// When the kernel asks again for a request that a connection did not answer.
        retry_s: Number ("of seconds") [1, 30] Default "3";
        /// How much of the memory for unwritten data one kernel device may take; 100 is no bound.
        dirty_share: Number ("in percent") [1, 100] Default "50";
    }

    /// File systems and applications that are held still for a snapshot.
    [freeze] RawFreeze {
        /// The longest a file system stays frozen, whatever happens.
        timeout_s: Number ("of seconds") [1, freeze::LIMIT_MAX.as_secs()] Default "30";
        /// How long a script or hook of an application may take.
        script_timeout_s: Number ("of seconds") [1, freeze::SCRIPT_LIMIT_MAX.as_secs()] Default "1800";
        /// The script that runs before the freeze of a snapshot with `--consistency app`: a file of root with mode 0700.
        /// None unless given.
        pre_script: Path Example "\"/etc/rowd/prescript.sh\"";
        /// The one that runs after it.
        post_script: Path Example "\"/etc/rowd/postscript.sh\"";
        /// Hooks: a directory of programs of root that hold an application still while a snapshot is made. With `--dir`
        /// and no configuration it is `hooks.d` in that directory.
        hooks: Path Default "\"/etc/rowd/hooks.d\"";
        /// Where it is written down what is frozen: beside the control socket, unless it says something else.
        /// `rowd.service` names this file too.
        record: Path Default "\"/run/rowd/frozen.json\"";
    }

    /// The master key, which wraps the keys of encrypted disks.
    [encryption] RawEncryption {
        /// Where it is: `"credential:NAME"` (`LoadCredential=` of the service), `"file:/PATH"` (mode 0600), or
        /// `"keyring:NAME"` (a key of type user in the kernel's keyring of rowd's user, which needs `KeyringMode=shared` in
        /// a drop-in for `rowd.service`).
        master_key: Text Default "\"credential:rowd-master-key\"";
        /// The one before, until `rowctl key rotate` has wrapped all keys with the new one.
        previous_master_key: Text Default "\"credential:rowd-previous-master-key\"";
    }

    /// Metrics for Prometheus; `rowctl metrics` needs none of this.
    [metrics] RawMetrics {
        /// A loopback address to answer scrapes on, at `/metrics`; none unless given. Every program on this host can read
        /// it. It needs `RestrictAddressFamilies=AF_INET AF_INET6` in a drop-in for `rowd.service`.
        listen: Address Example "\"127.0.0.1:9750\"";
        /// A file to keep up to date for a collector that reads files; none unless given. It is removed when rowd stops.
        textfile: Path Example "\"/var/lib/prometheus/node-exporter/rowd.prom\"";
        /// How often the file is written.
        interval_s: Number ("of seconds") [1, 3600] Default "15";
    }

    /// The daemon's own memory.
    [memory] RawMemory {
        /// Whether it is locked: `true`, `false`, or left out for "when a kernel device is attached".
        lock: Switch Example "true";
    }
}
