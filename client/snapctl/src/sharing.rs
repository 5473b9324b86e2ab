//! Those whom snapshots and images are shared with, on the command line and in the output.

use varve_client::Sharing;

/// What stands for all accounts.
const ALL: &str = "all";

/// Those who are named on the command line.
pub(crate) fn with(accounts: Vec<String>) -> Sharing {
    let (all, accounts): (Vec<_>, _) = accounts.into_iter().partition(|it| it == ALL);
    Sharing {
        accounts,
        everybody: !all.is_empty(),
    }
}

/// A line for each of them.
pub(crate) fn facts(sharing: &Sharing) -> impl Iterator<Item = (&'static str, String)> {
    let all = sharing.everybody.then(|| ALL.to_owned());
    let accounts = sharing.accounts.iter().cloned();
    all.into_iter().chain(accounts).map(|it| ("Shared", it))
}
