//! What each option answers, in step and in words.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::negotiate;
use super::client::{
    Outcome, Reply, SIZE, Script, Shelf, context_data, info_data, play, probe, run,
};
use crate::error::ErrorKind;
use crate::nbd::exports::{Capabilities, SelectedContext};
use crate::nbd::wire::{info, option, option_reply as reply};

#[tokio::test]
async fn go_opens_an_export_and_leaves_its_requests_unread() {
    let shelf = Shelf::new();
    let outcome = play(&shelf, &Script::new().go("db").bytes(b"requests").0).await;
    assert_eq!(outcome.codes(), [reply::INFO, reply::ACK]);
    let negotiated = outcome.negotiated();
    assert_eq!((negotiated.export.as_str(), negotiated.size), ("db", SIZE));
    assert!(!negotiated.structured && negotiated.contexts.is_empty() && negotiated.no_zeroes);
    assert_eq!(outcome.unread, b"requests");
    assert_eq!(shelf.in_use.load(Ordering::Relaxed), 1);
    drop(outcome);
    assert_eq!(shelf.in_use.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn info_and_go_say_the_same_and_info_opens_nothing() {
    let shelf = Shelf::new();
    let data = info_data("db", &[info::BLOCK_SIZE, info::NAME, info::DESCRIPTION, 77, info::NAME]);
    let script = Script::new().structured().option(option::INFO, &data).option(option::ABORT, &[]);
    let asked = play(&shelf, &script.0).await;
    assert_eq!(shelf.opened.load(Ordering::Relaxed), 0);

    let script = Script::new().structured().option(option::GO, &data);
    let went = play(&shelf, &script.0).await;
    let data = |outcome: &Outcome| -> Vec<Vec<u8>> {
        let replies = outcome.replies();
        replies.iter().filter(|r| r.code == reply::INFO).map(|r| r.data.clone()).collect()
    };
    assert_eq!(data(&asked), data(&went));
    let flags = went.negotiated().flags().to_be_bytes();
    let expected = [
        [&[0, 0], &SIZE.to_be_bytes()[..], &flags].concat(),
        b"\0\x01db".to_vec(),
        b"\0\x02this is db".to_vec(),
        b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec(),
    ];
    assert_eq!(data(&went), expected);
}

#[tokio::test]
async fn a_snapshot_is_exported_read_only() {
    let outcome = run(Script::new().go("db@mon")).await;
    let negotiated = outcome.negotiated();
    assert_eq!(negotiated.export, "db@mon");
    assert_eq!(negotiated.flags(), Capabilities::READ_ONLY.transmission_flags(false));
}

#[tokio::test]
async fn an_empty_description_is_not_sent() {
    let data = info_data("web", &[info::DESCRIPTION]);
    let outcome = run(Script::new().option(option::INFO, &data)).await;
    assert_eq!(outcome.codes(), [reply::INFO, reply::ACK]);
}

#[tokio::test]
async fn an_unknown_export_is_refused_in_words_and_another_may_follow() {
    let outcome = run(Script::new().go("none").go("web")).await;
    assert_eq!(outcome.codes(), [reply::ERR_UNKNOWN, reply::INFO, reply::ACK]);
    assert!(outcome.replies()[0].text().contains("none"));
    assert_eq!(outcome.negotiated().export, "web");
}

#[tokio::test]
async fn the_default_export_is_the_only_disk() {
    let outcome = run(Script::new().go("").option(option::ABORT, &[])).await;
    assert_eq!(outcome.codes(), [reply::ERR_UNKNOWN, reply::ACK]);
    assert!(outcome.replies()[0].text().contains("rowctl disk list"));

    let shelf = Shelf { disks: vec!["db"], ..Shelf::new() };
    let script = Script::new().structured().set_contexts("", &["base:allocation"]).go("db").0;
    let outcome = play(&shelf, &script).await;
    assert_eq!(outcome.negotiated().contexts.len(), 1, "the empty name and db are one export");
    let data = info_data("", &[info::NAME]);
    let outcome = play(&shelf, &Script::new().option(option::GO, &data).0).await;
    assert_eq!(outcome.replies()[1].data, b"\0\x01db");
}

#[tokio::test]
async fn export_name_answers_with_and_without_padding() {
    for (flags, length) in [(1, 134), (3, 10), (0, 134), (2, 10)] {
        let script = Script::with_flags(flags).option(option::EXPORT_NAME, b"db").bytes(b"next");
        let outcome = run(script).await;
        assert_eq!(outcome.sent.len(), length, "client flags {flags}");
        let negotiated = outcome.negotiated();
        assert_eq!(outcome.sent[..8], SIZE.to_be_bytes());
        assert_eq!(outcome.sent[8..10], negotiated.flags().to_be_bytes());
        assert!(outcome.sent[10..].iter().all(|&byte| byte == 0));
        assert_eq!(outcome.unread, b"next");
    }
}

#[tokio::test]
async fn export_name_closes_on_any_error() {
    let long = vec![b'x'; 70_000];
    for name in [&b"none"[..], b"", b"d\0b", b"\xff", &long[..5000], &long] {
        let outcome = run(Script::new().option(option::EXPORT_NAME, name)).await;
        assert!(outcome.result.is_err() && outcome.sent.is_empty());
    }
}

#[tokio::test]
async fn export_name_keeps_what_was_agreed_before() {
    let script = Script::new().structured().set_contexts("db", &["base:allocation"]);
    let outcome = run(script.option(option::EXPORT_NAME, b"db")).await;
    let negotiated = outcome.result.unwrap().unwrap();
    assert!(negotiated.structured);
    assert_eq!(negotiated.contexts.len(), 1);
}

#[tokio::test]
async fn abort_is_acknowledged_whatever_it_carries() {
    for data in [&[][..], b"goodbye", &[0; 100_000]] {
        let outcome = run(Script::new().option(option::ABORT, data)).await;
        assert!(outcome.left());
        assert_eq!(outcome.codes(), [reply::ACK]);
    }
}

#[tokio::test]
async fn a_client_may_close_without_waiting_for_the_answer_to_abort() {
    let shelf = Shelf::new();
    let (mut client, mut server) = tokio::io::duplex(64);
    let talk = async {
        let mut greeting = [0; 18];
        client.read_exact(&mut greeting).await.unwrap();
        client.write_all(&Script::new().option(option::ABORT, &[]).0).await.unwrap();
        drop(client);
    };
    let (result, ()) = tokio::join!(negotiate(&mut server, &shelf), talk);
    assert!(matches!(result, Ok(None)));
}

#[tokio::test]
async fn list_names_every_export() {
    let outcome = run(Script::new().option(option::LIST, &[])).await;
    assert!(outcome.left(), "closing after an answer is polite");
    assert_eq!(outcome.codes(), [reply::SERVER, reply::SERVER, reply::ACK]);
    assert_eq!(outcome.replies()[1].data, b"\0\0\0\x03weba disk");
}

#[tokio::test]
async fn options_without_data_refuse_data_and_stay_in_step() {
    for option in [option::LIST, option::STRUCTURED_REPLY, option::STARTTLS] {
        let answer = probe(Script::new(), option, b"x").await;
        assert_eq!(answer.code, reply::ERR_INVALID, "option {option}");
    }
}

#[tokio::test]
async fn options_that_do_not_exist_are_unsupported_with_and_without_data() {
    for option in [0, 4, 11, 12, 0x0765_4321, u32::MAX] {
        for data in [&[][..], &[0x55; 999]] {
            let answer = probe(Script::new(), option, data).await;
            assert_eq!(answer.code, reply::ERR_UNSUP, "option {option}");
            assert!(answer.text().contains(&option.to_string()));
        }
    }
}

#[tokio::test]
async fn tls_is_refused_by_policy() {
    let answer = probe(Script::new(), option::STARTTLS, &[]).await;
    assert_eq!(answer.code, reply::ERR_POLICY);
    assert!(answer.text().contains("TLS"));
}

#[tokio::test]
async fn structured_replies_are_agreed_once_and_bring_df() {
    let outcome = run(Script::new().structured().structured().go("db")).await;
    let codes = [reply::ACK, reply::ERR_INVALID, reply::INFO, reply::ACK];
    assert_eq!(outcome.codes(), codes);
    assert!(outcome.negotiated().structured);
    assert_eq!(outcome.negotiated().flags(), Capabilities::WRITABLE.transmission_flags(true));
}

#[tokio::test]
async fn malformed_info_requests_are_invalid_and_stay_in_step() {
    let name = |length: u32, rest: &[u8]| [&length.to_be_bytes(), rest].concat();
    let long = "x".repeat(4097);
    let cases = [
        Vec::new(),
        vec![0],
        name(u32::MAX, b"db\0\0"),
        name(3, b"db\0\0"),
        name(5, b"db\0\0"),
        name(2, b"db\0\x01"),
        name(2, b"db\0\0junk"),
        name(2, b"d\0\0\0"),
        name(2, b"d\xff\0\0"),
        info_data(&long, &[]),
    ];
    for option in [option::INFO, option::GO] {
        for data in &cases {
            let answer = probe(Script::new(), option, data).await;
            assert_eq!(answer.code, reply::ERR_INVALID, "option {option} data {data:x?}");
            assert!(!answer.data.is_empty(), "an error has words");
        }
        let answer = probe(Script::new(), option, &info_data(&long[1..], &[])).await;
        assert_eq!(answer.code, reply::ERR_UNKNOWN, "4096 bytes are a name");
    }
}

#[tokio::test]
async fn contexts_are_listed_by_name_namespace_or_all() {
    let all = ["base:allocation", "rowd:dirty:mon", "rowd:dirty:tue"];
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &all),
        (&["base:"], &all[..1]),
        (&["rowd:"], &all[1..]),
        (&["rowd:dirty:"], &all[1..]),
        (&["rowd:dirty:tue", "rowd:dirty:tue"], &all[2..]),
        (&["base:allocation", "rowd:dirty:"], &all),
        (&["rowd:dirty:m", "rowd:dirty", "other:", "", "junk"], &[]),
        (&["base:allocation2"], &[]),
    ];
    for (queries, expected) in cases {
        let data = context_data("db", queries);
        let outcome = run(Script::new().option(option::LIST_META_CONTEXT, &data)).await;
        let mut replies = outcome.replies();
        assert_eq!(replies.pop().unwrap().code, reply::ACK);
        let listed: Vec<String> =
            replies.iter().map(|r| r.text().strip_prefix("\0\0\0\0").unwrap().to_owned()).collect();
        assert_eq!(listed, expected, "{queries:?}");
    }
}

