//! A disk on io_uring: one thread owns the ring, and requests reach it through the bounded queue.
//!
//! Syncs do not go through the ring: the kernel would hand each of them to a thread of its own, and
//! back through this one. Threads of this disk do the syncs, and wake their callers directly.
//!
//! The thread sleeps in the kernel, waiting for completions and for an eventfd at once. A push to
//! the queue writes to the eventfd only if the thread sleeps. Plain system calls open files,
//! because an open that is cancelled in a ring leaks its descriptor.

mod ring;
mod slots;

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use io_uring::{IoUring, Probe, opcode};

use parking_lot::Condvar;

use super::{
    blocking,
    os_disk::OsDisk,
    queue::{Queue, Wake},
};
use crate::limits;

/// A disk whose ring has `depth` slots, or the reason why the kernel refuses it.
pub(super) fn start(depth: u32) -> io::Result<OsDisk> {
    let queue = Arc::new(Queue::new(depth, Wake::by_event()?));
    let syncs = Arc::new(Queue::new(depth, Wake::Condvar(Condvar::new())));
    let (ready, outcome) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("io-uring".to_owned()).spawn({
        let (queue, syncs) = (Arc::clone(&queue), Arc::clone(&syncs));
        // The ring is made by the thread that uses it: a single issuer must be the creating thread.
        move || {
            let ring = match set_up(depth) {
                Ok((ring, setup)) => {
                    tracing::debug!(setup, depth, "io_uring is set up");
                    ring
                }
                Err(error) => {
                    // The receiver waits for this.
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            ring::run(ring, &queue, &syncs, depth);
        }
    })?;
    outcome
        .recv()
        .map_err(|_| io::Error::other("the io_uring thread ended before it began"))??;
    let mut disk = OsDisk::new("io_uring", queue, Arc::clone(&syncs));
    disk.add_thread(thread);
    blocking::add_threads(&mut disk, "io-sync", limits::DISK_SYNC_THREADS, &syncs)?;
    Ok(disk)
}

/// The best ring that this kernel supports, and its name in the log.
fn set_up(depth: u32) -> io::Result<(IoUring, &'static str)> {
    // One more than the requests, for the wake.
    let entries = (depth + 1).next_power_of_two();
    // Completions are processed when this thread asks for them, without interrupting it (Linux
    // 6.1).
    let deferred = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(entries)
        .map(|ring| (ring, "single issuer, deferred task work"));
    let ring = deferred
        // Without an interrupt, but whenever the thread enters the kernel (Linux 5.19).
        .or_else(|_| {
            IoUring::builder()
                .setup_coop_taskrun()
                .build(entries)
                .map(|ring| (ring, "cooperative task work"))
        })
        .or_else(|_| IoUring::new(entries).map(|ring| (ring, "plain")))?;
    check(&ring.0)?;
    Ok(ring)
}

/// Checks that the ring knows the operations used here, and that this process may enter it (a
/// seccomp filter can allow one and refuse the other).
fn check(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("poll", opcode::PollAdd::CODE),
    ];
    for (name, code) in needed {
        if !probe.is_supported(code) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel's io_uring has no {name}"),
            ));
        }
    }
    ring.submit()?;
    Ok(())
}
