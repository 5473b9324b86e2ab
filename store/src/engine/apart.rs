//! Work in a task of its own, which goes on whatever becomes of whoever waits for it, and ends with him.
//!
//! A future that nobody polls stands still with all that it holds: a place among those who read, a turn to write, the right to
//! bring a node that others wait for. Whoever has several of them, and waits for one, or for something else beside them, does
//! not poll the others. Then they hold up all who need what they hold; for ever, if he himself is one of these.

use std::task::Poll;

use tokio::task::JoinHandle;

use crate::{Result, engine::joined};

/// Does some work in a task of its own.
pub(crate) async fn apart<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "it is waited for here, and ends with whoever waits"
    )]
    let mut task = EndsWithIt(tokio::spawn(work));
    joined(&mut task.0).await
}

/// The same, unless there is nothing to wait for.
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

/// A task that nobody needs once this is gone.
struct EndsWithIt<T>(JoinHandle<T>);

impl<T> Drop for EndsWithIt<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
