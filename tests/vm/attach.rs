//! Disks as kernel devices, attached by rowd itself.
//!
//! Absent: what happens at boot (`service`), and restarts (`restart`).

use rowd_tests::golden::Shapes;
use rowd_tests::vm::Vm;
use rowd_tests::wait;

/// A machine with rowd running and the disk `d1`.
fn machine() -> Vm {
    let mut vm = Vm::new();
    vm.sh("systemctl enable --now rowd && rowctl disk create d1 --size 600MiB").ok();
    vm
}

/// Promise: a disk is a block device with a file system that grows while it is mounted, and what would
/// hurt its user is refused with the user's name.
#[test]
fn a_disk_is_a_device_that_grows_and_is_not_taken_from_its_user() {
    let mut vm = machine();
    let attached = vm.sh("rowctl -o json disk attach d1").ok().json();
    assert_eq!(attached["attachment"]["device"], "/dev/nbd0", "{attached}");
    assert_eq!(attached["attachment"]["state"], "attached");
    vm.sh("grep -qx rowd:d-[0-9a-z]*:d1 /sys/block/nbd0/backend").ok();
    assert_eq!(vm.sh("cat /sys/block/nbd0/queue/io_timeout").ok().stdout, "3000\n");
    vm.sh("mkfs.ext4 -q /dev/nbd0 && mkdir -p /mnt/a && mount /dev/nbd0 /mnt/a").ok();

    // Growing reaches the mounted file system.
    vm.sh("rowctl disk resize d1 900MiB && resize2fs /dev/nbd0").ok();
    let blocks = vm.sh("stat -f -c %b /mnt/a").ok().stdout;
    assert!(blocks.trim().parse::<u64>().unwrap() > 200_000, "{blocks}");

    // Who uses it is named.
    let mounted = ["mounted at /mnt/a"];
    vm.sh("rowctl disk detach d1").fails_with(21).says(&mounted);
    vm.sh("rowctl snapshot create d1 one; rowctl disk rollback d1 one --yes")
        .fails_with(21)
        .says(&mounted);
    vm.sh("rowctl disk delete d1 --yes --force").fails_with(21).says(&["/dev/nbd0"]);
    vm.sh("rowctl disk attach d1").fails_with(21).says(&["/dev/nbd0"]);
    vm.sh("rowctl disk set d1 --read-only on").fails_with(21);
    vm.sh("rowctl disk attach d1 --device /dev/vda").fails_with(2).says(&["is not an NBD device"]);

    // A rollback of a device that nobody uses: what is read afterwards is of one time.
    vm.sh("echo new > /mnt/a/new; umount /mnt/a; dd if=/dev/nbd0 of=/dev/null bs=1M").ok();
    vm.sh("rowctl disk rollback d1 one --yes").ok();
    vm.sh("mount /dev/nbd0 /mnt/a && test ! -e /mnt/a/new && umount /mnt/a").ok();
    vm.sh("e2fsck -fn /dev/nbd0").ok();
    vm.sh("rowctl disk rollback --undo d1 --yes && mount /dev/nbd0 /mnt/a && cat /mnt/a/new").ok();

    // By force, the user gets errors instead of a mixture of two times.
    vm.sh("rowctl disk rollback d1 one --yes --force").ok();
    vm.sh("! dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct; umount /mnt/a || umount -l /mnt/a").ok();
    assert!(vm.sh("rowctl -o json disk show d1").ok().json()["attachment"].is_null());

    // A number is not used again at once, unless it is asked for.
    let again = vm.sh("rowctl -o json disk attach d1 --read-only").ok().json();
    assert_eq!(again["attachment"]["device"], "/dev/nbd1", "{again}");
    assert_eq!(vm.sh("cat /sys/block/nbd1/ro").ok().stdout, "1\n");
    vm.sh(
        "rowctl disk detach d1 && rowctl disk attach d1 --device /dev/nbd40 && test -b /dev/nbd40",
    )
    .ok();
    vm.sh("rowctl disk create d2 --size 64MiB; rowctl disk attach d2 --device /dev/nbd40")
        .fails_with(21)
        .says(&["/dev/nbd40 is in use by disk d1"]);
    vm.sh("rowctl disk detach d1 && rowctl disk delete d1 --yes").ok();
    vm.power_off();
}

