//! The store's own threads: hashing, compression, and calls that may block (RocksDB).
//!
//! Async callers hand a job over and await its result, so that no executor thread is held up.
//! Callers that wait together [share](shares) the threads: guests have the most, and nobody has
//! nothing. Holders of the commit path's locks have threads of their own, because everybody may
//! have to wait for these locks. A semaphore bounds the waiting jobs, also when callers go away; a
//! caller that cannot queue awaits.

mod shares;

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};
use varve_content::codec::{Compression, Decoder, Encoder};

pub(crate) use self::shares::Priority;
use self::shares::{CLASSES, Shares};
use crate::{Error, Result, limits};

/// Buffers that each thread keeps between jobs: allocating new ones costs more than a job.
pub(crate) struct Scratch {
    pub(crate) encoder: Encoder,
    pub(crate) decoder: Decoder,
}

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;
type CommitJob = Box<dyn FnOnce() + Send>;

struct Queues {
    waiting: [VecDeque<Job>; CLASSES],
    shares: Shares,
    commits: VecDeque<CommitJob>,
    stopping: bool,
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// The next job, if a thread may begin one.
    fn next(&mut self) -> Option<(Priority, Job)> {
        let stopping = self.stopping;
        let waits = self.waiting.each_ref().map(|queue| !queue.is_empty());
        let class = self.shares.next(waits, stopping)?;
        let job = self.waiting.get_mut(class as usize)?.pop_front()?;
        Some((class, job))
    }
}

/// The state that the threads share.
struct Pool {
    queues: Mutex<Queues>,
    wake: Condvar,
    wake_commits: Condvar,
}

pub(crate) struct Workers {
    pool: Arc<Pool>,
    slots: [Arc<Semaphore>; CLASSES],
    commit_slots: Arc<Semaphore>,
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
    /// Starts `threads` threads, and [`limits::COMMIT_THREADS`] others.
    pub(crate) fn start(threads: usize, compression: Compression) -> Result<Self> {
        let queue = || VecDeque::with_capacity(limits::WORKER_QUEUE);
        let pool = Arc::new(Pool {
            queues: Mutex::new(Queues {
                waiting: [queue(), queue(), queue()],
                shares: Shares::new(threads),
                commits: VecDeque::with_capacity(limits::COMMIT_THREADS),
                stopping: false,
            }),
            wake: Condvar::new(),
            wake_commits: Condvar::new(),
        });
        let mut handles = Vec::with_capacity(threads + limits::COMMIT_THREADS);
        let mut start = |name: String, run: Box<dyn FnOnce(&Pool) + Send>| {
            let pool = Arc::clone(&pool);
            let handle = thread::Builder::new()
                .name(name)
                .spawn(move || run(&pool))
                .map_err(|source| Error::System {
                    verb: "start a thread",
                    source,
                })?;
            handles.push(handle);
            Ok::<_, Error>(())
        };
        for number in 0..threads {
            let run = move |pool: &Pool| work(pool, compression);
            start(format!("store-{number}"), Box::new(run))?;
        }
        for number in 0..limits::COMMIT_THREADS {
            start(format!("commit-{number}"), Box::new(work_on_commits))?;
        }
        let slots = || Arc::new(Semaphore::new(limits::WORKER_QUEUE));
        Ok(Self {
            pool,
            slots: [slots(), slots(), slots()],
            commit_slots: Arc::new(Semaphore::new(limits::COMMIT_THREADS)),
            threads: Mutex::new(handles),
        })
    }

    /// Runs a job on one of the threads. A panic of the job continues in the caller.
    ///
    /// Dropping the future does not stop a job that was queued.
    pub(crate) async fn run<T, F>(&self, priority: Priority, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Scratch) -> T + Send + 'static,
    {
        let [reads, writes, management] = &self.slots;
        let slots = match priority {
            Priority::Read => reads,
            Priority::Write => writes,
            Priority::Manage => management,
        };
        let slot = Arc::clone(slots).acquire_owned().await;
        let slot = slot.map_err(|_| Error::Closing)?;
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |scratch| {
            drop(slot);
            // A caller that went away needs no answer.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(scratch))));
        });
        {
            let mut queues = self.pool.queues.lock();
            if queues.stopping {
                return Err(Error::Closing);
            }
            if let Some(queue) = queues.waiting.get_mut(priority as usize) {
                queue.push_back(job);
            }
        }
        self.pool.wake.notify_one();
        answer(result).await
    }

    /// Runs a job for a holder of a commit path lock, on a thread reserved for this. Those who wait
    /// for the lock then do not wait for the store's other work.
    pub(crate) async fn commit<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let slot = Arc::clone(&self.commit_slots).acquire_owned().await;
        let slot = slot.map_err(|_| Error::Closing)?;
        let (reply, result) = oneshot::channel();
        let job: CommitJob = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(job));
            // Before the answer: its receiver may ask again at once.
            drop(slot);
            // A caller that went away needs no answer.
            let _ = reply.send(outcome);
        });
        {
            let mut queues = self.pool.queues.lock();
            if queues.stopping {
                return Err(Error::Closing);
            }
            queues.commits.push_back(job);
        }
        self.pool.wake_commits.notify_one();
        answer(result).await
    }

    /// Lets the threads finish what is queued, and ends them.
    pub(crate) fn stop(&self) {
        self.pool.queues.lock().stopping = true;
        self.pool.wake.notify_all();
        self.pool.wake_commits.notify_all();
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

/// Waits for the outcome of a job.
async fn answer<T>(result: oneshot::Receiver<thread::Result<T>>) -> Result<T> {
    match result.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(Error::Closing),
    }
}

