//! The store's own threads: hashing, compression, and calls that may block (RocksDB).
//!
//! Async callers hand a job over and await its result, so that no executor thread is held up. Reads
//! go before writes: a guest waits for them. What waits is bounded by a semaphore, also when callers go away; a caller that
//! cannot queue awaits.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};
use varve_content::codec::{Compression, Decoder, Encoder};

use crate::{Error, Result, limits};

/// What each thread keeps between jobs, because making it anew costs more than the job.
pub(crate) struct Scratch {
    pub(crate) encoder: Encoder,
    pub(crate) decoder: Decoder,
}

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Priority {
    /// Somebody waits for these bytes.
    Read,
    /// Throughput matters, not when.
    Write,
}

struct Queues {
    reads: VecDeque<Job>,
    writes: VecDeque<Job>,
    stopping: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    wake: Condvar,
}

pub(crate) struct Workers {
    shared: Arc<Shared>,
    read_slots: Arc<Semaphore>,
    write_slots: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &self.threads.lock().len())
            .finish()
    }
}

impl Workers {
    /// Starts `threads` threads.
    pub(crate) fn start(threads: usize, compression: Compression) -> Result<Self> {
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues {
                reads: VecDeque::with_capacity(limits::WORKER_QUEUE),
                writes: VecDeque::with_capacity(limits::WORKER_QUEUE),
                stopping: false,
            }),
            wake: Condvar::new(),
        });
        let mut handles = Vec::with_capacity(threads);
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            let handle = thread::Builder::new()
                .name(format!("store-{number}"))
                .spawn(move || work(&shared, compression))
                .map_err(|source| Error::Io {
                    verb: "start a thread for",
                    path: "the store".into(),
                    source,
                })?;
            handles.push(handle);
        }
        Ok(Self {
            shared,
            read_slots: Arc::new(Semaphore::new(limits::WORKER_QUEUE)),
            write_slots: Arc::new(Semaphore::new(limits::WORKER_QUEUE)),
            threads: Mutex::new(handles),
        })
    }

    /// Runs a job on one of the threads. A panic in the job goes on in the caller.
    ///
    /// Dropping the future does not stop a job that was queued.
    pub(crate) async fn run<T, F>(&self, priority: Priority, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Scratch) -> T + Send + 'static,
    {
        let slots = match priority {
            Priority::Read => &self.read_slots,
            Priority::Write => &self.write_slots,
        };
        let slots = Arc::clone(slots);
        let slot = slots.acquire_owned().await.map_err(|_| Error::Closing)?;
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |scratch| {
            drop(slot);
            // A caller that went away needs no answer.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(scratch))));
        });
        {
            let mut queues = self.shared.queues.lock();
            if queues.stopping {
                return Err(Error::Closing);
            }
            match priority {
                Priority::Read => queues.reads.push_back(job),
                Priority::Write => queues.writes.push_back(job),
            }
        }
        self.shared.wake.notify_one();
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(Error::Closing),
        }
    }

    /// Lets the threads finish what is queued, and ends them.
    pub(crate) fn stop(&self) {
        self.shared.queues.lock().stopping = true;
        self.shared.wake.notify_all();
        for thread in self.threads.lock().drain(..) {
            // The last handle of a store may be dropped by one of its own threads.
            if thread.thread().id() != thread::current().id() {
                // Jobs catch their panics, so there is no result to look at.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

fn work(shared: &Shared, compression: Compression) {
    let mut scratch = Scratch {
        encoder: Encoder::new(compression),
        decoder: Decoder::new(),
    };
    loop {
        let job = {
            let mut queues = shared.queues.lock();
            loop {
                if let Some(job) = queues.reads.pop_front() {
                    break job;
                }
                if let Some(job) = queues.writes.pop_front() {
                    break job;
                }
                if queues.stopping {
                    return;
                }
                shared.wake.wait(&mut queues);
            }
        };
        job(&mut scratch);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn jobs_run_and_answer() {
        let workers = Workers::start(2, Compression::None).unwrap();
        let sum = block_on(async {
            let mut sum = 0;
            for n in 0..100 {
                sum += workers.run(Priority::Write, move |_| n).await.unwrap();
            }
            sum
        });
        assert_eq!(sum, 4950);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_thread_goes_on() {
        let workers = Workers::start(1, Compression::None).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            block_on(workers.run(Priority::Read, |_| panic!("broken job")))
        }));
        assert!(caught.is_err());
        assert_eq!(block_on(workers.run(Priority::Read, |_| 7)).unwrap(), 7);
    }

    #[test]
    fn reads_go_first_and_what_is_queued_at_the_stop_is_done() {
        let workers = Arc::new(Workers::start(1, Compression::None).unwrap());
        let order = Arc::new(Mutex::new(Vec::new()));
        let (open, gate) = std::sync::mpsc::sync_channel::<()>(1);
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(async {
                let first = workers.run(Priority::Write, move |_| gate.recv().unwrap());
                let second = workers.run(Priority::Write, {
                    let order = Arc::clone(&order);
                    move |_| order.lock().push("write")
                });
                let third = workers.run(Priority::Read, {
                    let order = Arc::clone(&order);
                    move |_| order.lock().push("read")
                });
                let stop = async {
                    tokio::task::yield_now().await;
                    open.send(()).unwrap();
                };
                let (a, b, c, ()) = tokio::join!(first, second, third, stop);
                a.and(b).and(c).unwrap();
            });
        assert_eq!(*order.lock(), ["read", "write"]);
        workers.stop();
        assert!(matches!(
            block_on(workers.run(Priority::Read, |_| ())),
            Err(Error::Closing)
        ));
    }
}
