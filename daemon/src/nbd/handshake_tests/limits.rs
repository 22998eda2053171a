//! A handshake ends, whatever the client does or leaves undone.

use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::super::{OPTIONS_MAX, negotiate, negotiate_within};
use super::client::{Script, Shelf, context_data, info_data, play, run};
use crate::error::ErrorKind;
use crate::nbd::wire::{info, option, option_reply as reply};

#[tokio::test]
async fn the_limits_end_a_handshake_and_not_before() {
    let mut endless = Script::new();
    for _ in 0..=OPTIONS_MAX {
        endless = endless.option(99, &[]);
    }
    let outcome = run(endless).await;
    assert_eq!(outcome.codes().len(), 64);
    assert!(outcome.result.unwrap_err().message().contains("too many options"));

    let full = vec![0; 65_536];
    let mut heavy = Script::new();
    for _ in 0..5 {
        heavy = heavy.option(99, &full);
    }
    let outcome = run(heavy).await;
    assert_eq!(outcome.codes(), [reply::ERR_UNSUP; 4]);
    assert!(outcome.result.is_err());

    let large = vec![0; 1 << 20];
    let outcome = run(Script::new().option(99, &large).option(option::ABORT, &[])).await;
    assert_eq!(outcome.codes(), [reply::ERR_TOO_BIG, reply::ACK]);
    let outcome = run(Script::new().option(99, &large).option(99, &large[..65_537])).await;
    assert!(outcome.result.is_err());
    for length in [(1 << 20) + 1, u32::MAX] {
        let outcome = run(Script::new().header(99, length)).await;
        assert!(outcome.result.is_err() && outcome.sent.is_empty());
    }
}

#[tokio::test]
async fn unknown_client_flags_close_the_connection() {
    for flags in [4, 7, 1 << 31, u32::MAX] {
        let outcome = run(Script::with_flags(flags).go("db")).await;
        assert!(outcome.result.is_err() && outcome.sent.is_empty(), "{flags:#x}");
    }
}

#[tokio::test]
async fn a_client_that_is_not_fixed_newstyle_gets_no_option_replies() {
    for option in [option::LIST, option::GO, option::ABORT, 99] {
        let outcome = run(Script::with_flags(0).option(option, &info_data("db", &[]))).await;
        assert!(outcome.result.is_err() && outcome.sent.is_empty(), "option {option}");
    }
}

#[tokio::test]
async fn an_option_without_its_magic_closes_the_connection() {
    for bytes in [&[0; 16], b"NBDMAGIC\0\0\0\x07\0\0\0\0", b"IHAVEOPS\0\0\0\x02\0\0\0\0"] {
        let outcome = run(Script::new().bytes(bytes)).await;
        assert!(outcome.result.is_err() && outcome.sent.is_empty());
    }
}

/// A connection that is cut at any byte ends the handshake at once and leaves nothing in use.
#[tokio::test]
async fn a_client_may_disappear_after_any_byte() {
    let script = Script::new()
        .structured()
        .option(option::LIST, &[])
        .option(option::INFO, &info_data("db", &[info::BLOCK_SIZE]))
        .option(99, b"some data")
        .set_contexts("db", &["base:allocation"])
        .go("db");
    let shelf = Shelf::new();
    for end in 0..script.0.len() {
        let outcome = play(&shelf, &script.0[..end]).await;
        assert!(!matches!(outcome.result, Ok(Some(_))), "after {end} bytes");
        assert_eq!(shelf.opened.load(Ordering::Relaxed), 0);
    }
    let outcome = play(&shelf, &script.0).await;
    assert_eq!(outcome.negotiated().contexts.len(), 1);

    let outcome = play(&shelf, &[]).await;
    assert!(outcome.left(), "a client may look at the greeting and go");
}

#[tokio::test]
async fn a_silent_client_is_dropped_at_the_deadline() {
    let (client, mut server) = tokio::io::duplex(64);
    let result = negotiate_within(Duration::from_millis(30), &mut server, &Shelf::new()).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
    drop(client);
}

/// A client that sends and never reads must not hold the server in a write.
#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_at_the_deadline() {
    let shelf = Shelf::new();
    let (mut client, mut server) = tokio::io::duplex(64);
    let script = Script::new().option(option::LIST, &[]).option(option::LIST, &[]);
    let serve = negotiate_within(Duration::from_millis(30), &mut server, &shelf);
    let (result, sent) = tokio::join!(serve, client.write_all(&script.0));
    sent.unwrap();
    assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
}

/// The daemon spawns handshakes on a runtime with several threads.
#[test]
fn the_handshake_can_move_between_threads() {
    fn require_send<T: Send>(_: &T) {}
    fn handshake(stream: &mut DuplexStream, shelf: &Shelf) {
        require_send(&negotiate(stream, shelf));
    }
    let (mut stream, _other) = tokio::io::duplex(1);
    handshake(&mut stream, &Shelf::new());
}

/// An option as a fuzzer would send it: near the real ones, its length true or not.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![9 => 0..12u32, 1 => any::<u32>()];
    let names = prop_oneof![Just(""), Just("db"), Just("web"), Just("db@x"), Just("none")];
    let data = prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..64),
        (names.clone(), proptest::collection::vec(0..5u16, 0..4))
            .prop_map(|(name, wanted)| info_data(name, &wanted)),
        (names, proptest::collection::vec("(base:|rowd:dirty:|[a-z:]){0,2}", 0..4)).prop_map(
            |(name, queries)| {
                context_data(name, &queries.iter().map(String::as_str).collect::<Vec<_>>())
            }
        ),
    ];
    let lie = prop_oneof![20 => Just(0), 1 => any::<u32>(), 1 => 0..8u32];
    (number, data, lie).prop_map(|(number, data, lie)| {
        let length = u32::try_from(data.len()).unwrap() ^ lie;
        Script(Vec::new()).header(number, length).bytes(&data).0
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a client sends: no panic, an end when the client closes, whole replies, and an
    /// export in use only when the handshake says so.
    #[test]
    fn any_client_ends(
        flags in prop_oneof![8 => Just(3u32), 1 => 0..4u32, 1 => any::<u32>()],
        options in proptest::collection::vec(any_option(), 0..70),
        noise in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let script = Script::with_flags(flags).bytes(&options.concat()).bytes(&noise);
        let shelf = Shelf::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(play(&shelf, &script.0));
        let entered = matches!(outcome.result, Ok(Some(_)));
        prop_assert_eq!(shelf.in_use.load(Ordering::Relaxed), usize::from(entered));
        if !entered {
            prop_assert!(outcome.replies().len() <= 64 * 5);
        }
    }

    /// The same for bytes with no meaning at all.
    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(play(&Shelf::new(), &bytes));
        prop_assert!(!matches!(outcome.result, Ok(Some(_))));
    }
}
