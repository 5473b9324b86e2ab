//! Places and bytes that several callers share.
//!
//! Invariants:
//!
//! - The sum of all shares never exceeds the total.
//! - A part is for peers on this machine only; peers of the network never get it.
//! - Among waiting callers, the holder of the least comes first. If too many wait, the holder with
//!   the most places in the queue loses one to a holder with fewer.
//! - A holder without progress gives way when others wait, and not before: a slow peer does no harm
//!   as long as its share is not needed.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often waiting callers look for a holder that does not move.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The shared resource, and the rules of sharing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// A name for errors: "uploads", "bytes of requests".
    pub(crate) what: &'static str,
    /// The total amount.
    pub(crate) total: u64,
    /// The part of it that is reserved for peers on this machine.
    pub(crate) local: u64,
    /// The most that one holder gets.
    pub(crate) of_one: u64,
    /// The most that an account gets, if it is the holder.
    pub(crate) of_account: u64,
    /// The most callers that may wait.
    pub(crate) waiting: usize,
    /// A holder that is this far behind gives way to waiting callers.
    pub(crate) yields_after: Duration,
    /// Bytes that a holder has to move per second, on average, to keep up.
    pub(crate) pace: u64,
}

/// The holder of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    /// Holders with the same number share the limit of one.
    pub(crate) number: u64,
    /// True for a peer on this machine.
    pub(crate) is_local: bool,
}

impl Holder {
    /// The daemon itself.
    pub(crate) const OWN: Self = Self {
        number: 0,
        is_local: true,
    };

    /// An account, at whatever connection. Numbers of connections and of accounts do not meet.
    pub(crate) const fn of_account(number: u64, is_local: bool) -> Self {
        Self {
            number: number | Self::ACCOUNT,
            is_local,
        }
    }

    /// Some work of the daemon's own, by any number.
    pub(crate) const fn of_work(number: u64) -> Self {
        Self {
            number: number & !Self::ACCOUNT,
            is_local: true,
        }
    }

    /// Returns true if the holder is an account, and not a connection.
    pub(crate) const fn is_account(self) -> bool {
        self.number & Self::ACCOUNT != 0
    }

    const ACCOUNT: u64 = 1 << 63;
}

/// The limit on work under way is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit of {0} under way is reached: try again later")]
pub(crate) struct Busy(pub(crate) &'static str);

/// A holder did not move, and others waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the call moved too little for {seconds} seconds while others waited at the limit of {what}: \
     try again later"
)]
pub(crate) struct GaveWay {
    what: &'static str,
    seconds: u64,
}

/// A shared resource. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rules: Rules,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: u64,
    held_remotely: u64,
    /// The amount of each holder.
    of: HashMap<u64, u64>,
    holds: BTreeMap<u64, Held>,
    /// In order of arrival.
    queue: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Held {
    holder: Holder,
    amount: u64,
    /// The time up to which the holder has kept pace.
    moved: Instant,
    /// True while the daemon, not the holder, is the reason that nothing moves.
    is_settled: bool,
    /// Number of waits that the holder cannot help.
    excuses: usize,
    gives_way: CancellationToken,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    holder: Holder,
    amount: u64,
    gives_way: CancellationToken,
    granted: oneshot::Sender<()>,
}

/// A part of the resource, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    shares: Shares,
    number: u64,
    gives_way: CancellationToken,
}

impl Shares {
    pub(crate) fn new(rules: Rules) -> Self {
        debug_assert!(rules.local < rules.total, "{rules:?}");
        Self(Arc::new(Inner {
            rules,
            state: Mutex::default(),
        }))
    }

