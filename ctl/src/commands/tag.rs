//! `rowctl tag`: tags of disks, snapshots, groups, instances and images.
//!
//! Invariants: the result shows all tags the object has afterwards.
//! Absent: tags of anything else.

use clap::{Args, Subcommand};
use rowd_proto::{Tagged, TaggedKind, TagsRemove, TagsSet};

use crate::error::{Outcome, Result};
use crate::render;

use super::{Context, Tag, collect_tags, parse_tag};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add tags, or change their values
    #[command(after_help = "Examples:
  rowctl tag set data1 env=test owner=ops
  rowctl tag set data1@before-upgrade keep=yes

A name means a disk first, then a group, an instance, an image, and a
snapshot that no other is called.")]
    Set(Set),
    /// Remove tags
    #[command(visible_alias = "rm", after_help = "Example:\n  rowctl tag remove data1 owner")]
    Remove(Remove),
}

#[derive(Args, Debug)]
pub struct Set {
    /// A disk, a snapshot, a group, an instance or an image
    object: String,
    #[arg(required = true, value_name = "K=V", value_parser = parse_tag)]
    tags: Vec<Tag>,
}

#[derive(Args, Debug)]
pub struct Remove {
    /// A disk, a snapshot, a group, an instance or an image
    object: String,
    /// Keys; a value after = does not matter
    #[arg(required = true, value_name = "K[=V]")]
    keys: Vec<String>,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let tagged = match verb {
        Verb::Set(Set { object, tags }) => {
            client.call(&TagsSet { object, tags: collect_tags(tags) })?
        }
        Verb::Remove(Remove { object, keys }) => {
            client.call(&TagsRemove { object, keys: keys.iter().map(|key| bare(key)).collect() })?
        }
    };
    context.output.object(&tagged, &tagged.id, |_| text(&tagged))?;
    Ok(Outcome::Done)
}

/// The key of `key` or `key=value`.
fn bare(key: &str) -> String {
    key.split_once('=').map_or(key, |(key, _)| key).to_owned()
}

fn text(tagged: &Tagged) -> String {
    let noun = match tagged.object {
        TaggedKind::Disk => "disk",
        TaggedKind::Snapshot => "snapshot",
        TaggedKind::Group => "group",
        TaggedKind::Instance => "instance",
        TaggedKind::Image => "image",
    };
    let tags = render::tags(&tagged.tags);
    let tags = if tags.is_empty() { "no tags" } else { &tags };
    format!("{noun} {}: {tags}", tagged.name)
}
