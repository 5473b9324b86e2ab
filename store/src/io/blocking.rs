//! A disk on plain system calls of a few threads, for kernels that refuse io_uring.

use std::{io, sync::Arc, thread};

use parking_lot::Condvar;

use super::{
    os_disk::OsDisk,
    queue::{Queue, Wake},
    request::Progress,
};
use crate::limits::SHORTAGE_PAUSES;

/// A disk with `threads` threads, and as many requests under way; others wait, up to `depth` in
/// all.
pub(super) fn start(threads: usize, depth: u32) -> io::Result<OsDisk> {
    let queue = Arc::new(Queue::new(depth, Wake::Condvar(Condvar::new())));
    let mut disk = OsDisk::new("blocking", Arc::clone(&queue), Arc::clone(&queue));
    add_threads(&mut disk, "io", threads, &queue)?;
    Ok(disk)
}

/// Adds threads that execute the requests of a queue. If one cannot be started, dropping the disk
/// ends the others.
pub(super) fn add_threads(
    disk: &mut OsDisk,
    name: &str,
    threads: usize,
    queue: &Arc<Queue>,
) -> io::Result<()> {
    for number in 0..threads {
        let queue = Arc::clone(queue);
        let thread = thread::Builder::new().name(format!("{name}-{number}"));
        disk.add_thread(thread.spawn(move || work(&queue))?);
    }
    Ok(())
}

fn work(queue: &Queue) {
    while let Some(mut request) = queue.next() {
        let mut pause = SHORTAGE_PAUSES.0;
        let result = loop {
            let returned = request.call();
            match request.advance(returned) {
                Progress::Continue => {}
                Progress::Done(result) => break result,
                // A closed disk has no callers that wait.
                Progress::Later(error) if queue.is_closed() => break Err(error),
                Progress::Later(error) => {
                    if pause == SHORTAGE_PAUSES.0 {
                        tracing::warn!(%error, "retrying a read or write: the system is short of a \
                                                resource");
                    }
                    thread::sleep(pause);
                    pause = (pause * 2).min(SHORTAGE_PAUSES.1);
                }
            }
        };
        request.finish(result);
    }
}
