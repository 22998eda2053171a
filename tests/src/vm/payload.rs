//! What a machine gets from the host at its first boot: rowd as `make install` puts it, and files of
//! the test, in a tar archive on a drive of its own.
//!
//! Invariants: rowd is installed by the Makefile, as users do; only debug information is left out.
//! Absent: a network; files that are small go through the agent later (`Vm::write`).

use std::fs;
use std::path::{Path, PathBuf};

use crate::tool;

/// A file of the host and where it goes in the guest.
#[derive(Clone, Debug)]
pub struct Placed {
    pub from: PathBuf,
    /// Absolute.
    pub to: String,
}

/// Packs an archive.
///
/// # Panics
/// A file is missing, or `make install` fails.
pub fn pack(work: &Path, install: bool, files: &[Placed]) -> PathBuf {
    let tree = work.join("payload");
    fs::create_dir(&tree).expect("mkdir");
    if install {
        installed(work, &tree);
    }
    for Placed { from, to } in files {
        let target = tree.join(to.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("below the root")).expect("mkdir");
        fs::copy(from, &target).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
    let archive = work.join("payload.tar");
    let mut tar = tool::command("tar");
    tar.args(["--owner=0", "--group=0", "-C"]).arg(&tree).arg("-cf").arg(&archive).arg(".");
    tool::finish(&mut tar).ok();
    fs::remove_dir_all(tree).expect("remove what is packed");
    archive
}

fn installed(work: &Path, tree: &Path) {
    let programs = work.join("programs");
    fs::create_dir(&programs).expect("mkdir");
    for name in PROGRAMS {
        stripped(&tool::built(name), &programs.join(name));
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in it");
    let mut make = tool::command("make");
    // A make that runs the tests passes on its own options otherwise.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS").env_remove("PREFIX");
    make.arg("-C").arg(repository).args(["-s", "install-files"]);
    make.arg(format!("PROGRAMS={}", programs.display()));
    make.arg(format!("DESTDIR={}", tree.display()));
    tool::finish(&mut make).ok();
    fs::remove_dir_all(programs).expect("remove what is installed");
}

/// What `make install` installs of this workspace.
const PROGRAMS: &[&str] = &["rowd", "rowd-freeze", "rowctl"];

/// Copies a program without its debug information, which is nine tenths of it.
///
/// # Panics
/// It cannot be copied.
pub fn stripped(from: &Path, to: &Path) {
    tool::finish(tool::command("objcopy").arg("--strip-debug").arg(from).arg(to)).ok();
}
