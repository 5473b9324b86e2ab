//! The open files of journals, of all volumes: those that were used last, and no more than there are descriptors for.
//!
//! A file that is closed is opened again when it is read or added to. What was written and not synced stays open: the
//! kernel tells of a write that failed to those who had the file open, and may tell nobody once all have closed it. So does a
//! file with a request under way. Where there are too many of those, the volumes that wrote longest ago are made
//! durable, after which their files can be closed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use crate::{io::File, limits::SHORTAGE_PAUSES};

/// What makes a volume durable without having been asked by its guest.
pub(crate) trait MakesDurable: Send + Sync {
    /// Begins to.
    fn make_durable(self: Arc<Self>);
}

/// Open files of journals.
pub(crate) struct JournalFiles {
    /// Descriptors.
    most: usize,
    state: Mutex<State>,
    /// A file can be closed that could not before, or was.
    freed: Notify,
}

/// A journal that is open. Of one that is opened again while readers have it still, the files are others.
pub(crate) type JournalId = u64;

/// The number of a file of a journal.
type Key = (JournalId, u64);

#[derive(Default)]
struct State {
    open: HashMap<Key, Open>,
    /// Of all of them.
    descriptors: usize,
    uses: u64,
    last_journal: JournalId,
    volumes: HashMap<JournalId, Weak<dyn MakesDurable>>,
}

struct Open {
    /// Through the page cache.
    cached: File,
    /// For writes past it, of a file that is added to.
    direct: Option<File>,
    used: u64,
    unsynced: bool,
}

/// The two ways to write a file.
#[derive(Debug, Clone)]
pub(crate) struct Writers {
    pub(crate) cached: File,
    pub(crate) direct: File,
}

/// Volumes that are made durable at a time, where there are too many files that are not.
const SYNCED_TOGETHER: usize = 8;

impl JournalFiles {
    /// No file is open. There may be so many descriptors.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// A journal that is opened.
    pub(crate) fn new_journal(&self) -> JournalId {
        let mut state = self.state.lock();
        state.last_journal += 1;
        state.last_journal
    }

    /// Who makes a journal durable, from now on.
    pub(crate) fn register(&self, journal: JournalId, who: Weak<dyn MakesDurable>) {
        self.state.lock().volumes.insert(journal, who);
    }

    /// A file to be read, if it is open.
    pub(crate) fn get(&self, journal: JournalId, number: u64) -> Option<File> {
        let mut state = self.state.lock();
        let open = state.used((journal, number))?;
        Some(open.cached.clone())
    }

    /// A file to be written, if it is open for that.
    pub(crate) fn get_to_write(&self, journal: JournalId, number: u64) -> Option<Writers> {
        let mut state = self.state.lock();
        let open = state.used((journal, number))?;
        Some(Writers {
            cached: open.cached.clone(),
            direct: open.direct.clone()?,
        })
    }

    /// A file that somebody has is written from now on: it stays open until it is [synced](Self::synced).
    pub(crate) fn unsynced(&self, journal: JournalId, number: u64) {
        if let Some(open) = self.state.lock().open.get_mut(&(journal, number)) {
            open.unsynced = true;
        }
    }

    /// Whether a file is open for writes.
    pub(crate) fn is_open_to_write(&self, journal: JournalId, number: u64) -> bool {
        let state = self.state.lock();
        let open = state.open.get(&(journal, number));
        open.is_some_and(|open| open.direct.is_some())
    }

    /// Keeps a file open, and closes others for it. If somebody else was faster, it is theirs that is kept.
    pub(crate) fn insert(
        &self,
        journal: JournalId,
        number: u64,
        cached: File,
        direct: Option<File>,
    ) -> File {
        let key = (journal, number);
        let mut state = self.state.lock();
        let (cached, direct, unsynced) = match state.remove(key) {
            Some(before) => (before.cached, before.direct.or(direct), before.unsynced),
            None => (cached, direct, false),
        };
        state.make_room(1 + usize::from(direct.is_some()), self.most);
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

    /// What was written to a file is durable: it may be closed.
    pub(crate) fn synced(&self, journal: JournalId, number: u64) {
        if let Some(open) = self.state.lock().open.get_mut(&(journal, number)) {
            open.unsynced = false;
        }
        self.freed.notify_waiters();
    }

    /// Nothing is added to a file any more.
    pub(crate) fn ended(&self, journal: JournalId, number: u64) {
        let mut state = self.state.lock();
        let open = state.open.get_mut(&(journal, number));
        if open.and_then(|open| open.direct.take()).is_some() {
            state.descriptors -= 1;
            self.freed.notify_waiters();
        }
    }

    /// Lets go of a file, which is returned if it was open: whoever reads it may have it still.
    pub(crate) fn remove(&self, journal: JournalId, number: u64) -> Option<File> {
        let removed = self.state.lock().remove((journal, number));
        self.freed.notify_waiters();
        removed.map(|open| open.cached)
    }

    /// Lets go of all files of a journal.
    pub(crate) fn remove_all(&self, journal: JournalId) {
        let mut state = self.state.lock();
        let keys: Vec<_> = state.open.keys().copied().collect();
        for key in keys.into_iter().filter(|(of, _)| *of == journal) {
            state.remove(key);
        }
        state.volumes.remove(&journal);
        drop(state);
        self.freed.notify_waiters();
    }

    /// Whether so many more descriptors can be had, by closing files.
    pub(crate) fn has_room(&self, descriptors: usize) -> bool {
        self.state.lock().make_room(descriptors, self.most)
    }

    /// Waits until so many more descriptors can be had, by closing files, and by having some made durable before. Not once there is no
    /// use in it: when the store closes, or makes nothing durable any more.
    pub(crate) async fn room(&self, descriptors: usize, is_of_no_use: impl Fn() -> bool) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on, for what is freed before it is waited for.
            freed.as_mut().enable();
            let volumes = {
                let mut state = self.state.lock();
                if state.make_room(descriptors, self.most) || is_of_no_use() {
                    return;
                }
                state.longest_unsynced()
            };
            for volume in volumes {
                volume.make_durable();
            }
            tokio::select! {
                () = freed => {}
                // Nobody tells of a read that has ended.
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

    /// Closes files until there are so many descriptors, those used longest ago first. Whether that was possible.
    fn make_room(&mut self, descriptors: usize, most: usize) -> bool {
        while self.descriptors + descriptors > most {
            // A look at all of them, once for each file that is opened, which takes longer.
            let oldest = self
                .open
                .iter()
                .filter(|(_, open)| open.can_be_closed())
                .min_by_key(|(_, open)| open.used)
                .map(|(key, _)| *key);
            match oldest {
                Some(oldest) => drop(self.remove(oldest)),
                // Whatever the limit, one volume at a time goes on.
                None => return self.descriptors == 0,
            }
        }
        true
    }

    /// The volumes that have what is not durable for the longest time.
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
            .filter_map(|(_, journal)| self.volumes.get(&journal)?.upgrade())
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

impl fmt::Debug for JournalFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalFiles")
            .field("most", &self.most)
            .field("descriptors", &self.state.lock().descriptors)
            .finish_non_exhaustive()
    }
}
