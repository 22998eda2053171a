//! Where a control socket may be made. What it answers is tested against a whole daemon.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;

use super::*;

#[tokio::test]
async fn a_new_socket_has_the_mode_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let _listener = bind(&path, 0o640).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
}

/// A daemon that was killed leaves its socket file; the next one must start all the same.
#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    bind(&path, 0o600).unwrap();
}

/// Two daemons on one socket: the second must not take the socket from under the first.
#[tokio::test]
async fn a_socket_that_somebody_answers_on_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let _first = bind(&path, 0o600).unwrap();
    let error = bind(&path, 0o600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn anything_but_a_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(bind(&path, 0o600).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_said_so() {
    let path = Path::new("/tmp").join("x".repeat(200));
    let error = bind(&path, 0o600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("too long"));
}
