//! One file of the simulated disk: its visible content, its durable content, and the edits in
//! between.

use std::{collections::BTreeSet, io};

use super::{pages::Pages, random::Random};

/// A crash keeps or loses pages of a write, or tears them between sectors.
const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;

/// A change of a file.
#[derive(Debug, Clone)]
pub(super) enum Edit {
    Write { offset_bytes: u64, bytes: Vec<u8> },
    SetLen(u64),
}

/// The state of an edit that is not durable.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Stage {
    /// Its completion is not reported yet.
    Begun,
    /// Processes see it, and the next sync makes it durable.
    Completed,
    /// It failed. Processes do not see it, and it did not happen if a sync finds it so; until then
    /// it may have, in part.
    Failed,
    /// A sync of it failed. Processes see it, and no sync will make it durable.
    Doubtful,
}

#[derive(Debug, Clone)]
struct Pending {
    number: u64,
    edit: Edit,
    stage: Stage,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Content {
    seen: Pages,
    durable: Pages,
    pending: Vec<Pending>,
    /// Edits begun so far.
    begun: u64,
}

impl Content {
    pub(super) fn durable(bytes: Pages) -> Self {
        Self {
            seen: bytes.clone(),
            durable: bytes,
            ..Self::default()
        }
    }

    pub(super) fn seen(&self) -> Vec<u8> {
        self.seen.read(0, usize::MAX)
    }

