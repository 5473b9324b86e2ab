//! Handshakes under way at one listener: unknown peers.
//!
//! At the limit, a new connection is accepted all the same, and ends the oldest handshake of the
//! peer with the most handshakes. A peer that only holds handshakes open displaces itself, and an
//! honest handshake, which takes milliseconds, is done before it is the oldest.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::peer::PeerKey;

/// The handshakes of one listener.
#[derive(Debug)]
pub struct Handshakes {
    max: usize,
    /// The oldest first.
    open: Mutex<Vec<Open>>,
}

#[derive(Debug)]
struct Open {
    peer: PeerKey,
    displaced: CancellationToken,
}

/// A handshake, until this is dropped.
#[derive(Debug)]
pub struct Handshake {
    all: Arc<Handshakes>,
    displaced: CancellationToken,
}

impl Handshakes {
    /// At most `max` handshakes; `max` is not zero.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        assert!(max > 0, "a listener has handshakes");
        Arc::new(Self {
            max,
            open: Mutex::default(),
        })
    }

    /// The number of handshakes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.lock().len()
    }

    /// Begins a handshake. Returns true with it if another one was ended for it.
    pub fn begin(self: &Arc<Self>, peer: PeerKey) -> (Handshake, bool) {
        let displaced = CancellationToken::new();
        let mut open = self.open.lock();
        open.push(Open {
            peer,
            displaced: displaced.clone(),
        });
        let gives_way = if open.len() > self.max {
            let position = oldest_of_most(&open);
            Some(open.remove(position))
        } else {
            None
        };
        drop(open);
        if let Some(oldest) = &gives_way {
            oldest.displaced.cancel();
        }
        let handshake = Handshake {
            all: Arc::clone(self),
            displaced,
        };
        (handshake, gives_way.is_some())
    }
}

/// Index of the oldest handshake of the peer with the most.
fn oldest_of_most(open: &[Open]) -> usize {
    let mut counts: HashMap<PeerKey, usize> = HashMap::new();
    for handshake in open {
        *counts.entry(handshake.peer).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    let is_of_most = |handshake: &Open| counts.get(&handshake.peer) == Some(&most);
    open.iter().position(is_of_most).unwrap_or(0)
}

impl Handshake {
    /// Returns when the handshake has to end for a new one.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if !self.displaced.is_cancelled() {
            let mut open = self.all.open.lock();
            open.retain(|other| other.displaced != self.displaced);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(last: u8) -> PeerKey {
        PeerKey::Remote([192, 0, 2, last].into())
    }

    fn is_displaced(handshake: &Handshake) -> bool {
        handshake.displaced.is_cancelled()
    }

    #[test]
    fn the_oldest_of_the_peer_with_most_gives_way() {
        let all = Handshakes::new(4);
        let honest = all.begin(remote(1)).0;
        let mut hostile: Vec<_> = (0..3).map(|_| all.begin(remote(2)).0).collect();
        assert_eq!(all.count(), 4);
        for round in 0..10 {
            let (newcomer, displaces) = all.begin(remote(2));
            assert!(displaces);
            let displaced: Vec<_> = hostile.iter().map(is_displaced).collect();
            assert_eq!(displaced, [true, false, false], "round {round}");
            drop(hostile.remove(0));
            hostile.push(newcomer);
            assert_eq!(all.count(), 4);
        }
        assert!(!is_displaced(&honest));
        // Another honest one comes in as well.
        let (other, displaces) = all.begin(remote(3));
        assert!(displaces && !is_displaced(&other) && is_displaced(&hostile[0]));
    }

    #[test]
    fn from_as_many_peers_as_handshakes_the_oldest_gives_way() {
        let all = Handshakes::new(3);
        let open: Vec<_> = (0..5).map(|peer| all.begin(remote(peer)).0).collect();
        let displaced: Vec<_> = open.iter().map(is_displaced).collect();
        assert_eq!(displaced, [true, true, false, false, false]);
        drop(open);
        assert_eq!(all.count(), 0);
        let (_one, displaces) = all.begin(remote(0));
        assert!(!displaces, "there is room again");
    }
}
