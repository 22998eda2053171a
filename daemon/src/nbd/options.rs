//! What each option of the NBD handshake means.
//!
//! Follows the "NBD protocol", doc/proto.md, "Option types".
//!
//! Invariants:
//! - every option gets its complete answer, an error included, or closes the connection;
//! - an error reply says in words what is wrong and what would be right;
//! - `SET_META_CONTEXT` replaces the earlier choice even when it fails, and its choice counts only
//!   for the export it named;
//! - no option but `GO` and `EXPORT_NAME` opens an export.
//!
//! Absent: I/O, limits and the deadline (`handshake`); TLS, which comes with TCP beyond loopback.

use std::collections::HashSet;

use super::exports::{
    BASE_ALLOCATION, DIRTY_PREFIX, ExportInfo, Exports, Negotiated, Opened, SelectedContext,
};
use super::wire::{STRING_MAX, info, option, option_reply as reply};
use super::wire_option::{self, ClientFlags, ContextRequest, InfoRequest, Malformed};
use crate::error::{Error, ErrorKind, Result};

/// Contexts a connection may choose. Each makes every block status request of it dearer; backup
/// clients choose one or two.
pub const SELECTED_CONTEXTS_MAX: usize = 32;

/// The namespaces that stand for all of their contexts in `LIST_META_CONTEXT`.
const CONTEXT_NAMESPACES: [&str; 3] = ["base:", "rowd:", DIRTY_PREFIX];

/// What to do once the answer is sent.
#[derive(Debug)]
pub enum Step<T> {
    /// Wait for the next option.
    Next,
    /// Begin the transmission phase.
    Enter(Negotiated<T>),
    /// The client said goodbye.
    Leave,
    /// Drop the connection: the protocol has no answer for this.
    Close(Error),
}

/// The option phase of one connection: what was agreed so far.
#[derive(Debug)]
pub struct Options<'a, E> {
    exports: &'a E,
    client: ClientFlags,
    structured: bool,
    /// The export proper that `SET_META_CONTEXT` named, and the contexts it chose.
    selection: Option<(String, Vec<SelectedContext>)>,
}

/// An error reply: its code and its words.
struct Refusal {
    code: u32,
    message: String,
}

impl<'a, E: Exports> Options<'a, E> {
    pub fn new(exports: &'a E, client: ClientFlags) -> Self {
        Options { exports, client, structured: false, selection: None }
    }

