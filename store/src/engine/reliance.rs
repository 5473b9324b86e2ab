//! Packs that running work relies on: the collector leaves these alone.
//!
//! An ingest relies on records that it found in the store, and on records that it appends, before
//! any root names them. It holds a [`Guard`] from its beginning until its change of the catalog is
//! made. Three rules keep what it relies on:
//!
//! - **Hits.** A name that has a row counts as known only if the row points into a pack that is not
//!   condemned. The guard then holds that pack. A name in a condemned pack is unknown: the sender
//!   sends it again, and the new row replaces the old one.
//! - **New rows.** A row that is made after an ingest has begun points into a pack whose number is
//!   at or above the guard's [`Floors`], no matter who makes the row: its record was appended
//!   later, or was on its way to the index, or the collector was moving records into that pack. The
//!   collector takes no pack at or above the floors of an open guard. So they cover records that
//!   the ingest appends, and those that it finds without a row.
//! - **Leaves that are taken over.** They hang on a root, which the ingest [pins](super::pins).
//!
//! A pack is condemned only while no guard holds it, and stays condemned until it is gone. If it
//! could be acquitted, an ingest might rely on a row that it was told to replace, and whose pack it
//! does not hold.
//!
//! All of this is in memory only: after a restart nothing runs, so nothing is relied on.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::format::{PackId, PackKind};

/// The packs that running work relies on.
#[derive(Debug, Default)]
pub(crate) struct Reliance(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Number of guards that hold each pack.
    held: HashMap<PackId, u32>,
    guards: BTreeMap<u64, Open>,
    /// The ticket of the guard that was made last.
    last_ticket: u64,
    condemned: HashSet<PackId>,
    /// The lowest packs that records are moved into now.
    moving: Option<Floors>,
    /// Number of removals of condemned packs. A place from before a removal may be gone with it.
    removals: u64,
}

#[derive(Debug)]
struct Open {
    /// The name of the work that relies on packs, for messages.
    label: String,
    floors: Floors,
    packs: HashSet<PackId>,
}

/// The lowest number, of each kind, of a pack that new rows may point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floors {
    pub(crate) chunks: u64,
    pub(crate) nodes: u64,
}

impl Floors {
    /// The floors of no packs.
    pub(crate) const NONE: Self = Self {
        chunks: u64::MAX,
        nodes: u64::MAX,
    };

    /// The floor of packs of one kind.
    pub(crate) const fn of(kind: PackKind, lowest: u64) -> Self {
        match kind {
            PackKind::Chunks => Self {
                chunks: lowest,
                ..Self::NONE
            },
            PackKind::Nodes => Self {
                nodes: lowest,
                ..Self::NONE
            },
        }
    }

    /// Returns true if a pack is below the floors.
    pub(crate) const fn are_above(&self, pack: PackId) -> bool {
        let floor = match pack.kind {
            PackKind::Chunks => self.chunks,
            PackKind::Nodes => self.nodes,
        };
        pack.number < floor
    }

    /// The lower number of each kind.
    pub(crate) fn lower(self, other: Self) -> Self {
        Self {
            chunks: self.chunks.min(other.chunks),
            nodes: self.nodes.min(other.nodes),
        }
    }
}

/// A moment: packs that are removed after it are noticed by [`Guard::hold`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsOf(u64);

/// A pack that is held, and by which work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPack {
    /// The pack.
    pub pack: PackId,
    /// The snapshot or volume that is being stored.
    pub by: String,
}

impl Reliance {
    /// Begins to rely on all later appends, and on what the guard will hold.
    pub(crate) fn begin(self: &Arc<Self>, label: &str, floors: Floors) -> Arc<Guard> {
        let mut state = self.0.lock();
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        // A record that is moved may have been sent again meanwhile, and its new copy is dropped in
        // favour of the moved row.
        let open = Open {
            label: label.to_owned(),
            floors: floors.lower(state.moving.unwrap_or(Floors::NONE)),
            packs: HashSet::new(),
        };
        state.guards.insert(ticket, open);
        drop(state);
        Arc::new(Guard {
            reliance: Arc::clone(self),
            ticket,
        })
    }

    /// From here on records are moved into new packs, until the returned guard is dropped. `lowest`
    /// is at or below their numbers.
    pub(crate) fn move_into(self: &Arc<Self>, lowest: u64) -> Moving {
        self.0.lock().moving = Some(Floors {
            chunks: lowest,
            nodes: lowest,
        });
        Moving(Arc::clone(self))
    }

    /// The moment, for places that are looked up after it.
    pub(crate) fn as_of_now(&self) -> AsOf {
        AsOf(self.0.lock().removals)
    }

    /// The lowest floors of all open guards.
    pub(crate) fn floors(&self) -> Floors {
        let state = self.0.lock();
        let floors = state.guards.values().map(|open| open.floors);
        floors.fold(Floors::NONE, Floors::lower)
    }

    /// Those packs that open guards hold back by their floors, each with one of the guards.
    pub(crate) fn held_back(&self, packs: impl IntoIterator<Item = PackId>) -> Vec<HeldPack> {
        let state = self.0.lock();
        let held_back = packs.into_iter().filter_map(|pack| {
            let mut guards = state.guards.values();
            let open = guards.find(|open| !open.floors.are_above(pack))?;
            Some(HeldPack {
                pack,
                by: open.label.clone(),
            })
        });
        held_back.collect()
    }

