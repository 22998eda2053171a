//! The configuration: `rowd.toml`, or `--dir DIR` and defaults.
//!
//! Invariants: unknown keys are errors; every value is checked here, with its key in the message; sizes
//! are written as in the CLI (`64MiB`), durations with their unit in the key.
//! Absent: anything that can be changed while the daemon runs (`rowctl` does that); the keys with their defaults
//! (`config/keys.rs`).

mod keys;
pub mod reference;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Group;
use rowd_proto::size::Size;
use serde::de::DeserializeOwned;

use crate::attach;
use crate::crypt;
use crate::engine::{MAX_POOL_BYTES, Settings};
use crate::error::{Error, Result};
use crate::freeze;
use crate::memory::Lock;
use crate::metrics;
use crate::pool::file::IoMode;
use crate::pool::journal;
use crate::units::BLOCK_SIZE;

pub use keys::SECTIONS;
use keys::{Raw, RawAttach, RawEncryption, RawFreeze, RawMetrics};

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub settings: Settings,
    pub lock_memory: Lock,
    pub nbd_socket: PathBuf,
    pub nbd_socket_mode: u32,
    pub tcp: Vec<SocketAddr>,
    pub busy_poll: Duration,
    pub control_socket: PathBuf,
    pub read_only_socket: PathBuf,
    pub control_gids: Vec<u32>,
    /// Besides those: groups that may look.
    pub observer_gids: Vec<u32>,
    pub audit: PathBuf,
    pub attach: attach::Settings,
    pub freeze: freeze::Settings,
    pub metrics: metrics::Settings,
}

impl Config {
    /// Everything inside one directory, with defaults.
    ///
    /// # Errors
    /// None at present; the defaults are checked like any other values.
    pub fn for_dir(dir: &Path) -> Result<Config> {
        let freeze = RawFreeze { hooks: Some(dir.join("hooks.d")), ..RawFreeze::default() };
        check(Raw { freeze, ..Raw::default() }, dir, dir)
    }

    /// What a file says; `dir` overrides the directory in it, and is where sockets are then.
    ///
    /// # Errors
    /// The file cannot be read, or a value will not do.
    pub fn load(path: &Path, dir: Option<&Path>) -> Result<Config> {
        let text = fs::read_to_string(path)
            .map_err(|e| Error::io(format!("read {}", path.display()), &e))?;
        let mut config = Config::parse(&text, dir).map_err(|e| e.context(path.display()))?;
        config.freeze.own.push(("the configuration".to_owned(), path.to_owned()));
        Ok(config)
    }

    /// As [`Config::load`], from text.
    ///
    /// # Errors
    /// A value will not do.
    pub fn parse(text: &str, dir: Option<&Path>) -> Result<Config> {
        let raw: Raw = toml::from_str(text).map_err(|e| Error::invalid(e.to_string()))?;
        // Who names a directory on the command line wants everything inside it; a service has its sockets
        // where the system has them.
        let sockets = dir.unwrap_or(Path::new("/run/rowd"));
        let dir = dir.map(Path::to_owned).or_else(|| raw.dir.clone());
        let dir = or_default("dir", dir);
        check(raw, &dir, sockets)
    }
}

fn check(raw: Raw, dir: &Path, sockets: &Path) -> Result<Config> {
    let beside = |given: Option<PathBuf>, name: &str| given.unwrap_or_else(|| sockets.join(name));
    let mut config = Config {
        nbd_socket: beside(raw.nbd.socket.clone(), "nbd.sock"),
        nbd_socket_mode: or_default("nbd.socket_mode", raw.nbd.socket_mode),
        tcp: raw.nbd.tcp.clone(),
        busy_poll: Duration::from_micros(number("nbd.busy_poll_us", raw.nbd.busy_poll_us)?),
        control_socket: beside(raw.control.socket.clone(), "control.sock"),
        read_only_socket: beside(raw.control.read_only_socket.clone(), "control-ro.sock"),
        control_gids: gids("control.groups", &raw.control.groups, &raw.control.gids)?,
        observer_gids: gids("control.read_only_groups", &raw.control.read_only_groups, &[])?,
        audit: raw.control.audit.clone().unwrap_or_else(|| dir.join("audit.jsonl")),
        attach: attach_settings(&raw.attach)?,
        lock_memory: match raw.memory.lock {
            None => Lock::Attached,
            Some(true) => Lock::Always,
            Some(false) => Lock::Never,
        },
        settings: settings(&raw, dir)?,
        freeze: freeze_settings(&raw.freeze)?,
        metrics: metrics_settings(&raw.metrics)?,
    };
    if raw.freeze.record.is_none() {
        config.freeze.record = config.control_socket.with_file_name("frozen.json");
    }
    config.freeze.own = own_files(&config);
    Ok(config)
}

