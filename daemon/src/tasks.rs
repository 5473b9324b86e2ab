//! The only place that starts tasks.
//!
//! Invariants: every task has a name, a panic is logged under that name and returned to the waiter
//! for the result, and no task outlives [`Tasks::stop`].

use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

/// The tasks of a daemon. Clones are handles to the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cut: CancellationToken,
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. It continues when the handle is dropped.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let cut = self.cut.clone();
        let handle = self.tracker.spawn(async move {
            let work = AssertUnwindSafe(work).catch_unwind();
            let Some(outcome) = cut.run_until_cancelled_owned(work).await else {
                return Err(TaskEnded::Stopped { name });
            };
            outcome.map_err(|panic| {
                let message = panic_message(&*panic);
                error!(task = name, panic = message, "task panicked");
                TaskEnded::Panicked { name }
            })
        });
        Task { name, handle }
    }

    /// Waits until all tasks have ended, and after `grace` ends those that have not.
    pub async fn stop(&self, grace: Duration) {
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_err()
        {
            warn!(
                tasks = self.tracker.len(),
                "ending tasks that did not end by themselves"
            );
            self.cut.cancel();
            self.tracker.wait().await;
        }
    }
}

/// A running task, and the way to its result.
#[derive(Debug)]
pub struct Task<T> {
    name: &'static str,
    handle: JoinHandle<Result<T, TaskEnded>>,
}

impl<T> Task<T> {
    /// Ties the task to the handle: dropping it ends the task.
    #[must_use]
    pub fn tied(self) -> TiedTask<T> {
        TiedTask(self)
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskEnded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        Pin::new(&mut self.handle)
            .poll(context)
            // Panics were caught inside the task, so this is an abort.
            .map(|joined| joined.unwrap_or(Err(TaskEnded::Stopped { name })))
    }
}

/// A running task that ends when this is dropped.
#[derive(Debug)]
pub struct TiedTask<T>(Task<T>);

impl<T> Future for TiedTask<T> {
    type Output = Result<T, TaskEnded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for TiedTask<T> {
    fn drop(&mut self) {
        self.0.handle.abort();
    }
}

/// The reason why a task has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEnded {
    /// A defect; the log has the details.
    Panicked {
        /// The task.
        name: &'static str,
    },
    /// The daemon stopped first.
    Stopped {
        /// The task.
        name: &'static str,
    },
}

impl std::error::Error for TaskEnded {}

impl fmt::Display for TaskEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { name } => {
                write!(f, "task {name:?} failed by a bug, see the daemon's log")
            }
            Self::Stopped { name } => write!(f, "the daemon stopped before task {name:?} was done"),
        }
    }
}

/// The message of a panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(no text)"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_result_comes_back_and_a_panic_is_told() {
        let tasks = Tasks::new();
        assert_eq!(tasks.spawn("seven", async { 7 }).await, Ok(7));
        let broken = tasks.spawn("broken", async { panic!("on purpose") });
        assert_eq!(
            broken.await,
            Err::<(), _>(TaskEnded::Panicked { name: "broken" })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn stop_waits_then_ends_what_is_left() {
        let tasks = Tasks::new();
        let finished = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&finished);
        let quick = tasks.spawn("quick", async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            flag.store(true, Ordering::Relaxed);
        });
        let endless = tasks.spawn("endless", std::future::pending::<()>());
        tasks.stop(Duration::from_secs(5)).await;
        assert!(finished.load(Ordering::Relaxed));
        assert_eq!(quick.await, Ok(()));
        assert_eq!(endless.await, Err(TaskEnded::Stopped { name: "endless" }));
    }

    #[tokio::test]
    async fn a_tied_task_ends_with_its_handle_and_a_free_one_goes_on() {
        let tasks = Tasks::new();
        let (keep, dropped) = oneshot::channel::<()>();
        let tied = tasks
            .spawn("tied", async move {
                let _keep = keep;
                std::future::pending::<()>().await;
            })
            .tied();
        drop(tied);
        assert!(dropped.await.is_err(), "the task was ended");

        let (done, seen) = oneshot::channel();
        drop(tasks.spawn("free", async move { done.send(()) }));
        assert!(seen.await.is_ok());
    }
}