/// Promise: the files of a snapshot that is only in a repository can be read too; its disk is filled meanwhile.
#[test]
fn the_files_of_a_snapshot_in_a_repository_are_mounted() {
    let mut vm = machine();
    vm.sh("mkdir -p /mnt/a /mnt/b /var/vault && rowctl disk attach d1").ok();
    vm.sh("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt/a && cp -r /etc /mnt/a/etc").ok();
    vm.sh("umount /mnt/a && rowctl repo add vault file:///var/vault").ok();
    vm.sh("rowctl snapshot create d1 away --repo vault --wait").ok();
    wait::until("a snapshot that has left the pool", || {
        let told = vm.sh("rowctl -o json snapshot show d1@away").ok().json();
        (told["presence"] == serde_json::json!(["repository"])).then_some(())
    });
    vm.sh("rowctl snapshot mount d1@away /mnt/b && diff -r --no-dereference /mnt/b/etc /etc").ok();
    vm.sh("rowctl snapshot mount --unmount /mnt/b && rowctl snapshot delete d1@away --yes").ok();
    assert_eq!(vm.sh("rowctl -o json disk list").ok().json().as_array().map(Vec::len), Some(1));
    vm.power_off();
}

/// Promise: the files of a snapshot that was made while its file system was in use can be read beside the
/// original, with ext4 and with XFS, and nothing is left behind.
#[test]
fn the_files_of_a_snapshot_are_mounted_beside_the_original() {
    let mut vm = machine();
    vm.sh("mkdir -p /mnt/a /mnt/b && rowctl disk attach d1").ok();
    for kind in ["ext4", "xfs"] {
        vm.sh(&format!(
            "wipefs -qa /dev/nbd0 && mkfs.{kind} -q /dev/nbd0 && mount /dev/nbd0 /mnt/a"
        ))
        .ok();
        // The journal has the new file, the place it belongs does not yet.
        vm.sh("cp -r /etc /mnt/a/etc && sync && echo text > /mnt/a/late && sync -f /mnt/a/late")
            .ok();
        vm.sh("rowctl snapshot create d1 dirty && echo changed > /mnt/a/late && sync").ok();
        let told = vm.sh("rowctl -o json snapshot mount d1@dirty /mnt/b").ok().json();
        assert_eq!(told["file_system"], kind, "{told}");
        assert_eq!(vm.sh("cat /mnt/b/late").ok().stdout, "text\n");
        vm.sh("diff -r --no-dereference /mnt/b/etc /mnt/a/etc && ! touch /mnt/b/x").ok();
        vm.sh("rowctl snapshot mount d1@dirty /mnt/b").fails_with(21).says(&["/mnt/b"]);
        vm.sh("rowctl snapshot mount --unmount /mnt/b && ! mountpoint -q /mnt/b").ok();
        vm.sh("rowctl snapshot mount --unmount /mnt/b").fails_with(20);
        vm.sh("umount /mnt/a && rowctl snapshot delete d1@dirty --yes").ok();
        let disks = vm.sh("rowctl -o json disk list").ok().json();
        assert_eq!(disks.as_array().map(Vec::len), Some(1), "{disks}");
    }

    // What cannot be mounted is said, and nothing is left.
    vm.sh("wipefs -qa /dev/nbd0 && pvcreate -q /dev/nbd0 && rowctl snapshot create d1 lvm").ok();
    vm.sh("rowctl snapshot mount d1@lvm /mnt/b").fails_with(1).says(&["vgimportclone"]);
    assert_eq!(vm.sh("rowctl -o json disk list").ok().json().as_array().map(Vec::len), Some(1));
    vm.power_off();
}

/// Promise: what `disk attach`, `disk detach`, `snapshot mount` and its `--unmount` print has the shape of their golden
/// files; to write these, see `it/golden.rs`.
#[test]
fn the_json_of_verbs_with_a_device_has_the_shape_of_its_golden_file() {
    let mut vm = machine();
    let mut shapes = Shapes::default();
    let mut printed = |vm: &mut Vm, verb: &str, rest: &str| {
        let told = vm.sh(&format!("rowctl -o json {verb} {rest}")).ok().json();
        shapes.add(verb, &told);
    };
    printed(&mut vm, "disk attach", "d1");
    vm.sh("mkfs.ext4 -q /dev/nbd0 && mkdir -p /mnt/b && rowctl snapshot create d1 one").ok();
    printed(&mut vm, "disk detach", "d1");
    printed(&mut vm, "snapshot mount", "d1@one /mnt/b");
    printed(&mut vm, "snapshot mount", "--unmount /mnt/b");
    shapes.hold();
    vm.power_off();
}