#[tokio::test]
async fn contexts_are_chosen_by_whole_names_with_distinct_ids() {
    let queries = ["rowd:dirty:tue", "nonsense", "base:allocation", "base:", "rowd:", "other:x"];
    let outcome = run(Script::new().structured().set_contexts("db", &queries).go("db")).await;
    let contexts = &outcome.negotiated().contexts;
    let context = |id, name: &str| SelectedContext { id, name: name.to_owned() };
    assert_eq!(contexts[..], [context(1, "base:allocation"), context(2, "rowd:dirty:tue")]);
    let told: Vec<String> = outcome
        .replies()
        .iter()
        .filter(|r| r.code == reply::META_CONTEXT)
        .map(Reply::text)
        .collect();
    assert_eq!(told, ["\0\0\0\x01base:allocation", "\0\0\0\x02rowd:dirty:tue"]);
}

#[tokio::test]
async fn a_choice_that_selects_nothing_is_no_error() {
    for queries in [&[][..], &["base:"], &["nocolon"]] {
        let data = context_data("db", queries);
        let answer = probe(Script::new().structured(), option::SET_META_CONTEXT, &data).await;
        assert_eq!(answer.code, reply::ACK, "{queries:?}");
    }
}

#[tokio::test]
async fn contexts_cannot_be_chosen_before_structured_replies_or_for_no_export() {
    let data = context_data("db", &["base:allocation"]);
    let answer = probe(Script::new(), option::SET_META_CONTEXT, &data).await;
    assert_eq!(answer.code, reply::ERR_INVALID);

    for option in [option::SET_META_CONTEXT, option::LIST_META_CONTEXT] {
        let data = context_data("none", &["base:allocation"]);
        let answer = probe(Script::new().structured(), option, &data).await;
        assert_eq!(answer.code, reply::ERR_UNKNOWN);
        let answer = probe(Script::new().structured(), option, &data[..data.len() - 1]).await;
        assert_eq!(answer.code, reply::ERR_INVALID);
    }
}

