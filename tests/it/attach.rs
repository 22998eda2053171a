//! Kernel devices on a host whose kernel has no NBD client: what is refused, and how.
//!
//! Absent: devices. The VM tests have those.

use rowd_tests::process::Daemon;

fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    daemon
}

/// Whether the kernel of this host has an NBD client; then there is nothing to see here.
fn has_client() -> bool {
    std::path::Path::new("/sys/module/nbd").exists()
}

/// Promise: without the kernel's client the reason and the remedy are named, and nothing is remembered.
#[test]
fn without_the_kernels_client_an_attach_says_what_to_load() {
    let daemon = daemon();
    if has_client() {
        return;
    }
    let error = daemon.json_error(1, &["disk", "attach", "disk"]);
    assert_eq!(error["kind"], "condition", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("modprobe nbd"), "{error}");
    assert_eq!(daemon.json(&["disk", "show", "disk"])["attachment"], serde_json::Value::Null);
    daemon.ctl(&["disk", "delete", "disk", "--yes"]);
}

#[test]
fn what_is_not_attached_cannot_be_detached() {
    let daemon = daemon();
    let error = daemon.json_error(15, &["disk", "detach", "disk"]);
    assert!(error["message"].as_str().unwrap().contains("disk is not attached"), "{error}");
}

#[test]
fn a_device_that_is_none_is_a_mistake_wherever_it_is_asked_for() {
    let daemon = daemon();
    let error = daemon.json_error(2, &["disk", "attach", "disk", "--device", "/dev/sda"]);
    assert!(error["message"].as_str().unwrap().contains("is not an NBD device"), "{error}");
}

/// Promise: a mount that fails leaves no clone behind.
#[test]
fn a_snapshot_that_cannot_be_mounted_leaves_nothing() {
    let daemon = daemon();
    if has_client() {
        return;
    }
    daemon.ctl(&["snapshot", "create", "disk", "one"]);
    let place = daemon.path("mnt");
    std::fs::create_dir(&place).unwrap();
    let error = daemon.json_error(1, &["snapshot", "mount", "disk@one", &place]);
    assert!(error["hint"].as_str().unwrap().contains("modprobe nbd"), "{error}");
    assert_eq!(daemon.json(&["disk", "list"]).as_array().map(Vec::len), Some(1));
    let error = daemon.json_error(20, &["snapshot", "mount", "--unmount", &place]);
    assert!(error["message"].as_str().unwrap().contains("no snapshot was mounted"), "{error}");
}
