//! Work in a task of its own, which is polled even if its caller is not, and ends with the caller.
//!
//! A future that nobody polls stands still with all that it holds: a place among the reads under
//! way, a turn to write, the right to load a node that others wait for. A caller that has several
//! futures, and waits for one of them or for something else, does not poll the others. These then
//! hold up everybody who needs what they hold; for ever, if the caller itself is one of those.

use std::task::Poll;

use tokio::task::JoinHandle;

use crate::{Result, engine::joined};

/// Runs work in a task of its own, and waits for it. Dropping the future ends the task.
pub(crate) async fn apart<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "it is waited for here, and ends with its caller"
    )]
    let mut task = EndsWithIt(tokio::spawn(work));
    joined(&mut task.0).await
}

/// Runs work on the spot until it has to wait, and the rest in a task of its own.
pub(crate) async fn apart_if_it_waits<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut work = Box::pin(work);
    match futures::poll!(&mut work) {
        Poll::Ready(done) => done,
        Poll::Pending => apart(work).await,
    }
}

/// A task that ends when this handle is dropped.
struct EndsWithIt<T>(JoinHandle<T>);

impl<T> Drop for EndsWithIt<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
