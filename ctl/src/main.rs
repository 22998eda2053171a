//! rowctl, the command line of rowd.
//!
//! Invariants: the exit code comes from one table; an error is told once, on the standard error,
//! and as JSON when JSON was asked for; nothing is printed to the standard output by a command that
//! fails in its arguments.
//! Absent: anything the daemon can do itself.

mod cli;
mod client;
mod commands;
mod confirm;
mod error;
mod nbd;
mod progress;
mod render;
mod time;
mod transfer;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;
use clap::error::ErrorKind as ArgumentError;
use rowd_proto::{ErrorBody, ErrorKind, exit};
use serde::Serialize;

use cli::Cli;
use error::Failure;
use render::{Format, Output};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(run(&args))
}

fn run(args: &[OsString]) -> u8 {
    let parsed = cli::command().try_get_matches_from(args).and_then(|matches| {
        Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut cli::command()))
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return told_by_clap(&error, cli::wants_json(args)),
    };
    let output = Output::of_process(cli.global.output, cli.global.quiet);
    let context = commands::Context { sockets: cli.global.sockets(), output };
    match commands::run(cli.command, &context) {
        Ok(outcome) => outcome.exit_code(),
        Err(Failure::ReaderGone) => exit::DONE,
        Err(Failure::Told(body)) => {
            tell(&body, output.format != Format::Table);
            body.kind.exit_code()
        }
    }
}

/// Help and version go to the standard output; wrong usage is an error like any other.
fn told_by_clap(error: &clap::Error, json: bool) -> u8 {
    let asked_for =
        matches!(error.kind(), ArgumentError::DisplayHelp | ArgumentError::DisplayVersion);
    if json && !asked_for {
        tell(&usage_error(error), true);
        return exit::USAGE;
    }
    match error.print() {
        Ok(()) if asked_for => exit::DONE,
        Ok(()) => exit::USAGE,
        Err(_) => exit::OTHER,
    }
}

/// The first paragraph of clap's text as the message, the others as advice.
fn usage_error(error: &clap::Error) -> ErrorBody {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let in_one_line = |text: &str| {
        text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
    };
    let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let body = ErrorBody::new(ErrorKind::Invalid, in_one_line(message));
    let advice: Vec<String> =
        rest.split("\n\n").map(in_one_line).filter(|paragraph| !paragraph.is_empty()).collect();
    if advice.is_empty() { body } else { body.hint(advice.join("; ")) }
}

/// An error as JSON: `{"error":{"kind":...,"message":...,"hint":...}}`.
#[derive(Debug, Serialize)]
struct Told<'a> {
    error: &'a ErrorBody,
}

/// Tells an error on the standard error.
fn tell(body: &ErrorBody, json: bool) {
    if json {
        match serde_json::to_string(&Told { error: body }) {
            Ok(line) => eprintln!("{line}"),
            Err(_) => eprintln!("rowctl: {body}"),
        }
        return;
    }
    eprintln!("rowctl: {}", body.message);
    if let Some(hint) = &body.hint {
        eprintln!("  hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage_error_of(line: &str) -> ErrorBody {
        usage_error(&cli::command().try_get_matches_from(line.split(' ')).unwrap_err())
    }

    #[test]
    fn wrong_usage_is_told_in_one_sentence_with_advice() {
        let body = usage_error_of("rowctl disk resize");
        assert_eq!(body.kind.exit_code(), exit::USAGE);
        assert_eq!(
            body.message,
            "the following required arguments were not provided: <DISK> <SIZE>"
        );
        assert!(body.hint.unwrap().starts_with("Usage: rowctl disk resize"));
        let hint = usage_error_of("rowctl disk lst").hint.unwrap();
        assert!(hint.contains("'list'"), "{hint}");
    }

    #[test]
    fn a_change_that_changes_nothing_is_wrong_usage() {
        for line in ["rowctl disk set data1", "rowctl snapshot set data1@mon"] {
            let body = usage_error_of(line);
            assert!(body.message.contains("--description"), "{line}: {}", body.message);
        }
        for line in ["rowctl disk set data1 --read-only on", "rowctl snapshot set a@b --name c"] {
            assert!(cli::command().try_get_matches_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn an_error_as_json_has_the_fields_in_their_order() {
        let error = ErrorBody::new(ErrorKind::NotFound, "no such disk");
        let json = serde_json::to_string(&Told { error: &error }).unwrap();
        let expected = r#"{"error":{"kind":"not_found","message":"no such disk","hint":null}}"#;
        assert_eq!(json, expected);
    }
}