    /// The packs that are condemned.
    pub(crate) fn condemned(&self) -> HashSet<PackId> {
        self.0.lock().condemned.clone()
    }

    /// Condemns those packs that no guard holds. Returns the others, each with one of its holders.
    pub(crate) fn condemn(&self, packs: impl IntoIterator<Item = PackId>) -> Vec<HeldPack> {
        let mut state = self.0.lock();
        let mut refused = Vec::new();
        for pack in packs {
            if !state.held.contains_key(&pack) {
                state.condemned.insert(pack);
                continue;
            }
            let by = state
                .guards
                .values()
                .find(|open| open.packs.contains(&pack));
            refused.push(HeldPack {
                pack,
                by: by.map_or_else(String::new, |open| open.label.clone()),
            });
        }
        refused
    }

    /// Notes that condemned packs are gone, and that no row points into them.
    pub(crate) fn removed(&self, packs: &[PackId]) {
        let mut state = self.0.lock();
        for pack in packs {
            state.condemned.remove(pack);
        }
        state.removals += 1;
    }
}

/// Exists while records are being moved.
#[derive(Debug)]
pub(crate) struct Moving(Arc<Reliance>);

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.0.lock().moving = None;
    }
}

/// Holds the packs that one ingest relies on, until it is dropped.
pub(crate) struct Guard {
    reliance: Arc<Reliance>,
    ticket: u64,
}

impl Guard {
    /// Holds the packs of places that were looked up after `as_of`. Returns for each whether the
    /// record there counts as known. `None` if packs were removed meanwhile: the caller looks the
    /// places up again.
    pub(crate) fn hold(
        &self,
        as_of: AsOf,
        packs: impl IntoIterator<Item = PackId>,
    ) -> Option<Vec<bool>> {
        let mut state = self.reliance.0.lock();
        let State {
            held,
            guards,
            condemned,
            removals,
            ..
        } = &mut *state;
        if AsOf(*removals) != as_of {
            return None;
        }
        let own = &mut guards.get_mut(&self.ticket)?.packs;
        let packs = packs.into_iter().map(|pack| {
            if own.contains(&pack) {
                return true;
            }
            if condemned.contains(&pack) {
                return false;
            }
            own.insert(pack);
            *held.entry(pack).or_default() += 1;
            true
        });
        Some(packs.collect())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.reliance.0.lock();
        let Some(open) = state.guards.remove(&self.ticket) else {
            return;
        };
        for pack in open.packs {
            if let Some(count) = state.held.get_mut(&pack) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(&pack);
                }
            }
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", self.ticket)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const fn pack(kind: PackKind, number: u64) -> PackId {
        PackId { kind, number }
    }

    const FLOORS: Floors = Floors {
        chunks: 10,
        nodes: 4,
    };

    #[test]
    fn a_pack_that_is_held_is_not_condemned_until_the_last_guard_is_dropped() {
        let reliance = Arc::new(Reliance::default());
        let [one, two] = [1, 2].map(|number| pack(PackKind::Chunks, number));
        let first = reliance.begin("first", FLOORS);
        let second = reliance.begin("second", FLOORS);
        let now = reliance.as_of_now();
        assert_eq!(first.hold(now, [one, two, one]), Some(vec![true; 3]));
        assert_eq!(second.hold(now, [two]), Some(vec![true]));
        drop(first);
        let held = reliance.condemn([one, two]);
        let by = "second".to_owned();
        assert_eq!(held, [HeldPack { pack: two, by }]);
        assert_eq!(reliance.condemned(), [one].into());
        // It stays condemned for every guard.
        assert_eq!(second.hold(now, [one, two]), Some(vec![false, true]));
        drop(second);
        assert_eq!(reliance.condemn([one, two]), []);
        assert!(reliance.0.lock().held.is_empty());
    }

    #[test]
    fn a_place_from_before_a_removal_is_looked_up_again() {
        let reliance = Arc::new(Reliance::default());
        let one = pack(PackKind::Chunks, 1);
        let guard = reliance.begin("s", FLOORS);
        let before = reliance.as_of_now();
        reliance.condemn([one]);
        reliance.removed(&[one]);
        assert_eq!(guard.hold(before, [one]), None);
        assert!(guard.hold(reliance.as_of_now(), [one]).is_some());
    }

    #[test]
    fn floors_are_the_lowest_of_each_kind() {
        let reliance = Arc::new(Reliance::default());
        let pack_9 = pack(PackKind::Chunks, 9);
        assert!(reliance.floors().are_above(pack(PackKind::Nodes, 1 << 60)));
        let first = reliance.begin("first", FLOORS);
        let floors = Floors {
            chunks: 9,
            nodes: 5,
        };
        let second = reliance.begin("second", floors);
        assert!(!reliance.floors().are_above(pack_9));
        assert!(!reliance.floors().are_above(pack(PackKind::Nodes, 4)));
        assert!(reliance.floors().are_above(pack(PackKind::Nodes, 3)));
        drop(second);
        assert!(reliance.floors().are_above(pack_9));
        drop(first);
        // Floors also cover packs that records are moved into, while they are.
        let moving = reliance.move_into(3);
        let third = reliance.begin("third", floors);
        drop(moving);
        let pack_3 = pack(PackKind::Chunks, 3);
        assert!(!reliance.floors().are_above(pack_3));
        drop(third);
        let fourth = reliance.begin("fourth", floors);
        assert!(reliance.floors().are_above(pack_3));
        drop(fourth);
    }
}
