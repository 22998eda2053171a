//! `rowctl chain`: the snapshots of a disk as a whole, also of a disk that is gone.
//!
//! Invariants: snapshots are shown oldest first.
//! Absent: changes; a chain changes through its snapshots.

use clap::Subcommand;
use rowd_proto::{Chain, ChainList, ChainShow, SnapshotKind};

use crate::error::{Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output, Text};

use super::{Context, snapshot};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the chains of all disks
    #[command(visible_alias = "ls", after_help = "Example:\n  rowctl chain list")]
    List,
    /// Show the chain of one disk
    #[command(after_help = "Examples:
  rowctl chain show data1
  rowctl chain show d-0a1b2c3d4e5f6g7h      a disk that was deleted")]
    Show {
        /// Name or id; for a deleted disk its id
        disk: String,
    },
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::List => {
            let chains = client.call(&ChainList {})?.chains;
            context.output.list(
                &chains,
                |one| one.disk_id.clone(),
                |output| table(&chains, output),
            )?;
        }
        Verb::Show { disk } => {
            let chain = client.call(&ChainShow { disk })?;
            context.output.object(&chain, &chain.disk_id, |output| full(&chain, output))?;
        }
    }
    Ok(Outcome::Done)
}

fn table(chains: &[Chain], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("DISK"),
        Heading::Left("ID"),
        Heading::Right("DISK SIZE"),
        Heading::Right("SNAPSHOTS"),
        Heading::Right("STORED"),
    ]);
    for chain in chains {
        columns.row([
            name(chain).into(),
            chain.disk_id.clone().into(),
            if chain.disk_size == 0 { "".into() } else { render::bytes(chain.disk_size) },
            chain.snapshots.len().to_string().into(),
            render::bytes(chain.snapshot_bytes),
        ]);
    }
    columns.render(output)
}

fn full(chain: &Chain, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("disk", name(chain));
    fields.add("id", chain.disk_id.clone());
    fields.add("stored", render::bytes(chain.snapshot_bytes));
    if let Some(exclusive) = chain.exclusive_bytes {
        fields.add("exclusive", render::bytes(exclusive));
        let shared = chain.snapshot_bytes.saturating_sub(exclusive);
        fields.add_some("shared", (shared > 0).then(|| render::bytes(shared)));
    }
    fields.add("manual", quota(chain, SnapshotKind::Manual, chain.quota_manual));
    fields.add("auto", quota(chain, SnapshotKind::Auto, chain.quota_auto));
    let (fields, snapshots) = (fields.render(output), snapshot::table(&chain.snapshots, output));
    if snapshots.is_empty() { fields } else { format!("{fields}\n\n{snapshots}") }
}

fn name(chain: &Chain) -> String {
    chain.disk_name.clone().unwrap_or_else(|| "(deleted)".to_owned())
}

fn quota(chain: &Chain, kind: SnapshotKind, quota: u64) -> Text {
    let count = chain.snapshots.iter().filter(|one| one.kind == kind).count();
    let text = format!("{count} of {quota}");
    if u64::try_from(count).is_ok_and(|count| count >= quota) {
        Text::Alarm(text)
    } else {
        Text::Plain(text)
    }
}
