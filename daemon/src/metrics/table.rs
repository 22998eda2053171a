//! The table of metrics: name, kind, labels, meaning.
//!
//! Invariants: this table is the only list of metrics; a name never changes its meaning, and one that is here is in
//! `docs/metrics.md`, which a test checks.
//! Absent: values (`gather.rs`).

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins anew with the daemon. Its samples end in `_total`.
    Counter,
    Gauge,
    /// Samples end in `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Without the ending of its samples.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    /// The names of its samples.
    #[must_use]
    pub fn samples(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter => vec![format!("{}_total", self.name)],
            Kind::Gauge => vec![self.name.to_owned()],
            Kind::Histogram => {
                ["bucket", "sum", "count"].map(|end| format!("{}_{end}", self.name)).to_vec()
            }
        }
    }
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $id: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*

        /// All of them, in the order in which they are written.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BUILD_INFO = Gauge "rowd_build_info" ["version"] "1, with the version of the daemon";
    START_TIME = Gauge "rowd_start_time_seconds" [] "When the daemon started, in seconds since 1970";
    RECOVERY = Gauge "rowd_recovery_seconds" [] "How long opening the pool took at the start";
    RESIDENT = Gauge "rowd_resident_memory_bytes" [] "Memory of the daemon that is in use";
    CPU = Counter "rowd_cpu_seconds" [] "Processor time that the daemon has used";

    DISK_REQUEST = Histogram "rowd_disk_request_seconds" ["disk", "export", "op"]
        "Requests of NBD clients, from receipt to reply; op is read, write, discard (trim and zeros) or flush, export is disk or snapshot";
    DISK_BYTES = Counter "rowd_disk_request_bytes" ["disk", "export", "op"]
        "Bytes of requests that succeeded";
    DISK_ERRORS = Counter "rowd_disk_request_errors" ["disk", "export", "op"]
        "Requests that were answered with an error";
    DISK_SIZE = Gauge "rowd_disk_size_bytes" ["disk"] "Size of the disk";
    DISK_MAPPED = Gauge "rowd_disk_mapped_bytes" ["disk"] "Bytes of the disk that read as data";
    DISK_SNAPSHOTS = Gauge "rowd_disk_snapshots" ["disk"] "Snapshots of the disk, without those that undo a rollback";
    DISK_SNAPSHOT_BYTES = Gauge "rowd_disk_snapshot_bytes" ["disk"]
        "Bytes that the snapshots of the disk hold, shared blocks once";
    DISK_CLIENTS = Gauge "rowd_disk_clients" ["disk"] "Connections to the disk";
    DISK_ATTACHED = Gauge "rowd_disk_attached" ["disk"]
        "Whether the kernel device of the disk is there, of disks that are to have one";

    POOL_STOPPED = Gauge "rowd_pool_stopped" [] "1 when the pool accepts no more writes after an I/O error";
    POOL_USED = Gauge "rowd_pool_used_bytes" [] "Bytes of blocks that some disk or snapshot holds";
    POOL_PENDING = Gauge "rowd_pool_pending_bytes" [] "Bytes freed and not yet to be used again";
    POOL_FILE = Gauge "rowd_pool_file_bytes" [] "Bytes of data blocks that the pool file has";
    POOL_MAX = Gauge "rowd_pool_max_bytes" [] "Bytes of data blocks to which it may grow";
    POOL_CORRUPT = Counter "rowd_pool_corrupt_blocks" [] "Times that a block was not what was written";
    POOL_HEALED = Counter "rowd_pool_healed_blocks" [] "Damaged blocks that were stored anew, from copies";
    POOL_SYNC = Histogram "rowd_pool_sync_seconds" [] "How long the device took to make writes durable";
    DISKS = Gauge "rowd_disks" [] "Disks";
    SNAPSHOTS = Gauge "rowd_snapshots" [] "Snapshots";
    CLIENTS = Gauge "rowd_clients" [] "Connections of NBD clients";

    JOURNAL_SIZE = Gauge "rowd_journal_size_bytes" [] "Size of the journal";
    JOURNAL_USED = Gauge "rowd_journal_used_bytes" [] "Journal that the next start would replay";
    JOURNAL_RECORDS = Counter "rowd_journal_records" [] "Records written to the journal over the life of the pool";
    JOURNAL_LAG = Gauge "rowd_journal_unsynced_records" [] "Records that are not known to be durable yet";
    CHECKPOINT = Histogram "rowd_checkpoint_seconds" [] "How long checkpoints took";
    CHECKPOINT_LAST = Gauge "rowd_checkpoint_last_success_timestamp_seconds" []
        "When the last checkpoint ended, in seconds since 1970; absent before the first";
    CHECKPOINT_LAG = Gauge "rowd_checkpoint_lag_records" [] "Records since the last checkpoint";
    CACHE = Gauge "rowd_map_cache_bytes" [] "Memory that the map takes";
    CACHE_LIMIT = Gauge "rowd_map_cache_limit_bytes" [] "Memory that the map may take";
    CACHE_MISSES = Counter "rowd_map_cache_misses" [] "Parts of the map that were wanted and not in memory";
    RECLAIM_WAITING = Gauge "rowd_reclaim_waiting" [] "Deleted snapshots and disks whose blocks are still to be freed";
    RECLAIM_STEPS = Counter "rowd_reclaim_steps" [] "Steps of freeing blocks";
    SCRUB_LAST = Gauge "rowd_scrub_last_end_timestamp_seconds" []
        "When the last scrub ended, in seconds since 1970; absent when there was none since the start";
    SCRUB_BAD = Gauge "rowd_scrub_last_bad_blocks" [] "Bad blocks that it found";
    SCRUB_BYTES = Gauge "rowd_scrub_last_bytes" [] "Bytes that it read";

    COPIES = Gauge "rowd_copies" ["state"] "Copies of snapshots that are progressing or have failed";
    COPY_WAIT = Counter "rowd_copy_wait_seconds" [] "Time that copies on their way to a repository waited to let clients go first";
    JOBS = Gauge "rowd_jobs_running" ["kind"] "Jobs that run now; kinds that do not run are absent";
    EVENTS = Counter "rowd_events" [] "Events over the life of the pool";
    POLICY_LAST = Gauge "rowd_policy_last_success_timestamp_seconds" ["policy"]
        "When the policy last made its snapshots, in seconds since 1970; absent before that";
    POLICY_HELD = Gauge "rowd_policy_held" [] "What of policies stands still until somebody agrees";
    FROZEN = Histogram "rowd_frozen_seconds" [] "For how long file systems were frozen for a snapshot or group";
    FROZEN_NOW = Gauge "rowd_freeze_running" [] "1 while file systems are being frozen for a snapshot";
    FROZEN_LEFT = Gauge "rowd_freeze_left" [] "1 when an earlier freeze may have left file systems frozen";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_rules() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for Metric { name, help, .. } in ALL {
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(plain && name.starts_with("rowd_") && !name.ends_with("_total"), "{name}");
            assert!(!help.contains('\n') && !help.contains('\\'), "{name}: {help}");
        }
    }
}
