//! The disk of the operating system. Slow operations go to threads by the queue; the others run on
//! the spot.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the disk by way of which files are accessed"
)]

use std::{
    ffi::OsString,
    fmt, io,
    num::NonZeroU64,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use rustix::{
    fs::{
        Advice, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags,
        fadvise, fallocate, fstat, ftruncate, link, mkdir, open, renameat_with, rmdir, stat,
        statvfs, statx, unlink,
    },
    io::Errno,
};
use tokio::sync::oneshot;

use super::{
    AlignedBuf, BUFFER_ALIGN, Completion, Disk, File, OpenMode, Patience,
    queue::Queue,
    request::{Parts, Task, Transfer, read_at_once, write_at_once},
};

/// Files of the operating system.
pub(super) struct OsDisk {
    name: &'static str,
    queue: Arc<Queue>,
    /// The queue of syncs; may be the same.
    syncs: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    /// True if it was logged that direct writes are refused.
    direct_refused: AtomicBool,
    patience: Patience,
}

impl OsDisk {
    /// Threads that are [added](Self::add_thread) execute the requests of the queues, and end when
    /// these are closed.
    pub(super) fn new(name: &'static str, queue: Arc<Queue>, syncs: Arc<Queue>) -> Self {
        Self {
            name,
            queue,
            syncs,
            threads: Vec::new(),
            direct_refused: AtomicBool::new(false),
            patience: Patience::default(),
        }
    }

    pub(super) fn add_thread(&mut self, thread: JoinHandle<()>) {
        self.threads.push(thread);
    }

    fn transfer(
        &self,
        file: &File,
        offset_bytes: u64,
        buf: AlignedBuf,
        len: usize,
        task: impl FnOnce(Transfer) -> Task,
    ) -> Completion<AlignedBuf> {
        let (reply, outcome) = oneshot::channel();
        let transfer = Transfer {
            buf,
            offset_bytes,
            len,
            done: 0,
            may_be_short: false,
            reply,
        };
        self.queue.submit(file.clone(), task(transfer), outcome)
    }

    fn sync(
        &self,
        file: &File,
        task: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Task,
    ) -> Completion<()> {
        let (reply, outcome) = oneshot::channel();
        self.syncs.submit(file.clone(), task(reply), outcome)
    }

    fn warn_direct_refused(&self, path: &Path, why: &dyn fmt::Display) {
        if !self.direct_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(path = %path.display(), %why, "the file system refuses direct writes: \
                                                          writing through the page cache");
        }
    }
}

impl Drop for OsDisk {
    fn drop(&mut self) {
        self.queue.close();
        self.syncs.close();
        for thread in self.threads.drain(..) {
            // A panic was already reported.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for OsDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OsDisk")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Disk for OsDisk {
    fn name(&self) -> &'static str {
        self.name
    }

    fn patience(&self) -> &Patience {
        &self.patience
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        let descriptor = open_with(path, mode, OFlags::empty())?;
        if mode == OpenMode::Read {
            // Advice may be refused.
            let _ = fadvise(&descriptor, 0, None, Advice::Random);
        }
        Ok(File::os(path, descriptor, false))
    }

    fn open_direct(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        let descriptor = match open_with(path, mode, OFlags::DIRECT) {
            Ok(descriptor) => match direct_alignment(&descriptor) {
                Some(align) if align as usize > BUFFER_ALIGN => {
                    self.warn_direct_refused(
                        path,
                        &format_args!("the file system asks for an alignment of {align}"),
                    );
                    drop(descriptor);
                    open_with(path, reopen(mode), OFlags::empty())?
                }
                _ => descriptor,
            },
            // Linux creates the file before it finds that the flag is not supported.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.warn_direct_refused(path, &error);
                open_with(path, mode, OFlags::empty()).or_else(|again| match again.kind() {
                    io::ErrorKind::AlreadyExists => open_with(path, reopen(mode), OFlags::empty()),
                    _ => Err(again),
                })?
            }
            Err(error) => return Err(error),
        };
        Ok(File::os(path, descriptor, true))
    }

    fn read(&self, file: &File, offset_bytes: u64, len: usize) -> Completion<AlignedBuf> {
        if let Err(error) = file.check_alignment(offset_bytes, len) {
            return Completion::failed(error);
        }
        self.transfer(
            file,
            offset_bytes,
            AlignedBuf::with_capacity(len),
            len,
            Task::Read,
        )
    }

