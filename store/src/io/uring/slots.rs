//! Requests that the kernel works on.

use crate::io::request::Request;

/// One place for each request that may be in the ring. A request stays in its slot, with buffer and
/// file, until the kernel has said that it is done with it.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Option<Request>>,
    free: Vec<usize>,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
            free: (0..count as usize).rev().collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Puts a request in a free slot, or gives it back if there is none.
    pub(super) fn insert(&mut self, request: Request) -> Result<usize, Request> {
        let Some(number) = self.free.pop() else {
            return Err(request);
        };
        match self.slots.get_mut(number) {
            Some(slot) => *slot = Some(request),
            None => unreachable!("free slots are slots"),
        }
        Ok(number)
    }

    /// The request in a slot. The kernel must have completed the call that was made for it.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Request> {
        self.slots.get_mut(number)?.as_mut()
    }

    /// Frees a slot. The kernel must have completed the call that was made for its request.
    pub(super) fn remove(&mut self, number: usize) -> Option<Request> {
        let request = self.slots.get_mut(number)?.take()?;
        self.free.push(number);
        Some(request)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // The thread normally ends when all are empty. If it could not go on, the kernel may still
        // write to these buffers at any time: they are never freed.
        for request in self.slots.iter_mut().filter_map(Option::take) {
            request.leak();
        }
    }
}
