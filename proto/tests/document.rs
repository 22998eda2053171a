//! Holds `PROTOCOL.md` against the code: a method, kind or example that differs fails here.
//!
//! The document promises other people's clients what they can rely on; a promise nobody checks goes
//! stale.

use rowd_proto::{
    Access, ErrorKind, Greeting, Method, Notification, PROTOCOL, Request, Response, ServerLine,
    parse_request, parse_server_line,
};

const DOCUMENT: &str = include_str!("../PROTOCOL.md");

/// The rows of the table whose header begins with this text, cells trimmed.
fn table(header: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with(header))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "no table '{header}'");
    rows
}

/// The lines of all JSON examples.
fn examples() -> Vec<&'static str> {
    let blocks = DOCUMENT.split("```json\n").skip(1);
    blocks.filter_map(|block| block.split("```").next()).flat_map(str::lines).collect()
}

#[test]
fn the_table_of_methods_is_the_code_s() {
    let written: Vec<_> = table("| method |")
        .into_iter()
        .map(|row| {
            let types = |cell: &str| cell.split(':').next().unwrap().to_owned();
            (row[0].clone(), row[1].clone(), types(&row[2]), types(&row[3]))
        })
        .collect();
    let coded: Vec<_> = Method::ALL
        .iter()
        .map(|method| {
            let access = match method.access() {
                Access::Read => "read",
                Access::Admin => "admin",
            };
            let (params, reply) = method.types();
            let name = format!("`{}`", method.name());
            (name, access.to_owned(), params.to_owned(), reply.to_owned())
        })
        .collect();
    assert_eq!(written, coded);
}

/// Required parameters are found by asking for a call without any: the decoder names the first one
/// missing. All names together are found from the decoder's list of what it expected.
#[test]
fn the_documented_parameters_are_those_the_code_takes() {
    for (row, &method) in table("| method |").iter().zip(Method::ALL) {
        let surprise = serde_json::json!({"no such parameter": 0});
        let error = method.check_params(&surprise).unwrap_err();
        let known = error.split("expected").nth(1).unwrap_or("");
        let mut coded: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let listed = row[2].split_once(": ").unwrap().1;
        let mut written: Vec<&str> =
            listed.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('?')).collect();
        coded.sort_unstable();
        written.sort_unstable();
        assert_eq!(written, coded, "{}: {error}", method.name());
        let all_optional = listed == "none" || listed.split(", ").all(|name| name.ends_with("?`"));
        let none = method.check_params(&serde_json::json!({}));
        assert_eq!(none.is_ok(), all_optional, "{}", method.name());
    }
}

#[test]
fn the_table_of_kinds_is_the_code_s() {
    let mut written: Vec<(String, String)> =
        table("| kind |").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let mut coded: Vec<(String, String)> = ErrorKind::ALL
        .iter()
        .map(|kind| (format!("`{kind}`"), kind.exit_code().to_string()))
        .collect();
    written.sort();
    coded.sort();
    assert_eq!(written, coded);
}

#[test]
fn every_example_is_understood() {
    let mut asked: Option<(Request, Method)> = None;
    let (mut requests, mut replies) = (0, 0);
    for line in examples() {
        if let Ok(greeting) = serde_json::from_str::<Greeting>(line) {
            assert_eq!(greeting.rowd.protocol, PROTOCOL);
        } else if line.contains("\"id\"") && line.contains("\"params\"") {
            let request = parse_request(line.as_bytes()).unwrap();
            let method = Method::from_name(&request.method).unwrap();
            method.check_params(&request.params.clone().into()).unwrap();
            asked = Some((request, method));
            requests += 1;
        } else {
            match parse_server_line(line.as_bytes()).unwrap() {
                ServerLine::Response(response) => {
                    check_reply(&response, asked.as_ref());
                    replies += 1;
                }
                ServerLine::Notification(notification) => check_event(&notification),
            }
        }
    }
    assert!(requests >= 7 && replies >= 8, "{requests} requests, {replies} replies");
}

fn check_reply(response: &Response, asked: Option<&(Request, Method)>) {
    let (request, method) = asked.expect("a reply follows its request");
    match &response.result {
        Some(result) => {
            assert_eq!(response.id.as_ref(), Some(&request.id));
            assert_eq!(method.check_reply(result), Ok(()));
        }
        None => assert!(response.error.is_some(), "{response:?}"),
    }
}

fn check_event(notification: &Notification) {
    assert_eq!(notification.method, "event");
    let event = serde_json::from_value::<rowd_proto::Event>(notification.params.clone());
    assert_eq!(event.expect("an event").seq, 42);
}