    /// Answers one option: appends the replies to `out` and says how to go on.
    pub fn answer(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step<E::Target> {
        if option == option::EXPORT_NAME {
            return self.export_name(data, out);
        }
        if let Some(close) = self.cannot_answer() {
            return close;
        }
        if option == option::ABORT {
            wire_option::put_ack(out, option);
            return Step::Leave;
        }
        let answered = if self.exports.shutting_down() {
            Err(Refusal::shutting_down())
        } else if option == option::GO {
            match self.go(data, out) {
                Ok(negotiated) => return Step::Enter(negotiated),
                Err(refusal) => Err(refusal),
            }
        } else {
            self.inform(option, data, out)
        };
        match answered {
            Ok(()) => wire_option::put_ack(out, option),
            Err(refusal) => wire_option::put_error(out, option, refusal.code, &refusal.message),
        }
        Step::Next
    }

    /// Answers an option whose data was too long to be kept.
    pub fn answer_too_big(&mut self, option: u32, out: &mut Vec<u8>) -> Step<E::Target> {
        if option == option::EXPORT_NAME {
            return Step::Close(Error::invalid("the export name is longer than 4096 bytes"));
        }
        if let Some(close) = self.cannot_answer() {
            return close;
        }
        if option == option::ABORT {
            wire_option::put_ack(out, option);
            return Step::Leave;
        }
        if option == option::SET_META_CONTEXT {
            self.selection = None;
        }
        wire_option::put_error(out, option, reply::ERR_TOO_BIG, "the option's data is too long");
        Step::Next
    }

    /// A client that is not fixed newstyle does not understand option replies, so there is nothing
    /// to say to it.
    fn cannot_answer(&self) -> Option<Step<E::Target>> {
        let message = "a client without fixed newstyle may only send the option EXPORT_NAME";
        (!self.client.fixed_newstyle).then(|| Step::Close(Error::invalid(message)))
    }

    /// The options that change nothing outside the handshake and end with an `ACK`.
    fn inform(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        match option {
            option::LIST => self.list(data, out),
            option::STARTTLS => start_tls(data),
            option::INFO => self.info(data, out),
            option::STRUCTURED_REPLY => self.structured_reply(data),
            option::LIST_META_CONTEXT => self.list_contexts(data, out),
            option::SET_META_CONTEXT => self.set_contexts(data, out),
            _ => Err(Refusal::new(reply::ERR_UNSUP, format!("option {option} is not supported"))),
        }
    }

    /// `EXPORT_NAME` has no way to report an error: any means closing.
    fn export_name(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step<E::Target> {
        if self.exports.shutting_down() {
            let message = "the server is shutting down";
            return Step::Close(Error::new(ErrorKind::ShuttingDown, message));
        }
        let name = match wire_option::decode_string(data) {
            Ok(name) => name,
            Err(malformed) => return Step::Close(Error::invalid(malformed.to_string())),
        };
        match self.resolve(name).and_then(|name| self.exports.open(&name)) {
            Err(e) => Step::Close(e),
            Ok(opened) => {
                let negotiated = self.enter(opened);
                let (size, flags) = (negotiated.size, negotiated.flags());
                wire_option::put_export_name_reply(out, size, flags, self.client.no_zeroes);
                Step::Enter(negotiated)
            }
        }
    }

    fn go(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<Negotiated<E::Target>, Refusal> {
        let request = InfoRequest::decode(data)?;
        let opened = self.exports.open(&self.resolve(request.export)?)?;
        self.put_info(option::GO, &opened.info, &request.wanted, out);
        wire_option::put_ack(out, option::GO);
        Ok(self.enter(opened))
    }

    fn info(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let request = InfoRequest::decode(data)?;
        let export = self.exports.describe(&self.resolve(request.export)?)?;
        self.put_info(option::INFO, &export, &request.wanted, out);
        Ok(())
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        no_data(data, "LIST")?;
        for listing in self.exports.list() {
            // A cut name would name another export.
            if listing.name.len() <= STRING_MAX {
                wire_option::put_server(out, &listing.name, &listing.description);
            }
        }
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refusal> {
        no_data(data, "STRUCTURED_REPLY")?;
        if self.structured {
            return Err(Refusal::invalid("structured replies are agreed already"));
        }
        self.structured = true;
        Ok(())
    }

    fn list_contexts(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let request = ContextRequest::decode(data)?;
        let export = self.exports.describe(&self.resolve(request.export)?)?;
        let queries: HashSet<&str> = request.queries.into_iter().collect();
        let wanted = |name: &str| {
            let namespace = |prefix: &&str| name.starts_with(prefix) && queries.contains(prefix);
            queries.is_empty() || queries.contains(name) || CONTEXT_NAMESPACES.iter().any(namespace)
        };
        for name in self.contexts(&export.name)?.iter().filter(|name| wanted(name)) {
            // Nothing is chosen, so there is no id to tell.
            wire_option::put_meta_context(out, option::LIST_META_CONTEXT, 0, name);
        }
        Ok(())
    }

    fn set_contexts(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        self.selection = None;
        if !self.structured {
            return Err(Refusal::invalid("metadata contexts need structured replies first"));
        }
        let request = ContextRequest::decode(data)?;
        let export = self.exports.describe(&self.resolve(request.export)?)?;
        let queries: HashSet<&str> = request.queries.into_iter().collect();
        let mut names = self.contexts(&export.name)?;
        // A namespace alone must choose nothing: only whole names count.
        names.retain(|name| queries.contains(name.as_str()));
        if names.len() > SELECTED_CONTEXTS_MAX {
            let message = format!("at most {SELECTED_CONTEXTS_MAX} metadata contexts at a time");
            return Err(Refusal::new(reply::ERR_TOO_BIG, message));
        }
        let selected: Vec<SelectedContext> =
            (1..).zip(names).map(|(id, name)| SelectedContext { id, name }).collect();
        for context in &selected {
            let (id, name) = (context.id, &context.name);
            wire_option::put_meta_context(out, option::SET_META_CONTEXT, id, name);
        }
        self.selection = Some((export.name, selected));
        Ok(())
    }

    /// All contexts of an export.
    fn contexts(&self, export: &str) -> Result<Vec<String>> {
        let bases = self.exports.dirty_bases(export)?;
        let dirty = bases.iter().map(|base| format!("{DIRTY_PREFIX}{base}"));
        Ok(std::iter::once(BASE_ALLOCATION.to_owned()).chain(dirty).collect())
    }

    /// The export a name means, which for the empty one may be none.
    fn resolve(&self, name: &str) -> Result<String> {
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        self.exports.default_export().ok_or_else(|| {
            Error::not_found("there is no default export, as there is not exactly one disk")
                .hint("name the export, disk or disk@snapshot; `rowctl disk list` shows the disks")
        })
    }

    /// What `INFO` and `GO` answer before their `ACK`: size and flags always, the rest when asked
    /// for.
    fn put_info(&self, option: u32, export: &ExportInfo, wanted: &[u16], out: &mut Vec<u8>) {
        let flags = export.capabilities.transmission_flags(self.structured);
        wire_option::put_info_export(out, option, export.size, flags);
        if wanted.contains(&info::NAME) {
            wire_option::put_info_string(out, option, info::NAME, &export.name);
        }
        if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            wire_option::put_info_string(out, option, info::DESCRIPTION, &export.description);
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            wire_option::put_info_block_size(out, option);
        }
    }

    fn enter(&mut self, opened: Opened<E::Target>) -> Negotiated<E::Target> {
        let Opened { target, info } = opened;
        let contexts = match self.selection.take() {
            Some((export, contexts)) if export == info.name => contexts,
            _ => Vec::new(),
        };
        Negotiated {
            target,
            export: info.name,
            size: info.size,
            capabilities: info.capabilities,
            structured: self.structured,
            contexts,
            no_zeroes: self.client.no_zeroes,
        }
    }
}

fn start_tls(data: &[u8]) -> Result<(), Refusal> {
    no_data(data, "STARTTLS")?;
    Err(Refusal::new(reply::ERR_POLICY, "this server does not offer TLS"))
}

fn no_data(data: &[u8], option: &str) -> Result<(), Refusal> {
    if data.is_empty() {
        return Ok(());
    }
    Err(Refusal::invalid(format!("the option {option} takes no data")))
}

impl Refusal {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Refusal::new(reply::ERR_INVALID, message)
    }

    fn shutting_down() -> Self {
        Refusal::new(reply::ERR_SHUTDOWN, "the server is shutting down")
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Refusal::invalid(malformed.to_string())
    }
}

impl From<Error> for Refusal {
    /// The one place where an error of the daemon becomes a code of the handshake.
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound => reply::ERR_UNKNOWN,
            ErrorKind::Invalid => reply::ERR_INVALID,
            ErrorKind::NotPermitted
            | ErrorKind::InUse
            | ErrorKind::WrongState
            | ErrorKind::Quota => reply::ERR_POLICY,
            ErrorKind::ShuttingDown => reply::ERR_SHUTDOWN,
            _ => reply::ERR_PLATFORM,
        };
        Refusal::new(code, error.to_string())
    }
}
