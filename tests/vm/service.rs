//! The unit as `make install` puts it: what it protects the host from, and who looks after the daemon.
//!
//! Absent: restarts with devices attached (`restart.rs`).

use rowd_tests::vm::Vm;

/// What `systemd-analyze security` may say at most; 10 is a service without any protection.
const EXPOSURE_MAX: f64 = 3.5;

#[test]
fn the_service_is_protected_watched_and_started_again() {
    let mut vm = Vm::new();
    vm.sh("systemctl enable --now rowd; rowctl disk create data1 --size 64MiB").ok();
    is_in_the_journal(&mut vm);
    is_protected(&mut vm);
    is_for_its_group(&mut vm);
    is_started_again(&mut vm);
    vm.power_off();
}

/// The log is text for who reads it, and fields for who looks for something.
fn is_in_the_journal(vm: &mut Vm) {
    let found =
        vm.until("the event", "journalctl -u rowd EVENT=disk.create -o json | grep .").json();
    let field = |name: &str| found[name].as_str().unwrap_or_else(|| panic!("no {name}: {found}"));
    assert_eq!(
        (field("PRIORITY"), field("ACTOR_UID"), field("SYSLOG_IDENTIFIER")),
        ("6", "0", "rowd")
    );
    assert!(field("MESSAGE").contains("data1") && field("MESSAGE").contains("INFO"), "{found}");
    assert!(field("DISK").starts_with("d-"), "{found}");
    vm.sh(&format!("journalctl -u rowd DISK={} | grep 'rowd\\[.*data1'", field("DISK"))).ok();
    vm.sh("journalctl -u rowd METHOD=disk.create RESULT=ok | grep rowd::audit").ok();
}

fn is_protected(vm: &mut Vm) {
    let unit = "$(systemctl show -P FragmentPath rowd)";
    for analyse in ["security rowd.service", &format!("security --offline=true {unit}")] {
        let told = vm.sh(&format!("systemd-analyze {analyse} | tail -1")).ok();
        let words = told.stdout.split_whitespace();
        let exposure = words.filter_map(|word| word.parse::<f64>().ok()).next();
        let exposure = exposure.unwrap_or_else(|| panic!("no number\n{told}"));
        assert!(exposure <= EXPOSURE_MAX, "{told}");
        println!("systemd-analyze {analyse}: {exposure}");
    }
    // No line of the units is ignored, and no name in them unknown.
    let verify =
        vm.sh(&format!("systemd-analyze --man=no verify {unit} rowd-attach@data1.service")).ok();
    assert_eq!(verify.stderr, "", "{verify}");
}

/// Others than root need the group, and the configuration to say so.
fn is_for_its_group(vm: &mut Vm) {
    vm.sh("useradd --groups rowd member; useradd other").ok();
    for user in ["other", "member"] {
        vm.sh(&format!("runuser -u {user} -- rowctl disk list")).fails_with(3);
    }
    vm.write("/etc/rowd/rowd.toml", "[control]\ngroups = [\"rowd\"]\n");
    vm.sh("systemctl restart rowd; runuser -u member -- rowctl disk list").ok().says(&["data1"]);
    vm.sh("runuser -u other -- rowctl disk list").fails_with(3);
}

/// A daemon that is killed is back at once; one that hangs is found by the watchdog.
fn is_started_again(vm: &mut Vm) {
    vm.write("/etc/systemd/system/rowd.service.d/soon.conf", "[Service]\nWatchdogSec=5s\n");
    vm.sh("systemctl daemon-reload; systemctl restart rowd").ok();
    let pid = |vm: &mut Vm| vm.sh("systemctl show -P MainPID rowd").ok().stdout;
    for (signal, why) in [("KILL", "Failed with result 'signal'"), ("STOP", "Watchdog timeout")] {
        let before = pid(vm);
        vm.sh(&format!("kill -{signal} {before}")).ok();
        let again =
            format!("p=$(systemctl show -P MainPID rowd); [ $p != 0 -a $p != {} ]", before.trim());
        vm.until("a new daemon", &format!("{again}; rowctl disk list"));
        vm.sh(&format!("journalctl -u rowd | grep -F \"{why}\"")).ok();
    }
    // A daemon that works lives on past the limit: the same one, and no further complaint.
    let before = pid(vm);
    vm.until("the time of two watchdogs", "[ $(ps -o etimes= -C rowd) -ge 11 ]");
    assert_eq!(pid(vm), before);
}