#[tokio::test]
async fn a_choice_counts_only_until_the_next_and_for_its_export() {
    let chosen = Script::new().structured().set_contexts("db", &["base:allocation"]);
    let endings = [
        ("kept", 1, chosen.clone().go("db")),
        ("another export", 0, chosen.clone().go("web")),
        ("replaced", 0, chosen.clone().set_contexts("db", &[]).go("db")),
        ("replaced by a failure", 0, chosen.clone().set_contexts("none", &[]).go("db")),
        ("malformed", 0, chosen.clone().option(option::SET_META_CONTEXT, b"x").go("db")),
        ("too big", 0, chosen.clone().option(option::SET_META_CONTEXT, &[0; 65_537]).go("db")),
        ("a failed GO between", 1, chosen.clone().go("none").go("db")),
    ];
    for (story, count, script) in endings {
        let outcome = run(script).await;
        assert_eq!(outcome.negotiated().contexts.len(), count, "{story}");
    }
}

#[tokio::test]
async fn too_many_contexts_are_refused() {
    let bases: Vec<String> = (0..40).map(|day| day.to_string()).collect();
    let names: Vec<String> = bases.iter().map(|base| format!("rowd:dirty:{base}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let shelf = Shelf { bases, ..Shelf::new() };
    let script =
        Script::new().structured().set_contexts("db", &names).set_contexts("db", &names[..32]);
    let outcome = play(&shelf, &script.go("db").0).await;
    assert_eq!(outcome.codes()[..2], [reply::ACK, reply::ERR_TOO_BIG]);
    assert_eq!(outcome.negotiated().contexts.len(), 32);
}

#[tokio::test]
async fn a_server_that_shuts_down_answers_only_abort() {
    let shelf = Shelf { shutting_down: true, ..Shelf::new() };
    let script = Script::new().option(option::LIST, &[]).structured().go("db").option(99, b"data");
    let outcome = play(&shelf, &script.option(option::ABORT, &[]).0).await;
    let mut codes = vec![reply::ERR_SHUTDOWN; 4];
    codes.push(reply::ACK);
    assert_eq!(outcome.codes(), codes);

    let outcome = play(&shelf, &Script::new().option(option::EXPORT_NAME, b"db").0).await;
    assert_eq!(outcome.result.unwrap_err().kind(), ErrorKind::ShuttingDown);
}
