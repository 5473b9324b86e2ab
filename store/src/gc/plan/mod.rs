//! Plans a collection: which packs it drops, rewrites and merges, in which order. Pure: it neither
//! reads nor writes anything.
//!
//! - A pack that holds nothing needed is dropped. Nothing is copied for it.
//! - A pack with enough dead bytes is rewritten: its needed records are copied, then it goes.
//! - Small packs of neighbouring numbers are merged into one.
//!
//! A pack that is still written to is sealed first, if enough of it is dead.
//!
//! Drops come first, for they need no space. The others follow by the bytes that they return for
//! each byte copied. Neighbours stay together: records written together are read together.

use std::{cmp::Reverse, iter, num::NonZeroU64};

use crate::{
    format::PackId,
    gc::tally::PackTally,
    limits::{FREE_BYTES_MIN, PACK_BYTES_MAX},
};

/// Bytes that may be copied before their old packs are gone: a collection moves records in groups
/// of this size, and then removes their packs.
pub(crate) const GROUP_BYTES: u64 = 32 << 20;
/// Least return of a rewrite that is worth its writes. In a pack with a single record, header,
/// footer and zeros take more than the record, and a rewrite does not change that.
const RETURN_BYTES_MIN: u64 = 64 << 10;

/// When packs are rewritten and merged.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct GcSettings {
    /// A pack is rewritten if at least this part of its records' bytes is dead, in percent. At 40,
    /// a collection copies 1.5 bytes for each byte that it gives back, at most.
    pub rewrite_dead_percent: u8,
    /// Packs shorter than this are merged, in bytes.
    pub merge_below_bytes: u64,
    /// Bytes a second that are read and copied, at most. `None`: as fast as possible.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl Default for GcSettings {
    fn default() -> Self {
        Self {
            rewrite_dead_percent: 40,
            merge_below_bytes: 32 << 20,
            bytes_per_second: NonZeroU64::new(100 << 20),
        }
    }
}

/// The treatment of one or several packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcAction {
    /// A pack goes: nothing in it is needed.
    Drop(PackId),
    /// A pack goes when its needed records are copied.
    Rewrite(PackId),
    /// Several packs go when their needed records are copied, into one pack.
    Merge(Vec<PackId>),
}

impl GcAction {
    /// The packs that go.
    pub fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        let (one, several) = match self {
            Self::Drop(pack) | Self::Rewrite(pack) => (Some(*pack), None),
            Self::Merge(packs) => (None, Some(packs)),
        };
        one.into_iter()
            .chain(several.into_iter().flatten().copied())
    }
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcStep {
    /// The action of this step.
    pub action: GcAction,
    /// Bytes of records that are copied.
    pub copied_bytes: u64,
    /// Bytes of the files that go. Subtract `copied_bytes` for the net gain.
    pub returned_bytes: u64,
}

/// The steps of a collection, in their order.
pub(crate) fn plan(
    tallies: &[PackTally],
    free_bytes: u64,
    settings: &GcSettings,
    is_candidate: impl Fn(&PackTally) -> bool,
) -> Vec<GcStep> {
    let mut candidates: Vec<_> = tallies.iter().filter(|it| is_candidate(it)).collect();
    candidates.sort_unstable_by_key(|it| it.pack);
    let drops = candidates.iter().copied().filter(|it| it.live.records == 0);
    let mut steps: Vec<_> = drops
        .map(|it| step(GcAction::Drop(it.pack), &[it]))
        .collect();

    let is_rewritten = |it: &PackTally| it.live.records > 0 && is_worth_it(it, settings);
    let rewrites = candidates.iter().copied().filter(|it| is_rewritten(it));
    let rewrites = rewrites.map(|it| step(GcAction::Rewrite(it.pack), &[it]));
    // A run is a sequence of neighbours that are rewritten; a pack that is not rewritten ends it.
    let mut copies = runs(rewrites, |a, b| are_neighbours(&candidates, a, b));
    let small = candidates.iter().copied().filter(|it| {
        it.live.records > 0 && !is_rewritten(it) && it.file_bytes < settings.merge_below_bytes
    });
    copies.extend(merges(small).map(|step| vec![step]));
    copies.sort_by_key(|run| Reverse(gain_permille(run)));

    let returned = steps.iter().map(|step| step.returned_bytes);
    let mut free_bytes = returned.fold(free_bytes, u64::saturating_add);
    for step in copies.into_iter().flatten() {
        let needed_bytes = step.copied_bytes + GROUP_BYTES + 2 * FREE_BYTES_MIN;
        if needed_bytes <= free_bytes {
            free_bytes = free_bytes
                .saturating_add(step.returned_bytes)
                .saturating_sub(step.copied_bytes);
            steps.push(step);
        }
    }
    steps
}