fn freeze_settings(raw: &RawFreeze) -> Result<freeze::Settings> {
    let limit = number("freeze.timeout_s", raw.timeout_s)?;
    let script = number("freeze.script_timeout_s", raw.script_timeout_s)?;
    Ok(freeze::Settings {
        limit: Duration::from_secs(limit),
        script_limit: Duration::from_secs(script),
        pre_script: raw.pre_script.clone(),
        post_script: raw.post_script.clone(),
        hooks: or_default("freeze.hooks", raw.hooks.clone()),
        record: raw.record.clone().unwrap_or_default(),
        own: Vec::new(),
    })
}

fn metrics_settings(raw: &RawMetrics) -> Result<metrics::Settings> {
    if let Some(address) = raw.listen.filter(|address| !address.ip().is_loopback()) {
        let message =
            format!("metrics.listen = \"{address}\": only a loopback address is possible");
        return Err(Error::invalid(message)
            .hint("there is no password; let a scraper of this host, or a proxy, read 127.0.0.1"));
    }
    if let Some(path) = raw.textfile.as_ref().filter(|path| !path.is_absolute()) {
        let message = format!("metrics.textfile = {path:?}: an absolute path is needed");
        return Err(Error::invalid(message));
    }
    Ok(metrics::Settings {
        listen: raw.listen,
        textfile: raw.textfile.clone(),
        interval: Duration::from_secs(number("metrics.interval_s", raw.interval_s)?),
    })
}

fn gids(key: &str, names: &[String], numbers: &[u32]) -> Result<Vec<u32>> {
    let mut all = numbers.to_vec();
    for name in names {
        let found = Group::from_name(name).map_err(|e| Error::io("look groups up", &e.into()))?;
        let missing = || Error::invalid(format!("{key}: there is no group {name:?}"));
        all.push(found.ok_or_else(missing)?.gid.as_raw());
    }
    Ok(all)
}

fn attach_settings(raw: &RawAttach) -> Result<attach::Settings> {
    let connections = number("attach.connections", raw.connections)?;
    let dead = number("attach.dead_connection_s", raw.dead_connection_s)?;
    let share = number("attach.dirty_share", raw.dirty_share)?;
    Ok(attach::Settings {
        connections: usize::try_from(connections).unwrap_or(usize::MAX),
        dead_connection: Duration::from_secs(dead),
        retry: Duration::from_secs(number("attach.retry_s", raw.retry_s)?),
        dirty_share: u32::try_from(share).unwrap_or(100),
    })
}

/// What has to go on working while file systems are frozen.
fn own_files(config: &Config) -> Vec<(String, PathBuf)> {
    let rowd = [
        ("the directory of the pool", &config.settings.dir),
        ("the pool", &config.settings.pool),
        ("the NBD socket", &config.nbd_socket),
        ("the control socket", &config.control_socket),
        ("the read-only control socket", &config.read_only_socket),
        ("the record of frozen file systems", &config.freeze.record),
        ("the directory of hooks", &config.freeze.hooks),
        ("the audit log", &config.audit),
    ];
    let system = [("the root directory", "/"), ("the system", "/usr"), ("the log", "/var/log")];
    let rowd = rowd.map(|(what, path)| (what.to_owned(), path.clone()));
    let system = system.map(|(what, path)| (what.to_owned(), PathBuf::from(path)));
    let program = std::env::current_exe().ok().map(|path| ("rowd itself".to_owned(), path));
    rowd.into_iter().chain(system).chain(program).collect()
}

