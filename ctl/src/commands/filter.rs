//! `--filter`: which of a list are told.
//!
//! Invariants: several filters all have to fit; what has not been told its tags yet has none.
//! Absent: other properties than tags; `-o json` and jq do for those.

use clap::Args;
use rowd_proto::Tags;

/// A condition: a tag with this key and, if one is named, this value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tagged {
    key: String,
    value: Option<String>,
}

/// Which of a list are told.
#[derive(Args, Debug, Default)]
pub struct Filter {
    /// Only those with this tag; given several times, with all of them
    #[arg(long = "filter", value_name = "tag:K[=V]", value_parser = parse)]
    wanted: Vec<Tagged>,
}

impl Filter {
    /// Leaves those that fit.
    pub fn leave<T>(&self, all: &mut Vec<T>, tags: impl Fn(&T) -> Option<&Tags>) {
        all.retain(|one| self.wanted.iter().all(|wanted| wanted.fits(tags(one))));
    }
}

impl Tagged {
    fn fits(&self, tags: Option<&Tags>) -> bool {
        let found = tags.and_then(|tags| tags.get(&self.key));
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

fn parse(text: &str) -> Result<Tagged, String> {
    let wrong = || format!("{text:?} is no filter: write tag:key=value, or tag:key");
    let tag = text.strip_prefix("tag:").ok_or_else(wrong)?;
    let (key, value) = match tag.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (tag, None),
    };
    if key.is_empty() {
        return Err(wrong());
    }
    Ok(Tagged { key: key.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_a_tag_and_perhaps_its_value() {
        let tags = Tags::from([("env".to_owned(), "a=b".to_owned())]);
        for (text, fits) in
            [("tag:env", true), ("tag:env=a=b", true), ("tag:env=a", false), ("tag:en", false)]
        {
            assert_eq!(parse(text).unwrap().fits(Some(&tags)), fits, "{text}");
            assert!(!parse(text).unwrap().fits(None));
        }
        for bad in ["", "env=test", "tag:", "tag:=x", "name:x"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    fn own(tags: &Tags) -> Option<&Tags> {
        Some(tags)
    }

    #[test]
    fn several_filters_all_have_to_fit() {
        let of = |pairs: &[(&str, &str)]| -> Tags {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let mut all = vec![of(&[("a", "1"), ("b", "2")]), of(&[("a", "1")]), of(&[])];
        let filter = Filter { wanted: vec![parse("tag:a=1").unwrap(), parse("tag:b").unwrap()] };
        filter.leave(&mut all, own);
        assert_eq!(all, [of(&[("a", "1"), ("b", "2")])]);
        let mut all = vec![of(&[])];
        Filter::default().leave(&mut all, own);
        assert_eq!(all.len(), 1, "without filters all are told");
    }
}
