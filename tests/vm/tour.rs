//! The tour of the README on a host, typed word for word.
//!
//! Absent: its first part, which needs no host of its own (`make demo` does the same).

use rowd_tests::vm::Vm;

const README: &str = include_str!("../../README.md");

/// What a host has before a command that the README does not give: its second disk, something to lose.
fn preparation(command: &str) -> Option<&'static str> {
    let known = [
        ("rowctl snapshot create data1", "echo precious > /srv/important"),
        (
            "rowctl group create data1 log1",
            "rowctl disk create log1 --size 1GiB; rowctl disk attach log1; udevadm settle
            mkfs.ext4 -q /dev/disk/by-id/rowd-log1; mkdir /log; mount /dev/disk/by-id/rowd-log1 /log
            printf '#!/bin/sh\\necho READY\\ncat\\n' > /etc/rowd/hooks.d/50-app
            chmod 755 /etc/rowd/hooks.d/50-app",
        ),
        ("rowctl snapshot mount data1@nightly", "rm /srv/important"),
        ("umount /srv", "cmp /srv/important <(echo precious); echo spoilt > /srv/important"),
    ];
    known.iter().find(|(start, _)| command.starts_with(start)).map(|(_, script)| *script)
}

/// Every command of the section does what it says there.
#[test]
fn the_tour_on_a_host_works_as_it_is_written() {
    let (_, section) = README.split_once("\n## On a host\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let commands: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    assert!(commands.len() > 10, "{commands:?}");
    let mut vm = Vm::new();
    vm.sh("mkdir -p /etc/rowd/hooks.d").ok();
    for command in commands {
        if let Some(script) = preparation(command) {
            vm.sh(script).ok();
        }
        vm.sh(command).ok();
    }
    vm.sh("cmp /srv/important <(echo precious)").ok();
    let group = vm.sh("rowctl -o json group show before-upgrade").ok().json();
    let members = group["members"].as_array().unwrap();
    assert!(members.iter().all(|one| one["snapshot"]["consistency"] == "app"), "{group}");
    // Mounted by hand and without `_netdev`, it would be unmounted after rowd has ended.
    vm.sh("umount /log").ok();
    vm.power_off();
}
