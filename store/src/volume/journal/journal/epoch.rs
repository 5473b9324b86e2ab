//! Where an epoch of a journal ends.

use super::Journal;

impl Journal {
    /// Number of the last batch. Nothing may be on its way.
    pub(crate) fn last_sequence(&self) -> u64 {
        let state = self.state.lock();
        debug_assert_eq!(state.written_sequence, state.last_sequence);
        state.written_sequence
    }

    /// Lets what is written from now on begin in a file of its own, and returns its number. Nothing may be on its way.
    pub(crate) fn end_epoch(&self) -> u64 {
        let mut state = self.state.lock();
        debug_assert_eq!(state.written_sequence, state.last_sequence);
        // A file that was made and nothing was begun in: it has no header yet, so no other must follow it. What was to be its first batch
        // could not be begun, and comes next.
        let unbegun = state.tail.as_ref().filter(|tail| tail.position_bytes == 0);
        state.epoch_first = match unbegun {
            Some(tail) => tail.number,
            None => {
                self.end_tail(&mut state);
                state.next_number
            }
        };
        state.epoch_first
    }
}
