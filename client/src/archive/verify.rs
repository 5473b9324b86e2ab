//! Checking an archive without a store.

use std::{
    collections::HashSet,
    io::Read,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
};

use varve_content::{block::BLOCK_BYTES, chunk_id::ChunkId};

use super::{
    ArchiveFacts, check_chunks,
    read::{Group, GroupLeaf, Reader, damaged},
};
use crate::{
    error::{Error, Result},
    limits::{DECODERS_MAX, worker_threads},
    progress::Progress,
};

/// Checks an archive: that it is whole, that each of its chunks has its id, that its leaves have the root that it names, and that all
/// their chunks are in it, unless it has a base. Errors call it `name`. Gives what it is of.
///
/// Blocks, and keeps as many threads busy as there are cores. Takes some 40 to 100 bytes of memory for each chunk.
///
/// # Errors
///
/// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged), with the place.
pub fn verify_archive(from: impl Read, name: &str, progress: &Progress) -> Result<ArchiveFacts> {
    let mut reader = Reader::open(from, name)?;
    progress.set_total(reader.facts().snapshot.data_bytes);
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
        // Theirs alone: when the last of them ends, nothing more can be sent.
        drop(work);
        let read = read_all(&mut reader, name, progress, |group| {
            !found.load(Ordering::Relaxed) && groups.send(group).is_ok()
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

/// Reads all leaves, and finds that their chunks are there; `pass` takes them, and says whether it wants more.
fn read_all(
    reader: &mut Reader<impl Read>,
    name: &str,
    progress: &Progress,
    pass: impl Fn(Group) -> bool,
) -> Result<()> {
    let has_base = reader.facts().base.is_some();
    let mut present: HashSet<ChunkId> = HashSet::new();
    while let Some(group) = reader.next()? {
        if let GroupLeaf::Given(leaf) = &group.leaf {
            if !has_base {
                present.extend(group.chunks.iter().map(|(id, _)| *id));
                let mut ids = leaf.entries().iter().map(|entry| entry.chunk);
                if let Some(id) = ids.find(|id| !present.contains(id)) {
                    let why = format!("chunk {id} of segment {} is not in it", group.segment);
                    return Err(damaged(name, group.offset_bytes, why));
                }
            }
            progress.add_done(u64::from(leaf.data_blocks()) * BLOCK_BYTES as u64);
        }
        if !pass(group) {
            // Something was found, and who found it says what.
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
