//! Places whose idle holders give way.
//!
//! If a service has no place left, a new connection ends an idle one: of the peer with the most
//! idle connections, the one that has been idle for longest. The new connection must be allowed to
//! take its place: the idle one is of the same host if the host has its share already, and comes
//! over TCP if the new one does.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::peer::PeerKey;
use super::places::{Full, Place, Places};

/// The places of one service.
#[derive(Debug)]
pub struct Seats {
    places: Arc<Places>,
    taken: Mutex<Vec<Arc<Taken>>>,
}

#[derive(Debug)]
struct Taken {
    peer: PeerKey,
    state: Mutex<State>,
    displaced: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// None once it has given way.
    place: Option<Place>,
    busy: usize,
    idle_since: Instant,
}

impl Taken {
    /// Start of its idle time.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (state.place.is_some() && state.busy == 0).then_some(state.idle_since)
    }

    /// Gives way, unless it has become busy meanwhile.
    fn give_way(&self) -> bool {
        let mut state = self.state.lock();
        let gives_way = state.busy == 0 && state.place.take().is_some();
        if gives_way {
            self.displaced.cancel();
        }
        gives_way
    }
}

/// One place, until this is dropped.
#[derive(Debug)]
pub struct Seat {
    all: Arc<Seats>,
    taken: Arc<Taken>,
}

/// Work on a connection, which keeps its place until this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Taken>);

impl Seats {
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Places::new(max),
            taken: Mutex::default(),
        })
    }

    /// Takes a place. Returns true with it if another connection was ended for it.
    ///
    /// # Errors
    ///
    /// If there is none for this peer, and no idle connection can give way.
    pub fn take(self: &Arc<Self>, peer: PeerKey) -> Result<(Seat, bool), Full> {
        let mut all = self.taken.lock();
        let mut displaces = false;
        let place = loop {
            match self.places.take(peer) {
                Ok(place) => break place,
                Err(full) if give_way(&all, peer, full) => displaces = true,
                Err(full) => return Err(full),
            }
        };
        let taken = Arc::new(Taken {
            peer,
            state: Mutex::new(State {
                place: Some(place),
                busy: 0,
                idle_since: Instant::now(),
            }),
            displaced: CancellationToken::new(),
        });
        all.push(Arc::clone(&taken));
        let seat = Seat {
            all: Arc::clone(self),
            taken,
        };
        Ok((seat, displaces))
    }
}

/// Makes a connection give way: of the peer with most idle connections, the one that has been idle
/// for longest. Returns false if none is idle.
fn give_way(all: &[Arc<Taken>], newcomer: PeerKey, full: Full) -> bool {
    let may_displace = |other: PeerKey| match (newcomer, full) {
        (_, Full::Host { .. }) => other == newcomer,
        (PeerKey::Remote(_), _) => matches!(other, PeerKey::Remote(_)),
        (PeerKey::Local { .. }, _) => true,
    };
    let idle = all.iter().filter(|taken| may_displace(taken.peer));
    let idle: Vec<_> = idle
        .filter_map(|taken| Some((taken.idle_since()?, taken)))
        .collect();
    let mut counts: HashMap<PeerKey, usize> = HashMap::new();
    for (_, taken) in &idle {
        *counts.entry(taken.peer).or_default() += 1;
    }
    let most = counts.values().max();
    let of_most = idle
        .iter()
        .filter(|(_, taken)| counts.get(&taken.peer) == most);
    let oldest = of_most.min_by_key(|(since, _)| *since);
    // Only this connection itself makes it busy, so another try finds it gone or busy.
    oldest.is_some_and(|(_, taken)| taken.give_way() || give_way(all, newcomer, full))
}

impl Seat {
    /// Begins work; `None` if the connection has given way already.
    #[must_use]
    pub fn begin(&self) -> Option<Busy> {
        let mut state = self.taken.state.lock();
        state.place.as_ref()?;
        state.busy += 1;
        Some(Busy(Arc::clone(&self.taken)))
    }

    /// Returns when the connection has to end because another one has its place.
    pub async fn displaced(&self) {
        self.taken.displaced.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.all.taken.lock();
        all.retain(|other| !Arc::ptr_eq(other, &self.taken));
        // Free the place last: a newcomer without a place looks among the seats of this list.
        self.taken.state.lock().place = None;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.busy -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use super::*;

    const LOCAL: PeerKey = PeerKey::Local { user: None };

    fn host(last: u8) -> PeerKey {
        PeerKey::Remote([192, 0, 2, last].into())
    }

    fn is_displaced(seat: &Seat) -> bool {
        seat.taken.displaced.is_cancelled()
    }

    async fn a_second() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_is_idle_for_longest_gives_way() {
        let seats = Seats::new(3);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(seats.take(LOCAL).unwrap().0);
            a_second().await;
        }
        // The first was the last to do something, the second is at it.
        drop(taken[0].begin().unwrap());
        let busy = taken[1].begin().unwrap();
        let (fourth, displaces) = seats.take(LOCAL).unwrap();
        let displaced: Vec<_> = taken.iter().map(is_displaced).collect();
        assert!(displaces);
        assert_eq!(displaced, [false, false, true]);
        assert!(taken[2].begin().is_none(), "it is over");
        a_second().await;
        let _at_it = fourth.begin().unwrap();
        let (fifth, _) = seats.take(LOCAL).unwrap();
        assert!(is_displaced(&taken[0]));
        let _at_it_too = fifth.begin().unwrap();
        assert_eq!(seats.take(LOCAL).unwrap_err(), Full::Service { max: 3 });
        drop(busy);
        let (_sixth, displaces) = seats.take(LOCAL).unwrap();
        assert!(displaces && is_displaced(&taken[1]));
        drop((taken, fourth, fifth));
        assert_eq!(seats.places.taken(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_gives_way_to_whom_the_place_would_not_be_given() {
        let seats = Seats::new(8);
        let local: Vec<_> = (0..5).map(|_| seats.take(LOCAL).unwrap().0).collect();
        a_second().await;
        let first: Vec<_> = (0..3).map(|_| seats.take(host(1)).unwrap().0).collect();
        a_second().await;
        // All are taken. Over TCP one of TCP gives way, though others have been idle for longer.
        let (other, _) = seats.take(host(2)).unwrap();
        assert!(is_displaced(&first[0]) && !local.iter().any(is_displaced));
        // A host that has its part has one of its own give way.
        let more: Vec<_> = (0..9).map(|_| seats.take(host(1)).unwrap().0).collect();
        assert!(first.iter().all(is_displaced));
        assert!(!is_displaced(&other), "the host displaces its own");
        assert!(!is_displaced(&more[8]) && !local.iter().any(is_displaced));
        let (_local, _) = seats.take(LOCAL).unwrap();
        assert!(is_displaced(&local[0]), "the oldest of all");
    }
}