fn work(pool: &Pool, compression: Compression) {
    let mut scratch = Scratch {
        encoder: Encoder::new(compression),
        decoder: Decoder::new(),
    };
    let mut queues = pool.queues.lock();
    loop {
        let Some((class, job)) = queues.next() else {
            if queues.stopping && queues.is_empty() {
                return;
            }
            pool.wake.wait(&mut queues);
            continue;
        };
        drop(queues);
        let begun_at = Instant::now();
        job(&mut scratch);
        let took = begun_at.elapsed();
        queues = pool.queues.lock();
        queues.shares.ended(class, took);
    }
}

fn work_on_commits(pool: &Pool) {
    let mut queues = pool.queues.lock();
    loop {
        let Some(job) = queues.commits.pop_front() else {
            if queues.stopping {
                return;
            }
            pool.wake_commits.wait(&mut queues);
            continue;
        };
        drop(queues);
        job();
        queues = pool.queues.lock();
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
    fn reads_go_before_who_has_had_more_and_what_is_queued_at_the_stop_is_done() {
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

    #[test]
    fn reads_without_end_do_not_keep_others_waiting() {
        let workers = Arc::new(Workers::start(1, Compression::None).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let reads_done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let order = std::sync::atomic::Ordering::SeqCst;
        runtime.block_on(async {
            // One job always waits, however many have run.
            let flood = async {
                let reader = async || {
                    while !over.load(order) {
                        let done = Arc::clone(&reads_done);
                        let read = workers.run(Priority::Read, move |_| done.fetch_add(1, order));
                        read.await.unwrap();
                    }
                };
                futures::future::join_all((0..64).map(|_| reader())).await;
            };
            let others = async {
                for class in [Priority::Write, Priority::Manage] {
                    let done = Arc::clone(&reads_done);
                    let before = done.load(order);
                    let ran_at = workers.run(class, move |_| done.load(order)).await.unwrap();
                    // The jobs queued before may all have their turn first, but later ones not
                    // without end.
                    assert!(
                        ran_at - before < 1000,
                        "{class:?} waited for {}",
                        ran_at - before
                    );
                }
                over.store(true, order);
            };
            tokio::join!(flood, others);
        });
    }

    #[test]
    fn a_read_does_not_wait_for_all_that_management_asked_before() {
        let workers = Arc::new(Workers::start(1, Compression::None).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let lists_done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let order = std::sync::atomic::Ordering::SeqCst;
        let (open, gate) = std::sync::mpsc::sync_channel::<()>(1);
        let (begin, begun) = std::sync::mpsc::sync_channel::<()>(1);
        let ran_at = runtime.block_on(async {
            let gated = workers.run(Priority::Manage, move |_| {
                begin.send(()).unwrap();
                gate.recv().unwrap();
                // Management has had more than its share.
                std::thread::sleep(std::time::Duration::from_millis(20));
            });
            let lists = (0..960).map(|_| {
                let done = Arc::clone(&lists_done);
                workers.run(Priority::Manage, move |_| done.fetch_add(1, order))
            });
            let read = async {
                tokio::task::yield_now().await;
                let done = Arc::clone(&lists_done);
                let read = workers.run(Priority::Read, move |_| done.load(order));
                tokio::pin!(read);
                // Queued, with hundreds of lists before it.
                assert!(futures::poll!(&mut read).is_pending());
                begun.recv().unwrap();
                open.send(()).unwrap();
                read.await.unwrap()
            };
            let (_, _, ran_at) = tokio::join!(gated, futures::future::join_all(lists), read);
            ran_at
        });
        assert!(ran_at <= 1, "{ran_at} lists ran before the read");
    }

    #[test]
    fn the_commit_path_does_not_wait_for_the_workers() {
        let workers = Arc::new(Workers::start(1, Compression::None).unwrap());
        let (open, gate) = std::sync::mpsc::sync_channel::<()>(1);
        block_on(async {
            let busy = workers.run(Priority::Read, move |_| gate.recv().unwrap());
            let commits = async {
                tokio::task::yield_now().await;
                for n in 0..10 {
                    assert_eq!(workers.commit(move || n).await.unwrap(), n);
                }
                open.send(()).unwrap();
            };
            let (busy, ()) = tokio::join!(busy, commits);
            busy.unwrap();
        });
        workers.stop();
        assert!(matches!(
            block_on(workers.commit(|| ())),
            Err(Error::Closing)
        ));
    }
}
