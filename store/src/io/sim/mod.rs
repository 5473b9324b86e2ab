//! A disk in memory that keeps only what [`Disk`] promises: for tests of power cuts, kills, failed
//! writes and full disks.
//!
//! It is deterministic: its seed decides what a crash keeps. It counts every operation that changes
//! something, so that a test can end a run after each of them in turn:
//!
//! 1. run once, and ask for [`operations`](SimDisk::operations);
//! 2. for each number up to that: run on a new disk with
//!    [`power_off_after`](SimDisk::power_off_after), then open what [`crash`](SimDisk::crash) left,
//!    for several seeds. [`kill`](SimDisk::kill) keeps the page cache as well. For the running code
//!    both look the same.
//!
//! A write happens when its completion is polled for the second time, so that tasks take turns. A
//! write whose completion is dropped stays under way for ever: it is never visible, but a crash may
//! keep it.

mod content;
mod faults;
mod names;
mod pages;
mod random;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;

pub use self::faults::Call;
use self::{
    content::{Content, Edit},
    faults::{Faults, HeldUp, until_let_go},
    names::{Entry, Names},
    pages::Pages,
    random::Random,
};
use super::{AlignedBuf, Completion, Disk, File, OpenMode, Patience};

/// Files in memory.
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    patience: Patience,
}

#[derive(Default)]
struct World {
    names: Names,
    files: BTreeMap<u64, Content>,
    operations: u64,
    reads: u64,
    writes: u64,
    syncs: u64,
    faults: Faults,
    held_up: Option<HeldUp>,
    times_held_up: u64,
    /// Decides the content of the disk where a sync has failed.
    random: Random,
}

impl SimDisk {
    /// An empty disk: the directory `/`, and nothing in it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            world: Arc::default(),
            patience: Patience::default(),
        })
    }

    /// The disk after a loss of power: all synced data, and the part of everything else that `seed`
    /// decides. Faults are not passed on.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Arc<Self> {
        let mut random = Random::new(seed);
        let world = self.world.lock();
        let names = world.names.after_crash(&mut random);
        let files = world
            .files
            .iter()
            .map(|(number, content)| (*number, content.after_crash(&mut random)))
            .collect();
        Arc::new(Self {
            world: Arc::new(Mutex::new(World {
                names,
                files,
                random,
                ..World::default()
            })),
            patience: Patience::default(),
        })
    }

    /// The disk after a kill of the process, on a machine that continues: every completed edit is
    /// there, and as durable as before. `seed` decides if an edit that was under way happened.
    /// Faults are not passed on. The old disk belongs to the dead process, and does nothing any
    /// more.
    #[must_use]
    pub fn kill(&self, seed: u64) -> Arc<Self> {
        let mut random = Random::new(seed);
        let dead = World {
            operations: 1,
            faults: Faults {
                power_off_after: Some(0),
                ..Faults::default()
            },
            ..World::default()
        };
        let world = std::mem::replace(&mut *self.world.lock(), dead);
        let files = world.files.into_iter();
        let files = files
            .map(|(number, content)| (number, content.after_kill(&mut random)))
            .collect();
        Arc::new(Self {
            world: Arc::new(Mutex::new(World {
                names: world.names,
                files,
                random,
                ..World::default()
            })),
            patience: Patience::default(),
        })
    }

    /// Another disk with the same content. Faults are not passed on.
    #[must_use]
    pub fn copy(&self) -> Arc<Self> {
        let world = self.world.lock();
        Arc::new(Self {
            world: Arc::new(Mutex::new(World {
                names: world.names.clone(),
                files: world.files.clone(),
                random: world.random.clone(),
                ..World::default()
            })),
            patience: Patience::default(),
        })
    }

    /// Operations so far that changed something: writes, syncs, new names, new lengths.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.world.lock().operations
    }

    /// Reads so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.world.lock().reads
    }

    /// The content of a file, synced or not.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.world.lock().content(path)?.seen())
    }

    /// Sets the content of a file, durably, and makes the file if need be.
    pub fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world.lock();
        let number = match world.names.file(path) {
            Ok(number) => number,
            Err(_) => {
                let number = world.new_number();
                world.names.create(path, Entry::File(number))?;
                number
            }
        };
        if let Some(parent) = path.parent() {
            let upto = world.names.begun();
            world.names.sync(parent, upto);
        }
        world
            .files
            .insert(number, Content::durable(Pages::of(bytes)));
        Ok(())
    }

    fn open_file(&self, path: &Path, mode: OpenMode, aligned: bool) -> io::Result<File> {
        let mut world = self.world.lock();
        world.check_power()?;
        let number = match mode {
            OpenMode::Read | OpenMode::ReadWrite => {
                world.check_refused(Call::Open)?;
                world.names.file(path)?
            }
            OpenMode::CreateNew => {
                world.check_refused(Call::Create)?;
                world.operate()?;
                if world.faults.capacity_bytes == Some(0) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let number = world.new_number();
                world.names.create(path, Entry::File(number))?;
                world
                    .files
                    .insert(number, Content::durable(Pages::default()));
                number
            }
        };
        Ok(File::simulated(path, number, aligned))
    }

    fn read_bytes(
        &self,
        file: &File,
        offset_bytes: u64,
        len: usize,
        may_be_short: bool,
    ) -> Completion<AlignedBuf> {
        if let Err(error) = file.check_alignment(offset_bytes, len) {
            return Completion::failed(error);
        }
        let (world, file) = (Arc::clone(&self.world), file.clone());
        Completion::deferred(async move {
            let_others_go_first().await;
            let mut world = world.lock();
            world.check_power()?;
            world.reads += 1;
            if world.faults.unreadable == Some(file.simulated_number()?) {
                return Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
            }
            let bytes = world.opened(&file)?.read(offset_bytes, len);
            if bytes.len() < len && !may_be_short {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(AlignedBuf::from_slice(&bytes))
        })
    }
}

