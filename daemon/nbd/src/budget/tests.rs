#![allow(clippy::unwrap_used, reason = "tests")]

use std::task::Wake;

use super::*;
use crate::limits::{MAX_REQUEST_BYTES, charge_bytes, own_bytes};

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Guest {
    account: Account,
    bell: Arc<Bell>,
}

impl Guest {
    fn new(budget: &Arc<Budget>, is_remote: bool) -> Self {
        Self {
            account: Account::open(Arc::clone(budget), is_remote),
            bell: Arc::default(),
        }
    }

    fn ask(&mut self, payload_bytes: u32) -> Option<Charge> {
        let waker = Arc::clone(&self.bell).into();
        let mut cx = Context::from_waker(&waker);
        let (bytes, own_bytes) = (charge_bytes(payload_bytes), own_bytes(payload_bytes));
        match self.account.poll_charge(bytes, own_bytes, &mut cx) {
            Poll::Ready(charge) => Some(charge),
            Poll::Pending => None,
        }
    }

    /// Takes as much as it gets, in requests of one length.
    fn ask_for_all(&mut self, payload_bytes: u32) -> u32 {
        let mut count = 0;
        while self.ask(payload_bytes).is_some() {
            count += 1;
        }
        count
    }

    fn was_woken(&self) -> bool {
        self.bell.0.swap(0, Ordering::Relaxed) > 0
    }
}

const MIB: u32 = 1 << 20;

#[test]
fn a_few_connections_never_take_all() {
    let budget = Budget::new();
    let mut greedy: Vec<_> = (0..5).map(|_| Guest::new(&budget, false)).collect();
    let taken: Vec<_> = greedy
        .iter_mut()
        .map(|guest| guest.ask_for_all(MIB))
        .collect();
    // 128 MiB in pieces of 1.25: each gets half of what was left, but for the first, which has its
    // limit.
    assert_eq!(taken, [51, 26, 13, 6, 3]);
    let mut other = Guest::new(&budget, false);
    assert!(other.ask(MIB).is_some(), "and the next one gets something");
    // Large requests are another matter, and ordinary ones do not notice.
    let mut large = Guest::new(&budget, false);
    assert!(large.ask(MAX_REQUEST_BYTES).is_some());
    drop((greedy, other, large));
    let all = u64::from(ORDINARY_LANE_BYTES) + u64::from(LARGE_LANE_BYTES);
    assert_eq!(budget.available_bytes(), all);
}

#[test]
fn tcp_leaves_a_quarter_of_each_lane_to_unix_sockets() {
    let budget = Budget::new();
    let mut remote: Vec<_> = (0..200).map(|_| Guest::new(&budget, true)).collect();
    for guest in &mut remote {
        guest.ask_for_all(MIB);
        let _ = guest.ask(MAX_REQUEST_BYTES);
    }
    let mut late = Guest::new(&budget, true);
    assert!(late.ask(MIB).is_none());
    let mut later = Guest::new(&budget, true);
    assert!(later.ask(MAX_REQUEST_BYTES).is_none());
    let mut local = Guest::new(&budget, false);
    assert!(local.ask(MAX_REQUEST_BYTES).is_some());
    assert!(local.ask_for_all(MIB) >= 10);
}

#[test]
fn who_has_nothing_comes_before_who_wants_more() {
    let budget = Budget::with_lanes([charge_bytes(MIB) * 4, 0]);
    let mut first = Guest::new(&budget, false);
    let charge = first.ask(MIB).unwrap();
    first.ask(MIB).unwrap();
    assert!(first.ask(MIB).is_none(), "half is its share");
    let mut second = Guest::new(&budget, false);
    second.ask(MIB).unwrap();
    let mut third = Guest::new(&budget, false);
    third.ask(MIB).unwrap();
    let mut fourth = Guest::new(&budget, false);
    assert!(fourth.ask(MIB).is_none());
    assert!(!first.was_woken() && first.account.is_contended());
    first.account.release(charge);
    assert!(fourth.was_woken() && !first.was_woken());
    assert!(
        !first.account.is_contended(),
        "nobody waits that has nothing"
    );
    assert!(fourth.ask(MIB).is_some());
    assert!(first.ask(MIB).is_none());
    drop((second, third));
    assert!(first.was_woken());
    assert!(first.ask(MIB).is_some());
}

