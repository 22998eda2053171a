//! `rowctl audit`: who asked for what, and what came of it, the refused included.
//!
//! Invariants: oldest first; nothing is left out but what the daemon keeps no longer.
//! Absent: what happened to objects afterwards, which is `rowctl events`.

use clap::Args;
use rowd_proto::{AuditEntry, AuditList};
use serde_json::Value;

use crate::error::{Outcome, Result};

use super::Context;

pub const EXAMPLES: &str = "Examples:
  rowctl audit -n 50
  rowctl audit -o jsonl | jq 'select(.result != \"ok\")'

Each call that would change something is an entry, with who asked (uid and pid), and the result.
The daemon keeps them in audit.jsonl in its directory, and sends them to the system log.";

#[derive(Args, Debug)]
pub struct Audit {
    /// Only the last so many
    #[arg(short = 'n', long)]
    limit: Option<u32>,
}

pub fn run(args: &Audit, context: &Context) -> Result<Outcome> {
    let entries = context.client()?.call(&AuditList { limit: args.limit })?.entries;
    let id = |entry: &AuditEntry| entry.at.to_string();
    context
        .output
        .list(&entries, id, |_| entries.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    Ok(Outcome::Done)
}

/// `2026-01-31T09:00:00.000000Z  uid 0, pid 42  disk.delete disk=data1  ok`
fn line(entry: &AuditEntry) -> String {
    let value = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let params = entry.params.iter().map(|(name, one)| format!(" {name}={}", value(one)));
    let AuditEntry { at, uid, pid, method, result, .. } = entry;
    let what: String = std::iter::once(method.clone()).chain(params).collect();
    let why = entry.message.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{at}  uid {uid}, pid {pid}  {what}  {result}{why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowd_proto::Moment;

    #[test]
    fn an_entry_is_one_line_with_who_what_and_result() {
        let params = serde_json::json!({"disk": "data1", "force": true});
        let Value::Object(params) = params else { unreachable!("an object") };
        let entry = AuditEntry {
            at: Moment::from_unix_micros(1_769_850_000_000_000),
            uid: 1000,
            pid: 42,
            role: "observer".to_owned(),
            method: "disk.delete".to_owned(),
            params,
            result: "not_permitted".to_owned(),
            message: Some("this socket is read-only".to_owned()),
            millis: 0,
        };
        assert_eq!(
            line(&entry),
            "2026-01-31T09:00:00.000000Z  uid 1000, pid 42  disk.delete disk=data1 force=true  \
             not_permitted: this socket is read-only"
        );
    }
}
