//! `rowctl events`: what happened, in order, and what happens next.
//!
//! Invariants: no event is printed twice or out of order; a gap in the sequence is said.
//! Absent: filters; `-o jsonl` and the tools for it do that better.

use clap::Args;
use rowd_proto::{ErrorKind, Event, EventsList, EventsSubscribe};

use crate::client::Client;
use crate::error::{Failure, Outcome, Result};

use super::Context;

pub const EXAMPLES: &str = "Examples:
  rowctl events                          all that are kept
  rowctl events --limit 20               the last 20
  rowctl events --follow                 those to come
  rowctl events --follow --after 41 -o jsonl

With --follow each event is one line, also with -o json. A stream that was cut off is resumed with
--after and the last sequence number that was seen.";

/// Events asked for at a time, which is as many as the daemon gives.
const PAGE: u32 = 1000;

#[derive(Args, Debug)]
pub struct Events {
    /// Go on with events as they happen
    #[arg(short, long)]
    follow: bool,
    /// Begin after this sequence number; with --follow and without this, with the next event
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// Only the last so many
    #[arg(short = 'n', long, conflicts_with = "follow")]
    limit: Option<usize>,
}

pub fn run(args: &Events, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    if args.follow {
        return follow(&mut client, args.after, context);
    }
    let mut events = all_after(&mut client, args.after.unwrap_or(0))?;
    if let Some(limit) = args.limit {
        events.drain(..events.len().saturating_sub(limit));
    }
    let seq = |event: &Event| event.seq.to_string();
    context
        .output
        .list(&events, seq, |_| events.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    Ok(Outcome::Done)
}

fn all_after(client: &mut Client, mut after: u64) -> Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let page = client.call(&EventsList { after, limit: Some(PAGE) })?.events;
        match page.last() {
            Some(last) if last.seq > after => after = last.seq,
            _ => return Ok(events),
        }
        events.extend(page);
    }
}

/// Prints events until the daemon goes or nobody reads any more.
fn follow(client: &mut Client, after: Option<u64>, context: &Context) -> Result<Outcome> {
    let mut seen = client.call(&EventsSubscribe { after })?.after;
    loop {
        let event = client.next_event().map_err(|failure| match failure.kind() {
            Some(ErrorKind::Unreachable) => {
                failure.hint(format!("resume with rowctl events --follow --after {seen}"))
            }
            _ => failure,
        })?;
        if event.seq <= seen {
            let message = format!("event {} came after event {seen}", event.seq);
            return Err(Failure::new(ErrorKind::Internal, message));
        }
        if event.seq > seen + 1 {
            let missed = event.seq - seen - 1;
            context
                .output
                .remark(&format!("{missed} events before this one are not kept any more"));
        }
        seen = event.seq;
        context.output.item(&event, || line(&event))?;
    }
}

/// `42  2026-01-31T09:10:00Z  snapshot.create  s-…  message  (uid 0, pid 4242)`
fn line(event: &Event) -> String {
    let who = match event.pid {
        0 => "rowd".to_owned(),
        pid => format!("uid {}, pid {pid}", event.uid),
    };
    let Event { seq, at, kind, object, message, .. } = event;
    format!("{seq:>6}  {at}  {kind:<18}  {object:<18}  {message}  ({who})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowd_proto::Time;

    #[test]
    fn an_event_is_one_line_that_names_who_asked() {
        let mut event = Event {
            seq: 42,
            at: Time::from_unix(1_769_850_000),
            uid: 1000,
            pid: 4242,
            kind: "snapshot.create".to_owned(),
            object: "s-0011223344556677".to_owned(),
            message: "snapshot data1@mon created".to_owned(),
        };
        assert_eq!(
            line(&event),
            "    42  2026-01-31T09:00:00Z  snapshot.create     s-0011223344556677  \
             snapshot data1@mon created  (uid 1000, pid 4242)"
        );
        (event.uid, event.pid) = (0, 0);
        assert!(line(&event).ends_with("(rowd)"));
    }
}
