//! `make install` and `make uninstall`, into an empty directory.
//!
//! Absent: what systemd makes of it (`tests/vm`).

use std::fs;
use std::path::Path;

use rowd_tests::tool;
use tempfile::TempDir;

/// The files below a directory, from there.
fn files(dir: &Path) -> Vec<String> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

fn make(target: &str, to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let programs = tool::built("rowd").parent().unwrap().display().to_string();
    let mut make = tool::command("make");
    for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        make.env_remove(variable);
    }
    make.arg("-C").arg(root).args(["-s", target, "PREFIX=/opt/rowd"]);
    make.arg(format!("PROGRAMS={programs}")).arg(format!("DESTDIR={}", to.display()));
    tool::finish(&mut make).ok();
}

/// Everything is there and knows its place; what the administrator wrote is never replaced or removed.
#[test]
fn what_is_installed_is_whole_and_goes_again_but_for_the_configuration() {
    let home = TempDir::with_prefix("rowd-install-").unwrap();
    make("install-files", home.path());
    let installed = files(home.path());
    for part in [
        "etc/rowd/rowd.toml",
        "opt/rowd/bin/rowctl",
        "opt/rowd/lib/modules-load.d/rowd.conf",
        "opt/rowd/lib/systemd/system/modprobe@nbd.service.d/rowd.conf",
        "opt/rowd/lib/systemd/system/rowd-attach@.service",
        "opt/rowd/lib/systemd/system/rowd.service",
        "opt/rowd/lib/sysusers.d/rowd.conf",
        "opt/rowd/lib/udev/rules.d/61-rowd.rules",
        "opt/rowd/sbin/rowd",
        "opt/rowd/sbin/rowd-freeze",
        "opt/rowd/share/bash-completion/completions/rowctl",
        "opt/rowd/share/man/man1/rowctl-disk-attach.1",
        "opt/rowd/share/man/man5/rowd.toml.5",
        "opt/rowd/share/man/man8/rowd.8",
    ] {
        assert!(installed.iter().any(|file| file == part), "{part} is missing: {installed:?}");
    }
    let unit = home.path().join("opt/rowd/lib/systemd/system/rowd.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("\nExecStart=/opt/rowd/sbin/rowd "), "{unit}");
    let page = fs::read_to_string(home.path().join("opt/rowd/share/man/man8/rowd.8")).unwrap();
    assert!(page.contains(".TH rowd 8"), "{page}");

    let own = home.path().join("etc/rowd/rowd.toml");
    fs::write(&own, "dir = \"/srv\"\n").unwrap();
    make("install-files", home.path());
    make("uninstall", home.path());
    assert_eq!(files(home.path()), ["etc/rowd/rowd.toml"]);
    assert_eq!(fs::read_to_string(own).unwrap(), "dir = \"/srv\"\n");
}