    /// Takes a part. Waits for it up to `within`.
    pub(crate) async fn take(
        &self,
        holder: Holder,
        amount: u64,
        within: Duration,
    ) -> Result<Hold, Busy> {
        let rules = &self.0.rules;
        if amount > rules.most(holder) {
            return Err(Busy(rules.what));
        }
        let (hold, mut granted) = {
            let mut state = self.0.state.lock();
            let waits = !state.fits(rules, holder, amount);
            if waits && (within.is_zero() || !state.has_place(rules, holder)) {
                return Err(Busy(rules.what));
            }
            let (sender, granted) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            let gives_way = CancellationToken::new();
            state.queue.push_back(Waiting {
                number,
                holder,
                amount,
                gives_way: gives_way.clone(),
                granted: sender,
            });
            state.grant(rules);
            let hold = Hold {
                shares: self.clone(),
                number,
                gives_way,
            };
            (hold, granted)
        };
        let deadline = Instant::now() + within;
        loop {
            let look = Instant::now() + LOOK_INTERVAL;
            tokio::select! {
                biased;
                granted = &mut granted => return match granted {
                    Ok(()) => Ok(hold),
                    // The place in the queue went to another caller.
                    Err(_) => Err(Busy(rules.what)),
                },
                () = tokio::time::sleep_until(look.min(deadline)) => {}
            }
            if Instant::now() >= deadline {
                // If the part was granted just now, the drop returns it.
                return Err(Busy(rules.what));
            }
            self.look(holder);
        }
    }

    /// The amount that is held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.0.state.lock().held
    }

    /// Makes the holder that is furthest behind give way. Network peers take nothing from peers on
    /// this machine.
    fn look(&self, waiting: Holder) {
        let now = Instant::now();
        let yields_after = self.0.rules.yields_after;
        let state = self.0.state.lock();
        let behind = state
            .holds
            .values()
            .filter(|held| held.amount > 0 && !held.is_settled && held.excuses == 0)
            .filter(|held| !held.gives_way.is_cancelled())
            .filter(|held| waiting.is_local || !held.holder.is_local)
            .filter(|held| now.duration_since(held.moved) >= yields_after)
            .min_by_key(|held| held.moved);
        if let Some(held) = behind {
            held.gives_way.cancel();
        }
    }
}

impl Rules {
    /// The most that one holder may have.
    const fn most(&self, holder: Holder) -> u64 {
        let of_all = if holder.is_local {
            self.total
        } else {
            self.total - self.local
        };
        let of_one = self.of(holder);
        if of_one < of_all { of_one } else { of_all }
    }

    const fn of(&self, holder: Holder) -> u64 {
        match holder.is_account() {
            true => self.of_account,
            false => self.of_one,
        }
    }
}

impl State {
    fn fits(&self, rules: &Rules, holder: Holder, amount: u64) -> bool {
        let has = self.of.get(&holder.number).copied().unwrap_or(0);
        self.held + amount <= rules.total
            && has + amount <= rules.of(holder)
            && (holder.is_local || self.held_remotely + amount <= rules.total - rules.local)
    }

    /// Returns true if one more request may wait. If the queue is full, the holder with the most
    /// places in it loses its last one, provided that it has more than the new holder would have.
    /// Network peers take no place from peers on this machine.
    fn has_place(&mut self, rules: &Rules, holder: Holder) -> bool {
        if self.queue.len() < rules.waiting {
            return true;
        }
        let mut places = HashMap::<u64, usize>::new();
        for waiting in &self.queue {
            *places.entry(waiting.holder.number).or_default() += 1;
        }
        let would_have = places.get(&holder.number).map_or(1, |places| places + 1);
        let last = self
            .queue
            .iter()
            .enumerate()
            .filter(|(_, waiting)| holder.is_local || !waiting.holder.is_local)
            .map(|(at, waiting)| {
                let places = places.get(&waiting.holder.number);
                (places.copied().unwrap_or(0), at)
            })
            .max();
        match last {
            Some((has, at)) if has > would_have => self.queue.remove(at).is_some(),
            _ => false,
        }
    }

