//! The kernel's NBD client, driven by the distribution's `nbd-client`.
//!
//! Absent: devices that rowd attaches by itself.

use rowd_tests::vm::Vm;

/// What the other stories stand on: a script's outputs and exit code come back, rowd is installed, and
/// what is written is there after a reboot.
#[test]
fn a_guest_runs_scripts_and_keeps_its_files_over_a_reboot() {
    let mut vm = Vm::new();
    let done = vm.sh("echo out; echo err >&2; modprobe nbd; cd /; false; echo not").fails_with(1);
    assert_eq!((&*done.stdout, &*done.stderr), ("out\n", "err\n"));
    vm.sh("test -b /dev/nbd0; rowd --version; rowctl --version").ok().says(&["rowctl"]);
    vm.write("/etc/kept", "text");
    vm.reboot();
    assert_eq!(vm.sh("cat /etc/kept").ok().stdout, "text\n");
    vm.power_off();
}