impl World {
    fn check_power(&self) -> io::Result<()> {
        match self.faults.power_off_after {
            Some(last) if self.operations > last => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        self.check_power()
    }

    fn new_number(&self) -> u64 {
        self.files
            .last_key_value()
            .map_or(1, |(number, _)| number + 1)
    }

    fn content(&mut self, path: &Path) -> io::Result<&mut Content> {
        let number = self.names.file(path)?;
        self.files
            .get_mut(&number)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn opened(&mut self, file: &File) -> io::Result<&mut Content> {
        self.files
            .get_mut(&file.simulated_number()?)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used_bytes(&self) -> u64 {
        self.names
            .files()
            .into_iter()
            .filter_map(|number| self.files.get(&number))
            .map(Content::len_bytes)
            .sum()
    }

    /// Number of a write's bytes that still fit the disk.
    fn room(&mut self, file: &File, offset_bytes: u64, len: usize) -> io::Result<usize> {
        let len_bytes = self.opened(file)?.len_bytes();
        let Some(capacity_bytes) = self.faults.capacity_bytes else {
            return Ok(len);
        };
        let used_bytes = self.used_bytes();
        let end_max = (len_bytes + capacity_bytes.saturating_sub(used_bytes)).max(len_bytes);
        Ok(usize::try_from(end_max.saturating_sub(offset_bytes)).map_or(len, |room| room.min(len)))
    }
}

impl Disk for SimDisk {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn patience(&self) -> &Patience {
        &self.patience
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        self.open_file(path, mode, false)
    }

    fn open_direct(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        self.open_file(path, mode, true)
    }

    fn read(&self, file: &File, offset_bytes: u64, len: usize) -> Completion<AlignedBuf> {
        self.read_bytes(file, offset_bytes, len, false)
    }

    fn read_up_to(&self, file: &File, offset_bytes: u64, len: usize) -> Completion<AlignedBuf> {
        self.read_bytes(file, offset_bytes, len, true)
    }

    fn write(&self, file: &File, offset_bytes: u64, buf: AlignedBuf) -> Completion<AlignedBuf> {
        let begin = || {
            let mut world = self.world.lock();
            file.check_alignment(offset_bytes, buf.len())?;
            world.operate()?;
            let fault = world.count_write();
            let room = world.room(file, offset_bytes, buf.len())?;
            let fits = buf.get(..room).unwrap_or(&buf);
            let edit = world.opened(file)?.begin(Edit::Write {
                offset_bytes,
                bytes: fits.to_vec(),
            });
            Ok((edit, fault, room < buf.len(), world.held_up(file)))
        };
        let (edit, fault, full, wait) = match begin() {
            Ok(begun) => begun,
            Err(error) => return Completion::failed(error),
        };
        let (world, file) = (Arc::clone(&self.world), file.clone());
        Completion::deferred(async move {
            let_others_go_first().await;
            until_let_go(&world, wait).await;
            let mut world = world.lock();
            world.check_power()?;
            if let Some(kind) = fault {
                world.opened(&file)?.fail(edit);
                return Err(kind.into());
            }
            world.opened(&file)?.complete(edit);
            if full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(buf)
        })
    }

    fn write_parts(&self, file: &File, offset_bytes: u64, parts: Vec<Bytes>) -> Completion<()> {
        if let Err(error) = file.check_parts(offset_bytes, &parts) {
            return Completion::failed(error);
        }
        let mut buf = AlignedBuf::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| buf.extend_from_slice(part));
        let written = self.write(file, offset_bytes, buf);
        Completion::deferred(async move { written.await.map(drop) })
    }

    fn write_at_once(&self, file: &File, offset_bytes: u64, parts: &[Bytes]) -> io::Result<()> {
        self.write_parts(file, offset_bytes, parts.to_vec())
            .blocking_wait()
    }

    fn forget_cached(&self, file: &File) {
        let world = &mut *self.world.lock();
        let content = file.simulated_number().ok();
        if let Some(content) = content.and_then(|number| world.files.get_mut(&number)) {
            content.forget_cached(&mut world.random);
        }
    }

    fn will_need(&self, _: &File, _: u64, _: usize) {}

    fn read_at_once(&self, _: &File, _: u64, _: usize) -> Option<AlignedBuf> {
        None
    }

    fn sync_data(&self, file: &File) -> Completion<()> {
        let begin = || {
            let mut world = self.world.lock();
            world.operate()?;
            world.syncs += 1;
            let nth = world.syncs;
            let fails = world
                .faults
                .sync
                .take_if(|failing| *failing == nth)
                .is_some();
            let wait = world.held_up(file);
            Ok((world.opened(file)?.begin_sync(), fails, wait))
        };
        let (sync, fails, wait) = match begin() {
            Ok(begun) => begun,
            Err(error) => return Completion::failed(error),
        };
        let (world, file) = (Arc::clone(&self.world), file.clone());
        Completion::deferred(async move {
            let_others_go_first().await;
            until_let_go(&world, wait).await;
            let mut world = world.lock();
            world.check_power()?;
            let content = world.opened(&file)?;
            if fails {
                content.fail_sync();
                return Err(io::Error::other("simulated failure of a sync"));
            }
            content.complete_sync(&sync);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> Completion<()> {
        let upto = {
            let mut world = self.world.lock();
            let begun = world.check_refused(Call::SyncDir);
            if let Err(error) = begun.and_then(|()| world.operate()) {
                return Completion::failed(error);
            }
            world.names.begun()
        };
        let (world, dir): (_, PathBuf) = (Arc::clone(&self.world), dir.to_owned());
        Completion::deferred(async move {
            let_others_go_first().await;
            let mut world = world.lock();
            world.check_power()?;
            world.names.sync(&dir, upto);
            Ok(())
        })
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        let mut world = self.world.lock();
        world.check_power()?;
        Ok(world.opened(file)?.len_bytes())
    }

    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        let mut world = self.world.lock();
        world.check_refused(Call::SetLen)?;
        world.operate()?;
        let content = world.opened(file)?;
        let edit = content.begin(Edit::SetLen(len_bytes));
        content.complete(edit);
        Ok(())
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        {
            let mut world = self.world.lock();
            world.check_refused(Call::Allocate)?;
            let len = world.opened(file)?.len_bytes();
            let more = usize::try_from(len_bytes.saturating_sub(len)).unwrap_or(usize::MAX);
            if world.room(file, len, more)? < more {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.set_len(file, len_bytes)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut world = self.world.lock();
        world.check_refused(Call::List)?;
        world.check_power()?;
        world.names.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.check_refused(Call::Remove)?;
        world.operate()?;
        world.names.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.check_refused(Call::Rename)?;
        world.operate()?;
        world.names.rename(from, to)?;
        match world.faults.made_rename.take() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.check_refused(Call::Link)?;
        world.operate()?;
        world.names.link(from, to)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.operate()?;
        world.names.create(path, Entry::Dir)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.operate()?;
        world.names.remove_dir(path)
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let world = self.world.lock();
        world.check_power()?;
        Ok(world.faults.capacity_bytes.map_or(u64::MAX, |capacity| {
            capacity.saturating_sub(world.used_bytes())
        }))
    }
}

/// No disk is done at once: a caller's other work comes in between.
async fn let_others_go_first() {
    let mut went = false;
    poll_fn(|context| {
        if went {
            return Poll::Ready(());
        }
        went = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.world.lock();
        f.debug_struct("SimDisk")
            .field("names", &world.names)
            .field("operations", &world.operations)
            .finish_non_exhaustive()
    }
}
