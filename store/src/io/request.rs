//! One request under way, and its continuation after the kernel did part of it.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd},
    slice,
};

use bytes::{Buf as _, Bytes};
use io_uring::{opcode, squeue, types};
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{AlignedBuf, File, completion::ended, is_shortage};

/// The most bytes of one system call: Linux takes a little under 2 GiB.
const CALL_BYTES_MAX: usize = 1 << 30;
/// Number of consecutive "try again" results before a pause, and before a sync is given up.
const AGAIN_MAX: u32 = 100;

/// A request. It owns the buffers that the kernel uses: its executor keeps it until the kernel is
/// done.
#[derive(Debug)]
pub(super) struct Request {
    file: File,
    task: Task,
    /// "Try again" in a row.
    again: u32,
    /// Its place among those that may wait.
    _place: OwnedSemaphorePermit,
}

/// The operation of a request.
#[derive(Debug)]
pub(super) enum Task {
    Read(Transfer),
    Write(Transfer),
    WriteParts(Parts),
    SyncData(oneshot::Sender<io::Result<()>>),
    /// Includes the file's attributes, as a directory needs.
    SyncAll(oneshot::Sender<io::Result<()>>),
}

/// Bytes from or to a file.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) buf: AlignedBuf,
    pub(super) offset_bytes: u64,
    /// Bytes to transfer.
    pub(super) len: usize,
    /// Bytes transferred.
    pub(super) done: usize,
    /// True if a read may end with the file.
    pub(super) may_be_short: bool,
    pub(super) reply: oneshot::Sender<io::Result<AlignedBuf>>,
}

/// Bytes from several places to one place in a file.
#[derive(Debug)]
pub(super) struct Parts {
    /// The bytes that are not written yet.
    parts: VecDeque<Bytes>,
    /// The places of all `parts`, for the kernel.
    slices: Vec<IoSlice<'static>>,
    offset_bytes: u64,
    reply: oneshot::Sender<io::Result<()>>,
}

impl Parts {
    pub(super) fn new(
        parts: Vec<Bytes>,
        offset_bytes: u64,
        reply: oneshot::Sender<io::Result<()>>,
    ) -> Self {
        Self {
            slices: Vec::with_capacity(parts.len()),
            parts: parts.into(),
            offset_bytes,
            reply,
        }
    }

    /// The next system call's memory and place in the file.
    fn rest(&mut self) -> (&[IoSlice<'static>], u64) {
        self.slices.clear();
        self.slices.extend(self.parts.iter().map(|part| {
            // SAFETY: what a `Bytes` points to does not move or change while it is there, and
            // `parts` is changed only between system calls, after which the slices are made anew.
            IoSlice::new(unsafe { slice::from_raw_parts(part.as_ptr(), part.len()) })
        }));
        (&self.slices, self.offset_bytes)
    }

    /// Records written bytes. Returns true if none remain.
    fn advance(&mut self, mut count: usize) -> bool {
        self.offset_bytes += count as u64;
        while let Some(first) = self.parts.front_mut() {
            let some = first.len().min(count);
            first.advance(some);
            count -= some;
            if !first.is_empty() {
                return false;
            }
            self.parts.pop_front();
        }
        true
    }
}

/// The next step of a request after a system call.
#[derive(Debug)]
pub(super) enum Progress {
    /// Another system call for the rest.
    Continue,
    /// The same after a pause: the system had a shortage.
    Later(io::Error),
    /// [Finish](Request::finish) it.
    Done(io::Result<()>),
}

impl Transfer {
    /// The memory of the next system call, its length at most, and its offset in the file.
    fn rest(&mut self) -> (*mut u8, u32, u64) {
        let len = (self.len - self.done).min(CALL_BYTES_MAX);
        #[expect(clippy::cast_possible_truncation, reason = "at most CALL_BYTES_MAX")]
        let len = len as u32;
        // A pointer inside the buffer: `done <= len <= capacity`.
        (
            self.buf.as_mut_ptr().wrapping_add(self.done),
            len,
            self.offset_bytes + self.done as u64,
        )
    }
}

impl Request {
    pub(super) const fn new(file: File, task: Task, place: OwnedSemaphorePermit) -> Self {
        Self {
            file,
            task,
            again: 0,
            _place: place,
        }
    }

    /// The next system call of it, for a ring. The request has to stay, and not be touched, until
    /// the call has completed.
    pub(super) fn entry(&mut self) -> io::Result<squeue::Entry> {
        let descriptor = types::Fd(self.file.descriptor()?.as_raw_fd());
        Ok(match &mut self.task {
            Task::Read(transfer) => {
                let (start, len, offset) = transfer.rest();
                opcode::Read::new(descriptor, start, len)
                    .offset(offset)
                    .build()
            }
            Task::Write(transfer) => {
                let (start, len, offset) = transfer.rest();
                opcode::Write::new(descriptor, start, len)
                    .offset(offset)
                    .build()
            }
            Task::WriteParts(parts) => {
                let (slices, offset) = parts.rest();
                // An `IoSlice` is an `iovec`, as its documentation promises.
                #[expect(clippy::cast_possible_truncation, reason = "at most PARTS_MAX")]
                opcode::Writev::new(descriptor, slices.as_ptr().cast(), slices.len() as u32)
                    .offset(offset)
                    .build()
            }
            Task::SyncData(_) => opcode::Fsync::new(descriptor)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Task::SyncAll(_) => opcode::Fsync::new(descriptor).build(),
        })
    }

