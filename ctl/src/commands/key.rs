//! `rowctl key`: the keys of encrypted disks.
//!
//! Invariants: no key is shown, and none is read: rowd reads master keys where its configuration says.
//! Absent: making a master key, which is `openssl rand -hex 32`.

use clap::Subcommand;
use rowd_proto::{Key, KeyRotate, KeyShow, Keys};

use crate::error::{Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output};

use super::Context;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show which master key wraps the keys of which disks
    #[command(after_help = "Example:\n  rowctl key show -o json

A master key is shown by its id, which says nothing about the key.")]
    Show,
    /// Wrap the keys of all encrypted disks with a new master key
    #[command(after_help = "Example, with master_key = \"file:/etc/rowd/master.key\" and
previous_master_key = \"file:/etc/rowd/previous.key\" in [encryption]:
  mv /etc/rowd/master.key /etc/rowd/previous.key
  (umask 077; openssl rand -hex 32 > /etc/rowd/master.key)
  rowctl key rotate

The master keys are read again, all keys change at once, and disks in use stay in use. Data is
not written again. Credentials of systemd are read again only when rowd is restarted.

Copies in repositories are read with the new key once their disk is copied again, or they are, with
rowctl snapshot copy C --to OTHER. Keep the old key until then, and for copies that stay as they are.")]
    Rotate,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::Show => {
            let keys = client.call(&KeyShow {})?;
            let id = keys.master.clone().unwrap_or_default();
            context.output.object(&keys, &id, |output| text(&keys, output))?;
        }
        Verb::Rotate => {
            let done = client.call(&KeyRotate {})?;
            let id = done.keys.master.clone().unwrap_or_default();
            context.output.object(&done, &id, |_| match done.rotated {
                0 => format!("all keys were wrapped by master key {id} already"),
                count => format!("{count} keys are wrapped by master key {id} now"),
            })?;
        }
    }
    Ok(Outcome::Done)
}

fn text(keys: &Keys, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("master key", keys.master.clone().unwrap_or_else(|| "none".to_owned()));
    fields.add("read from", keys.source.clone());
    fields.add_some("trouble", keys.trouble.clone());
    fields.add_some("previous key", keys.previous_trouble.clone());
    let head = fields.render(output);
    if keys.keys.is_empty() {
        return format!("{}\nno disk is encrypted", head.trim_end());
    }
    format!("{}\n\n{}", head.trim_end(), table(&keys.keys, output))
}

fn table(keys: &[Key], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("DISKS"),
        Heading::Right("SNAPSHOTS"),
        Heading::Left("MASTER KEY"),
        Heading::Left("NOTE"),
    ]);
    for key in keys {
        let names: Vec<&str> = key.disks.iter().map(|disk| disk.name.as_str()).collect();
        columns.row([
            if names.is_empty() { "(deleted)".to_owned() } else { names.join(", ") }.into(),
            render::count(key.snapshots),
            key.master.clone().into(),
            key.locked.clone().unwrap_or_default().into(),
        ]);
    }
    columns.render(output)
}
