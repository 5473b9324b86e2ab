//! Checking an archive without a store.

use std::{
    collections::HashMap,
    io::Read,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
};

use tokio::task;
use varve_content::{block::BLOCK_BYTES, chunk_id::ChunkId};

use super::{
    ArchiveFacts, check_chunks,
    read::{Group, GroupLeaf, Reader, damaged},
};
use crate::{
    cancel::unless_cancelled,
    control::Control,
    error::{Error, Result},
    limits::{DECODERS_MAX, worker_threads},
};

/// A check of an archive: see [`verify_archive`].
#[derive(Debug)]
#[must_use = "an archive is not checked until this is run"]
pub struct ArchiveVerify {
    control: Control,
}

/// Prepares to check an archive, without a daemon.
pub fn verify_archive() -> ArchiveVerify {
    ArchiveVerify {
        control: Control::default(),
    }
}

impl ArchiveVerify {
    /// Sets the control of the check. Its progress counts bytes of data in the archive's own
    /// leaves, without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Checks the archive from the reader `from`: it is complete, each chunk matches its id, the
    /// leaves give the root in the head, and, unless it has a base, all their chunks are in it.
    /// Errors call the archive `name`.
    ///
    /// Keeps as many threads busy as there are cores. Needs some 40 to 100 bytes of memory for each
    /// chunk. When the check is cancelled, the reading thread ends after its current read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged), with the place;
    /// [`ErrorKind::File`](crate::ErrorKind::File) if it is not an archive, or cannot be read;
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub async fn run(self, from: impl Read + Send + 'static, name: &str) -> Result<ArchiveFacts> {
        let what = format!("verify {name}");
        let cancel = self.control.cancel.clone();
        let (control, owned) = (self.control, name.to_owned());
        let checking = task::spawn_blocking(move || check(from, &owned, &control));
        let checked = async {
            let broke = |error| Error::internal(&what, "a thread broke").with_source(error);
            checking.await.map_err(broke)?
        };
        unless_cancelled(&what, "it was cancelled", &cancel, checked).await
    }
}

pub(super) fn check(from: impl Read, name: &str, control: &Control) -> Result<ArchiveFacts> {
    let mut reader = Reader::open(from, name)?;
    control
        .progress
        .set_total(reader.facts().snapshot.data_bytes);
    let found = &AtomicBool::new(false);
    thread::scope(|scope| {
        // One group under way on each thread, and one that waits.
        let (groups, work) = mpsc::sync_channel(1);
        let work = Arc::new(Mutex::new(work));
        let checkers: Vec<_> = (0..worker_threads(DECODERS_MAX))
            .map(|_| {
                let work = Arc::clone(&work);
                scope.spawn(move || {
                    let checked = check_all(&work, name);
                    found.fetch_or(checked.is_err(), Ordering::Relaxed);
                    checked
                })
            })
            .collect();
        // Only these threads have senders: when the last of them ends, nothing more can be sent.
        drop(work);
        let read = read_all(&mut reader, name, control, |group| {
            let ends = found.load(Ordering::Relaxed) || control.cancel.is_cancelled();
            !ends && groups.send(group).is_ok()
        });
        drop(groups);
        let mut outcome = Ok(());
        for checker in checkers {
            let broke = |_| Error::internal(format!("read {name}"), "a checking thread broke");
            outcome = outcome.and(checker.join().map_err(broke).flatten());
        }
        outcome.and(read)
    })?;
    Ok(reader.facts().clone())
}

/// Reads all leaves, and checks that their chunks are in the archive. `pass` takes them, and
/// returns true if it wants more.
fn read_all(
    reader: &mut Reader<impl Read>,
    name: &str,
    control: &Control,
    pass: impl Fn(Group) -> bool,
) -> Result<()> {
    let has_base = reader.facts().base.is_some();
    // Ids with lengths in bytes: a later leaf may claim another length for the same chunk.
    let mut present: HashMap<ChunkId, u32> = HashMap::new();
    while let Some(group) = reader.next()? {
        if let GroupLeaf::Given(leaf) = &group.leaf {
            if !has_base {
                let chunks = group.chunks.iter();
                present.extend(chunks.map(|(id, chunk)| (*id, chunk.plain_bytes)));
                for entry in leaf.entries() {
                    let why = match present.get(&entry.chunk) {
                        Some(len) if *len as usize == entry.blocks as usize * BLOCK_BYTES => {
                            continue;
                        }
                        Some(_) => "has another length in it",
                        None => "is not in it",
                    };
                    let chunk = entry.chunk;
                    let why = format!("chunk {chunk} of segment {} {why}", group.segment);
                    return Err(damaged(name, group.offset_bytes, why));
                }
            }
            let data_bytes = u64::from(leaf.data_blocks()) * BLOCK_BYTES as u64;
            control.progress.add_done(data_bytes);
        }
        if !pass(group) {
            // A checking thread has found damage and reports it, or nobody waits for the outcome.
            return Ok(());
        }
    }
    Ok(())
}

fn check_all(work: &Mutex<Receiver<Group>>, name: &str) -> Result<()> {
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(group) = next else {
            return Ok(());
        };
        let (ids, chunks): (Vec<_>, Vec<_>) = group.chunks.into_iter().unzip();
        check_chunks(name, group.offset_bytes, &ids, &chunks)?;
    }
}
