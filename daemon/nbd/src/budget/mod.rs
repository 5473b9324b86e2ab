//! Memory for requests in flight: the budget of all connections together, and of each one.
//!
//! There are two lanes, for ordinary requests and for large ones, so that clients with requests of
//! tens of mebibytes wait only for each other. In a lane
//!
//! - a connection that holds nothing is served in its turn, as soon as there is enough for its
//!   request;
//! - a connection that holds memory gets more only if nobody waits for a turn, and as much is free
//!   as it would hold then: a single one may have half, and a few never all;
//! - TCP never takes the last quarter, which is for unix sockets.
//!
//! In addition, each connection has a small reserve of its own for small requests, whatever others
//! hold.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::limits::{
    LARGE_LANE_BYTES, MAX_CONNECTION_BYTES, MAX_ORDINARY_BYTES, MORE_LOOKED_AT,
    ORDINARY_LANE_BYTES, READ_AHEAD_CONNECTIONS_MAX, RESERVE_BYTES, remote_bytes,
};

#[cfg(test)]
mod tests;

/// The source of memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Ordinary,
    Large,
    /// The connection's own.
    Reserve,
}

/// The sources that connections share.
const LANES: usize = 2;
const SOURCES: usize = LANES + 1;

/// The charge of a request, and the lane that it comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Charge {
    bytes: u32,
    source: Source,
}

impl Charge {
    /// The charge of a request that holds nothing.
    pub(super) const NONE: Self = Self {
        bytes: 0,
        source: Source::Reserve,
    };

    /// Returns true if the request needs memory of its own, and not a slice of a larger buffer.
    pub(super) fn is_reserve(self) -> bool {
        self.source == Source::Reserve
    }

    /// The part of it for which other connections can wait.
    pub(super) fn shared_bytes(self) -> u32 {
        if self.is_reserve() { 0 } else { self.bytes }
    }

    /// Splits off as much of it as there is, up to `bytes`.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        self.bytes -= bytes;
        Self {
            bytes,
            source: self.source,
        }
    }
}

/// Parts of several charges.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Freed {
    bytes: [u32; SOURCES],
}

impl Freed {
    pub(super) fn add(&mut self, charge: Charge) {
        self.bytes[charge.source as usize] += charge.bytes;
    }

    fn is_empty(&self) -> bool {
        self.bytes == [0; SOURCES]
    }
}

impl From<Charge> for Freed {
    fn from(charge: Charge) -> Self {
        let mut freed = Self::default();
        freed.add(charge);
        freed
    }
}

/// The budget that all connections share.
#[derive(Debug)]
pub struct Budget {
    lanes: Mutex<[Lane; LANES]>,
    /// Connections that may still begin to read far ahead.
    read_ahead: AtomicUsize,
}

#[derive(Debug)]
struct Lane {
    free_bytes: u64,
    /// Bytes that TCP connections may take while they are free.
    remote_bytes: u64,
    /// Connections that hold nothing of the lane and wait for their turn, the first in front: over
    /// unix sockets and over TCP.
    turns: [VecDeque<Arc<Waiter>>; 2],
    /// Connections that hold memory and wait for more, in no order.
    more: VecDeque<Arc<Waiter>>,
    last_number: u64,
}

/// A connection that waits until another one returns memory.
#[derive(Debug)]
struct Waiter {
    /// In the order of arrival.
    number: u64,
    bytes: u32,
    /// Bytes of the lane that the connection holds.
    held_bytes: AtomicU32,
    is_remote: bool,
    /// Set when the connection has got its memory.
    is_granted: AtomicBool,
    waker: Mutex<Waker>,
}

impl Waiter {
    fn held_bytes(&self) -> u32 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn is_granted(&self) -> bool {
        self.is_granted.load(Ordering::Relaxed)
    }
}

impl Lane {
    fn new(bytes: u32) -> Self {
        Self {
            free_bytes: bytes.into(),
            remote_bytes: remote_bytes(bytes).into(),
            turns: Default::default(),
            more: VecDeque::new(),
            last_number: 0,
        }
    }

    /// Returns true if a connection that holds `held_bytes` may take `bytes` more.
    fn fits(&self, bytes: u32, held_bytes: u32, is_remote: bool) -> bool {
        let free_bytes = if is_remote {
            self.free_bytes.min(self.remote_bytes)
        } else {
            self.free_bytes
        };
        u64::from(bytes) + u64::from(held_bytes) <= free_bytes
    }

    /// Returns true if another connection than `waiter` waits for a turn and comes first. A
    /// connection that waits only because TCP has reached its share does not delay unix sockets.
    fn has_turns_before(&self, waiter: Option<&Waiter>, is_remote: bool) -> bool {
        let number = waiter.map_or(u64::MAX, |waiter| waiter.number);
        let [local, remote] = &self.turns;
        local.front().is_some_and(|first| first.number < number)
            || remote.front().is_some_and(|first| {
                let claims = is_remote || u64::from(first.bytes) <= self.remote_bytes;
                claims && first.number < number
            })
    }

