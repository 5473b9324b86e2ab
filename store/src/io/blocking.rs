//! A disk on plain system calls, made by a few threads: for where io_uring is refused.

use std::{io, sync::Arc, thread};

use parking_lot::Condvar;

use super::{
    os_disk::OsDisk,
    queue::{Queue, Wake},
    request::Progress,
};

/// A disk with `threads` threads, and so many requests under way; others wait, up to `depth` in all.
pub(super) fn start(threads: usize, depth: u32) -> io::Result<OsDisk> {
    let queue = Arc::new(Queue::new(depth, Wake::Condvar(Condvar::new())));
    let mut disk = OsDisk::new("blocking", Arc::clone(&queue), Arc::clone(&queue));
    add_threads(&mut disk, "io", threads, &queue)?;
    Ok(disk)
}

/// Adds threads that carry out what is in a queue. If one cannot be started, dropping the disk ends those that were.
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
        let result = loop {
            let returned = request.call();
            if let Progress::Done(result) = request.advance(returned) {
                break result;
            }
        };
        request.finish(result);
    }
}
