//! One request on its way, and how it goes on after the kernel did part of it.

use std::{io, os::fd::AsRawFd};

use io_uring::{opcode, squeue, types};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{AlignedBuf, File, completion::ended};

/// The most bytes of one system call: Linux takes a little under 2 GiB.
const CALL_BYTES_MAX: usize = 1 << 30;
/// How often in a row "try again" is believed.
const AGAIN_MAX: u32 = 1000;

/// A request. It owns what the kernel works on: whoever carries it out keeps it until the kernel is done.
#[derive(Debug)]
pub(super) struct Request {
    file: File,
    task: Task,
    /// "Try again" in a row.
    again: u32,
    /// Its place among those that may wait.
    _place: OwnedSemaphorePermit,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Task {
    Read(Transfer),
    Write(Transfer),
    SyncData(oneshot::Sender<io::Result<()>>),
    /// With the file's attributes: what a directory needs.
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
    /// Whether a read may end with the file.
    pub(super) may_be_short: bool,
    pub(super) reply: oneshot::Sender<io::Result<AlignedBuf>>,
}

/// What to do with a request after a system call.
#[derive(Debug)]
pub(super) enum Progress {
    /// Another system call for the rest.
    Continue,
    /// [Finish](Request::finish) it.
    Done(io::Result<()>),
}

impl Transfer {
    /// Where the next system call has to go on, and how far at most.
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

    /// The next system call of it, for a ring. The request has to stay, and not be touched, until the call has completed.
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
            Task::SyncData(_) => opcode::Fsync::new(descriptor)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Task::SyncAll(_) => opcode::Fsync::new(descriptor).build(),
        })
    }

    /// The next system call of it, made here and now.
    pub(super) fn call(&mut self) -> io::Result<usize> {
        let descriptor = self.file.descriptor()?;
        match &mut self.task {
            Task::Read(transfer) => {
                let (start, len, offset) = transfer.rest();
                // SAFETY: the memory is inside the transfer's buffer, borrowed mutably for this call, and bytes may be
                // written to it whether it is initialised or not.
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
            Task::SyncData(_) => Ok(rustix::fs::fdatasync(descriptor).map(|()| 0)?),
            Task::SyncAll(_) => Ok(rustix::fs::fsync(descriptor).map(|()| 0)?),
        }
    }

    /// Takes in what a system call returned.
    pub(super) fn advance(&mut self, returned: io::Result<usize>) -> Progress {
        let count = match returned {
            Ok(count) => count,
            Err(error) => {
                self.again += 1;
                let again = matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                );
                return if again && self.again <= AGAIN_MAX {
                    Progress::Continue
                } else {
                    Progress::Done(Err(error))
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
            Task::Write(_) | Task::SyncData(_) | Task::SyncAll(_) => Progress::Done(Ok(())),
        }
    }

    /// Gives a request up that the kernel may still work on: its buffer is never freed.
    pub(super) fn leak(self) {
        match self.task {
            Task::Read(transfer) | Task::Write(transfer) => {
                std::mem::forget(transfer.buf);
                let _ = transfer.reply.send(Err(ended()));
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
                // SAFETY: the kernel has filled the first `done` bytes, and says so only of bytes that fit.
                unsafe { transfer.buf.set_len(transfer.done) };
                let _ = transfer.reply.send(result.map(|()| transfer.buf));
            }
            Task::Write(transfer) => {
                let _ = transfer.reply.send(result.map(|()| transfer.buf));
            }
            Task::SyncData(reply) | Task::SyncAll(reply) => {
                let _ = reply.send(result);
            }
        }
    }
}
