//! How full a journal is, whose it is, and since when it is as it is.

use std::{path::PathBuf, time::Instant};

use super::{Journal, room_for};
use crate::volume::journal::dir::Owner;

impl Journal {
    /// Whether there is something in it, and room in the store for all of that, whatever it is.
    pub(crate) fn can_be_emptied(&self) -> bool {
        let len_bytes = self.len_bytes();
        let has_room = || {
            let free_bytes = self.owner.free_bytes().unwrap_or(0);
            free_bytes >= room_for(len_bytes)
        };
        if len_bytes == 0 || has_room() {
            return len_bytes > 0;
        }
        self.owner.space.give_up();
        has_room()
    }

    /// When the last batch was begun, or when it was opened.
    pub(crate) fn begun_at(&self) -> Instant {
        self.state.lock().begun_at
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> PathBuf {
        self.owner.dir()
    }

    /// Whether it has grown to half of its limit, and had better be emptied.
    pub(crate) fn is_large(&self) -> bool {
        self.state.lock().len_bytes() >= self.owner.bytes_max / 2
    }

    /// How full it is, in parts of a thousand of its limit.
    pub(crate) fn fill_permille(&self) -> u64 {
        let len_bytes = self.state.lock().len_bytes();
        len_bytes.saturating_mul(1000) / self.owner.bytes_max.max(1)
    }

    /// How many bytes its files take.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.state.lock().len_bytes()
    }
}
