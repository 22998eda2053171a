//! A host with systemd at the speed of this machine: the systemd of the image in namespaces of its own, for
//! times that an emulated machine is too slow to show.
//!
//! Invariants: what it mounts and starts is in its namespaces, and goes with them; its pool is on this
//! machine's file system; a script has a time limit.
//! Absent: a kernel of its own, and so kernel NBD devices.

use std::fs;

use tempfile::TempDir;

use super::image::Image;
use super::payload;
use crate::tool::{self, Outcome};

const START: &str = include_str!("guest/native.sh");

/// Boots the image with rowd installed, runs a script (bash, with `-euo pipefail`) as root, and shuts down.
///
/// # Panics
/// It does not come to its end.
#[must_use]
pub fn run(script: &str) -> Outcome {
    let image = Image::get();
    let home = TempDir::with_prefix("rowd-native-").expect("a temporary directory");
    payload::pack(home.path(), true, &[]);
    let at = |name: &str| home.path().join(name);
    fs::write(at("script"), script).and_then(|()| fs::write(at("start"), START)).expect("scripts");
    let mut unshare = tool::command("unshare");
    unshare.args(["--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]);
    unshare.arg("bash").arg(at("start")).arg(image.root()).arg(home.path());
    let booted = tool::finish(&mut unshare);
    let read = |name: &str| fs::read_to_string(at(name)).ok();
    let code = read("code").and_then(|text| text.trim().parse().ok());
    let code =
        code.unwrap_or_else(|| panic!("the script did not end: {:?}\n{booted}", read("said")));
    Outcome {
        line: script.trim().to_owned(),
        code,
        stdout: read("said").unwrap_or_default(),
        stderr: booted.stderr,
    }
}