    fn read_up_to(&self, file: &File, offset_bytes: u64, len: usize) -> Completion<AlignedBuf> {
        if let Err(error) = file.check_alignment(offset_bytes, len) {
            return Completion::failed(error);
        }
        self.transfer(
            file,
            offset_bytes,
            AlignedBuf::with_capacity(len),
            len,
            |transfer| {
                Task::Read(Transfer {
                    may_be_short: true,
                    ..transfer
                })
            },
        )
    }

    fn write(&self, file: &File, offset_bytes: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        if let Err(error) = file.check_alignment(offset_bytes, buf.len()) {
            return Completion::failed(error);
        }
        let len = buf.len();
        self.transfer(file, offset_bytes, buf, len, Task::Write)
    }

    fn write_parts(&self, file: &File, offset_bytes: u64, parts: Vec<Bytes>) -> Completion<()> {
        let checked = file.check_parts(offset_bytes, &parts);
        if let Err(error) = checked {
            return Completion::failed(error);
        }
        let (reply, outcome) = oneshot::channel();
        let parts = Parts::new(parts, offset_bytes, reply);
        self.queue
            .submit(file.clone(), Task::WriteParts(parts), outcome)
    }

    fn write_at_once(&self, file: &File, offset_bytes: u64, parts: &[Bytes]) -> io::Result<()> {
        file.check_parts(offset_bytes, parts)?;
        write_at_once(file.descriptor()?, offset_bytes, parts)
    }

    fn forget_cached(&self, file: &File) {
        if let Ok(descriptor) = file.descriptor() {
            // Advice may be refused.
            let _ = fadvise(descriptor, 0, None, Advice::DontNeed);
        }
    }

    fn will_need(&self, file: &File, offset_bytes: u64, len: usize) {
        let Ok(descriptor) = file.descriptor() else {
            return;
        };
        // Advice may be refused.
        let _ = fadvise(
            descriptor,
            offset_bytes,
            NonZeroU64::new(len as u64),
            Advice::WillNeed,
        );
    }

    fn read_at_once(&self, file: &File, offset_bytes: u64, len: usize) -> Option<AlignedBuf> {
        let mut buf = AlignedBuf::with_capacity(len);
        let read = read_at_once(file.descriptor().ok()?, &mut buf, offset_bytes, len);
        (read == Some(len)).then_some(buf)
    }

    fn sync_data(&self, file: &File) -> Completion<()> {
        self.sync(file, Task::SyncData)
    }

    fn sync_dir(&self, dir: &Path) -> Completion<()> {
        match open(
            dir,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(descriptor) => self.sync(&File::os(dir, descriptor, false), Task::SyncAll),
            Err(error) => Completion::failed(error.into()),
        }
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        u64::try_from(fstat(file.descriptor()?)?.st_size).map_err(io::Error::other)
    }

    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        Ok(ftruncate(file.descriptor()?, len_bytes)?)
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        match fallocate(file.descriptor()?, FallocateFlags::empty(), 0, len_bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.set_len(file, len_bytes),
            done => Ok(done?),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let descriptor = open(
            dir,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(descriptor)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Ok(unlink(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::empty())?)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(link(from, to)?)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Ok(mkdir(path, Mode::from_raw_mode(0o755))?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rmdir(path)?)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Opens a regular file. Opening a FIFO or some devices would wait for ever.
fn open_with(path: &Path, mode: OpenMode, extra: OFlags) -> io::Result<OwnedFd> {
    if !matches!(mode, OpenMode::CreateNew) {
        let kind = FileType::from_raw_mode(stat(path)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::Error::other(format!(
                "expected a regular file, found a {kind:?}"
            )));
        }
    }
    let flags = match mode {
        OpenMode::Read => OFlags::RDONLY,
        OpenMode::ReadWrite => OFlags::RDWR,
        OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
    };
    // The content of all accounts: only the daemon's user reads it.
    Ok(open(
        path,
        flags | extra | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )?)
}

/// The mode to open a file again that this process has just created.
const fn reopen(mode: OpenMode) -> OpenMode {
    match mode {
        OpenMode::CreateNew => OpenMode::ReadWrite,
        other => other,
    }
}

/// The alignment of direct writes that the file system demands, if it reports one (Linux 6.1).
fn direct_alignment(descriptor: &OwnedFd) -> Option<u32> {
    let stat = statx(descriptor, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    // Zero: none at all.
    said.then_some(match (stat.stx_dio_mem_align, stat.stx_dio_offset_align) {
        (0, _) | (_, 0) => u32::MAX,
        (memory, offset) => memory.max(offset),
    })
}