    /// Grants free parts to waiting callers.
    fn grant(&mut self, rules: &Rules) {
        loop {
            let fitting = self.queue.iter().enumerate();
            let fitting =
                fitting.filter(|(_, waiting)| self.fits(rules, waiting.holder, waiting.amount));
            let next = fitting.min_by_key(|(_, waiting)| {
                let has = self.of.get(&waiting.holder.number);
                has.copied().unwrap_or(0)
            });
            let Some(at) = next.map(|(at, _)| at) else {
                return;
            };
            let Some(waiting) = self.queue.remove(at) else {
                return;
            };
            self.count(waiting.holder, waiting.amount);
            let held = Held {
                holder: waiting.holder,
                amount: waiting.amount,
                moved: Instant::now(),
                is_settled: false,
                excuses: 0,
                gives_way: waiting.gives_way,
            };
            self.holds.insert(waiting.number, held);
            // If the caller has gone away, dropping its hold returns the part.
            let _ = waiting.granted.send(());
        }
    }

    fn count(&mut self, holder: Holder, amount: u64) {
        self.held += amount;
        if !holder.is_local {
            self.held_remotely += amount;
        }
        *self.of.entry(holder.number).or_default() += amount;
    }

    fn uncount(&mut self, holder: Holder, amount: u64) {
        self.held -= amount;
        if !holder.is_local {
            self.held_remotely -= amount;
        }
        if let Some(has) = self.of.get_mut(&holder.number) {
            *has -= amount;
            if *has == 0 {
                self.of.remove(&holder.number);
            }
        }
    }
}

impl Hold {
    fn with<T>(&self, change: impl FnOnce(&mut Held, &Rules) -> T) -> Option<T> {
        let inner = &self.shares.0;
        let mut state = inner.state.lock();
        let held = state.holds.get_mut(&self.number)?;
        Some(change(held, &inner.rules))
    }

    /// Counts `amount` as moved: the holder is less behind.
    pub(crate) fn moved(&self, amount: u64) {
        self.with(|held, rules| {
            let time = Duration::from_micros(amount.saturating_mul(1_000_000) / rules.pace.max(1));
            let moved = held.moved.checked_add(time);
            let now = Instant::now();
            held.moved = moved.map_or(now, |moved| moved.min(now));
        });
    }

    /// Counts the holder as in pace from now on.
    pub(crate) fn is_alive(&self) {
        self.with(|held, _| held.moved = Instant::now());
    }

    /// Sets whether the holder is excused from moving, because the daemon works on the held part.
    pub(crate) fn settle(&self, is_settled: bool) {
        self.with(|held, _| {
            held.is_settled = is_settled;
            held.moved = Instant::now();
        });
    }

    /// Holds `amount` more, if that much is free.
    pub(crate) fn grow(&self, amount: u64) -> Result<(), Busy> {
        let inner = &self.shares.0;
        let mut state = inner.state.lock();
        let state = &mut *state;
        let Some(held) = state.holds.get_mut(&self.number) else {
            return Err(Busy(inner.rules.what));
        };
        let holder = held.holder;
        held.amount += amount;
        if !state.fits(&inner.rules, holder, amount) {
            if let Some(held) = state.holds.get_mut(&self.number) {
                held.amount -= amount;
            }
            return Err(Busy(inner.rules.what));
        }
        state.count(holder, amount);
        Ok(())
    }

    /// Waits until the part has to be given up for others.
    pub(crate) fn gives_way(&self) -> impl Future<Output = GaveWay> + Send + use<> {
        let (gives_way, rules) = (self.gives_way.clone(), self.shares.0.rules);
        async move {
            gives_way.cancelled_owned().await;
            GaveWay {
                what: rules.what,
                seconds: rules.yields_after.as_secs(),
            }
        }
    }

    /// Does some work, unless the part has to be given up first.
    pub(crate) async fn unless_it_gives_way<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, GaveWay> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            gave_way = self.gives_way() => Err(gave_way),
        }
    }

    /// Waits for something that the holder cannot help. Several such waits may overlap.
    pub(crate) async fn excused<T>(&self, wait: impl Future<Output = T>) -> T {
        let _excuse = Excuse::of(self);
        wait.await
    }
}

