//! The queue of requests, and the threads that execute them.

use std::{collections::VecDeque, io, os::fd::OwnedFd, sync::Arc};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Completion, File,
    completion::ended,
    request::{Request, Task},
};

/// A bounded queue: its bound counts requests until they have completed.
#[derive(Debug)]
pub(super) struct Queue {
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    wake: Wake,
}

#[derive(Debug)]
struct Waiting {
    requests: VecDeque<Request>,
    /// Sleeping threads that nobody has woken since.
    sleeping: usize,
    closed: bool,
}

/// The way in which a sleeping thread is woken.
#[derive(Debug)]
pub(super) enum Wake {
    /// It waits in [`Queue::next`].
    Condvar(Condvar),
    /// It waits in the kernel for several things, this among them.
    Event(OwnedFd),
}

impl Wake {
    pub(super) fn by_event() -> io::Result<Self> {
        Ok(Self::Event(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }
}

/// The result for a thread that may not wait here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Requests were handed over.
    Requests,
    /// Nothing: the next push wakes this thread.
    Nothing,
    /// Nothing, and nothing will come.
    Closed,
}

impl Queue {
    pub(super) fn new(depth: u32, wake: Wake) -> Self {
        Self {
            places: Arc::new(Semaphore::new(depth as usize)),
            waiting: Mutex::new(Waiting {
                requests: VecDeque::with_capacity(depth as usize),
                sleeping: 0,
                closed: false,
            }),
            wake,
        }
    }

    pub(super) const fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Hands a request over, at once if there is a place for it.
    pub(super) fn submit<T: Send + Unpin + 'static>(
        self: &Arc<Self>,
        file: File,
        task: Task,
        reply: oneshot::Receiver<io::Result<T>>,
    ) -> Completion<T> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => {
                self.push(file, task, place);
                Completion::begun(reply)
            }
            Err(_) => {
                let queue = Arc::clone(self);
                Completion::deferred(async move {
                    let place = Arc::clone(&queue.places)
                        .acquire_owned()
                        .await
                        .map_err(|_| ended())?;
                    queue.push(file, task, place);
                    // The queue must not be kept by callers that only wait for their reply.
                    drop(queue);
                    reply.await.unwrap_or_else(|_| Err(ended()))
                })
            }
        }
    }

    fn push(&self, file: File, task: Task, place: OwnedSemaphorePermit) {
        self.hand_over(Request::new(file, task, place));
    }

    /// Takes a request that has a place already, here or in another queue.
    pub(super) fn hand_over(&self, request: Request) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            request.finish(Err(ended()));
            return;
        }
        waiting.requests.push_back(request);
        if waiting.sleeping == 0 {
            return;
        }
        waiting.sleeping -= 1;
        drop(waiting);
        self.wake_one();
    }

    fn wake_one(&self) {
        match &self.wake {
            Wake::Condvar(condvar) => {
                condvar.notify_one();
            }
            Wake::Event(event) => {
                // It fails only when 2^64 - 2 wakes are pending already, and then there are enough.
                let _ = rustix::io::write(event, &1u64.to_ne_bytes());
            }
        }
    }

    /// The next request, waited for; none when the queue is closed and empty. For
    /// [`Wake::Condvar`].
    pub(super) fn next(&self) -> Option<Request> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            if waiting.closed {
                return None;
            }
            let Wake::Condvar(condvar) = &self.wake else {
                return None;
            };
            waiting.sleeping += 1;
            condvar.wait(&mut waiting);
        }
    }

    /// Resets the event: it is quiet until the next wake. For [`Wake::Event`].
    pub(super) fn woken(&self) -> io::Result<()> {
        if let Wake::Event(event) = &self.wake {
            match rustix::io::read(event, &mut [0; 8]) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// All requests, moved to the end of `into`. If there are none, the caller counts as asleep
    /// from now on. For [`Wake::Event`].
    pub(super) fn take_or_sleep(&self, into: &mut VecDeque<Request>) -> Found {
        let mut waiting = self.waiting.lock();
        if waiting.requests.is_empty() {
            waiting.sleeping = 1;
            return if waiting.closed {
                Found::Closed
            } else {
                Found::Nothing
            };
        }
        waiting.sleeping = 0;
        into.append(&mut waiting.requests);
        Found::Requests
    }

    /// Returns true if no more requests are taken.
    pub(super) fn is_closed(&self) -> bool {
        self.waiting.lock().closed
    }

    /// Takes no more requests. Waiting requests are still executed.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.places.close();
        match &self.wake {
            Wake::Condvar(condvar) => {
                condvar.notify_all();
            }
            Wake::Event(_) => self.wake_one(),
        }
    }

    /// Takes no more requests, and fails those that wait.
    pub(super) fn abandon(&self) {
        self.close();
        let requests = std::mem::take(&mut self.waiting.lock().requests);
        for request in requests {
            request.finish(Err(ended()));
        }
    }
}
