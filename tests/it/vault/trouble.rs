//! A server in trouble: a copy arrives all the same, or fails with a reason and goes on when asked.
//!
//! Absent: a server that answers with other bytes; that is a damaged repository (`copies.rs`).

use std::sync::atomic::Ordering;

use rowd_tests::process::Daemon;
use serde_json::json;

use super::copies::{contents, copied, id, noise, write};
use super::proxy::{Mode, Proxy};
use super::server::{S3Server, add};

/// A daemon with a repository behind a proxy and a snapshot `data@one`.
fn world() -> (S3Server, Proxy, Daemon) {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let daemon = Daemon::new();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "32MiB"]);
    write(&daemon, "data", 0, &noise(3, 14 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    (server, proxy, daemon)
}

#[test]
fn a_copy_goes_through_drops_delays_errors_and_truncated_bodies_both_ways() {
    let (_server, proxy, daemon) = world();
    proxy.set(Mode::Troubles);
    let copy = copied(&daemon, "data@one", "s3");
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy), "--full"]);
    let made = proxy.connections.load(Ordering::SeqCst);
    assert!(made > 10, "there was trouble: {made} connections");
    proxy.set(Mode::Passes);
    daemon.ctl(&["copy", "verify", id(&copy)]);
    let expected = contents(&daemon, "data@one", 32 << 20);
    assert!(contents(&daemon, "again", 32 << 20) == expected);
}

#[test]
fn a_copy_to_a_server_that_is_down_fails_with_a_reason_and_goes_on_when_asked() {
    let (_server, proxy, mut daemon) = world();
    proxy.set(Mode::Down);
    let begun = daemon.json(&["snapshot", "copy", "data@one", "--to", "s3"]);
    assert_eq!(begun["status"], json!("progressing"));
    let waited = daemon.try_ctl(&["copy", "wait", id(&begun)]);
    assert_eq!(waited.code, 24, "{}", waited.stdout);
    let failed = daemon.json(&["copy", "show", id(&begun)]);
    assert_eq!(failed["status"], json!("failed"));
    assert!(failed["reason"].as_str().unwrap().contains("repository s3"), "{failed}");
    proxy.set(Mode::Passes);
    daemon.crash();
    assert_eq!(daemon.json(&["copy", "show", id(&begun)])["status"], json!("failed"));
    daemon.ctl(&["copy", "retry", id(&begun)]);
    let done = daemon.json(&["copy", "wait", id(&begun)]);
    assert_eq!(done["status"], json!("accomplished"));
    daemon.ctl(&["copy", "verify", id(&begun)]);
}