    fn take(&mut self, bytes: u32, is_remote: bool) {
        self.free_bytes -= u64::from(bytes);
        if is_remote {
            self.remote_bytes -= u64::from(bytes);
        }
    }

    fn give_back(&mut self, bytes: u32, is_remote: bool) {
        self.free_bytes += u64::from(bytes);
        if is_remote {
            self.remote_bytes += u64::from(bytes);
        }
    }

    fn wait(
        &mut self,
        bytes: u32,
        held_bytes: u32,
        is_remote: bool,
        cx: &Context<'_>,
    ) -> Arc<Waiter> {
        self.last_number += 1;
        let waiter = Arc::new(Waiter {
            number: self.last_number,
            bytes,
            held_bytes: held_bytes.into(),
            is_remote,
            is_granted: AtomicBool::new(false),
            waker: Mutex::new(cx.waker().clone()),
        });
        let queue = if held_bytes > 0 {
            &mut self.more
        } else {
            &mut self.turns[usize::from(is_remote)]
        };
        queue.push_back(Arc::clone(&waiter));
        waiter
    }

    fn remove(&mut self, waiter: &Arc<Waiter>) {
        for queue in self.turns.iter_mut().chain([&mut self.more]) {
            queue.retain(|other| !Arc::ptr_eq(other, waiter));
        }
    }

    /// Gives free bytes to waiting connections.
    fn grant(&mut self) {
        while let Some(queue) = self.next_turn() {
            if let Some(first) = self.turns[queue].pop_front() {
                self.grant_to(&first);
            }
        }
        for _ in 0..self.more.len().min(MORE_LOOKED_AT) {
            let Some(waiter) = self.more.pop_front() else {
                return;
            };
            let fits = self.fits(waiter.bytes, waiter.held_bytes(), waiter.is_remote);
            if fits && !self.has_turns_before(None, waiter.is_remote) {
                self.grant_to(&waiter);
            } else {
                self.more.push_back(waiter);
            }
        }
    }

    /// The queue whose first connection has the next turn, if it fits.
    fn next_turn(&self) -> Option<usize> {
        (0..self.turns.len()).find(|&queue| {
            self.turns[queue].front().is_some_and(|first| {
                self.fits(first.bytes, 0, first.is_remote)
                    && !self.has_turns_before(Some(first), first.is_remote)
            })
        })
    }

    fn grant_to(&mut self, waiter: &Waiter) {
        self.take(waiter.bytes, waiter.is_remote);
        waiter.is_granted.store(true, Ordering::Relaxed);
        waiter.waker.lock().wake_by_ref();
    }
}

impl Budget {
    /// Creates the budget of all connections, with the sizes in [`limits`](crate::limits).
    pub fn new() -> Arc<Self> {
        Self::with_lanes([ORDINARY_LANE_BYTES, LARGE_LANE_BYTES])
    }

    pub(super) fn with_lanes(bytes: [u32; LANES]) -> Arc<Self> {
        Arc::new(Self {
            lanes: Mutex::new(bytes.map(Lane::new)),
            read_ahead: AtomicUsize::new(READ_AHEAD_CONNECTIONS_MAX),
        })
    }

    #[cfg(test)]
    pub(super) fn available_bytes(&self) -> u64 {
        self.lanes.lock().iter().map(|lane| lane.free_bytes).sum()
    }
}

/// One connection's share. Gives everything back when it is dropped.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    is_remote: bool,
    held_bytes: [u32; SOURCES],
    /// The lane it waits in.
    waits: Option<(usize, Arc<Waiter>)>,
    reads_ahead: bool,
}

impl Account {
    /// `is_remote`: the connection comes over TCP.
    pub fn open(budget: Arc<Budget>, is_remote: bool) -> Self {
        Self {
            budget,
            is_remote,
            held_bytes: [0; SOURCES],
            waits: None,
            reads_ahead: false,
        }
    }

    /// Returns true if a connection that holds nothing waits for memory that this one holds.
    pub(super) fn is_contended(&self) -> bool {
        let lanes = self.budget.lanes.lock();
        lanes
            .iter()
            .zip(self.held_bytes)
            .any(|(lane, held_bytes)| held_bytes > 0 && lane.has_turns_before(None, self.is_remote))
    }