fn settings(raw: &Raw, dir: &Path) -> Result<Settings> {
    let pool = &raw.pool;
    let segment_bytes = size("pool.segment", pool.segment.as_deref())?;
    if segment_bytes < 64 * BLOCK_SIZE || !segment_bytes.is_multiple_of(64 * BLOCK_SIZE) {
        return Err(Error::invalid("pool.segment: a multiple of 256 KiB is needed"));
    }
    let journal_bytes = size("pool.journal", pool.journal.as_deref())?;
    if journal_bytes < journal::MIN_BYTES || !journal_bytes.is_multiple_of(BLOCK_SIZE) {
        return Err(Error::invalid("pool.journal: a multiple of 4 KiB from 2 MiB on is needed"));
    }
    // Without a limit of its own the pool may fill the host's file system, less the reserve.
    let max_bytes = size("pool.max_size", pool.max_size.as_deref())?;
    if max_bytes > MAX_POOL_BYTES {
        return Err(Error::invalid("pool.max_size: at most 2 PiB"));
    }
    if max_bytes < segment_bytes {
        return Err(Error::invalid("pool.max_size: less than one segment (pool.segment)"));
    }
    let map_cache = size("pool.map_cache", pool.map_cache.as_deref())?;
    let back = &raw.background;
    let hours = number("background.undo_hours", back.undo_hours)?;
    let trash = number("trash.hours", raw.trash.hours)?;
    let flush = number("background.flush_ms", back.flush_ms)?;
    let checkpoint = number("background.checkpoint_s", back.checkpoint_s)?;
    let cost = number("background.copy_cost", back.copy_cost)?;
    Ok(Settings {
        dir: dir.to_owned(),
        pool: pool.path.clone().unwrap_or_else(|| dir.join("pool")),
        io: io_mode(pool.io.as_deref())?,
        segment_bytes,
        journal_bytes,
        max_bytes,
        host_reserve: size("pool.host_reserve", pool.host_reserve.as_deref())?,
        map_cache: usize::try_from(map_cache).unwrap_or(usize::MAX),
        quota_manual: or_default("quota.manual_snapshots", raw.quota.manual_snapshots),
        quota_auto: or_default("quota.automatic_snapshots", raw.quota.automatic_snapshots),
        quota_policies: or_default("quota.policies", raw.quota.policies),
        undo_kept: Duration::from_secs(hours * 3600),
        trash_kept: Duration::from_secs(trash * 3600),
        flush_every: Duration::from_millis(flush),
        checkpoint_every: Duration::from_secs(checkpoint),
        scrub_rate: size("background.scrub_rate", back.scrub_rate.as_deref())?,
        copy_cost: f64::from(u32::try_from(cost).unwrap_or(100)) / 100.0,
        encryption: encryption(&raw.encryption)?,
        background: true,
    })
}

fn encryption(raw: &RawEncryption) -> Result<crypt::master::Settings> {
    let mut settings = crypt::master::Settings::default();
    let places = [
        ("master_key", &raw.master_key, &mut settings.master),
        ("previous_master_key", &raw.previous_master_key, &mut settings.previous),
    ];
    for (key, given, place) in places {
        if let Some(text) = given {
            *place = text.parse().map_err(|e: Error| e.context(format!("encryption.{key}")))?;
        }
    }
    Ok(settings)
}

fn io_mode(text: Option<&str>) -> Result<IoMode> {
    let Some(text) = text else { return Ok(IoMode::default()) };
    [IoMode::Buffered, IoMode::Direct].into_iter().find(|mode| mode.name() == text).ok_or_else(
        || Error::invalid(format!("pool.io = {text:?}: \"buffered\" or \"direct\" is possible")),
    )
}

fn or_default<T: DeserializeOwned>(key: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| reference::default(key))
}

fn number(key: &str, value: Option<u64>) -> Result<u64> {
    let value = or_default(key, value);
    let (low, high) = reference::range(key);
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{key} = {value}: {low} to {high} is possible")))
}

