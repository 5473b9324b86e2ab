//! The thread that owns the ring.

use std::{collections::VecDeque, io, os::fd::AsRawFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::PollFlags;

use super::slots::Slots;
use crate::io::{
    queue::{Found, Queue, Wake},
    request::{Progress, Request},
};

/// Marks the completion of the watch on the eventfd; slots have small numbers.
const WAKE: u64 = u64::MAX;

/// Executes requests until the queue is closed and all have completed.
///
/// A request that meets a shortage continues in `patient`, whose threads may sleep.
pub(super) fn run(ring: IoUring, queue: &Queue, patient: &Queue, depth: u32) {
    // No caller may wait for ever, however this ends.
    let _abandoned_after = AbandonAfter(queue);
    let mut driver = Driver {
        ring,
        slots: Slots::new(depth),
        wake_armed: false,
        completed: Vec::with_capacity(depth as usize + 1),
        delayed: Vec::new(),
    };
    if let Err(error) = driver.run(queue, patient) {
        tracing::error!(%error, "io_uring failed: all reads and writes of files fail from now on");
    }
}

struct AbandonAfter<'a>(&'a Queue);

impl Drop for AbandonAfter<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

struct Driver {
    ring: IoUring,
    slots: Slots,
    /// True if the ring watches the eventfd.
    wake_armed: bool,
    /// Completions just taken from the ring: the token, and the kernel's answer.
    completed: Vec<(u64, i32)>,
    /// Requests that met a shortage.
    delayed: Vec<Request>,
}

impl Driver {
    fn run(&mut self, queue: &Queue, patient: &Queue) -> io::Result<()> {
        let mut arrived = VecDeque::new();
        loop {
            if !self.wake_armed {
                // Before the queue is looked at: a wake that comes after that is for the next
                // sleep.
                queue.woken()?;
            }
            let found = loop {
                let found = queue.take_or_sleep(&mut arrived);
                while let Some(request) = arrived.pop_front() {
                    self.begin(request)?;
                }
                if found != Found::Requests {
                    break found;
                }
            };
            if found == Found::Closed && self.slots.is_empty() {
                return Ok(());
            }
            if !self.wake_armed {
                self.watch(queue)?;
            }
            self.wait()?;
            self.reap()?;
            for request in self.delayed.drain(..) {
                patient.hand_over(request);
            }
        }
    }

    fn begin(&mut self, request: Request) -> io::Result<()> {
        match self.slots.insert(request) {
            Ok(number) => self.call(number),
            Err(request) => {
                // The queue's bound is the number of slots, and a request counts until it is
                // finished.
                request.finish(Err(io::Error::other("more requests than slots")));
                Ok(())
            }
        }
    }

    /// Puts the next system call of a request into the ring.
    fn call(&mut self, number: usize) -> io::Result<()> {
        let Some(request) = self.slots.get_mut(number) else {
            return Ok(());
        };
        match request.entry() {
            Ok(entry) => {
                // SAFETY: buffer and file are owned by the request, which stays in its slot,
                // untouched, until the completion of this entry; `Slots` forgets it rather than
                // free it before that.
                unsafe { self.push(&entry.user_data(number as u64)) }
            }
            Err(error) => {
                self.finish(number, Err(error));
                Ok(())
            }
        }
    }

    /// Lets the ring watch the eventfd, for one completion.
    fn watch(&mut self, queue: &Queue) -> io::Result<()> {
        let Wake::Event(event) = queue.wake() else {
            return Err(io::Error::other("the queue of a ring wakes it by an event"));
        };
        let readable = u32::from(PollFlags::IN.bits());
        let entry = opcode::PollAdd::new(types::Fd(event.as_raw_fd()), readable)
            .build()
            .user_data(WAKE);
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&entry)? };
        self.wake_armed = true;
        Ok(())
    }

    /// Puts an entry into the submission queue, which the kernel empties whenever it is entered.
    ///
    /// # Safety
    ///
    /// The memory that the entry points to stays valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: by this function's contract.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(0)?;
        }
        Ok(())
    }

    /// Submits, and sleeps until there is a completion.
    fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                // A signal; or completions have to be taken first.
                io::ErrorKind::Interrupted
                | io::ErrorKind::WouldBlock
                | io::ErrorKind::ResourceBusy => self.reap(),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
        let result = completed
            .drain(..)
            .try_for_each(|(what, answer)| self.completed(what, answer));
        self.completed = completed;
        result
    }

    fn completed(&mut self, what: u64, answer: i32) -> io::Result<()> {
        if what == WAKE {
            self.wake_armed = false;
            return Ok(());
        }
        let number = usize::try_from(what).map_err(io::Error::other)?;
        let returned = match usize::try_from(answer) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(answer.wrapping_neg())),
        };
        let Some(request) = self.slots.get_mut(number) else {
            return Ok(());
        };
        match request.advance(returned) {
            Progress::Continue => self.call(number),
            Progress::Later(_) => {
                self.delayed.extend(self.slots.remove(number));
                Ok(())
            }
            Progress::Done(result) => {
                self.finish(number, result);
                Ok(())
            }
        }
    }

    fn finish(&mut self, number: usize, result: io::Result<()>) {
        if let Some(request) = self.slots.remove(number) {
            request.finish(result);
        }
    }
}
