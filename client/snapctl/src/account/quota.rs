//! The limits of an account, on the command line and in the output.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::Serialize;
use varve_client::{Account, AccountQuota, PublicAccessBlock, Quota};

use crate::{Options, output::size, size::parse_bytes};

/// The quotas that can be set.
const QUOTAS: [Quota; 7] = [
    Quota::Volumes,
    Quota::Snapshots,
    Quota::AttachedVolumes,
    Quota::Uploads,
    Quota::RequestsPerSecond,
    Quota::StoredBytes,
    Quota::Images,
];

/// Whether an account may share snapshots with everybody.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Block {
    /// It may
    Off,
    /// It shares nothing more; what is shared stays so
    NewSharing,
    /// Nobody sees what it has shared with everybody, as long as this is set
    AllSharing,
}

impl From<Block> for PublicAccessBlock {
    fn from(block: Block) -> Self {
        match block {
            Block::Off => Self::Off,
            Block::NewSharing => Self::NewSharing,
            Block::AllSharing => Self::AllSharing,
        }
    }
}

/// A new limit; `None`: none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit(Quota, Option<u64>);

impl From<Limit> for (Quota, Option<u64>) {
    fn from(Limit(quota, limit): Limit) -> Self {
        (quota, limit)
    }
}

/// Reads `snapshots=1000`, `stored-bytes=2T` or `snapshots=none`.
pub(super) fn parse_limit(text: &str) -> Result<Limit, String> {
    let names = QUOTAS.map(|quota| quota.as_str().replace('_', "-"));
    let (name, limit) = text.split_once('=').unwrap_or((text, ""));
    let quota = names.iter().position(|it| it == name);
    let quota = quota.and_then(|number| QUOTAS.get(number));
    let quota = quota.ok_or_else(|| format!("there are quotas of {}", names.join(", ")))?;
    let limit = match limit {
        "none" => None,
        size if *quota == Quota::StoredBytes => Some(parse_bytes(size)?),
        number => Some(
            number
                .parse()
                .map_err(|_| format!("write {name}=NUMBER, or {name}=none for no limit"))?,
        ),
    };
    Ok(Limit(*quota, limit))
}

/// A quota as JSON.
#[derive(Debug, Serialize)]
pub(super) struct QuotaJson {
    /// `null`: none.
    limit: Option<u64>,
    /// `null` if the daemon does not tell it here.
    used: Option<u64>,
}

pub(super) fn in_json(quotas: &[AccountQuota]) -> BTreeMap<&'static str, QuotaJson> {
    let quotas = quotas.iter().map(|it| {
        let quota = QuotaJson {
            limit: it.limit,
            used: it.used,
        };
        (it.quota.as_str(), quota)
    });
    quotas.collect()
}

/// Says what a limit that is reached already means from now on: it may be lower than was meant.
pub(super) fn remark_on_use(account: &Account, options: &Options) {
    for quota in &account.quotas {
        let (Some(limit), Some(used)) = (quota.limit, quota.used) else {
            continue;
        };
        match quota.quota {
            Quota::StoredBytes if used >= limit => options.remark(format_args!(
                "{} are stored, and the quota is {}: uploads and writes of guests are refused \
                 from now on",
                size(used),
                size(limit)
            )),
            other if used > limit => options.remark(format_args!(
                "{used} {} are there, and the quota is {limit}: they stay, and no more can be made",
                other.as_str().replace('_', " ")
            )),
            _ => {}
        }
    }
}

/// The limits of an account, for people.
pub(super) fn facts(account: &Account) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    for quota in &account.quotas {
        let Some(limit) = quota.limit else {
            continue;
        };
        let (show, name): (fn(u64) -> String, _) = match quota.quota {
            Quota::StoredBytes => (size, "stored".to_owned()),
            other => (
                |number| number.to_string(),
                other.as_str().replace('_', " "),
            ),
        };
        let limit = show(limit);
        facts.push(match quota.used.map(show) {
            Some(used) => ("Quota", format!("{used} of {limit} {name}")),
            None if quota.quota == Quota::StoredBytes => {
                ("Quota", format!("{limit} {name}, not counted yet"))
            }
            None => ("Quota", format!("{limit} {name}")),
        });
    }
    match account.public_access_block {
        PublicAccessBlock::Off => {}
        PublicAccessBlock::NewSharing => {
            facts.push(("Blocked", "new sharing with everybody".to_owned()));
        }
        PublicAccessBlock::AllSharing => {
            facts.push(("Blocked", "all sharing with everybody".to_owned()));
        }
        _ => facts.push(("Blocked", "unknown".to_owned())),
    }
    if account.public_images {
        facts.push(("Allowed", "images for everybody".to_owned()));
    }
    facts
}
