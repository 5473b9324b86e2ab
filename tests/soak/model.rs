//! The snapshots that a store has, by name. No name is used twice.

use std::{collections::BTreeMap, sync::Mutex};

use varve_tests::random::Random;

/// The content of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    /// Its root, as the store reports it.
    pub(super) root: String,
    /// The size.
    pub(super) bytes: u64,
    /// The CRC-32 of its bytes, which the store does not know.
    pub(super) crc: u32,
}

#[derive(Debug)]
struct Entry {
    content: Content,
    /// Its deletion has begun, so it may be gone.
    is_leaving: bool,
}

/// The snapshots that a store must have, and those that are being deleted.
#[derive(Debug, Default)]
pub(super) struct Model(Mutex<BTreeMap<String, Entry>>);

impl Model {
    /// Adds an acknowledged snapshot.
    pub(super) fn keep(&self, name: &str, content: Content) {
        let entry = Entry {
            content,
            is_leaving: false,
        };
        let before = self.0.lock().unwrap().insert(name.to_owned(), entry);
        assert!(before.is_none(), "{name} was there before: {before:?}");
    }

    /// Notes that its deletion begins.
    pub(super) fn is_leaving(&self, name: &str) {
        self.set(name, true);
    }

    /// Notes that it was not deleted after all.
    pub(super) fn stays(&self, name: &str) {
        self.set(name, false);
    }

    fn set(&self, name: &str, is_leaving: bool) {
        let mut entries = self.0.lock().unwrap();
        let entry = entries.get_mut(name);
        let entry = entry.unwrap_or_else(|| panic!("{name} is not known"));
        entry.is_leaving = is_leaving;
    }

    /// Removes a deleted snapshot.
    pub(super) fn is_gone(&self, name: &str) {
        let entry = self.0.lock().unwrap().remove(name);
        assert!(entry.is_some_and(|it| it.is_leaving), "{name} was kept");
    }

    /// Returns true if the store must have it.
    pub(super) fn has(&self, name: &str) -> bool {
        let entries = self.0.lock().unwrap();
        entries.get(name).is_some_and(|it| !it.is_leaving)
    }

    /// All snapshots that the store must have.
    pub(super) fn all(&self) -> BTreeMap<String, Content> {
        let entries = self.0.lock().unwrap();
        let kept = entries.iter().filter(|(_, entry)| !entry.is_leaving);
        let kept = kept.map(|(name, entry)| (name.clone(), entry.content.clone()));
        kept.collect()
    }

    /// One of them.
    pub(super) fn any(&self, random: &mut Random) -> Option<(String, Content)> {
        let all = self.all();
        let index = (!all.is_empty()).then(|| random.index(all.len()))?;
        all.into_iter().nth(index)
    }
}