/// Excuses a wait of the holder, until this is dropped.
struct Excuse<'a>(&'a Hold);

impl<'a> Excuse<'a> {
    fn of(hold: &'a Hold) -> Self {
        hold.with(|held, _| held.excuses += 1);
        Self(hold)
    }
}

impl Drop for Excuse<'_> {
    fn drop(&mut self) {
        self.0.with(|held, _| {
            held.excuses -= 1;
            held.moved = Instant::now();
        });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let inner = &self.shares.0;
        let mut state = inner.state.lock();
        match state.holds.remove(&self.number) {
            Some(held) => {
                state.uncount(held.holder, held.amount);
                state.grant(&inner.rules);
            }
            None => state.queue.retain(|waiting| waiting.number != self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::FutureExt as _;
    use tokio::time::{advance, sleep};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(60);

    fn shares(total: u64, local: u64) -> Shares {
        Shares::new(Rules {
            what: "things",
            total,
            local,
            of_one: total,
            of_account: total,
            waiting: 4,
            yields_after: Duration::from_secs(10),
            pace: 100,
        })
    }

    fn remote(number: u64) -> Holder {
        Holder {
            number,
            is_local: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_than_there_is_and_a_part_for_this_machine() {
        let shares = shares(10, 4);
        let held = shares.take(remote(1), 6, Duration::ZERO).await.unwrap();
        let refused = shares.take(remote(2), 1, Duration::ZERO).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the limit of things under way is reached: try again later"
        );
        let own = shares.take(Holder::OWN, 3, Duration::ZERO).await.unwrap();
        assert!(own.grow(2).is_err());
        own.grow(1).unwrap();
        assert_eq!(shares.held(), 10);
        drop(held);
        assert_eq!(shares.held(), 4);
        assert!(shares.take(remote(3), 7, WITHIN).await.is_err(), "never");
        drop(own);
        assert_eq!(shares.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_least_comes_first_and_who_goes_leaves_nothing() {
        let shares = shares(2, 1);
        let own = |number| Holder {
            number,
            is_local: true,
        };
        let first = shares.take(own(1), 1, WITHIN).await.unwrap();
        let second = shares.take(own(1), 1, WITHIN).await.unwrap();
        let (again, gone, other) = (
            shares.take(own(1), 1, WITHIN),
            shares.take(own(2), 1, WITHIN),
            shares.take(own(3), 1, WITHIN),
        );
        let mut again = Box::pin(again);
        let mut gone = Box::pin(gone);
        let mut other = Box::pin(other);
        tokio::select! {
            biased;
            _ = &mut again => unreachable!(),
            _ = &mut gone => unreachable!(),
            _ = &mut other => unreachable!(),
            () = std::future::ready(()) => {}
        }
        drop(gone);
        drop(first);
        // The one that has nothing, although another one came before.
        let other = other.await.unwrap();
        drop(second);
        let again = again.await.unwrap();
        assert_eq!(shares.held(), 2);
        drop((other, again));
        assert_eq!(shares.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_most_gives_up_a_place_for_one_who_waits_for_less() {
        let shares = shares(2, 1);
        let held = shares.take(remote(1), 1, WITHIN).await.unwrap();
        let own = shares.take(Holder::OWN, 1, WITHIN).await.unwrap();
        #[allow(clippy::async_yields_async, reason = "one that waits is wanted")]
        let begin = async |holder| {
            let mut taking = Box::pin(shares.take(holder, 1, WITHIN));
            assert!(futures::poll!(&mut taking).is_pending());
            taking
        };
        // All that may wait: one of this machine, three of one connection.
        let local = begin(Holder::OWN).await;
        let [first, second, last] = [
            begin(remote(1)).await,
            begin(remote(1)).await,
            begin(remote(1)).await,
        ];
        let other = begin(remote(2)).await;
        assert_eq!(last.await.unwrap_err(), Busy("things"));
        // Two places for the one, and one for the other: neither gets a place more.
        for number in [1, 2] {
            let taken = shares.take(remote(number), 1, WITHIN).now_or_never();
            assert!(matches!(taken, Some(Err(_))));
        }
        drop((first, second));
        // Peers of the network take no place of this machine's.
        let mut more = Vec::new();
        for _ in 0..2 {
            more.push(begin(Holder::OWN).await);
        }
        let taken = shares.take(remote(3), 1, WITHIN).now_or_never();
        assert!(matches!(taken, Some(Err(_))));
        drop((more, held, own));
        assert!(local.await.is_ok());
        assert!(other.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_move_gives_way_only_when_others_wait() {
        let shares = shares(2, 1);
        let slow = shares.take(Holder::OWN, 1, WITHIN).await.unwrap();
        let busy = shares.take(Holder::OWN, 1, WITHIN).await.unwrap();
        let work = async {
            for _ in 0..1000 {
                sleep(Duration::from_secs(1)).await;
                busy.moved(100);
                // A tenth of what it would have to be.
                slow.moved(10);
            }
        };
        assert_eq!(slow.unless_it_gives_way(work).await, Ok(()));
        let wait = async {
            let taken = shares.take(remote(7), 1, Duration::from_secs(3)).await;
            assert!(
                taken.is_err(),
                "the network does not take from this machine"
            );
            shares.take(Holder::OWN, 1, WITHIN).await.unwrap()
        };
        let moves = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                busy.moved(100);
            }
        };
        let gives_way = slow.gives_way();
        let (taken, ()) = tokio::join!(wait, async move {
            tokio::select! {
                () = moves => {}
                gave_way = gives_way => {
                    assert_eq!(gave_way.seconds, 10);
                    drop(slow);
                }
            }
        });
        assert!(!busy.gives_way.is_cancelled());
        drop(taken);
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_waits_that_are_excused_each_counts() {
        let shares = shares(1, 0);
        let hold = shares.take(Holder::OWN, 1, WITHIN).await.unwrap();
        let short = hold.excused(sleep(Duration::from_secs(1)));
        let long = hold.excused(sleep(Duration::from_secs(100)));
        let other = shares.take(Holder::OWN, 1, WITHIN);
        let (_, _, other) = tokio::join!(short, long, other);
        assert!(other.is_err());
        assert!(
            !hold.gives_way.is_cancelled(),
            "it moved as soon as it could"
        );
        // One that is given up before its end is none.
        let dropped =
            tokio::time::timeout(Duration::ZERO, hold.excused(std::future::pending::<()>()));
        assert!(dropped.await.is_err());
        assert!(shares.take(Holder::OWN, 1, WITHIN).await.is_err());
        assert!(hold.gives_way.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_worked_on_is_not_given_up_and_a_wait_has_an_end() {
        let shares = shares(1, 0);
        let settled = shares.take(Holder::OWN, 1, WITHIN).await.unwrap();
        settled.settle(true);
        advance(Duration::from_secs(1000)).await;
        let since = Instant::now();
        assert!(shares.take(Holder::OWN, 1, WITHIN).await.is_err());
        assert!(since.elapsed() >= WITHIN);
        assert!(!settled.gives_way.is_cancelled());
        let waiting: Vec<_> = (0..4)
            .map(|_| shares.take(Holder::OWN, 1, WITHIN))
            .map(Box::pin)
            .collect();
        let all = futures::future::join_all(waiting);
        let more = async {
            tokio::task::yield_now().await;
            // As many wait as may.
            assert!(shares.take(Holder::OWN, 1, WITHIN).await.is_err());
            assert!(since.elapsed() < 2 * WITHIN);
        };
        let (all, ()) = tokio::join!(all, more);
        assert!(all.iter().all(Result::is_err));
    }
}
