//! Pins: roots whose content is in use, whatever becomes of the records that name them.
//!
//! Content may be collected once no record names its root and nobody holds a pin on it. A pin
//! therefore counts only if it was taken while a record named the root: read the record, pin its
//! root, read the record again, and go on if it still names that root ([`Engine::pin_named`]).
//! Content that was stored just now is covered by its open ingest until the pin is taken.
//!
//! Pins are in memory only: after a restart nobody reads anything.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use varve_content::RootId;

use super::Engine;
use crate::{Error, Result, format::CatalogRecord, meta::Key};

/// The roots that are pinned, and how often each of them is.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<HashMap<RootId, u32>>);

impl Pins {
    /// Pins a root. Whether its content is sure to be there is for the caller to know: see the
    /// rule in this file's head.
    pub(crate) fn pin(self: &Arc<Self>, root: RootId) -> RootPin {
        *self.0.lock().entry(root).or_default() += 1;
        RootPin {
            pins: Arc::clone(self),
            root,
        }
    }

    /// All roots that are pinned now. Whoever wants all roots that content hangs on reads the
    /// catalog before: a root whose record is deleted meanwhile, and which is still in use, was
    /// pinned before that.
    pub(crate) fn roots(&self) -> Vec<RootId> {
        self.0.lock().keys().copied().collect()
    }

    /// How many pins a root has.
    #[cfg(test)]
    pub(crate) fn count(&self, root: RootId) -> u32 {
        self.0.lock().get(&root).copied().unwrap_or(0)
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
        let mut pins = self.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.root) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.root);
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
    /// `None` where it names none.
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
        assert!(pins.0.lock().is_empty());
    }
}
