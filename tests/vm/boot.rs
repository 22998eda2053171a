//! A disk of rowd in /etc/fstab: there at boot, gone in order at shutdown.
//!
//! Absent: restarts of the daemon alone.

use rowd_tests::vm::Vm;

const FSTAB: &str = "/dev/disk/by-id/rowd-data1 /srv ext4 \
                     _netdev,nofail,x-systemd.requires=rowd-attach@data1.service 0 0";

/// From a fresh installation to a mount that is there after a reboot, in the steps a user takes.
#[test]
fn a_disk_in_fstab_is_mounted_at_boot_and_unmounted_before_it_is_detached() {
    let mut vm = Vm::new();
    vm.sh("systemctl enable --now rowd").ok();
    vm.sh("
        rowctl disk create data1 --size 256MiB
        rowctl disk attach data1
        mkfs.ext4 -q /dev/disk/by-id/rowd-data1
        rowctl disk detach data1
    ")
        .ok();
    vm.sh(&format!(
        "echo '{FSTAB}' >> /etc/fstab; systemctl daemon-reload; systemctl start srv.mount"
    ))
    .ok();
    vm.sh("findmnt /srv; cp /etc/os-release /srv/file; sync -f /srv").ok();
    names_of_devices(&mut vm);

    vm.reboot();
    vm.sh("findmnt /srv; cmp /etc/os-release /srv/file; systemctl is-active rowd-attach@data1")
        .ok();
    // The boot before ended in order: nothing was left to be replayed.
    vm.sh("! dmesg | grep 'EXT4-fs.*recovery'").ok();
    let steps =
        ["Unmounted srv.mount", "Stopped rowd-attach@data1.service", "Stopped rowd.service"];
    let log = vm.sh("journalctl -b -1 -o cat").ok().stdout;
    let at = steps.map(|step| log.rfind(step).unwrap_or_else(|| panic!("no {step:?} in\n{log}")));
    assert!(at.is_sorted(), "{steps:?} are at {at:?}\n{log}");

    // A host that goes down without warning comes back with everything that was synchronised.
    vm.sh("cp /etc/passwd /srv/second; sync -f /srv").ok();
    vm.crash();
    vm.sh("findmnt /srv; cmp /etc/os-release /srv/file; cmp /etc/passwd /srv/second").ok();
    vm.sh("systemctl is-active rowd-attach@data1; rowctl check").ok();
    vm.power_off();
}

/// Names for people, also of partitions; a name is a name whatever is in it.
fn names_of_devices(vm: &mut Vm) {
    vm.sh(r"
        rowctl disk create 'x$(reboot);y' --size 64MiB
        rowctl disk attach 'x$(reboot);y'
        node=$(rowctl -o json disk show 'x$(reboot);y' | grep -o '/dev/nbd[0-9]*' | head -1)
        # One partition, the second: 16 MiB from 1 MiB on.
        printf '\0\0\0\0\203\0\0\0\0\10\0\0\0\200\0\0' | dd of=$node bs=1 seek=462
        printf '\125\252' | dd of=$node bs=1 seek=510
        blockdev --rereadpt $node
        udevadm settle
        ls -l /dev/disk/by-id
        links=$(find /dev/disk/by-id -lname '*'${node#/dev/}p2)
        [[ $links = */rowd-x*y-part2 ]]
        udevadm info $node | grep UDISKS_IGNORE=1
        rowctl disk detach 'x$(reboot);y'
        udevadm settle
    ")
        .ok();
}