    /// Takes `bytes` of a lane; or `own_bytes` of the reserve, if a request that keeps only its own
    /// bytes alive fits there. Pending until this connection gives some back, or another one does:
    /// the task is woken then.
    pub(super) fn poll_charge(
        &mut self,
        bytes: u32,
        own_bytes: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Charge> {
        let source = if bytes <= MAX_ORDINARY_BYTES {
            Source::Ordinary
        } else {
            Source::Large
        };
        let reserve = &mut self.held_bytes[Source::Reserve as usize];
        let fits_reserve = own_bytes.saturating_add(*reserve) <= RESERVE_BYTES;
        if self.poll_lane(source as usize, bytes, fits_reserve, cx) {
            return Poll::Ready(Charge { bytes, source });
        }
        if fits_reserve {
            self.held_bytes[Source::Reserve as usize] += own_bytes;
            return Poll::Ready(Charge {
                bytes: own_bytes,
                source: Source::Reserve,
            });
        }
        Poll::Pending
    }

    /// Takes `bytes` of a lane, or waits for them, unless the caller can do without.
    fn poll_lane(
        &mut self,
        lane: usize,
        bytes: u32,
        can_do_without: bool,
        cx: &mut Context<'_>,
    ) -> bool {
        let is_remote = self.is_remote;
        let lanes = &mut *self.budget.lanes.lock();
        let waited = self.waits.take();
        // A waiting connection does not change the amount that it waits for.
        let waiter = match waited {
            Some((waits_in, waiter)) if waits_in != lane || waiter.bytes != bytes => {
                stop_waiting(&mut lanes[waits_in], &waiter);
                None
            }
            Some((_, waiter)) => Some(waiter),
            None => None,
        };
        let held_bytes = self.held_bytes[lane];
        let [ordinary_bytes, large_bytes, _] = self.held_bytes;
        let lane_index = lane;
        let lane = &mut lanes[lane];
        if let Some(waiter) = &waiter
            && waiter.is_granted()
        {
            self.held_bytes[lane_index] += bytes;
            return true;
        }
        let has_room = ordinary_bytes + large_bytes + bytes <= MAX_CONNECTION_BYTES;
        let in_turn = waiter.as_deref().filter(|waiter| waiter.held_bytes() == 0);
        if has_room
            && lane.fits(bytes, held_bytes, is_remote)
            && !lane.has_turns_before(in_turn, is_remote)
        {
            lane.take(bytes, is_remote);
            self.held_bytes[lane_index] += bytes;
            if let Some(waiter) = &waiter {
                stop_waiting(lane, waiter);
            }
            return true;
        }
        match waiter {
            Some(waiter) if can_do_without || !has_room => stop_waiting(lane, &waiter),
            // It holds nothing any more, and its turn comes before those of others that do.
            Some(waiter) if waiter.held_bytes() > 0 && held_bytes == 0 => {
                stop_waiting(lane, &waiter);
                self.waits = Some((lane_index, lane.wait(bytes, held_bytes, is_remote, cx)));
            }
            Some(waiter) => {
                waiter.waker.lock().clone_from(cx.waker());
                self.waits = Some((lane_index, waiter));
            }
            None if can_do_without || !has_room => {}
            None => {
                self.waits = Some((lane_index, lane.wait(bytes, held_bytes, is_remote, cx)));
            }
        }
        false
    }

    /// Gives back what was charged.
    pub(super) fn release(&mut self, freed: impl Into<Freed>) {
        let freed = freed.into();
        if freed.is_empty() {
            return;
        }
        for (held_bytes, bytes) in self.held_bytes.iter_mut().zip(freed.bytes) {
            assert!(bytes <= *held_bytes, "only what was charged is released");
            *held_bytes -= bytes;
        }
        let mut lanes = self.budget.lanes.lock();
        if let Some((lane, waiter)) = &self.waits {
            let held_bytes = self.held_bytes[*lane];
            waiter.held_bytes.store(held_bytes, Ordering::Relaxed);
        }
        for (lane, bytes) in lanes.iter_mut().zip(freed.bytes) {
            if bytes > 0 {
                lane.give_back(bytes, self.is_remote);
                lane.grant();
            }
        }
    }

    /// Returns true if the connection may read far ahead, which takes memory that is not charged to
    /// requests: as long as it does.
    pub(super) fn may_read_ahead(&mut self) -> bool {
        if !self.reads_ahead {
            let left = |count: usize| count.checked_sub(1);
            let free = &self.budget.read_ahead;
            let taken = free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
            self.reads_ahead = taken.is_ok();
        }
        self.reads_ahead
    }

    pub(super) fn stop_reading_ahead(&mut self) {
        if std::mem::take(&mut self.reads_ahead) {
            self.budget.read_ahead.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Takes a connection out of the queues. Bytes that it was granted and has not noticed go to
/// others.
fn stop_waiting(lane: &mut Lane, waiter: &Arc<Waiter>) {
    if waiter.is_granted() {
        lane.give_back(waiter.bytes, waiter.is_remote);
    } else {
        lane.remove(waiter);
    }
    lane.grant();
}

impl Drop for Account {
    fn drop(&mut self) {
        self.stop_reading_ahead();
        let mut lanes = self.budget.lanes.lock();
        if let Some((lane, waiter)) = self.waits.take() {
            stop_waiting(&mut lanes[lane], &waiter);
        }
        for (lane, held_bytes) in lanes.iter_mut().zip(self.held_bytes) {
            lane.give_back(held_bytes, self.is_remote);
            lane.grant();
        }
    }
}
