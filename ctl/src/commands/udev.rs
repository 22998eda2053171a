//! The names that udev gives to a device after the kernel has made it.
//!
//! Invariants: waited for at most [`LIMIT_S`] seconds, and only where udev runs; a device is attached whether its
//! names are there or not.
//! Absent: the rule that makes them (`systemd/`).

use std::path::Path;
use std::process::{Command, Stdio};

/// As long as udev may take before its user goes on without the names.
const LIMIT_S: u32 = 5;
/// Is there where udev runs.
const UDEV: &str = "/run/udev/control";

/// Waits for `/dev/disk/by-id/rowd-NAME`, so that the next command of a script finds it.
pub fn wait_for_names(disk: &str) {
    if !Path::new(UDEV).exists() {
        return;
    }
    let name = format!("--exit-if-exists=/dev/disk/by-id/rowd-{disk}");
    let settle = Command::new("udevadm")
        .args(["settle", &format!("--timeout={LIMIT_S}"), &name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    let why = match settle {
        Ok(status) if status.success() => return,
        Ok(_) => format!("udev was busy for {LIMIT_S} s"),
        Err(error) => format!("udevadm: {error}"),
    };
    eprintln!("rowctl: {why}: /dev/disk/by-id/rowd-{disk} may not be there yet");
}
