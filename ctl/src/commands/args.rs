//! Options that several nouns have, so that they are the same everywhere.
//!
//! Invariants: each is flattened into the arguments of a verb; what differs in meaning is not shared.
//! Absent: what is asked for with them.

use clap::Args;
use rowd_proto::Tags;

use super::{Tag, parse_tag};

/// What can be said about a new object.
#[derive(Args, Debug)]
pub struct About {
    #[arg(long, default_value = "", hide_default_value = true)]
    pub description: String,
    /// May be given several times
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    tags: Vec<Tag>,
}

impl About {
    /// The description, and the tags by key; of a key given twice the last counts.
    pub fn parts(self) -> (String, Tags) {
        (self.description, self.tags.into_iter().collect())
    }
}

/// What can be changed of an object; at least one of them.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Change {
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long)]
    pub description: Option<String>,
}

/// Whether something is to be protected, as `--protect` and `--no-protect` say; neither leaves it as it is.
pub fn protected(protect: bool, no_protect: bool) -> Option<bool> {
    (protect || no_protect).then_some(protect)
}

/// Of what loses something.
#[derive(Args, Debug)]
pub struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
