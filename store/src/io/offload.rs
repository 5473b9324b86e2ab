//! File work that may take long, on a thread that may wait.
//!
//! Most calls of a [`Disk`](super::Disk) are answered from the kernel's memory. Allocating a file,
//! freeing its space, and listing a directory may take as long as the file system's own journal
//! does. A task that made such a call itself would block every other task of its executor's thread.

use std::panic::resume_unwind;

use tokio::task::spawn_blocking;

/// The runtime was shut down before the work began.
#[derive(Debug)]
pub(crate) struct RuntimeEnded;

/// Runs work on a thread that may wait. A panic of the work continues in the caller.
///
/// Work that has begun runs to its end, even if the caller goes away: it has to leave a consistent
/// state behind by itself.
///
/// # Errors
///
/// [`RuntimeEnded`] if the runtime is being shut down. The work was not begun.
pub(crate) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RuntimeEnded> {
    match spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(RuntimeEnded),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn work_runs_to_its_end_without_its_caller() {
        let done = Arc::new(Mutex::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (begin, may_begin) = std::sync::mpsc::sync_channel::<()>(1);
        runtime.block_on(async {
            let done = Arc::clone(&done);
            let mut work = Box::pin(offload(move || {
                may_begin.recv().unwrap();
                *done.lock().unwrap() = true;
            }));
            assert!(futures::poll!(&mut work).is_pending());
            drop(work);
            begin.send(()).unwrap();
        });
        // Waits for the threads of the runtime.
        drop(runtime);
        assert!(*done.lock().unwrap());
    }
}
