//! Faults and delays that a test sets on a simulated disk.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    task::{Poll, Waker},
};

use parking_lot::Mutex;

use super::{File, SimDisk, World, let_others_go_first};

/// A kind of call that can be [refused](SimDisk::refuse).
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// Opening a file that is there.
    Open,
    /// Making a file.
    Create,
    /// Allocating space.
    Allocate,
    /// Syncing a directory, which has to be opened for it.
    SyncDir,
    /// Setting a length.
    SetLen,
    /// Removing a file.
    Remove,
    /// Renaming a file.
    Rename,
    /// Giving a file another name.
    Link,
    /// Listing a directory.
    List,
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) power_off_after: Option<u64>,
    pub(super) write: Option<(u64, io::ErrorKind)>,
    pub(super) sync: Option<u64>,
    pub(super) capacity_bytes: Option<u64>,
    /// For each call: how many succeed first, how many fail then, and the error number.
    pub(super) refused: BTreeMap<Call, (u64, u64, i32)>,
    /// Number of a file of which nothing can be read.
    pub(super) unreadable: Option<u64>,
    /// Error number of a rename that is made.
    pub(super) made_rename: Option<i32>,
}

/// A file whose writes and syncs wait.
pub(super) struct HeldUp {
    /// The number of this hold-up, counted over all files.
    number: u64,
    path: PathBuf,
    /// Number of operations that pass first.
    passing: u64,
    waiting: Vec<Waker>,
}

/// A write or sync that waits until its file is no longer held up.
#[derive(Debug, Copy, Clone)]
pub(super) struct Wait(u64);

impl SimDisk {
    /// Lets everything fail after `operations` operations.
    pub fn power_off_after(&self, operations: u64) {
        self.world.lock().faults.power_off_after = Some(operations);
    }

    /// Counts an operation of something else that loses power with this disk.
    ///
    /// # Errors
    ///
    /// If the power is off.
    pub fn operate(&self) -> io::Result<()> {
        self.world.lock().operate()
    }

    /// Lets one write fail, the `nth` from now on, the next one being 1. If the power fails before
    /// the next sync, it may have been made in part.
    pub fn fail_write(&self, nth: u64, kind: io::ErrorKind) {
        let mut world = self.world.lock();
        world.faults.write = Some((world.writes + nth, kind));
    }

    /// Lets one sync of a file fail, the `nth` from now on, the next one being 1. The bytes that it
    /// covers are in doubt for good.
    pub fn fail_sync(&self, nth: u64) {
        let mut world = self.world.lock();
        world.faults.sync = Some(world.syncs + nth);
    }

    /// Lets the next `times` calls of a kind fail with an error number of the system, before they
    /// have done anything.
    pub fn refuse(&self, call: Call, times: u64, errno: i32) {
        self.refuse_later(call, 0, times, errno);
    }

    /// The same after `after` calls that succeed.
    pub fn refuse_later(&self, call: Call, after: u64, times: u64, errno: i32) {
        let mut world = self.world.lock();
        world.faults.refused.insert(call, (after, times, errno));
    }

    /// Lets the next rename fail with an error number of the system, although it is made.
    pub fn fail_made_rename(&self, errno: i32) {
        self.world.lock().faults.made_rename = Some(errno);
    }

    /// Lets all reads of a file fail, as on a device with bad sectors.
    pub fn fail_reads(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.faults.unreadable = Some(world.names.file(path)?);
        Ok(())
    }

    /// Holds up writes and syncs of a file that begin from now on, after some that pass.
    pub fn hold_up(&self, path: &Path, passing: u64) {
        let mut world = self.world.lock();
        world.times_held_up += 1;
        world.held_up = Some(HeldUp {
            number: world.times_held_up,
            path: path.to_owned(),
            passing,
            waiting: Vec::new(),
        });
    }

    /// Waits until a write or sync is held up.
    pub async fn holds_up(&self) {
        let is_waiting = |held: &HeldUp| !held.waiting.is_empty();
        while !self.world.lock().held_up.as_ref().is_some_and(is_waiting) {
            let_others_go_first().await;
        }
    }

    /// Releases them.
    pub fn let_go_on(&self) {
        let held = self.world.lock().held_up.take();
        held.into_iter()
            .flat_map(|held| held.waiting)
            .for_each(Waker::wake);
    }

    /// Number of calls of a kind that are still to be refused.
    #[must_use]
    pub fn still_refused(&self, call: Call) -> u64 {
        let world = self.world.lock();
        world
            .faults
            .refused
            .get(&call)
            .map_or(0, |(_, times, _)| *times)
    }

    /// Limits the sum of all files' lengths; none is no limit.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.world.lock().faults.capacity_bytes = capacity_bytes;
    }

    /// Changes bits of a byte, as a failing device does.
    pub fn flip(&self, path: &Path, offset_bytes: u64, bits: u8) -> io::Result<()> {
        self.world.lock().content(path)?.flip(offset_bytes, bits)
    }
}

impl World {
    pub(super) fn check_refused(&mut self, call: Call) -> io::Result<()> {
        match self.faults.refused.get_mut(&call) {
            Some((after, ..)) if *after > 0 => {
                *after -= 1;
                Ok(())
            }
            Some((_, times, errno)) if *times > 0 => {
                *times -= 1;
                Err(io::Error::from_raw_os_error(*errno))
            }
            _ => Ok(()),
        }
    }

    /// The hold-up that a write or sync must wait for if it begins now.
    pub(super) fn held_up(&mut self, file: &File) -> Option<Wait> {
        let held = self.held_up.as_mut()?;
        if held.path != file.path() {
            return None;
        }
        let waits = held.passing == 0;
        held.passing = held.passing.saturating_sub(1);
        waits.then_some(Wait(held.number))
    }

    /// Counts a write. An error is for its completion: the write begins anyway.
    pub(super) fn count_write(&mut self) -> Option<io::ErrorKind> {
        self.writes += 1;
        self.faults
            .write
            .take_if(|(nth, _)| *nth == self.writes)
            .map(|(_, kind)| kind)
    }
}

/// Waits until the test releases the file.
pub(super) async fn until_let_go(world: &Mutex<World>, wait: Option<Wait>) {
    poll_fn(|context| match &mut world.lock().held_up {
        Some(held) if wait.is_some_and(|wait| wait.0 == held.number) => {
            held.waiting.push(context.waker().clone());
            Poll::Pending
        }
        _ => Poll::Ready(()),
    })
    .await;
}
