//! The open files of all journals: the most recently used ones, within a bound on descriptors.
//!
//! A closed file is opened again for the next read or append. Two kinds of files stay open. One has
//! unsynced writes: the kernel reports a lost write only to open file descriptors. The other has
//! requests under way. If too many files have to stay open, the volumes that wrote longest ago are
//! synced, and then their files can be closed.

use std::{
    collections::{HashMap, HashSet},
    fmt, mem,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use crate::{io::File, limits::SHORTAGE_PAUSES};

/// Something that can make a journal durable without having been asked by a guest.
pub(crate) trait MakesDurable: Send + Sync {
    /// Begins to make it durable, and does not wait.
    fn make_durable(self: Arc<Self>);
}

/// The open files of all journals.
pub(super) struct OpenFiles {
    descriptors_max: usize,
    state: Mutex<State>,
    /// Notified when a file may be closed that could not be before.
    freed: Notify,
}

/// An open journal. A journal that is opened again while readers still have it has another id.
pub(super) type JournalId = u64;

/// A journal, and the number of one of its files.
type Key = (JournalId, u64);

#[derive(Default)]
struct State {
    open: HashMap<Key, Open>,
    /// Descriptors of all open files.
    descriptors: usize,
    /// Descriptors set aside for files that are about to be opened.
    reserved: usize,
    uses: u64,
    last_journal: JournalId,
    owners: HashMap<JournalId, Weak<dyn MakesDurable>>,
}

struct Open {
    /// Through the page cache.
    cached: File,
    /// Past the page cache, of a file that is added to.
    direct: Option<File>,
    used: u64,
    unsynced: bool,
}

/// The two ways to write a file.
#[derive(Debug, Clone)]
pub(super) struct Writers {
    pub(super) cached: File,
    pub(super) direct: File,
}

/// Descriptors set aside for a file that is about to be opened, given back when this is dropped.
#[must_use]
pub(crate) struct Reservation(Option<Reserved>);

struct Reserved {
    files: Arc<OpenFiles>,
    descriptors: usize,
}

/// Number of volumes made durable at a time, when too many files are unsynced.
const SYNCED_TOGETHER: usize = 8;

impl Reservation {
    /// Nothing is set aside, because the file is open already or need not fit.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Returns the number of descriptors set aside: the caller counts them from here on.
    fn take(self) -> usize {
        self.0.map_or(0, |mut it| mem::take(&mut it.descriptors))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.descriptors > 0 {
            self.files.state.lock().reserved -= self.descriptors;
            self.files.freed.notify_waiters();
        }
    }
}

impl OpenFiles {
    /// No file is open yet.
    pub(super) fn new(descriptors_max: usize) -> Self {
        Self {
            descriptors_max,
            state: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// The id of a journal that is being opened.
    pub(super) fn new_journal(&self) -> JournalId {
        let mut state = self.state.lock();
        state.last_journal += 1;
        state.last_journal
    }

    /// Sets the object that makes a journal durable from now on.
    pub(super) fn register(&self, journal: JournalId, owner: Weak<dyn MakesDurable>) {
        self.state.lock().owners.insert(journal, owner);
    }

    /// A file to be read, if it is open.
    pub(super) fn get(&self, journal: JournalId, number: u64) -> Option<File> {
        let mut state = self.state.lock();
        let open = state.used((journal, number))?;
        Some(open.cached.clone())
    }

    /// A file to be written, if it is open for that.
    pub(super) fn get_to_write(&self, journal: JournalId, number: u64) -> Option<Writers> {
        let mut state = self.state.lock();
        let open = state.used((journal, number))?;
        Some(Writers {
            cached: open.cached.clone(),
            direct: open.direct.clone()?,
        })
    }

    /// Keeps a file open from now on, until it is [synced](Self::synced), because it is being
    /// written.
    pub(super) fn unsynced(&self, journal: JournalId, number: u64) {
        if let Some(open) = self.state.lock().open.get_mut(&(journal, number)) {
            open.unsynced = true;
        }
    }

    /// Returns true if a file is open for writes.
    pub(super) fn is_open_to_write(&self, journal: JournalId, number: u64) -> bool {
        let state = self.state.lock();
        let open = state.open.get(&(journal, number));
        open.is_some_and(|open| open.direct.is_some())
    }

    /// Keeps a file open, and closes others for it. Returns the file that is kept, which is another
    /// one if somebody opened the same file first.
    pub(super) fn insert(
        &self,
        journal: JournalId,
        number: u64,
        cached: File,
        direct: Option<File>,
        reservation: Reservation,
    ) -> File {
        let reserved = reservation.take();
        let key = (journal, number);
        let mut state = self.state.lock();
        // The caller uses up its reservation.
        state.reserved -= reserved;
        let (cached, direct, unsynced) = match state.remove(key) {
            Some(before) => (before.cached, before.direct.or(direct), before.unsynced),
            None => (cached, direct, false),
        };
        state.make_room(1 + usize::from(direct.is_some()), self.descriptors_max);
        state.uses += 1;
        let open = Open {
            cached: cached.clone(),
            direct,
            used: state.uses,
            unsynced,
        };
        state.descriptors += open.descriptors();
        state.open.insert(key, open);
        cached
    }

    /// Allows closing a file: its writes are durable.
    pub(super) fn synced(&self, journal: JournalId, number: u64) {
        if let Some(open) = self.state.lock().open.get_mut(&(journal, number)) {
            open.unsynced = false;
        }
        self.freed.notify_waiters();
    }

    /// Closes the second descriptor of a file that is no longer added to.
    pub(super) fn ended(&self, journal: JournalId, number: u64) {
        let mut state = self.state.lock();
        let open = state.open.get_mut(&(journal, number));
        if open.and_then(|open| open.direct.take()).is_some() {
            state.descriptors -= 1;
            self.freed.notify_waiters();
        }
    }

    /// Forgets a file, and returns it if it was open. Readers may still have it.
    pub(super) fn remove(&self, journal: JournalId, number: u64) -> Option<File> {
        let removed = self.state.lock().remove((journal, number));
        self.freed.notify_waiters();
        removed.map(|open| open.cached)
    }

    /// Forgets all files of a journal.
    pub(super) fn remove_all(&self, journal: JournalId) {
        let mut state = self.state.lock();
        let keys: Vec<_> = state.open.keys().copied().collect();
        for key in keys.into_iter().filter(|(of, _)| *of == journal) {
            state.remove(key);
        }
        state.owners.remove(&journal);
        drop(state);
        self.freed.notify_waiters();
    }

    /// Sets descriptors aside, closing files for them; `None` if too few files can be closed.
    pub(super) fn reserve(self: &Arc<Self>, descriptors: usize) -> Option<Reservation> {
        let mut state = self.state.lock();
        if !state.make_room(descriptors, self.descriptors_max) {
            return None;
        }
        state.reserved += descriptors;
        Some(Reservation(Some(Reserved {
            files: Arc::clone(self),
            descriptors,
        })))
    }

    /// Waits until so many descriptors are available. To get them, it closes files, and syncs some
    /// first. Returns early once `is_of_no_use` reports that waiting is useless: when the store
    /// closes, or syncs nothing any more.
    pub(super) async fn wait_for_room(&self, descriptors: usize, is_of_no_use: impl Fn() -> bool) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on it notices freed descriptors, also before it is polled.
            freed.as_mut().enable();
            let owners = {
                let mut state = self.state.lock();
                if state.make_room(descriptors, self.descriptors_max) || is_of_no_use() {
                    return;
                }
                state.longest_unsynced()
            };
            for owner in owners {
                owner.make_durable();
            }
            tokio::select! {
                () = freed => {}
                // The end of a read sends no notification.
                () = sleep(SHORTAGE_PAUSES.0) => {}
            }
        }
    }
}

impl State {
    fn used(&mut self, key: Key) -> Option<&mut Open> {
        self.uses += 1;
        let open = self.open.get_mut(&key)?;
        open.used = self.uses;
        Some(open)
    }

    fn remove(&mut self, key: Key) -> Option<Open> {
        let removed = self.open.remove(&key)?;
        self.descriptors -= removed.descriptors();
        Some(removed)
    }

    /// Closes files until so many descriptors are free, those used longest ago first. Returns
    /// whether that was possible.
    fn make_room(&mut self, descriptors: usize, descriptors_max: usize) -> bool {
        while self.descriptors + self.reserved + descriptors > descriptors_max {
            // Scans all of them, once for each opened file; opening it takes longer.
            let oldest = self
                .open
                .iter()
                .filter(|(_, open)| open.can_be_closed())
                .min_by_key(|(_, open)| open.used)
                .map(|(key, _)| *key);
            match oldest {
                Some(oldest) => drop(self.remove(oldest)),
                // One volume at a time always continues, even beyond the bound.
                None => return self.descriptors + self.reserved == 0,
            }
        }
        true
    }

    /// The owners of the journals that have been unsynced for the longest time.
    fn longest_unsynced(&self) -> Vec<Arc<dyn MakesDurable>> {
        let mut unsynced: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| open.unsynced)
            .map(|((journal, _), open)| (open.used, *journal))
            .collect();
        unsynced.sort_unstable();
        let mut seen = HashSet::new();
        unsynced
            .into_iter()
            .filter(|(_, journal)| seen.insert(*journal))
            .filter_map(|(_, journal)| self.owners.get(&journal)?.upgrade())
            .take(SYNCED_TOGETHER)
            .collect()
    }
}

impl Open {
    fn descriptors(&self) -> usize {
        1 + usize::from(self.direct.is_some())
    }

    fn can_be_closed(&self) -> bool {
        let in_use = |file: &File| file.is_shared();
        !self.unsynced && !in_use(&self.cached) && !self.direct.as_ref().is_some_and(in_use)
    }
}

impl fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFiles")
            .field("descriptors_max", &self.descriptors_max)
            .field("descriptors", &self.state.lock().descriptors)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let descriptors = self.0.as_ref().map_or(0, |it| it.descriptors);
        f.debug_tuple("Reservation").field(&descriptors).finish()
    }
}
