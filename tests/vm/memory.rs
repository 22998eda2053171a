//! Little memory and much to write back: the kernel frees memory by writing to a device that rowd serves on
//! the same host.
//!
//! The machine has 320 MiB, and its kernel is told to let nearly all of it fill with data that has to be
//! written before it can be used for anything else. What rowd needs to write it then has to be there.
//!
//! Absent: what rowd asks of the system in general (`it/memory.rs`).

use std::time::Duration;

use rowd_tests::vm::{Spec, Vm};

const MEMORY_MIB: u32 = 320;
/// Three times the memory, in files of both kinds.
const SEQUENTIAL_MIB: u32 = 2 * MEMORY_MIB;
const RANDOM_MIB: u32 = MEMORY_MIB;
/// For one step. On a busy host an emulated processor takes minutes; a deadlock takes for ever.
const LIMIT: Duration = Duration::from_secs(600);

/// What a kernel says about a deadlock, and about the ways out of one. That a slow host makes it ask on the
/// other connection is none.
const TROUBLE: &str = "blocked for more than|Out of memory|oom-kill|I/O error";

fn machine(io: &str) -> Vm {
    let mut vm = Spec::default().memory(MEMORY_MIB).boot();
    vm.write("/etc/rowd/rowd.toml", &format!("[pool]\nio = \"{io}\"\n"));
    vm.sh("sysctl -q vm.dirty_background_ratio=80 vm.dirty_ratio=90
        sysctl -q kernel.hung_task_timeout_secs=60
        systemctl start rowd
        rowctl disk create data --size 2GiB
        rowctl disk attach data --device /dev/nbd0")
        .ok();
    vm.sh_within(LIMIT, "mkfs.ext4 -q -F /dev/nbd0; mkdir -p /mnt/data; mount /dev/nbd0 /mnt/data")
        .ok();
    vm
}

/// Fills both files, waits until they are written, and reads them back from the device.
fn write_back(vm: &mut Vm) {
    let files = format!(
        "--directory=/mnt/data --ioengine=psync --verify=crc32c --verify_state_save=0 --randseed=3 \
         --name=sequential --rw=write --bs=1M --size={SEQUENTIAL_MIB}M --end_fsync=1 \
         --name=random --rw=randwrite --bs=16k --size={RANDOM_MIB}M --end_fsync=1"
    );
    vm.sh_within(LIMIT, &format!("fio --do_verify=0 {files}")).ok();
    vm.sh_within(LIMIT, "sync; umount /mnt/data; e2fsck -fn /dev/nbd0; mount /dev/nbd0 /mnt/data")
        .ok();
    vm.sh_within(LIMIT, &format!("fio --verify_only=1 {files}")).ok();
    let found =
        vm.sh(&format!("if dmesg | grep -qE '{TROUBLE}'; then dmesg | tail -n 150; fi")).ok();
    assert!(found.stdout.is_empty(), "the kernel says\n{}", found.stdout);
}

fn status(vm: &mut Vm) -> serde_json::Value {
    vm.sh("rowctl -o json status").ok().json()
}

/// Past the page cache, with its memory locked, rowd writes back three times the memory of its own host,
/// and every byte is there.
#[test]
fn a_host_short_of_memory_writes_back_through_its_own_rowd() {
    let mut vm = machine("direct");
    let told = status(&mut vm);
    for (field, value) in [
        ("io_mode", "direct".into()),
        ("io_flusher", true.into()),
        ("memory_locked", true.into()),
        ("oom_score_adj", serde_json::Value::from(-1000)),
    ] {
        assert_eq!(told[field], value, "{field} in {told}");
    }
    let bound = vm.sh("cd /sys/block/nbd0/bdi; cat max_ratio strict_limit").ok().stdout;
    assert_eq!(bound, "50\n1\n", "the share of unwritten data");
    let pid = "systemctl show -P MainPID rowd";
    let before = vm.sh(pid).ok().stdout;
    write_back(&mut vm);
    assert_eq!(vm.sh(pid).ok().stdout, before, "rowd was ended");
    let log = vm.sh("journalctl -u rowd --no-pager").ok().stdout;
    assert!(!log.contains("under memory pressure"), "{log}");
}
