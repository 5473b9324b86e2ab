//! Snapshots that other stores copy: a stream holds each of them, and for as long as it is open,
//! the account that opened it may fetch their content, even if they are deleted meanwhile.
//!
//! Invariant: an account reaches only what it holds itself. Holds are found by the account and the
//! id of the snapshot, so an id is no secret and opens nothing to others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use varve_store::{AccountId, SnapshotId, SnapshotReader};

use super::error::Result;
use crate::{
    auth::Caller,
    limits,
    resources::shares::{Hold, Rules, Shares},
};

/// The holder, and what it holds.
type Key = (AccountId, SnapshotId);

/// All snapshots that are held.
#[derive(Debug)]
pub(super) struct Holds {
    places: Shares,
    /// Places of callers who act for accounts, so that these leave some to the administrator.
    places_of_accounts: Shares,
    held: Arc<Mutex<HashMap<Key, Held>>>,
}

/// The content of a snapshot, and the number of streams that hold it.
#[derive(Debug)]
struct Held {
    reader: SnapshotReader,
    streams: u64,
}

/// A snapshot that is held until this is dropped.
#[derive(Debug)]
pub(super) struct HeldSnapshot {
    held: Arc<Mutex<HashMap<Key, Held>>>,
    key: Key,
}

impl Holds {
    pub(super) fn new() -> Self {
        Self {
            // A hold that does not fit is refused, and none gives way: it is better that a copy
            // waits than that another one loses its content.
            places: places(limits::HOLDS_MAX / 2, limits::HOLDS_OF_CONNECTION_MAX),
            places_of_accounts: places(limits::HOLDS_MAX / 2, limits::HOLDS_OF_ACCOUNT_MAX),
            held: Arc::default(),
        }
    }

    /// Takes a place for a hold.
    pub(super) async fn place(&self, caller: &Caller) -> Result<Hold> {
        let holder = caller.holder();
        let places = match holder.is_account() {
            true => &self.places_of_accounts,
            false => &self.places,
        };
        let place = places.take(holder, 1, Duration::ZERO).await?;
        place.settle(true);
        Ok(place)
    }

    /// Holds a snapshot for an account, which may read it.
    pub(super) fn hold(&self, account: AccountId, reader: &SnapshotReader) -> HeldSnapshot {
        let key = (account, reader.record().id);
        let new = || Held {
            reader: reader.clone(),
            streams: 0,
        };
        self.held.lock().entry(key).or_insert_with(new).streams += 1;
        HeldSnapshot {
            held: Arc::clone(&self.held),
            key,
        }
    }

    /// The snapshot with this id, if the account holds it.
    pub(super) fn find(&self, account: AccountId, id: SnapshotId) -> Option<SnapshotReader> {
        let held = self.held.lock();
        held.get(&(account, id)).map(|held| held.reader.clone())
    }
}

fn places(total: u64, of_one: u64) -> Shares {
    Shares::new(Rules {
        what: "holds of snapshots",
        total,
        local: total / 4,
        of_one,
        of_account: of_one,
        waiting: 0,
        yields_after: Duration::MAX,
        pace: 1,
    })
}

impl Drop for HeldSnapshot {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(it) = held.get_mut(&self.key) {
            it.streams -= 1;
            if it.streams == 0 {
                held.remove(&self.key);
            }
        }
    }
}
