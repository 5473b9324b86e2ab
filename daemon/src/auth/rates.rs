//! Requests per second of accounts with that quota.
//!
//! Each account has a time up to which its requests have used up its rate: a request moves it on by
//! its share of a second, and is refused while it is too far ahead. So an account that was quiet
//! has a second's worth at once, or [`BURST_LEAST`] requests if that is more.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use varve_store::{AccountId, AccountRecord, Quota, limits::ACCOUNTS_MAX};

use crate::error::{Classified, ErrorKind};

/// The least number of requests that a quiet account has at once.
const BURST_LEAST: u64 = 10;
const SECOND_NS: u64 = 1_000_000_000;

/// The rates of all accounts.
#[derive(Debug)]
pub(crate) struct Rates {
    started: Instant,
    /// Nanoseconds since then up to which the rate of an account is used. Accounts whose time is in
    /// the past have no need of a place.
    used_ns: Mutex<HashMap<AccountId, u64>>,
}

/// An account makes more requests than its quota allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "beyond the quota of {} of account {account:?}: limit {limit}, left 0: try again in {} ms",
    Quota::RequestsPerSecond,
    wait.as_millis()
)]
pub(crate) struct TooFast {
    account: String,
    limit: u64,
    /// Time until the next request.
    pub(crate) wait: Duration,
}

impl Rates {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            used_ns: Mutex::default(),
        }
    }

    /// Counts a request of an account.
    ///
    /// # Errors
    ///
    /// It is one too many for now.
    pub(crate) fn count(&self, account: &AccountRecord) -> Result<(), TooFast> {
        let Some(limit) = account.quotas.get(&Quota::RequestsPerSecond) else {
            return Ok(());
        };
        let now = self.started.elapsed();
        self.count_at(now, account.id, *limit)
            .map_err(|wait| TooFast {
                account: account.name.clone(),
                limit: *limit,
                wait,
            })
    }

    /// The same at a time since the start. Fails with the time until the next request.
    fn count_at(&self, now: Duration, account: AccountId, limit: u64) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        // A limit of zero, which nobody can set, is one request a second.
        let each = SECOND_NS / limit.max(1);
        let ahead = each.saturating_mul(limit.max(BURST_LEAST) - 1);
        let mut all = self.used_ns.lock();
        if all.len() >= ACCOUNTS_MAX && !all.contains_key(&account) {
            // Of accounts that are deleted, too.
            all.retain(|_, used| *used > now);
        }
        let used = all.entry(account).or_default();
        // A limit that was raised counts at once: no account is further ahead than it may be now.
        let from = (*used).clamp(now, now.saturating_add(ahead).saturating_add(each));
        if from - now > ahead {
            *used = from;
            return Err(Duration::from_nanos(from - now - ahead));
        }
        *used = from.saturating_add(each);
        Ok(())
    }
}

impl Classified for TooFast {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ResourceExhausted
    }

    fn is_alarming(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn account(number: u64) -> AccountId {
        AccountId::from_number(number).unwrap()
    }

    /// Requests taken in a row at one time.
    fn taken(rates: &Rates, at_ms: u64, number: u64, limit: u64) -> usize {
        let take = || rates.count_at(Duration::from_millis(at_ms), account(number), limit);
        (0..10_000).take_while(|_| take().is_ok()).count()
    }

    #[test]
    fn a_quiet_account_has_a_second_at_once_and_then_its_rate() {
        let rates = Rates::new();
        assert_eq!(taken(&rates, 5000, 1, 100), 100);
        assert_eq!(taken(&rates, 5000, 1, 100), 0);
        assert_eq!(taken(&rates, 5000, 2, 100), 100, "each has its own");
        assert_eq!(taken(&rates, 5050, 1, 100), 5);
        assert_eq!(taken(&rates, 60_000, 1, 100), 100, "and no more than that");
        // Few a second: ten at once, then one after the other.
        assert_eq!(taken(&rates, 60_000, 3, 2), 10);
        assert_eq!(taken(&rates, 60_499, 3, 2), 0);
        assert_eq!(taken(&rates, 60_500, 3, 2), 1);
        let wait = rates
            .count_at(Duration::from_millis(60_600), account(3), 2)
            .unwrap_err();
        assert_eq!(wait, Duration::from_millis(400));
        // A refused request costs nothing.
        assert_eq!(taken(&rates, 61_000, 3, 2), 1);
        // Another limit counts from then on.
        assert_eq!(taken(&rates, 61_000, 3, 1000), 0);
        assert_eq!(taken(&rates, 61_001, 3, 1000), 1);
        assert_eq!(taken(&rates, 62_001, 3, 1000), 1000);
        assert_eq!(taken(&rates, 61_000, 4, u64::MAX), 10_000);
    }

    #[test]
    fn accounts_without_the_quota_have_no_place_and_others_give_theirs_back() {
        let rates = Rates::new();
        let mut record = AccountRecord::administrator();
        rates.count(&record).unwrap();
        assert!(rates.used_ns.lock().is_empty());
        record.quotas.insert(Quota::RequestsPerSecond, 1);
        for _ in 0..BURST_LEAST {
            rates.count(&record).unwrap();
        }
        let error = rates.count(&record).unwrap_err();
        assert!(error.wait <= Duration::from_secs(1), "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with(
                "beyond the quota of requests per second of account \"admin\": limit 1"
            ),
            "{text}"
        );
        for number in 1..10 * ACCOUNTS_MAX as u64 {
            let now = Duration::from_secs(100 * number);
            rates.count_at(now, account(number), 1).unwrap();
            assert!(rates.used_ns.lock().len() <= ACCOUNTS_MAX);
        }
    }
}
