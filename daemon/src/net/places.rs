//! Places of a service: connections after their handshake.
//!
//! The listeners of a service share its places. TCP may take three quarters, so that unix sockets
//! always have the rest. No host may hold more than it leaves to other hosts: a single host gets
//! half of TCP's share, and the next one always finds some.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::limits::remote_places;
use super::peer::PeerKey;

/// The places of one service.
#[derive(Debug)]
pub struct Places {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    remote: usize,
    /// The part of `remote` that each host has.
    by_host: HashMap<PeerKey, usize>,
}

/// The reason why there is no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Full {
    #[error("the limit of {max} connections is reached")]
    Service { max: usize },
    #[error("the limit of {max} connections over TCP is reached")]
    Remote { max: usize },
    #[error(
        "the limit of connections from this host is reached: {held} are open, with {left} left \
         over TCP"
    )]
    Host { held: usize, left: usize },
}

/// One place, until this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    peer: PeerKey,
}

impl Places {
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            state: Mutex::default(),
        })
    }

    /// Places that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.state.lock().taken
    }

    /// Takes a place.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is none for this peer.
    pub fn take(self: &Arc<Self>, peer: PeerKey) -> Result<Place, Full> {
        let mut state = self.state.lock();
        if state.taken >= self.max {
            return Err(Full::Service { max: self.max });
        }
        if let PeerKey::Remote(_) = peer {
            let max = remote_places(self.max);
            if state.remote >= max {
                return Err(Full::Remote { max });
            }
            let left = max - state.remote;
            let held = state.by_host.get(&peer).copied().unwrap_or(0);
            if held >= left {
                return Err(Full::Host { held, left });
            }
            state.remote += 1;
            *state.by_host.entry(peer).or_default() += 1;
        }
        state.taken += 1;
        Ok(Place {
            places: Arc::clone(self),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        state.taken -= 1;
        if let PeerKey::Remote(_) = self.peer {
            state.remote -= 1;
            if let Some(held) = state.by_host.get_mut(&self.peer) {
                *held -= 1;
                if *held == 0 {
                    state.by_host.remove(&self.peer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const LOCAL: PeerKey = PeerKey::Local { user: None };

    fn host(last: u8) -> PeerKey {
        PeerKey::Remote([192, 0, 2, last].into())
    }

    fn take_all(places: &Arc<Places>, peer: PeerKey) -> (Vec<Place>, Full) {
        let mut taken = Vec::new();
        loop {
            match places.take(peer) {
                Ok(place) => taken.push(place),
                Err(full) => return (taken, full),
            }
        }
    }

    #[test]
    fn tcp_leaves_a_quarter_to_unix_sockets() {
        let places = Places::new(16);
        let hosts: Vec<_> = (0..16)
            .map(|last| take_all(&places, host(last)).0)
            .collect();
        assert_eq!(hosts.iter().map(Vec::len).sum::<usize>(), 12);
        assert_eq!(places.take(host(99)).unwrap_err(), Full::Remote { max: 12 });
        let (local, full) = take_all(&places, LOCAL);
        assert_eq!((local.len(), full), (4, Full::Service { max: 16 }));
        drop(local);
        drop(hosts);
        assert_eq!(places.taken(), 0);
        assert_eq!(take_all(&places, LOCAL).0.len(), 16, "unix may have all");
    }

    #[test]
    fn a_host_leaves_as_much_as_it_holds() {
        let places = Places::new(16);
        let (first, full) = take_all(&places, host(1));
        assert_eq!((first.len(), full), (6, Full::Host { held: 6, left: 6 }));
        let (second, _) = take_all(&places, host(2));
        assert_eq!(second.len(), 3);
        assert_eq!(take_all(&places, host(3)).0.len(), 2);
        drop(second);
        assert!(matches!(places.take(host(1)), Err(Full::Host { .. })));
        drop(first);
        assert_eq!(places.state.lock().by_host.len(), 0, "hosts are forgotten");
    }

    #[test]
    fn few_places_serve_anybody() {
        for max in 1..4 {
            let places = Places::new(max);
            let place = places.take(host(1)).unwrap();
            assert_eq!(places.take(LOCAL).is_ok(), max > 1);
            drop(place);
        }
    }
}