    /// Makes the next system call, here and now.
    pub(super) fn call(&mut self) -> io::Result<usize> {
        let descriptor = self.file.descriptor()?;
        match &mut self.task {
            Task::Read(transfer) => {
                let (start, len, offset) = transfer.rest();
                // SAFETY: the memory is inside the transfer's buffer, borrowed mutably for this
                // call, and bytes may be written to it whether it is initialised or not.
                let into = unsafe { std::slice::from_raw_parts_mut(start.cast(), len as usize) };
                let (read, _) = rustix::io::pread::<_, &mut [std::mem::MaybeUninit<u8>]>(
                    descriptor, into, offset,
                )?;
                Ok(read.len())
            }
            Task::Write(transfer) => {
                let offset = transfer.offset_bytes + transfer.done as u64;
                let rest = transfer.buf.get(transfer.done..).unwrap_or_default();
                Ok(rustix::io::pwrite(descriptor, rest, offset)?)
            }
            Task::WriteParts(parts) => {
                let (slices, offset) = parts.rest();
                Ok(rustix::io::pwritev(descriptor, slices, offset)?)
            }
            Task::SyncData(_) => Ok(rustix::fs::fdatasync(descriptor).map(|()| 0)?),
            Task::SyncAll(_) => Ok(rustix::fs::fsync(descriptor).map(|()| 0)?),
        }
    }

    /// Handles the result of a system call.
    pub(super) fn advance(&mut self, returned: io::Result<usize>) -> Progress {
        let count = match returned {
            Ok(count) => count,
            Err(error) => {
                self.again += 1;
                let again = matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                );
                let is_sync = matches!(self.task, Task::SyncData(_) | Task::SyncAll(_));
                return if again && self.again <= AGAIN_MAX {
                    Progress::Continue
                } else if !is_shortage(&error) {
                    Progress::Done(Err(error))
                } else if is_sync {
                    // The durability of the bytes is in doubt: callers must not mistake this for a
                    // sync that can be retried.
                    Progress::Done(Err(io::Error::other(error)))
                } else {
                    Progress::Later(error)
                };
            }
        };
        self.again = 0;
        match &mut self.task {
            Task::Read(transfer) | Task::Write(transfer) if count > 0 => {
                transfer.done += count;
                if transfer.done < transfer.len {
                    Progress::Continue
                } else {
                    Progress::Done(Ok(()))
                }
            }
            Task::WriteParts(parts) if count > 0 => {
                if parts.advance(count) {
                    Progress::Done(Ok(()))
                } else {
                    Progress::Continue
                }
            }
            Task::WriteParts(parts) if !parts.parts.is_empty() => {
                Progress::Done(Err(io::ErrorKind::WriteZero.into()))
            }
            Task::Read(transfer) if transfer.done == transfer.len || transfer.may_be_short => {
                Progress::Done(Ok(()))
            }
            Task::Read(transfer) => Progress::Done(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the file ends {} bytes after offset {}, {} were expected",
                    transfer.done, transfer.offset_bytes, transfer.len
                ),
            ))),
            Task::Write(transfer) if transfer.done < transfer.len => {
                Progress::Done(Err(io::ErrorKind::WriteZero.into()))
            }
            Task::Write(_) | Task::WriteParts(_) | Task::SyncData(_) | Task::SyncAll(_) => {
                Progress::Done(Ok(()))
            }
        }
    }

    /// Gives a request up that the kernel may still work on: its buffer is never freed.
    pub(super) fn leak(self) {
        match self.task {
            Task::Read(transfer) | Task::Write(transfer) => {
                std::mem::forget(transfer.buf);
                let _ = transfer.reply.send(Err(ended()));
            }
            Task::WriteParts(parts) => {
                std::mem::forget((parts.parts, parts.slices));
                let _ = parts.reply.send(Err(ended()));
            }
            Task::SyncData(reply) | Task::SyncAll(reply) => {
                let _ = reply.send(Err(ended()));
            }
        }
    }

    /// Replies. The kernel must be done with the request.
    pub(super) fn finish(self, result: io::Result<()>) {
        // A caller that went away needs no answer.
        match self.task {
            Task::Read(mut transfer) => {
                // SAFETY: the kernel has filled the first `done` bytes, and says so only of bytes
                // that fit.
                unsafe { transfer.buf.set_len(transfer.done) };
                let _ = transfer.reply.send(result.map(|()| transfer.buf));
            }
            Task::Write(transfer) => {
                let _ = transfer.reply.send(result.map(|()| transfer.buf));
            }
            Task::WriteParts(Parts { reply, .. })
            | Task::SyncData(reply)
            | Task::SyncAll(reply) => {
                let _ = reply.send(result);
            }
        }
    }
}

/// Fills a buffer from the page cache without waiting. Returns the number of bytes, or `None` if
/// the kernel does not tell.
pub(super) fn read_at_once(
    descriptor: BorrowedFd<'_>,
    buf: &mut AlignedBuf,
    offset_bytes: u64,
    len: usize,
) -> Option<usize> {
    let len = len.min(buf.capacity());
    // SAFETY: the memory is the buffer's, borrowed mutably for this call, and nothing but bytes is
    // written to it. The kernel only writes, so the memory need not be initialised.
    let into = unsafe { slice::from_raw_parts_mut(buf.as_mut_ptr(), len) };
    let mut slices = [IoSliceMut::new(into)];
    let read = preadv2(
        descriptor,
        &mut slices,
        offset_bytes,
        ReadWriteFlags::NOWAIT,
    )
    .ok()?;
    // SAFETY: the kernel has filled `read` bytes.
    unsafe { buf.set_len(read) };
    Some(read)
}

/// Writes all parts, waiting for as long as it takes.
pub(super) fn write_at_once(
    descriptor: BorrowedFd<'_>,
    mut offset_bytes: u64,
    parts: &[Bytes],
) -> io::Result<()> {
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = &mut *slices;
    while !slices.is_empty() {
        match rustix::io::pwritev(descriptor, slices, offset_bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset_bytes += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
