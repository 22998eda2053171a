//! A volume over several disks: what snapshots and groups of them are worth (DISK-26, 27, 29), and what a
//! freeze adds.
//!
//! Absent: RAID by md, which is the same to rowd.

use rowd_tests::vm::Vm;

/// Writes numbers to a log, each synchronised before the next, with other files changing in between.
const WRITER: &str = r#"
    number=1
    while :; do
        echo $number >> /mnt/log
        sync /mnt/log
        echo $number > /run/acknowledged
        dd if=/dev/urandom of=/mnt/file$((number % 8)) bs=64k count=4 conv=notrunc status=none
        number=$((number + 1))
    done
"#;

fn acknowledged(vm: &mut Vm) -> u64 {
    vm.sh("cat /run/acknowledged").ok().stdout.trim().parse().unwrap()
}

fn wait_for_more(vm: &mut Vm, than: u64) {
    vm.until("more writes", &format!("test $(cat /run/acknowledged) -ge {}", than + 15));
}

/// Takes the volume out of use and its disks back to a group.
fn roll_back(vm: &mut Vm, group: &str) {
    vm.sh("if mountpoint -q /mnt; then umount /mnt; fi; vgchange -qq -an vg; udevadm settle").ok();
    vm.sh(&format!("rowctl group rollback {group} --yes")).ok();
    vm.sh("udevadm settle; vgchange -qq -ay vg").ok();
}

/// The log has every number up to one that is not older than the snapshot.
fn has_all_numbers(vm: &mut Vm, at_least: u64) {
    vm.sh("cmp <(seq 1 $(tail -n 1 /mnt/log)) /mnt/log").ok();
    let last: u64 = vm.sh("tail -n 1 /mnt/log").ok().stdout.trim().parse().unwrap();
    assert!(
        last >= at_least,
        "{at_least} was acknowledged before the snapshot, the last is {last}"
    );
}

/// DISK-29: a striped volume under load, a group of its disks, and back. The group alone is as a power
/// failure would have left it; frozen, it has no journal to replay.
#[test]
fn a_striped_volume_under_load_goes_back_whole() {
    let mut vm = Vm::new();
    vm.sh("
        systemctl enable --now rowd
        for disk in left right; do
            rowctl disk create $disk --size 128MiB
            rowctl disk attach $disk
        done
        udevadm settle
        pvcreate -qq /dev/disk/by-id/rowd-left /dev/disk/by-id/rowd-right
        vgcreate -qq vg /dev/disk/by-id/rowd-left /dev/disk/by-id/rowd-right
        lvcreate -qq --stripes 2 --stripesize 64k --extents 100%FREE --name striped vg
        mkfs.ext4 -q /dev/vg/striped
        mount /dev/vg/striped /mnt
    ")
        .ok();
    vm.write("/run/writer", WRITER);
    vm.sh("echo 0 > /run/acknowledged; systemd-run --quiet --unit=load bash /run/writer").ok();
    wait_for_more(&mut vm, 0);

    let before_crash = acknowledged(&mut vm);
    vm.sh("rowctl group create left right --name crash").ok();
    wait_for_more(&mut vm, before_crash);
    let before_frozen = acknowledged(&mut vm);
    vm.sh("rowctl group create left right --name frozen --consistency fs").ok();
    wait_for_more(&mut vm, before_frozen);
    vm.sh("systemctl stop load; systemctl is-failed load || true").ok();

    roll_back(&mut vm, "frozen");
    vm.sh("! dumpe2fs -h /dev/vg/striped 2>&1 | grep needs_recovery").ok();
    vm.sh("e2fsck -fn /dev/vg/striped; mount /dev/vg/striped /mnt").ok();
    has_all_numbers(&mut vm, before_frozen);

    roll_back(&mut vm, "crash");
    vm.sh("dumpe2fs -h /dev/vg/striped 2>&1 | grep needs_recovery").ok();
    vm.sh("mount /dev/vg/striped /mnt").ok();
    has_all_numbers(&mut vm, before_crash);
    vm.sh("umount /mnt; e2fsck -fn /dev/vg/striped").ok();

    idle_volumes(&mut vm);
    vm.power_off();
}

/// DISK-27: without I/O, snapshots of the disks one after the other will do. DISK-26: of a volume over
/// partitions of one disk, a single snapshot has everything.
fn idle_volumes(vm: &mut Vm) {
    vm.sh("
        mount /dev/vg/striped /mnt; echo idle > /mnt/idle; umount /mnt; vgchange -qq -an vg
        rowctl snapshot create left idle; rowctl snapshot create right idle
        vgchange -qq -ay vg; mount /dev/vg/striped /mnt; rm /mnt/file* /mnt/log /mnt/idle; umount /mnt; vgchange -qq -an vg
        udevadm settle
        rowctl disk rollback left idle --yes; rowctl disk rollback right idle --yes
        udevadm settle; vgchange -qq -ay vg
        e2fsck -fn /dev/vg/striped; mount /dev/vg/striped /mnt; grep idle /mnt/idle
        umount /mnt; vgchange -qq -an vg
    ")
        .ok();
    vm.sh(r"
        rowctl disk create parts --size 128MiB
        rowctl disk attach parts
        udevadm settle
        node=$(realpath /dev/disk/by-id/rowd-parts)
        # Two partitions: 48 MiB from 1 MiB on, and 48 MiB behind it.
        {
            head -c 446 /dev/zero
            printf '\0\0\0\0\216\0\0\0\0\10\0\0\0\200\1\0\0\0\0\0\216\0\0\0\0\210\1\0\0\200\1\0'
            head -c 32 /dev/zero; printf '\125\252'
        } | dd of=$node status=none
        blockdev --rereadpt $node; udevadm settle
        by=/dev/disk/by-id/rowd-parts
        pvcreate -qq $by-part1 $by-part2; vgcreate -qq parts $by-part1 $by-part2
        lvcreate -qq --stripes 2 --extents 100%FREE --name wide parts
        mkfs.ext4 -q /dev/parts/wide; mount /dev/parts/wide /mnt; cp -r /etc /mnt/etc; umount /mnt
        vgchange -qq -an parts
        rowctl snapshot create parts whole
        dd if=/dev/urandom of=$node bs=1M count=120 status=none
        udevadm settle
        rowctl disk rollback parts whole --yes
        blockdev --rereadpt $node; udevadm settle; vgchange -qq -ay parts
        e2fsck -fn /dev/parts/wide; mount /dev/parts/wide /mnt; diff -r --no-dereference /etc /mnt/etc
        umount /mnt
    ")
        .ok();
}
