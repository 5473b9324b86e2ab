//! The buffers that an upload reads into: a fixed number, used again and again.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::limits::JOB_BYTES;

/// Lends a fixed number of buffers. They are made when first needed and kept, because fresh memory
/// costs a page fault for every 4 KiB.
#[derive(Debug)]
pub(crate) struct Buffers {
    count: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Vec<u8>>,
    made: usize,
    closed: bool,
}

impl Buffers {
    /// Lends up to `count`.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            count,
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// A buffer of [`JOB_BYTES`]; its content is undefined. Waits while all are lent; `None` once
    /// closed.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Buffer> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            // The buffer returned last: its memory is most likely in the cache.
            if let Some(bytes) = state.free.pop() {
                return Some(Buffer {
                    bytes,
                    home: Arc::clone(self),
                });
            }
            if state.made < self.count {
                state.made += 1;
                return Some(Buffer {
                    bytes: vec![0; JOB_BYTES],
                    home: Arc::clone(self),
                });
            }
            state = self
                .returned
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all waiting, now and later.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.returned.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No holder of the lock can leave a change half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer on loan; dropping it, or the last [`bytes::Bytes`] made of it, gives it back.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.state().free.push(mem::take(&mut self.bytes));
        self.home.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use bytes::Bytes;

    use super::*;

    #[test]
    fn no_more_than_the_bound_is_lent_and_the_last_slice_gives_a_buffer_back() {
        let buffers = Arc::new(Buffers::new(3));
        let mut lent: Vec<_> = (0..3).map(|_| buffers.take().unwrap()).collect();
        let whole = Bytes::from_owner(lent.pop().unwrap());
        let slice = whole.slice(4096..8192);
        drop(whole);
        let waiter = std::thread::spawn({
            let buffers = Arc::clone(&buffers);
            move || buffers.take().is_some()
        });
        assert!(!waiter.is_finished());
        drop(slice);
        assert!(waiter.join().unwrap());
        assert_eq!(buffers.state().made, 3);
    }

    #[test]
    fn closing_ends_the_waiting() {
        let buffers = Arc::new(Buffers::new(3));
        let lent: Vec<_> = (0..3).map(|_| buffers.take().unwrap()).collect();
        let waiter = std::thread::spawn({
            let buffers = Arc::clone(&buffers);
            move || buffers.take().is_none()
        });
        buffers.close();
        assert!(waiter.join().unwrap());
        drop(lent);
    }
}