    pub(super) const fn len_bytes(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Up to `len` bytes from an offset.
    pub(super) fn read(&self, offset_bytes: u64, len: usize) -> Vec<u8> {
        self.seen.read(index(offset_bytes), len)
    }

    pub(super) fn flip(&mut self, offset_bytes: u64, bits: u8) -> io::Result<()> {
        for bytes in [&mut self.seen, &mut self.durable] {
            if !bytes.flip(index(offset_bytes), bits) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Begins an edit, and gives its number.
    pub(super) fn begin(&mut self, edit: Edit) -> u64 {
        self.begun += 1;
        self.pending.push(Pending {
            number: self.begun,
            edit,
            stage: Stage::Begun,
        });
        self.begun
    }

    /// Makes the edit visible to processes.
    pub(super) fn complete(&mut self, number: u64) {
        if let Some(pending) = self
            .pending
            .iter_mut()
            .find(|pending| pending.number == number)
        {
            pending.stage = Stage::Completed;
            apply(&pending.edit, &mut self.seen);
        }
    }

    /// Makes the edit fail: it will never be visible.
    pub(super) fn fail(&mut self, number: u64) {
        if let Some(pending) = self
            .pending
            .iter_mut()
            .find(|pending| pending.number == number)
        {
            pending.stage = Stage::Failed;
        }
    }

    /// The edits that a sync covers if it begins now.
    pub(super) fn begin_sync(&self) -> BTreeSet<u64> {
        self.pending
            .iter()
            .filter(|pending| matches!(pending.stage, Stage::Completed | Stage::Failed))
            .map(|pending| pending.number)
            .collect()
    }

    pub(super) fn complete_sync(&mut self, synced: &BTreeSet<u64>) {
        let durable = &mut self.durable;
        self.pending.retain(|pending| {
            if !synced.contains(&pending.number) {
                return true;
            }
            match pending.stage {
                Stage::Completed => apply(&pending.edit, durable),
                Stage::Failed => {}
                // Another sync has failed since this one began.
                Stage::Begun | Stage::Doubtful => return true,
            }
            false
        });
    }

    pub(super) fn fail_sync(&mut self) {
        for pending in self
            .pending
            .iter_mut()
            .filter(|pending| pending.stage == Stage::Completed)
        {
            pending.stage = Stage::Doubtful;
        }
    }

    /// The page cache after a failed sync: it forgets the bytes that the sync did not write, and
    /// reads them from the disk again.
    pub(super) fn forget_cached(&mut self, random: &mut Random) {
        let is_doubtful = |pending: &Pending| pending.stage == Stage::Doubtful;
        if !self.pending.iter().any(is_doubtful) {
            return;
        }
        let durable = &mut self.durable;
        self.pending.retain(|pending| {
            if is_doubtful(pending) {
                pending.edit.keep_some(durable, random);
            }
            !is_doubtful(pending)
        });
        self.seen = self.durable.clone();
        for pending in &self.pending {
            if pending.stage == Stage::Completed {
                apply(&pending.edit, &mut self.seen);
            }
        }
    }

    /// The content that others see once the process is gone. Each edit that was under way happened,
    /// completely or in part, or did not. None of them is more durable than before.
    pub(super) fn after_kill(mut self, random: &mut Random) -> Self {
        let is_begun = |pending: &mut Pending| pending.stage == Stage::Begun;
        let under_way: Vec<_> = self.pending.extract_if(.., is_begun).collect();
        for pending in under_way {
            for edit in pending.edit.some_pages(random) {
                let number = self.begin(edit);
                self.complete(number);
            }
        }
        self
    }

    /// The content after a loss of power.
    pub(super) fn after_crash(&self, random: &mut Random) -> Self {
        let mut bytes = self.durable.clone();
        for pending in &self.pending {
            pending.edit.keep_some(&mut bytes, random);
        }
        Self::durable(bytes)
    }
}

impl Edit {
    /// Applies the part of the edit that a disk keeps.
    fn keep_some(&self, bytes: &mut Pages, random: &mut Random) {
        match self {
            Self::Write {
                offset_bytes,
                bytes: written,
            } => keep_some(*offset_bytes, written, bytes, random),
            Self::SetLen(_) if random.one_in(2) => apply(self, bytes),
            Self::SetLen(_) => {}
        }
    }

    /// All of it, nothing, or some of its pages.
    fn some_pages(self, random: &mut Random) -> Vec<Self> {
        let all = random.next() % 3;
        match self {
            _ if all == 0 => Vec::new(),
            Self::Write {
                offset_bytes,
                bytes,
            } if all == 1 => pieces(offset_bytes, &bytes, PAGE_BYTES)
                .filter(|_| random.one_in(2))
                .map(|(offset_bytes, page)| Self::Write {
                    offset_bytes,
                    bytes: page.to_vec(),
                })
                .collect(),
            whole => vec![whole],
        }
    }
}

fn apply(edit: &Edit, bytes: &mut Pages) {
    match edit {
        Edit::Write {
            offset_bytes,
            bytes: written,
        } => bytes.put(index(*offset_bytes), written),
        Edit::SetLen(len_bytes) => bytes.resize(index(*len_bytes)),
    }
}

/// Writes all, nothing, or some pages and sectors.
fn keep_some(offset_bytes: u64, written: &[u8], bytes: &mut Pages, random: &mut Random) {
    if random.one_in(8) {
        // The length became durable before the bytes.
        let end = index(offset_bytes) + written.len();
        let len = bytes.len().max(end);
        bytes.resize(len);
    }
    match random.next() % 3 {
        0 => bytes.put(index(offset_bytes), written),
        1 => {}
        _ => {
            for (page_offset, page) in pieces(offset_bytes, written, PAGE_BYTES) {
                match random.next() % 4 {
                    0 => {}
                    1 => {
                        for (sector_offset, sector) in pieces(page_offset, page, SECTOR_BYTES) {
                            if random.one_in(2) {
                                bytes.put(index(sector_offset), sector);
                            }
                        }
                    }
                    _ => bytes.put(index(page_offset), page),
                }
            }
        }
    }
}

/// Cuts bytes where their offsets are multiples of `piece_bytes`.
fn pieces(
    offset_bytes: u64,
    mut bytes: &[u8],
    piece_bytes: u64,
) -> impl Iterator<Item = (u64, &[u8])> {
    let mut offset_bytes = offset_bytes;
    std::iter::from_fn(move || {
        let len = index(piece_bytes - offset_bytes % piece_bytes).min(bytes.len());
        let (piece, rest) = bytes
            .split_at_checked(len)
            .filter(|(piece, _)| !piece.is_empty())?;
        let at = offset_bytes;
        offset_bytes += piece.len() as u64;
        bytes = rest;
        Some((at, piece))
    })
}

/// An offset in memory. Files of tests fit there.
fn index(offset_bytes: u64) -> usize {
    usize::try_from(offset_bytes).unwrap_or(usize::MAX)
}