fn size(key: &str, text: Option<&str>) -> Result<u64> {
    let text = or_default(key, text.map(str::to_owned));
    text.parse::<Size>().map(|size| size.0).map_err(|e| Error::invalid(format!("{key}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_for_this_host_only() {
        let at = |address: &str| {
            let text = format!("[metrics]\nlisten = \"{address}\"");
            Config::parse(&text, None).map(|config| config.metrics.listen)
        };
        assert!(at("127.0.0.1:9750").unwrap().is_some() && at("[::1]:9750").unwrap().is_some());
        assert!(at("0.0.0.0:9750").unwrap_err().message().contains("loopback"));
        let file = Config::parse("[metrics]\ntextfile = \"rowd.prom\"", None).unwrap_err();
        assert!(file.message().contains("absolute"), "{file}");
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = Config::parse("", Some(Path::new("/x"))).unwrap();
        assert_eq!(config.settings.pool, Path::new("/x/pool"));
        assert_eq!(config.settings.io, IoMode::Buffered);
        assert_eq!(config.lock_memory, Lock::Attached);
        assert_eq!(config.settings.segment_bytes, 64 << 20);
        assert_eq!(config.nbd_socket, Path::new("/x/nbd.sock"));
        assert_eq!(config.busy_poll, Duration::from_micros(50));
    }

    /// The example that is installed: with its settings put in force it is the default, and none is missing.
    #[test]
    fn the_example_has_every_key_with_its_default() {
        let text = include_str!("../../systemd/rowd.toml");
        let is_setting = |line: &&str| !line.starts_with("# ") && *line != "#";
        let bare = |line: &str| line.strip_prefix('#').unwrap_or(line).to_owned();
        let lines: Vec<String> = text.lines().filter(is_setting).map(bare).collect();
        let mut example = Config::parse(&lines.join("\n"), None).unwrap();
        let default = Config::parse(text, None).unwrap();
        // Defaults that no value of the key means.
        assert_eq!(example.lock_memory, Lock::Always);
        example.lock_memory = default.lock_memory;
        for script in [&mut example.freeze.pre_script, &mut example.freeze.post_script] {
            assert!(script.take().is_some());
        }
        assert!(example.metrics.listen.take().is_some());
        assert!(example.metrics.textfile.take().is_some());
        assert_eq!(format!("{example:?}"), format!("{default:?}"));
        let mut section = String::new();
        let mut written = Vec::new();
        for line in &lines {
            if let Some(name) = line.strip_prefix('[') {
                name.trim_end_matches(']').clone_into(&mut section);
            } else if let Some((key, _)) = line.split_once(" = ") {
                written.push((section.clone(), key.to_owned()));
            }
        }
        // What serde says it expects in place of an unknown key.
        let expected = |text: &str| -> Vec<String> {
            let error = Config::parse(text, None).unwrap_err().to_string();
            let list = error.split_once("expected").expect("a list of keys").1;
            list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        for key in expected("unknown = 1") {
            if key == "dir" {
                assert!(written.contains(&(String::new(), key)));
                continue;
            }
            for inner in expected(&format!("[{key}]\nunknown = 1")) {
                let pair = (key.clone(), inner);
                assert!(written.contains(&pair), "{pair:?} is not in the example");
            }
        }
    }

    /// A service has its sockets in /run; a directory on the command line has everything inside it.
    #[test]
    fn sockets_are_where_they_are_looked_for() {
        let service = Config::parse("dir = \"/srv/rowd\"", None).unwrap();
        assert_eq!(service.settings.pool, Path::new("/srv/rowd/pool"));
        assert_eq!(service.nbd_socket, Path::new("/run/rowd/nbd.sock"));
        assert_eq!(service.freeze.record, Path::new("/run/rowd/frozen.json"));
        let own = Config::parse("dir = \"/srv/rowd\"", Some(Path::new("/x"))).unwrap();
        assert_eq!(own.settings.pool, Path::new("/x/pool"));
        assert_eq!(own.control_socket, Path::new("/x/control.sock"));
    }

    #[test]
    fn a_group_is_known_by_its_name() {
        let config = Config::parse("[control]\ngroups = [\"root\"]\ngids = [7]", None).unwrap();
        assert_eq!(config.control_gids, [7, 0]);
        let error = Config::parse("[control]\ngroups = [\"no-such\"]", None).unwrap_err();
        assert!(error.message().contains("\"no-such\""), "{error}");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        for (text, part) in [
            ("[pool]\nsgement = \"1MiB\"", "sgement"),
            ("[pool]\nsegment = \"1\"", "pool.segment"),
            ("[pool]\njournal = \"1MiB\"", "pool.journal"),
            ("[pool]\nmax_size = \"1MiB\"", "pool.max_size"),
            ("[background]\nflush_ms = 5000", "background.flush_ms"),
            ("[background]\ncopy_cost = 0", "background.copy_cost"),
            ("[pool]\nmap_cache = \"lots\"", "pool.map_cache"),
            ("[pool]\nio = \"fast\"", "pool.io"),
            ("[attach]\nconnections = 1", "attach.connections"),
            ("[attach]\nretry_s = 0", "attach.retry_s"),
            ("[encryption]\nmaster_key = \"secret\"", "encryption.master_key"),
            ("[attach]\ndirty_share = 101", "attach.dirty_share"),
        ] {
            let error = Config::parse(text, None).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
        }
    }
}