fn step(action: GcAction, packs: &[&PackTally]) -> GcStep {
    GcStep {
        action,
        copied_bytes: packs.iter().map(|it| it.live.bytes).sum(),
        returned_bytes: packs.iter().map(|it| it.file_bytes).sum(),
    }
}

/// Returns true if enough of a pack is dead to be worth a rewrite.
pub(crate) fn is_worth_it(tally: &PackTally, settings: &GcSettings) -> bool {
    let (live, dead) = (u128::from(tally.live.bytes), u128::from(tally.dead.bytes));
    dead * 100 >= (live + dead) * u128::from(settings.rewrite_dead_percent)
        && tally.dead.bytes >= RETURN_BYTES_MIN
        && tally.file_bytes >= tally.live.bytes + RETURN_BYTES_MIN
}

/// Returns true if two steps' packs are of one kind, and no candidate between them stays.
fn are_neighbours(candidates: &[&PackTally], first: &GcStep, second: &GcStep) -> bool {
    let pack = |step: &GcStep| step.action.packs().next();
    let position = |pack: PackId| candidates.binary_search_by_key(&pack, |it| it.pack).ok();
    let (Some(first), Some(second)) = (pack(first), pack(second)) else {
        return false;
    };
    let (Some(from), Some(to)) = (position(first), position(second)) else {
        return false;
    };
    let between = candidates.get(from + 1..to).unwrap_or_default();
    first.kind == second.kind && between.iter().all(|it| it.live.records == 0)
}

/// Groups steps into runs of neighbours. A run is one step, or copies at most what a pack holds.
fn runs(
    steps: impl Iterator<Item = GcStep>,
    belong_together: impl Fn(&GcStep, &GcStep) -> bool,
) -> Vec<Vec<GcStep>> {
    let mut runs: Vec<Vec<GcStep>> = Vec::new();
    for step in steps {
        if let Some(run) = runs.last_mut()
            && let Some(last) = run.last()
            && belong_together(last, &step)
            && copied_bytes(run) + step.copied_bytes <= PACK_BYTES_MAX
        {
            run.push(step);
        } else {
            runs.push(vec![step]);
        }
    }
    runs
}

/// Merges small packs, given in the order of their numbers: each group has two or more of one kind,
/// as many as fit into a pack.
fn merges<'a>(small: impl Iterator<Item = &'a PackTally>) -> impl Iterator<Item = GcStep> {
    let mut small = small.peekable();
    iter::from_fn(move || {
        let first = small.next()?;
        let mut live_bytes = first.live.bytes;
        let mut group = vec![first];
        while let Some(next) = small.next_if(|next| {
            next.pack.kind == first.pack.kind && live_bytes + next.live.bytes <= PACK_BYTES_MAX
        }) {
            live_bytes += next.live.bytes;
            group.push(next);
        }
        Some(group)
    })
    .filter(|group| group.len() > 1)
    .map(|group| {
        let packs = group.iter().map(|it| it.pack).collect();
        step(GcAction::Merge(packs), &group)
    })
}

fn copied_bytes(steps: &[GcStep]) -> u64 {
    steps.iter().map(|step| step.copied_bytes).sum()
}

/// Bytes that steps return for each byte copied, in thousandths.
fn gain_permille(steps: &[GcStep]) -> u64 {
    let returned: u64 = steps.iter().map(|step| step.returned_bytes).sum();
    let gain = u128::from(returned) * 1000 / u128::from(copied_bytes(steps).max(1));
    u64::try_from(gain).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
