//! Pins: roots whose content is in use, whatever becomes of the records that name them.
//!
//! Content may be collected once no record names its root and nobody holds a pin on it. A pin
//! therefore counts only if it was taken while a record named the root: read the record, pin its
//! root, read the record again, and go on if it still names that root ([`Engine::pin_named`]).
//! Content that was stored just now is covered by its open ingest until the pin is taken.
//!
//! A reader that needs all roots [looks](Pins::look) at the pins from before the moment at which it
//! reads the catalog until after it. At that moment a root in use is named by a record, or pinned.
//! It may move from a record to a pin before the reader gets the pins, and from a pin to a new
//! record after that moment: so pins that are dropped meanwhile count.
//!
//! Pins are in memory only: after a restart nobody reads anything.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use varve_content::RootId;

use super::Engine;
use crate::{Error, Result, format::CatalogRecord, meta::Key};

/// The roots that are pinned, and how often each of them is.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: HashMap<RootId, u32>,
    /// Number of looks under way.
    looking: u32,
    /// Roots whose last pin was dropped while somebody was looking.
    dropped: HashSet<RootId>,
}

impl Pins {
    /// Pins a root. The caller must know that its content is sure to be there: see the rule in this
    /// file's head.
    pub(crate) fn pin(self: &Arc<Self>, root: RootId) -> RootPin {
        *self.0.lock().counts.entry(root).or_default() += 1;
        RootPin {
            pins: Arc::clone(self),
            root,
        }
    }

    /// Begins to look at all that is pinned.
    pub(crate) fn look(self: &Arc<Self>) -> Looking {
        self.0.lock().looking += 1;
        Looking(Arc::clone(self))
    }

    /// Number of pins on a root.
    pub(crate) fn count(&self, root: RootId) -> u32 {
        self.0.lock().counts.get(&root).copied().unwrap_or(0)
    }
}

/// A look at the pins, and at all that are taken or dropped since it began.
pub(crate) struct Looking(Arc<Pins>);

impl Looking {
    /// All roots that were pinned at any time since the look began.
    pub(crate) fn roots(self) -> Vec<RootId> {
        let state = self.0.0.lock();
        let dropped = state.dropped.iter();
        let dropped = dropped.filter(|root| !state.counts.contains_key(*root));
        state.counts.keys().chain(dropped).copied().collect()
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.looking -= 1;
        if state.looking == 0 {
            state.dropped = HashSet::new();
        }
    }
}

/// Keeps the content under a root in the store for as long as this, or a clone of it, lives.
pub struct RootPin {
    pins: Arc<Pins>,
    root: RootId,
}

impl RootPin {
    /// The root.
    #[must_use]
    pub const fn root(&self) -> RootId {
        self.root
    }
}

impl Clone for RootPin {
    fn clone(&self) -> Self {
        self.pins.pin(self.root)
    }
}

impl Drop for RootPin {
    fn drop(&mut self) {
        let mut state = self.pins.0.lock();
        if let Some(count) = state.counts.get_mut(&self.root) {
            *count -= 1;
            if *count == 0 {
                state.counts.remove(&self.root);
                if state.looking > 0 {
                    state.dropped.insert(self.root);
                }
            }
        }
    }
}

impl fmt::Debug for RootPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootPin({})", self.root)
    }
}

impl Engine {
    /// Pins the root that a record names, and returns the record as it was while the pin held.
    /// `None` if the record names no root.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the record is deleted meanwhile; those of `root_of`.
    pub(crate) async fn pin_named<R: CatalogRecord>(
        &self,
        mut record: R,
        root_of: impl Fn(&R) -> Result<Option<RootId>>,
    ) -> Result<(R, Option<RootPin>)> {
        loop {
            let Some(root) = root_of(&record)? else {
                return Ok((record, None));
            };
            let pin = self.pins.pin(root);
            let again = self.find(Key::Id(record.id())).await?;
            if root_of(&again)? == Some(root) {
                return Ok((again, Some(pin)));
            }
            record = again;
        }
    }

    /// The same for a record that must name a root.
    ///
    /// # Errors
    ///
    /// As of [`pin_named`](Self::pin_named).
    pub(crate) async fn pin_root<R: CatalogRecord>(
        &self,
        record: R,
        root_of: impl Fn(&R) -> Result<RootId>,
    ) -> Result<(R, RootPin)> {
        let (record, pin) = self.pin_named(record, |it| root_of(it).map(Some)).await?;
        match pin {
            Some(pin) => Ok((record, pin)),
            None => Err(Error::Internal(
                "a root was named and not pinned".to_owned(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_pinned_until_the_last_pin_is_dropped() {
        let pins = Arc::new(Pins::default());
        let (one, other) = (RootId::from_bytes([1; 32]), RootId::from_bytes([2; 32]));
        let first = pins.pin(one);
        let second = first.clone();
        let third = pins.pin(other);
        assert_eq!((pins.count(one), pins.count(other)), (2, 1));
        assert_eq!(second.root(), one);
        drop(first);
        assert_eq!((pins.count(one), pins.count(other)), (1, 1));
        drop((second, third));
        assert_eq!((pins.count(one), pins.count(other)), (0, 0));
        assert!(pins.0.lock().counts.is_empty());
    }

    #[test]
    fn a_pin_that_is_dropped_during_a_look_counts() {
        let pins = Arc::new(Pins::default());
        let [before, during, kept] = [1, 2, 3].map(|byte| RootId::from_bytes([byte; 32]));
        drop(pins.pin(before));
        let (first, second) = (pins.look(), pins.look());
        drop(pins.pin(during));
        let _kept = pins.pin(kept);
        for look in [first, second] {
            let mut roots = look.roots();
            roots.sort_unstable();
            assert_eq!(roots, [during, kept]);
        }
        assert!(pins.0.lock().dropped.is_empty());
    }
}
