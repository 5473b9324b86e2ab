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
    let mut disk = OsDisk::new("blocking", Arc::clone(&queue), Vec::with_capacity(threads));
    for number in 0..threads {
        let queue = Arc::clone(&queue);
        // If one cannot be started, dropping the disk ends those that were.
        disk.add_thread(
            thread::Builder::new()
                .name(format!("io-{number}"))
                .spawn(move || work(&queue))?,
        );
    }
    Ok(disk)
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
