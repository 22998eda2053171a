//! Freezing with the kernel's own NBD devices, in a virtual machine: there the daemon finds the file systems
//! by itself.

use rowd_tests::tool;
use rowd_tests::vm::payload::stripped;
use rowd_tests::vm::{Spec, Vm};
use serde_json::{Value, json};

/// A machine in which rowd runs as a service of the moment.
fn machine() -> Vm {
    let home = tempfile::tempdir().unwrap();
    let mut spec = Spec::default().bare();
    for name in ["rowd", "rowctl", "rowd-freeze"] {
        let file = home.path().join(name);
        stripped(&tool::built(name), &file);
        spec = spec.file(&file, &format!("/usr/local/sbin/{name}"));
    }
    let mut vm = spec.boot();
    vm.sh("modprobe nbd
        systemd-run --unit=rowd --service-type=notify /usr/local/sbin/rowd --dir /var/lib/rowd")
        .ok();
    vm
}

const CTL: &str = "rowctl --dir /var/lib/rowd";

#[track_caller]
fn ctl(vm: &mut Vm, line: &str) -> Value {
    vm.sh(&format!("{CTL} -o json {line}")).ok().json()
}

/// Somebody who writes into a directory until the machine ends.
fn load(vm: &mut Vm, unit: &str, dir: &str) {
    let work = format!(
        "while :; do dd if=/dev/urandom of={dir}/f$((RANDOM % 30)) bs=64k count=2 conv=fsync 2>/dev/null; \
         rm -f {dir}/f$((RANDOM % 30)); done"
    );
    vm.sh(&format!("systemd-run --unit={unit} bash -c '{work}'; sleep 1")).ok();
}

#[track_caller]
fn targets(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let targets = report["targets"].as_array().expect("targets");
    targets.iter().map(|one| (text(&one["mount_point"]), text(&one["device"]))).collect()
}

/// SQL-05, GRP-03: found on a device of the disk itself, attached by rowd or by nbd-client; on a logical volume
/// striped over two disks; and on an image file in one of those. Snapshots and a rolled back group are
/// clean, though somebody wrote all the time.
#[test]
fn file_systems_on_kernel_devices_are_found_through_every_layer() {
    let mut vm = machine();
    for disk in ["plain", "by-client", "one", "two"] {
        ctl(&mut vm, &format!("disk create {disk} --size 256MiB"));
    }
    vm.sh(&format!(
        "
        {CTL} disk attach plain --device /dev/nbd0
        {CTL} disk attach one --device /dev/nbd2
        {CTL} disk attach two --device /dev/nbd3
        nbd-client -unix /var/lib/rowd/nbd.sock /dev/nbd1 -N by-client
        pvcreate -q /dev/nbd2 /dev/nbd3
        vgcreate -q vg /dev/nbd2 /dev/nbd3
        lvcreate -q -i 2 -l 100%FREE -n lv vg
        mkdir -p /srv/plain /srv/client /srv/lv
        mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /srv/plain
        mkfs.ext4 -q /dev/nbd1 && mount /dev/nbd1 /srv/client
        mkfs.xfs -q /dev/vg/lv && mount /dev/vg/lv /srv/lv
        mkdir '/srv/bind mount' && mount --bind /srv/plain '/srv/bind mount'"
    ))
    .ok();
    is_frozen_on_a_device(&mut vm, "plain", "/srv/plain", "/dev/nbd0");
    is_frozen_on_a_device(&mut vm, "by-client", "/srv/client", "/dev/nbd1");
    a_group_over_a_volume_is_whole(&mut vm);
    an_image_in_it_is_frozen_first(&mut vm);
    a_device_that_hangs_is_given_up(&mut vm);
}

#[track_caller]
fn is_frozen_on_a_device(vm: &mut Vm, disk: &str, dir: &str, device: &str) {
    load(vm, &format!("load-{disk}"), dir);
    let made = ctl(vm, &format!("snapshot create {disk} quiet --consistency fs"));
    assert_eq!(made["consistency"], "fs", "{made}");
    assert_eq!(targets(&made["freeze"]), [(dir.to_owned(), device.to_owned())]);
    eprintln!("{disk}: frozen for {} ms", made["freeze"]["frozen_seconds"].as_f64().unwrap() * 1e3);
    vm.sh(&format!("systemctl stop load-{disk}")).ok();
    let said = vm.sh(&format!(
        "
        {CTL} disk create copy-{disk} --from {disk}@quiet
        {CTL} disk attach copy-{disk} --device /dev/nbd9
        e2fsck -fn /dev/nbd9
        dumpe2fs -h /dev/nbd9 2>/dev/null | grep features:
        {CTL} disk detach copy-{disk}"
    ));
    let said = said.ok().stdout;
    assert!(said.contains("has_journal") && !said.contains("needs_recovery"), "{said}");
}

#[track_caller]
fn a_group_over_a_volume_is_whole(vm: &mut Vm) {
    load(vm, "load-lv", "/srv/lv");
    let made = ctl(vm, "group create one two --name quiet --consistency fs");
    let report = &made["freeze"];
    assert_eq!(report["reached"], "fs", "{made}");
    assert_eq!(targets(report), [("/srv/lv".to_owned(), "/dev/mapper/vg-lv".to_owned())]);
    vm.sh("sleep 1; systemctl stop load-lv; umount /srv/lv; vgchange -q -an vg").ok();
    vm.sh(&format!(
        "
        {CTL} disk detach one
        {CTL} disk detach two
        {CTL} group rollback quiet --yes
        {CTL} disk attach one --device /dev/nbd2
        {CTL} disk attach two --device /dev/nbd3
        udevadm settle
        vgchange -q -ay vg
        mount /dev/vg/lv /srv/lv && umount /srv/lv
        xfs_repair -n /dev/vg/lv
        mount /dev/vg/lv /srv/lv"
    ))
    .ok();
}

/// Without its own mount point named: the loop device's file lies on the volume.
#[track_caller]
fn an_image_in_it_is_frozen_first(vm: &mut Vm) {
    vm.sh("truncate -s 32M /srv/lv/image
        mkfs.ext4 -q /srv/lv/image
        mkdir /srv/inner
        mount -o loop /srv/lv/image /srv/inner")
        .ok();
    let made = ctl(vm, "group create one two --name nested --consistency fs");
    let points: Vec<String> =
        targets(&made["freeze"]).into_iter().map(|(point, _)| point).collect();
    assert_eq!(points, ["/srv/inner", "/srv/lv"]);
    vm.sh("touch /srv/inner/written /srv/lv/written; umount /srv/inner").ok();
}

/// EXIT-06: a device below the file system does not answer. Nothing is made, and when it answers again
/// nothing is frozen.
#[track_caller]
fn a_device_that_hangs_is_given_up(vm: &mut Vm) {
    vm.sh("dd if=/dev/urandom of=/srv/lv/dirty bs=64k count=8
        dmsetup suspend --nolockfs --noflush vg-lv")
        .ok();
    let create = "group create one two --name hung --consistency fs --freeze-timeout 2";
    let done = vm.sh(&format!("{CTL} -o json {create}"));
    vm.sh("dmsetup resume vg-lv").ok();
    done.fails_with(6);
    vm.until(
        "the end of the freeze",
        &format!("{CTL} -o json freeze status | grep -q '\"running\":null'"),
    );
    vm.sh("timeout 30 touch /srv/lv/again").ok();
    let groups = ctl(vm, "group list");
    let names: Vec<&Value> =
        groups.as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(names, [&json!("quiet"), &json!("nested")]);
}

/// The daemon is killed while a file system on a kernel device is frozen. The device waits for the daemon to come
/// back, and so does every thaw; the service manager must not wait for those. The next start thaws.
#[test]
fn a_daemon_that_is_killed_while_frozen_comes_back_and_thaws() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = Spec::default().bare();
    for name in ["rowd-faulty", "rowctl", "rowd-freeze"] {
        let file = home.path().join(name);
        stripped(&tool::built(name), &file);
        spec = spec.file(&file, &format!("/usr/local/sbin/{name}"));
    }
    let mut vm = spec.boot();
    vm.sh(&format!("
        modprobe nbd
        systemd-run --unit=rowd --service-type=notify -p Restart=always -p RestartSec=250ms \
            -p KillMode=process -p TimeoutStopSec=2min \
            -p 'ExecStopPost=-/usr/local/sbin/rowd-freeze thaw --recorded /var/lib/rowd/frozen.json --limit 1' \
            -E ROWD_HOLD_POINT=freeze.frozen:/run/hold /usr/local/sbin/rowd-faulty --dir /var/lib/rowd
        {CTL} disk create db --size 256MiB
        {CTL} disk attach db --device /dev/nbd0
        mkfs.ext4 -q /dev/nbd0
        mkdir /srv/db
        mount /dev/nbd0 /srv/db"))
        .ok();
    let frozen = format!(
        "
        systemd-run --unit=making {CTL} snapshot create db cut-off --consistency fs
        until [ -e /run/hold ]; do sleep 0.1; done
        systemd-run --unit=writer touch /srv/db/written
        sleep 1
        systemctl is-active writer"
    );
    vm.sh(&frozen).ok();
    let thawed = vm
        .sh("
        kill -9 $(systemctl show -P MainPID rowd)
        begun=$(date +%s%N)
        timeout 100 bash -c 'while systemctl is-active -q writer; do sleep 0.1; done'
        echo thawed after $(( ($(date +%s%N) - begun) / 1000000 )) ms
        ls /srv/db/written")
        .ok();
    eprintln!("{}", thawed.stdout.trim());
    vm.until("the end of the record", "[ ! -e /var/lib/rowd/frozen.json ]");
}
