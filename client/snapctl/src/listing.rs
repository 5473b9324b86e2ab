//! What the listings of snapshots and of volumes take.

use std::collections::BTreeMap;

use clap::Args;

use crate::import::parse_tag;

/// Which to list.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// Only names that start so
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) name_prefix: String,
    /// Only those with this tag; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// At most this many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl Listing {
    pub(crate) fn tags(&self) -> BTreeMap<String, String> {
        self.tags.iter().cloned().collect()
    }

    pub(crate) fn limit(&self) -> usize {
        let limit = self.limit.map(usize::try_from);
        limit.and_then(Result::ok).unwrap_or(usize::MAX)
    }
}
