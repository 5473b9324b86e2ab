//! Arguments of the lists of snapshots and volumes.

use std::collections::BTreeMap;

use clap::Args;

use crate::import::parse_tag;

/// Filters of a list.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// List only names with this prefix
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) name_prefix: String,
    /// List only those with this tag; given more than once, those with all of the tags
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// List only those of this account: self, an id, a name or an alias; or all [default: all that
    /// you may see]
    #[arg(
        long,
        value_name = "ACCOUNT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) owner: String,
    /// List at most this many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl Listing {
    pub(crate) fn tags(&self) -> BTreeMap<String, String> {
        self.tags.iter().cloned().collect()
    }

    pub(crate) fn limit(&self) -> usize {
        at_most(self.limit)
    }
}

/// The length of a list with this limit, or with none.
pub(crate) fn at_most(limit: Option<u64>) -> usize {
    let limit = limit.map(usize::try_from);
    limit.and_then(Result::ok).unwrap_or(usize::MAX)
}
