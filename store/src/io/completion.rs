//! The outcome of a request to a disk.

use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use tokio::sync::oneshot;

/// A future of the result of a request to a [`Disk`](super::Disk). It needs no runtime.
#[must_use = "an error would go unseen"]
pub struct Completion<T>(State<T>);

enum State<T> {
    /// The request is on its way; its executor replies.
    Begun(oneshot::Receiver<io::Result<T>>),
    /// It must wait, or do some work, before it begins.
    Deferred(Pin<Box<dyn Future<Output = io::Result<T>> + Send>>),
    /// Known already; empty once it was given out.
    Known(Option<io::Result<T>>),
}

impl<T> Completion<T> {
    pub(super) const fn begun(reply: oneshot::Receiver<io::Result<T>>) -> Self {
        Self(State::Begun(reply))
    }

    pub(crate) fn deferred(future: impl Future<Output = io::Result<T>> + Send + 'static) -> Self {
        Self(State::Deferred(Box::pin(future)))
    }

    /// A request that failed before it was begun.
    pub const fn failed(error: io::Error) -> Self {
        Self::known(Err(error))
    }

    /// A request that is over already.
    pub const fn known(result: io::Result<T>) -> Self {
        Self(State::Known(Some(result)))
    }

    /// Waits for it, and holds up this thread: for programs and tests that are not asynchronous.
    pub fn blocking_wait(self) -> io::Result<T>
    where
        T: Unpin,
    {
        block_on(self)
    }
}

impl<T: Unpin> Future for Completion<T> {
    type Output = io::Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match &mut self.get_mut().0 {
            State::Begun(reply) => Pin::new(reply)
                .poll(context)
                .map(|reply| reply.unwrap_or_else(|_| Err(ended()))),
            State::Deferred(future) => future.as_mut().poll(context),
            State::Known(result) => match result.take() {
                Some(result) => Poll::Ready(result),
                None => Poll::Ready(Err(io::Error::other("the outcome was taken before"))),
            },
        }
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Begun(_) => "Completion::Begun",
            State::Deferred(_) => "Completion::Deferred",
            State::Known(_) => "Completion::Known",
        })
    }
}

/// The error of a request whose disk is closed.
pub(super) fn ended() -> io::Error {
    io::Error::other("the disk was closed")
}

/// Runs a future on this thread, which sleeps while there is nothing to do.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
