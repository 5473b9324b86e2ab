//! What accounts store, against their quotas of stored bytes.
//!
//! What an account stores is known when its content is counted
//! ([`gc::stored`](crate::gc::stored)). Between counts a ledger adds up what comes in and what
//! checkpoints store, to tell when the next count is due, and refuses by the last count:
//!
//! - uploads, as soon as it and the chunks of all uploads under way pass the quota,
//! - writes of guests, once it has reached the quota.
//!
//! So no guest is refused because it writes to the same place again and again. An account can store
//! more than its quota by what it writes until a count has ended.

use std::{
    collections::HashMap,
    hash::RandomState,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    Error, Result,
    format::{
        AccountId,
        record::account::{AccountRecord, Quota},
    },
    limits,
};

/// The ledgers of a store.
#[derive(Debug, Default)]
pub(crate) struct Ledgers {
    all: Mutex<HashMap<AccountId, Arc<Ledger>>>,
    /// Held while quotas are read and set, so that the last ones stay.
    setting: Mutex<()>,
    /// Told when quotas are set.
    set: Notify,
    /// For hashes of roots.
    pub(crate) keys: RandomState,
}

/// The ledger of an account.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) account: AccountId,
    /// Bytes that guests have written and checkpoints have stored, and that no count is sure to
    /// have.
    written_bytes: AtomicU64,
    /// Plain bytes of the chunks of uploads that have ended since the last count began.
    uploaded_bytes: AtomicU64,
    /// Plain bytes of the chunks of uploads under way.
    uploading_bytes: AtomicU64,
    /// The last count has reached the quota.
    is_used_up: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` without a quota.
    quota: Option<Limit>,
    counted: Option<Count>,
    /// When the last try to count ended, and the time that it took.
    last_try: Option<(Instant, Duration)>,
    /// A count takes long.
    is_large: bool,
    /// How often the quota was taken away.
    settings: u64,
}

#[derive(Debug)]
struct Limit {
    /// The account's name.
    name: String,
    bytes: u64,
}

/// The outcome of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    /// Plain bytes of the chunks that the account's content has, each counted once.
    pub(crate) bytes: u64,
    /// The hash of the roots that were counted, by [`Ledgers::keys`].
    pub(crate) of: u64,
}

/// How much a count is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// The account may have reached its quota, or was never counted.
    Urgent,
    /// The figure is old.
    Later,
}

impl Ledgers {
    /// The ledger of an account.
    pub(crate) fn of(&self, account: AccountId) -> Arc<Ledger> {
        let mut all = self.all.lock();
        Arc::clone(all.entry(account).or_insert_with(|| Ledger::new(account)))
    }

    /// Sets the quotas that the records of all accounts have, which `read` reads.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub(crate) fn set(&self, read: impl FnOnce() -> Result<Vec<AccountRecord>>) -> Result<()> {
        let _setting = self.setting.lock();
        let accounts = read()?;
        let mut all = self.all.lock();
        let quotas = accounts.iter().filter_map(|account| {
            let bytes = *account.quotas.get(&Quota::StoredBytes)?;
            let name = account.name.clone();
            Some((account.id, Limit { name, bytes }))
        });
        let mut quotas: HashMap<_, _> = quotas.collect();
        for account in quotas.keys() {
            all.entry(*account).or_insert_with(|| Ledger::new(*account));
        }
        for ledger in all.values() {
            ledger.limit(quotas.remove(&ledger.account));
        }
        self.set.notify_waiters();
        Ok(())
    }

    /// The one of the accounts with much content, or of the others, whose count is due most: an
    /// urgent one, and of these the one that has waited longest.
    pub(crate) fn due(&self, are_large: bool) -> Option<(Due, Arc<Ledger>)> {
        let all = self.all.lock();
        let due = all.values().filter_map(|ledger| {
            let state = ledger.state.lock();
            let due = ledger.due(&state).filter(|_| state.is_large == are_large)?;
            let ended_at = state.last_try.map(|(ended_at, _)| ended_at);
            Some(((due != Due::Urgent, ended_at), due, ledger))
        });
        let (_, due, ledger) = due.min_by_key(|(order, ..)| *order)?;
        Some((due, Arc::clone(ledger)))
    }

    /// Makes a count of every account due.
    #[cfg(test)]
    pub(crate) fn make_due(&self) {
        for ledger in self.all.lock().values() {
            ledger.state.lock().last_try = None;
        }
    }

    /// Waits while no account has a quota.
    pub(crate) async fn wanted(&self) {
        loop {
            let mut set = pin!(self.set.notified());
            // From here on this sees every call of `set`.
            set.as_mut().enable();
            if self.all.lock().values().any(|ledger| ledger.has_quota()) {
                return;
            }
            set.await;
        }
    }
}

impl Ledger {
    fn new(account: AccountId) -> Arc<Self> {
        Arc::new(Self {
            account,
            written_bytes: AtomicU64::new(0),
            uploaded_bytes: AtomicU64::new(0),
            uploading_bytes: AtomicU64::new(0),
            is_used_up: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    fn has_quota(&self) -> bool {
        self.state.lock().quota.is_some()
    }

    fn limit(&self, quota: Option<Limit>) {
        let mut state = self.state.lock();
        // Without a quota nobody counts: the figure would be old when there is one again.
        if quota.is_none() {
            *state = State {
                settings: state.settings + 1,
                ..State::default()
            };
        }
        state.quota = quota;
        self.compare(&state);
    }

    fn compare(&self, state: &State) {
        let is_used_up = match &state.quota {
            Some(limit) => state.counted_bytes() >= limit.bytes,
            None => false,
        };
        self.is_used_up.store(is_used_up, Ordering::Relaxed);
    }

    /// Plain bytes of the account's content and of its uploads under way, as far as known. `None`
    /// before the first count.
    pub(crate) fn stored_bytes(&self) -> Option<u64> {
        let counted = self.state.lock().counted?;
        let uploading = self.uploading_bytes.load(Ordering::Relaxed);
        Some(counted.bytes.saturating_add(uploading))
    }

    /// Checks that the account may store something more.
    ///
    /// # Errors
    ///
    /// [`Error::Quota`].
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_used_up.load(Ordering::Relaxed) {
            true => Err(self.used_up(1)),
            false => Ok(()),
        }
    }

    /// Checks that a guest of the account may write so many bytes, and notes them.
    ///
    /// # Errors
    ///
    /// [`Error::Quota`].
    pub(crate) fn write(&self, bytes: u64) -> Result<()> {
        if self.is_used_up.load(Ordering::Relaxed) {
            return Err(self.used_up(bytes));
        }
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Notes bytes that a checkpoint has stored. What it stores may be much more than what was
    /// written: a change of one block makes another chunk around it.
    pub(crate) fn note(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn used_up(&self, more: u64) -> Error {
        let state = self.state.lock();
        let uploading = self.uploading_bytes.load(Ordering::Relaxed);
        let quota = state.quota.as_ref();
        Error::Quota {
            account: quota.map_or_else(|| self.account.to_string(), |it| it.name.clone()),
            quota: Quota::StoredBytes,
            limit: quota.map_or(0, |it| it.bytes),
            used: state.counted_bytes().saturating_add(uploading),
            more,
        }
    }

    fn due(&self, state: &State) -> Option<Due> {
        let limit = state.quota.as_ref()?;
        let uploaded = self.uploaded_bytes.load(Ordering::Relaxed);
        let most = [&self.written_bytes, &self.uploading_bytes]
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .into_iter()
            .chain([uploaded, state.counted_bytes()])
            .fold(0, u64::saturating_add);
        let is_urgent = state.counted.is_none() || most >= limit.bytes;
        let is_used_up = state.counted.is_some() && self.is_used_up.load(Ordering::Relaxed);
        let (due, (pause, times)) = match (is_urgent, is_used_up, uploaded) {
            (true, false, _) => (Due::Urgent, limits::STORED_COUNT_URGENT),
            (true, true, _) => (Due::Urgent, limits::STORED_COUNT_USED_UP),
            (false, _, 0) => (Due::Later, limits::STORED_COUNT_IDLE),
            (false, ..) => (Due::Later, limits::STORED_COUNT_UPLOADED),
        };
        let is_due = state
            .last_try
            .is_none_or(|(ended_at, took)| ended_at.elapsed() >= pause.max(took * times));
        is_due.then_some(due)
    }

    /// The last count.
    pub(crate) fn counted(&self) -> Option<Count> {
        self.state.lock().counted
    }

    /// Begins a count.
    pub(crate) fn begin_count(self: &Arc<Self>) -> Counting {
        Counting {
            ledger: Arc::clone(self),
            began_at: Instant::now(),
            walks_since: None,
            settings: self.state.lock().settings,
            written_bytes: self.written_bytes.load(Ordering::Acquire),
            uploaded_bytes: self.uploaded_bytes.load(Ordering::Acquire),
        }
    }

    /// Begins an upload.
    pub(crate) fn begin_upload(self: &Arc<Self>) -> Charge {
        Charge {
            ledger: Arc::clone(self),
            bytes: AtomicU64::new(0),
        }
    }
}

impl State {
    fn counted_bytes(&self) -> u64 {
        self.counted.map_or(0, |it| it.bytes)
    }
}

/// A count under way. What was uploaded before it began is in the content that it counts.
#[derive(Debug)]
pub(crate) struct Counting {
    ledger: Arc<Ledger>,
    began_at: Instant,
    walks_since: Option<Instant>,
    settings: u64,
    written_bytes: u64,
    uploaded_bytes: u64,
}

impl Counting {
    /// From now on it looks at the content.
    pub(crate) fn walks(&mut self) {
        self.walks_since = Some(Instant::now());
    }

    /// Says that this account is counted beside those that take less time, and ends the count.
    pub(crate) fn takes_long(self) {
        self.ledger.state.lock().is_large = true;
    }

    /// Notes the outcome, unless the quota was taken away meanwhile. What guests had written before
    /// is part of it if `has_journals`.
    pub(crate) fn end(self, count: Count, has_journals: bool) {
        let ledger = &self.ledger;
        let mut state = ledger.state.lock();
        if state.settings != self.settings {
            return;
        }
        state.counted = Some(count);
        let uploaded = &ledger.uploaded_bytes;
        uploaded.fetch_sub(self.uploaded_bytes, Ordering::Relaxed);
        if has_journals {
            let written = &ledger.written_bytes;
            written.fetch_sub(self.written_bytes, Ordering::Relaxed);
        }
        ledger.compare(&state);
        let is_fast = self.began_at.elapsed() < limits::STORED_COUNT_LARGE / 2;
        state.is_large &= !is_fast;
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Once the quota is used up there is little to take in, and guests wait for the next count.
        let is_used_up = self.ledger.is_used_up.load(Ordering::Relaxed);
        let since = self.walks_since.filter(|_| is_used_up);
        let took = since.unwrap_or(self.began_at).elapsed();
        let mut state = self.ledger.state.lock();
        state.last_try = Some((Instant::now(), took));
    }
}

/// What an upload under way takes of its account's quota, until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    ledger: Arc<Ledger>,
    bytes: AtomicU64,
}

impl Charge {
    /// Takes so many bytes more.
    ///
    /// # Errors
    ///
    /// [`Error::Quota`] if they are not left.
    pub(crate) fn take(&self, bytes: u64) -> Result<()> {
        let ledger = &self.ledger;
        {
            let state = ledger.state.lock();
            let uploading = ledger.uploading_bytes.load(Ordering::Relaxed);
            let used = state.counted_bytes().saturating_add(uploading);
            let is_over = |limit: &Limit| used.saturating_add(bytes) > limit.bytes;
            if !state.quota.as_ref().is_some_and(is_over) {
                ledger.uploading_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                return Ok(());
            }
        }
        Err(ledger.used_up(bytes))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let (ledger, bytes) = (&self.ledger, *self.bytes.get_mut());
        // In this order: the sum of both is never less than what was stored.
        ledger.uploaded_bytes.fetch_add(bytes, Ordering::Release);
        ledger.uploading_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn limited(bytes: Option<u64>) -> AccountRecord {
        AccountRecord {
            id: AccountId::from_number(7).unwrap(),
            name: "web".to_owned(),
            quotas: bytes
                .map(|it| (Quota::StoredBytes, it))
                .into_iter()
                .collect(),
            ..AccountRecord::administrator()
        }
    }

    fn ledger(limit: u64) -> (Ledgers, Arc<Ledger>) {
        let ledgers = Ledgers::default();
        let account = limited(Some(limit));
        let id = account.id;
        ledgers.set(|| Ok(vec![account])).unwrap();
        let ledger = ledgers.of(id);
        (ledgers, ledger)
    }

    fn count(ledger: &Arc<Ledger>, bytes: u64) {
        let of = 0;
        ledger.begin_count().end(Count { bytes, of }, true);
    }

    #[test]
    fn guests_are_refused_by_a_count_alone() {
        let (ledgers, ledger) = ledger(100);
        for _ in 0..100 {
            ledger.write(50).unwrap();
        }
        count(&ledger, 99);
        ledger.write(1).unwrap();
        ledger.check().unwrap();
        count(&ledger, 100);
        let refused = ledger.write(7).unwrap_err();
        let expected = "beyond the quota of stored bytes of account \"web\": limit 100, used 100, \
                        left 0, needed 7";
        assert_eq!(refused.to_string(), expected);
        assert!(refused.is_full(), "a guest hears that its disk is full");
        ledger.check().unwrap_err();
        ledgers.set(|| Ok(vec![limited(Some(101))])).unwrap();
        ledger.write(7).unwrap();
        ledgers.set(|| Ok(vec![limited(Some(0))])).unwrap();
        ledger.write(7).unwrap_err();
        ledgers.set(|| Ok(Vec::new())).unwrap();
        ledger.write(7).unwrap();
    }

    #[test]
    fn a_count_of_a_quota_that_was_taken_away_is_dropped() {
        let (ledgers, ledger) = ledger(100);
        drop(ledger.begin_upload());
        let (counting, other) = (ledger.begin_count(), ledger.begin_count());
        let of_old = Count { bytes: 100, of: 0 };
        ledgers.set(|| Ok(Vec::new())).unwrap();
        counting.end(of_old, true);
        assert_eq!(ledger.stored_bytes(), None);
        ledgers.set(|| Ok(vec![limited(Some(100))])).unwrap();
        other.end(of_old, true);
        assert_eq!(ledger.stored_bytes(), None);
        ledger.check().unwrap();
        count(&ledger, 7);
        assert_eq!(ledger.stored_bytes(), Some(7));
    }

    #[test]
    fn uploads_are_refused_by_what_all_of_them_have_sent() {
        let (_ledgers, ledger) = ledger(100);
        let (one, two) = (ledger.begin_upload(), ledger.begin_upload());
        one.take(60).unwrap();
        two.take(40).unwrap();
        two.take(1).unwrap_err();
        assert_eq!(ledger.stored_bytes(), None);
        drop(one);
        // What has ended waits to be counted.
        two.take(50).unwrap();
        count(&ledger, 60);
        two.take(1).unwrap_err();
        assert_eq!(ledger.stored_bytes(), Some(150));
        drop(two);
        assert_eq!(ledger.stored_bytes(), Some(60));
    }

    #[test]
    fn a_count_takes_off_what_was_written_before_it_began() {
        let (ledgers, ledger) = ledger(100);
        ledger.write(500).unwrap();
        let counting = ledger.begin_count();
        ledger.write(70).unwrap();
        let of = 0;
        counting.end(Count { bytes: 20, of }, true);
        assert_eq!(ledger.written_bytes.load(Ordering::Relaxed), 70);
        // What is still in journals stays.
        ledger.begin_count().end(Count { bytes: 20, of }, false);
        assert_eq!(ledger.written_bytes.load(Ordering::Relaxed), 70);
        assert!(ledgers.due(false).is_none(), "it has just been counted");
        ledgers.make_due();
        let due = || ledgers.due(false).map(|(due, _)| due);
        assert_eq!(due(), Some(Due::Later));
        ledger.write(10).unwrap();
        assert_eq!(due(), Some(Due::Urgent), "it may be full");
        ledger.begin_count().takes_long();
        ledgers.make_due();
        assert_eq!(due(), None);
        assert!(ledgers.due(true).is_some());
        ledgers.set(|| Ok(Vec::new())).unwrap();
        assert!(ledgers.due(true).is_none());
    }

    #[tokio::test]
    async fn a_quota_wakes_all_that_wait_for_one() {
        let ledgers = Ledgers::default();
        let account = limited(Some(1));
        let both = async { tokio::join!(ledgers.wanted(), ledgers.wanted()) };
        let set = async {
            tokio::task::yield_now().await;
            ledgers.set(|| Ok(vec![account])).unwrap();
        };
        tokio::join!(both, set);
    }

    #[test]
    fn without_a_quota_no_figure_is_kept() {
        let (ledgers, ledger) = ledger(100);
        count(&ledger, 100);
        ledgers.set(|| Ok(Vec::new())).unwrap();
        assert_eq!(ledger.stored_bytes(), None);
        ledgers.set(|| Ok(vec![limited(Some(50))])).unwrap();
        ledger.write(1).unwrap();
    }
}
