//! The kernel's NBD client, driven by the distribution's `nbd-client`.
//!
//! Absent: devices that rowd attaches by itself (`boot.rs`).

use rowd_tests::vm::Vm;

/// What the other stories stand on: a script's outputs and exit code come back.
fn answers(vm: &mut Vm) {
    let done = vm.sh("echo out; echo err >&2; cd /; false; echo not").fails_with(1);
    assert_eq!((&*done.stdout, &*done.stderr), ("out\n", "err\n"));
}

/// Plain nbd-client goes on working, over the Unix socket and over TCP: one file system, written through
/// one and read through the other.
#[test]
fn nbd_client_mounts_a_disk_over_its_socket_and_over_tcp() {
    let mut vm = Vm::new();
    answers(&mut vm);
    vm.write("/etc/rowd/rowd.toml", "[nbd]\ntcp = [\"127.0.0.1:10809\"]\n");
    // The addresses of the internet are closed to the service until the administrator opens them.
    vm.sh("systemctl start rowd").fails_with(1);
    let log = vm.until("the refusal", "journalctl -u rowd | grep 127.0.0.1:10809");
    assert!(log.stdout.contains("Address family not supported"), "{log}");
    vm.write(
        "/etc/systemd/system/rowd.service.d/tcp.conf",
        "[Service]\nRestrictAddressFamilies=AF_INET AF_INET6\n",
    );
    vm.sh("systemctl stop rowd; systemctl daemon-reload; systemctl enable --now rowd").ok();
    vm.sh("
        rowctl disk create data1 --size 256MiB
        nbd-client -unix /run/rowd/nbd.sock /dev/nbd0 -N data1 -persist
        mkfs.ext4 -q /dev/nbd0
        mount /dev/nbd0 /mnt
        cp -r /usr/lib/systemd /mnt/
        (cd /mnt && find systemd -type f -print0 | xargs -0 sha256sum) > /run/sums
        umount /mnt
        nbd-client -d /dev/nbd0
    ")
        .ok();
    vm.sh("
        nbd-client 127.0.0.1 10809 /dev/nbd1 -N data1
        mount /dev/nbd1 /mnt
        (cd /mnt && sha256sum --quiet -c /run/sums)
        rm -r /mnt/systemd
        umount /mnt
        e2fsck -fn /dev/nbd1
        nbd-client -d /dev/nbd1
    ")
        .ok();
    // Both have left: a rollback, which needs the disk for itself, is not refused.
    vm.sh("rowctl snapshot create data1 end").ok();
    vm.until("the end of the connections", "rowctl disk rollback data1 end --yes");
    vm.sh("rowctl scrub --wait && rowctl check").ok();
    vm.power_off();
}
