//! Asks before something is lost.
//!
//! Invariants: never waits for an answer nobody can give: without a terminal, `--yes` is required;
//! only a clear yes is a yes, and what cannot be taken back wants the name of what is lost.
//! Absent: what is worth asking about; the commands know.

use std::io::{self, BufRead, IsTerminal, Write};

use rowd_proto::ErrorKind;

use crate::error::{Failure, Result};

/// Returns when the user agrees, or has agreed beforehand with `--yes`.
///
/// # Errors
/// `Cancelled` when the user declines, `Invalid` when there is no terminal to ask on.
pub fn confirm(yes: bool, what: &str) -> Result<()> {
    ask(yes, what, "? [y/N] ", means_yes)
}

/// As [`confirm`], for what is gone for good: the name has to be typed.
///
/// # Errors
/// As there; any other name is a refusal.
pub fn confirm_by_name(yes: bool, what: &str, name: &str) -> Result<()> {
    let question = format!("? Type {name} to go on: ");
    ask(yes, what, &question, |answer| answer.trim() == name)
}

fn ask(yes: bool, what: &str, question: &str, agrees: impl Fn(&str) -> bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let message = format!("to {what} needs a confirmation, and there is no terminal to ask on");
        return Err(Failure::invalid(message).hint("add --yes"));
    }
    let failed = |e: io::Error| Failure::io("cannot ask for a confirmation", &e);
    let mut stderr = io::stderr().lock();
    write!(stderr, "{}{question}", capitalized(what))
        .and_then(|()| stderr.flush())
        .map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    if agrees(&answer) {
        Ok(())
    } else {
        Err(Failure::new(ErrorKind::Cancelled, "nothing was changed"))
    }
}

fn means_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        for yes in ["y\n", "Y", "yes\r\n", " YES "] {
            assert!(means_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n", "no", "yess", "j", "1"] {
            assert!(!means_yes(no), "{no:?}");
        }
    }

    #[test]
    fn what_was_agreed_to_beforehand_is_not_asked() {
        assert_eq!(confirm(true, "delete everything"), Ok(()));
    }
}