#[test]
fn turns_are_taken_in_order_and_given_up() {
    let budget = Budget::with_lanes([charge_bytes(MIB), 0]);
    let mut holds = Guest::new(&budget, false);
    holds.ask(MIB).unwrap();
    let mut waiting: Vec<_> = (0..4).map(|_| Guest::new(&budget, false)).collect();
    for guest in &mut waiting {
        assert!(guest.ask(MIB).is_none());
    }
    // One waiter leaves before its turn, another after its turn was granted.
    drop(waiting.remove(1));
    drop(holds);
    assert!(waiting[0].was_woken());
    drop(waiting.remove(0));
    assert!(waiting[0].was_woken() && !waiting[1].was_woken());
    assert!(waiting[1].ask(MIB).is_none());
    assert!(waiting[0].ask(MIB).is_some());
    drop(waiting);
    assert_eq!(budget.available_bytes(), u64::from(charge_bytes(MIB)));
}

#[test]
fn a_newcomer_does_not_overtake_a_turn() {
    let budget = Budget::with_lanes([charge_bytes(MIB), 0]);
    let mut holds = Guest::new(&budget, false);
    holds.ask(MIB / 4).unwrap();
    let mut waits = Guest::new(&budget, false);
    assert!(waits.ask(MIB).is_none());
    let mut newcomer = Guest::new(&budget, false);
    assert!(newcomer.ask(MIB / 4).is_none(), "though there is so much");
    drop(waits);
    assert!(newcomer.was_woken(), "nobody is before it any more");
    assert!(newcomer.ask(MIB / 4).is_some());
}

#[test]
fn a_turn_that_only_tcp_may_not_have_is_not_in_the_way_of_unix_sockets() {
    let budget = Budget::with_lanes([charge_bytes(MIB) * 4, 0]);
    let mut remote: Vec<_> = (0..4).map(|_| Guest::new(&budget, true)).collect();
    for guest in &mut remote[..3] {
        guest.ask(MIB).unwrap();
    }
    assert!(remote[3].ask(MIB).is_none());
    let mut local = Guest::new(&budget, false);
    let charge = local.ask(MIB).unwrap();
    assert!(
        !local.account.is_contended(),
        "TCP does not wait for what it has"
    );
    assert!(remote[0].account.is_contended());
    local.account.release(charge);
    assert!(!remote[3].was_woken());
    remote.remove(0);
    assert!(remote[2].was_woken());
}

#[test]
fn small_requests_have_a_reserve_of_their_own() {
    let budget = Budget::with_lanes([0, 0]);
    let mut guest = Guest::new(&budget, true);
    let charge = guest.ask(16 << 10).unwrap();
    assert!(charge.is_reserve());
    assert_eq!(charge.shared_bytes(), 0);
    assert!(guest.ask(1).is_none(), "one of these at a time");
    guest.account.release(charge);
    let flushes: Vec<_> = std::iter::from_fn(|| guest.ask(0)).collect();
    assert_eq!(flushes.len(), 9);
    assert!(
        Guest::new(&budget, true).ask(0).is_some(),
        "each has its own"
    );
    assert!(Guest::new(&budget, true).ask((16 << 10) + 1).is_none());
}

#[test]
fn few_read_far_ahead_at_one_time() {
    let budget = Budget::new();
    let mut guests: Vec<_> = (0..=READ_AHEAD_CONNECTIONS_MAX)
        .map(|_| Guest::new(&budget, false))
        .collect();
    let mut last = guests.pop().unwrap();
    assert!(
        guests
            .iter_mut()
            .all(|guest| guest.account.may_read_ahead())
    );
    assert!(!last.account.may_read_ahead());
    guests[0].account.stop_reading_ahead();
    assert!(last.account.may_read_ahead());
    drop(guests.pop());
    assert!(guests[0].account.may_read_ahead());
    assert!(guests[0].account.may_read_ahead(), "it still may");
}
