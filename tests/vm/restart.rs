//! The daemon goes and comes back under load: mounted disks see a pause and nothing else.
//!
//! Absent: clients other than the kernel's and fio's; the host's own tests have those.

use std::time::Duration;

use rowd_tests::vm::{Vm, native};

/// Longer than the pauses that are looked for.
const LOAD_SECONDS: u64 = 24;
/// A machine without hardware support is slow, and most of a pause is systemd starting a program: a unit
/// that runs `true` takes more than a second here. At the speed of this host it is [`NATIVE_MAX`].
const RESTART_MAX: Duration = Duration::from_secs(8);
/// As many for the restart, and what the kernel waits before it asks again.
const KILL_MAX: Duration = Duration::from_secs(12);

/// Starts fio on the mounted disk; it checks what it wrote as it goes.
fn start_load(vm: &mut Vm) {
    vm.sh(&format!(
        "{WRITTEN} > /tmp/before
        rm -f /tmp/fio.json
        systemd-run --quiet --unit=load --collect fio --name=load --directory=/mnt --size=16M \
        --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --time_based \
        --runtime={LOAD_SECONDS} --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
        --output=/tmp/fio.json --output-format=json --fallocate=native"
    ))
    .ok();
    // It writes and checks by now.
    vm.until("the load", &format!("test $({WRITTEN}) -gt $(($(cat /tmp/before) + 2000))"));
}

/// Sectors written so far.
const WRITTEN: &str = "awk '{print $7}' /sys/block/nbd0/stat";

/// The errors and the longest wait for an answer, of reads and writes.
fn end_load(vm: &mut Vm) -> (u64, Duration) {
    vm.until("the end of the load", "! systemctl is-active -q load && test -s /tmp/fio.json");
    let report = vm.sh("cat /tmp/fio.json").ok().json();
    let job = &report["jobs"][0];
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let worst = ["read", "write"].map(|way| number(&job[way]["clat_ns"]["max"]));
    let done = number(&job["read"]["total_ios"]) + number(&job["write"]["total_ios"]);
    assert!(done > 100, "the load did next to nothing: {report}");
    (number(&job["error"]), Duration::from_nanos(worst[0].max(worst[1])))
}

/// Promise: neither an orderly restart nor a kill is an I/O error for a mounted disk, and the pause is
/// short.
#[test]
fn a_mounted_disk_outlives_restarts_and_kills_under_load() {
    let mut vm = Vm::new();
    vm.sh("systemctl enable --now rowd && rowctl disk create d1 --size 256MiB").ok();
    vm.sh("rowctl disk attach d1 && mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt").ok();

    start_load(&mut vm);
    let (errors, calm) = end_load(&mut vm);
    assert_eq!(errors, 0);

    start_load(&mut vm);
    vm.sh("systemctl restart rowd").ok();
    let (errors, restart) = end_load(&mut vm);
    println!("longest wait: undisturbed {calm:?}, over a restart {restart:?}");
    assert_eq!(errors, 0);
    vm.sh("journalctl -u rowd | grep -q 'goes on.*handed=2'").ok();

    start_load(&mut vm);
    vm.sh("kill -9 $(systemctl show -P MainPID rowd)").ok();
    let (errors, kill) = end_load(&mut vm);
    println!("longest wait: over a kill {kill:?}");
    assert_eq!(errors, 0);

    vm.sh("test $(rowctl -o json disk show d1 | grep -c '\"state\": *\"attached\"') = 1").ok();
    vm.sh("! dmesg | grep -iE 'I/O error|Buffer I/O'").ok();
    vm.sh("umount /mnt && e2fsck -fn /dev/nbd0").ok();
    assert!(restart <= RESTART_MAX, "a restart was a pause of {restart:?}");
    assert!(kill <= KILL_MAX, "a kill was a pause of {kill:?}");
    vm.power_off();
}

const NATIVE_MAX: Duration = Duration::from_secs(1);
const RESTARTS: &str = r#"
    systemctl start rowd
    rowctl -q disk create d1 --size 256MiB
    uri='nbd+unix:///d1?socket=/run/rowd/nbd.sock'
    fio --name=load --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --iodepth=8 --size=64M --verify=crc32c \
        --verify_fatal=1 --verify_backlog=64 --time_based --runtime=15 \
        --output=/mnt/home/fio.json --output-format=json & load=$!
    until rowctl -o json disk show d1 | grep -q '"peer": *"fio'; do read -rt 0.1 <> <(:) || :; done
    for restart in 1 2 3; do
        systemctl restart rowd
        read -rt 2 <> <(:) || :
    done
    wait $load
    journalctl -u rowd | grep -c 'handed over.*connections=1' | grep -x 3
    cat /mnt/home/fio.json
"#;

/// Promise: `systemctl restart rowd` with the installed unit is no error for a client, and a pause of less than
/// a second.
#[test]
fn a_restart_by_systemd_is_a_pause_of_less_than_a_second() {
    let said = native::run(RESTARTS).ok().stdout;
    let report: serde_json::Value = serde_json::from_str(&said[said.find('{').unwrap()..]).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{report}");
    let worst = ["read", "write"].map(|way| job[way]["clat_ns"]["max"].as_u64().unwrap());
    let worst = Duration::from_nanos(worst[0].max(worst[1]));
    println!("longest wait over three restarts: {worst:?}");
    assert!(worst < NATIVE_MAX, "a restart was a pause of {worst:?}");
}
