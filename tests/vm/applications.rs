//! Scripts and hooks of the installed service: what its protection leaves them, and that they are no part of it.
//!
//! Absent: what scripts and hooks may do and how they fail (`it/freeze/applications.rs`).

use rowd_tests::vm::Vm;
use serde_json::{Value, json};

/// `PF_MEMALLOC_NOIO` and `PF_LOCAL_THROTTLE` in the flags of a task: what marks an I/O flusher.
const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// Becomes another user as the examples do, and notes what kind of process it is.
const SCRIPT: &str = r#"runuser -u nobody -- true
setpriv --reuid nobody --regid nogroup --clear-groups true
read -rt 0.5 <> <(:) || :
echo "{\"hook\": \"$ROWD_HOOK\", \"spared\": $(< /proc/self/oom_score_adj),
    \"flags\": $(cut -d ' ' -f 9 /proc/self/stat)}" >> /tmp/said
sleep 1000 & echo $! >> /tmp/background
"#;

/// Quiet until its input ends; a session of it would hold a lock.
const HOOK: &str = r#"#!/bin/bash
sleep 1234 &
echo $! > /tmp/session
echo READY
cat
kill $!
"#;

/// Promise: scripts and hooks work under the unit's protection, and what they start is an ordinary process,
/// though the daemon is not: a database that a script starts is neither spared when memory is short nor
/// marked as an I/O flusher.
#[test]
fn scripts_and_hooks_of_the_service_are_ordinary_processes_and_end_with_it() {
    let mut vm = Vm::new();
    vm.sh("systemctl enable --now rowd && rowctl disk create d1 --size 200MiB && rowctl disk attach d1").ok();
    vm.sh("mkfs.ext4 -q /dev/nbd0 && mkdir /mnt/a && mount /dev/nbd0 /mnt/a").ok();
    vm.write("/tmp/prescript.sh", SCRIPT);
    vm.write("/tmp/postscript.sh", SCRIPT);
    vm.write("/etc/rowd/hooks.d/50-hook", HOOK);
    vm.sh("chmod 700 /tmp/p*script.sh; chmod 755 /etc/rowd/hooks.d/50-hook").ok();
    let status = vm.sh("rowctl -o json status").ok().json();
    assert_eq!((&status["io_flusher"], &status["oom_score_adj"]), (&json!(true), &json!(-1000)));

    let create = "rowctl -o json snapshot create d1 NAME --consistency app \
                  --pre-script /tmp/prescript.sh --post-script /tmp/postscript.sh";
    let made = vm.sh(&create.replace("NAME", "quiet")).ok().json();
    assert_eq!((&made["freeze"]["reached"], &made["freeze"]["notes"]), (&json!("app"), &json!([])));
    let said = vm.sh("cat /tmp/said").ok().stdout;
    let told: Vec<Value> =
        serde_json::Deserializer::from_str(&said).into_iter().map(Result::unwrap).collect();
    assert_eq!(told.len(), 2, "{said}");
    for (told, hook) in told.iter().zip(["pre", "post"]) {
        assert_eq!((&told["hook"], &told["spared"]), (&json!(hook), &json!(0)));
        assert_eq!(told["flags"].as_u64().unwrap() & IO_FLUSHER, 0, "{told}");
    }
    // What they left in the background runs on; the session of the hook does not.
    vm.sh("for pid in $(cat /tmp/background); do kill -0 $pid && kill $pid; done").ok();
    vm.sh("! kill -0 $(cat /tmp/session)").ok();

    // The daemon is killed while a hook holds and another is not ready yet.
    vm.write("/etc/rowd/hooks.d/60-late", "#!/bin/sh\ntouch /tmp/waits\nsleep 1000\n");
    vm.sh("chmod 755 /etc/rowd/hooks.d/60-late; rm /tmp/session").ok();
    vm.sh(&format!("({}) > /tmp/answer 2>&1 < /dev/null &", create.replace("NAME", "cut-off")));
    vm.until("the second hook", "test -e /tmp/waits && kill -0 $(cat /tmp/session)");
    vm.sh("kill -9 $(systemctl show -P MainPID rowd)").ok();
    vm.until("the end of what held", "! kill -0 $(cat /tmp/session)");
    vm.until("a new daemon", "rowctl disk list");
    vm.sh("rowctl snapshot show d1@cut-off").fails_with(20);
    vm.sh("echo written > /mnt/a/file && sync -f /mnt/a && umount /mnt/a").ok();
    vm.power_off();
}
