//! The space that snapshots, volumes and the store take, and the space that a deletion gives back.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    look::fold_rows,
    mark::{MARK_BITS, Marks, mark},
    pace::Pace,
    plan::{GcSettings, GcStep, is_worth_it, plan},
    ranks::{Ranks, names_max},
    roots::{OwnerId, RootOwner},
    survey::{Survey, survey_all},
    tally::{PackTally, Tallies},
    walk::{Reached, Visitor, walk},
};
use crate::{
    Error, Result,
    engine::{Engine, Priority},
    format::{Location, Name, SnapshotRecord},
    limits,
    meta::{Filter, Meta, Records as _},
};

/// The space that the deletion of snapshots gives back.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct DeleteEstimate {
    /// Bytes of records, as they are stored, that nothing else needs. Several snapshots are counted
    /// together: records that only they share are included.
    pub dead_bytes: u64,
    /// Bytes by which the next collection shrinks the store's files after the deletion, beyond
    /// those that it would give back anyway.
    pub returned_bytes: u64,
}

/// The space that a snapshot, or the base of a volume, takes in packs.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of records, as they are stored, that nothing else needs: its deletion gives them back.
    pub exclusive_bytes: u64,
    /// Bytes of records, as they are stored, that something else needs, too. `None` if not asked
    /// for.
    pub shared_bytes: Option<u64>,
}

/// The space that the whole store takes. The ratio of `data_bytes` to `unique_bytes` shows what
/// deduplication saves, that of `unique_bytes` to `live_bytes` what compression saves.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Sum of the sizes of all snapshots, in bytes; at most 2^64 - 1.
    pub logical_bytes: u64,
    /// Sum of the data of the completed snapshots, in bytes: their sizes without holes.
    pub data_bytes: u64,
    /// Plain bytes of the chunks that are needed, each counted once.
    pub unique_bytes: u64,
    /// Bytes of the records that are needed, as they are stored: chunks and tree nodes.
    pub live_bytes: u64,
    /// Bytes of records in packs that nothing needs. Zeros between records count with them.
    pub dead_bytes: u64,
    /// Bytes of the files of all packs.
    pub file_bytes: u64,
}

/// The plan of a collection that would run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcPlan {
    /// Its steps, in their order.
    pub steps: Vec<GcStep>,
    /// The space that the store takes before the collection.
    pub usage: StoreUsage,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Number of passes over all leaves of all trees: one, unless there are more names than memory
    /// for them.
    pub passes: u32,
}

/// Plans a collection, and does nothing.
///
/// # Errors
///
/// As [`survey_all`].
pub(crate) async fn plan_now(
    engine: &Arc<Engine>,
    pace: &Pace,
    settings: &GcSettings,
    names_max: u64,
) -> Result<GcPlan> {
    let Survey {
        packs,
        live_plain_bytes,
        passes,
        ..
    } = survey_all(engine, pace, names_max).await?;
    let totals = engine.meta(Priority::Manage, |meta| meta.totals()).await?;
    let sum = |of: fn(&PackTally) -> u64| packs.iter().map(of).sum();
    let free_bytes = engine.space.free_bytes()?;
    Ok(GcPlan {
        steps: plan(&packs, free_bytes, settings, |it| {
            is_candidate(it, settings)
        }),
        usage: StoreUsage {
            logical_bytes: u64::try_from(totals.logical_bytes).unwrap_or(u64::MAX),
            data_bytes: data_bytes(engine).await?,
            unique_bytes: live_plain_bytes,
            live_bytes: sum(|it| it.live.bytes),
            dead_bytes: sum(|it| it.dead.bytes),
            file_bytes: sum(|it| it.file_bytes),
        },
        free_bytes,
        passes,
    })
}

/// Sum of what the completed snapshots hold.
async fn data_bytes(engine: &Engine) -> Result<u64> {
    let mut sum: u64 = 0;
    let mut next = Some(Vec::new());
    while let Some(from) = next.take() {
        let page = move |meta: &dyn Meta| {
            meta.page::<SnapshotRecord>(&Filter::default(), &from, limits::LIST_SLICE_RECORDS)
        };
        let page = engine.meta(Priority::Manage, page).await?;
        let contents = page.records.iter().filter_map(SnapshotRecord::content);
        sum = contents.fold(sum, |sum, it| sum.saturating_add(it.data_bytes));
        next = page.next;
    }
    Ok(sum)
}

/// Bits of an estimate for each name: needed by others, and needed by the deleted snapshots.
const ESTIMATE_BITS: u64 = 2 * MARK_BITS;
/// Owners whose shared bytes are counted together: one bit for each.
const OWNERS_COUNTED: usize = 16;
/// Bits that [`Owners`] take for each name.
const OWNER_BITS: u64 = OWNERS_COUNTED as u64;

/// Number of names in one pass of an estimate.
pub(crate) const fn names_of_an_estimate() -> u64 {
    names_max(ESTIMATE_BITS)
}

/// Number of names in one pass over owners.
pub(crate) const fn names_of_usage() -> u64 {
    names_max(OWNER_BITS)
}

/// Records that some roots need and no others do.
struct Only {
    others: Arc<Marks>,
    own: Marks,
}

impl Visitor for Only {
    fn node(&self, node: Reached<'_>) -> bool {
        // Others that need a node need everything under it.
        !self.others.has(node) && self.own.node(node)
    }

    fn chunk(&self, slot: usize) {
        if !self.others.contains(slot) {
            self.own.chunk(slot);
        }
    }
}

/// Estimates what there is to collect if the roots `gone` go and the roots `kept` stay. Both are
/// roots of records: readers do not keep content for long.
///
/// # Errors
///
/// As [`survey`](super::survey::survey).
pub(crate) async fn estimate_delete(
    engine: &Arc<Engine>,
    pace: &Pace,
    (kept, gone): (&[RootOwner], &[RootOwner]),
    settings: &GcSettings,
    names_max: u64,
) -> Result<DeleteEstimate> {
    let (mut before, mut after) = (Tallies::default(), Tallies::default());
    let mut from = Some([0; 32]);
    while let Some(start) = from {
        let ranks = Ranks::build(engine, start, names_max).await?;
        let live = mark(engine, &ranks, pace, kept).await?;
        let only = Arc::new(Only {
            others: live.shared_marks(),
            own: Marks::new(&ranks),
        });
        walk(engine, &ranks, pace, gone, &only).await?;
        let count = move |(before, after): &mut (Tallies, Tallies),
                          ranks: &Ranks,
                          name: Name,
                          place: Location| {
            let is_needed = live.needs(&name, &place);
            let was_needed = is_needed
                || ranks
                    .slot(&name)
                    .is_some_and(|slot| only.own.contains(slot));
            before.add(&name, &place, was_needed);
            after.add(&name, &place, is_needed);
        };
        let both = (
            before.with_states(engine).await?,
            after.with_states(engine).await?,
        );
        (before, after) = fold_rows(engine, &ranks, both, count).await?;
        from = ranks.until();
    }
    let (before, after) = (before.finish(engine).await?, after.finish(engine).await?);
    let dead_bytes = live_bytes(&before).saturating_sub(live_bytes(&after));
    let free_bytes = engine.space.free_bytes()?;
    let returned = |tallies: &[PackTally]| {
        let steps = plan(tallies, free_bytes, settings, |it| {
            is_candidate(it, settings)
        });
        net_bytes(&steps)
    };
    Ok(DeleteEstimate {
        dead_bytes,
        returned_bytes: returned(&after).saturating_sub(returned(&before)),
    })
}

fn live_bytes(tallies: &[PackTally]) -> u64 {
    tallies.iter().map(|it| it.live.bytes).sum()
}

/// Bytes by which steps shrink the files.
fn net_bytes(steps: &[GcStep]) -> u64 {
    let sum = |of: fn(&GcStep) -> u64| steps.iter().map(of).sum::<u64>();
    sum(|step| step.returned_bytes).saturating_sub(sum(|step| step.copied_bytes))
}

/// Returns true if a collection may take a pack while no work is under way: its file is there, and
/// it is sealed or worth a rewrite.
pub(crate) fn is_candidate(tally: &PackTally, settings: &GcSettings) -> bool {
    tally.file_bytes > 0 && (tally.sealed || is_worth_it(tally, settings))
}

/// The owner of each record: nobody, one owner, or several.
struct Owners {
    slots: Box<[AtomicU16]>,
    /// Nodes that were indexed after the view of the ranks.
    late: Mutex<HashMap<Name, u16>>,
}

const NOBODY: u16 = 0;
/// All owners that were not asked for.
const OTHERS: u16 = 1;
const SHARED: u16 = u16::MAX;
/// The first owner that was asked for.
const FIRST: u16 = 2;

/// Returns the owner of a record that `owner` reached, and true if its children must be told.
///
/// The children of a node with several owners also have several owners, so only the second owner
/// has to tell them, and each node is visited at most twice.
const fn with_owner(current: u16, owner: u16) -> (u16, bool) {
    match current {
        NOBODY => (owner, true),
        SHARED => (SHARED, false),
        same if same == owner => (owner, false),
        _ => (SHARED, true),
    }
}

/// One owner that walks its trees. No other owner walks at that time.
struct Claim {
    owners: Arc<Owners>,
    owner: u16,
}

impl Claim {
    fn claim(&self, slot: usize) -> bool {
        let Some(current) = self.owners.slots.get(slot) else {
            return false;
        };
        let claim = |current| Some(with_owner(current, self.owner).0);
        let before = current.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim);
        let (Ok(before) | Err(before)) = before;
        with_owner(before, self.owner).1
    }
}

impl Visitor for Claim {
    fn node(&self, node: Reached<'_>) -> bool {
        match node {
            Reached::Slot(slot) => self.claim(slot),
            Reached::Late(name) => {
                let mut late = self.owners.late.lock();
                let current = late.entry(*name).or_insert(NOBODY);
                let (now, is_wanted) = with_owner(*current, self.owner);
                *current = now;
                is_wanted
            }
        }
    }

    fn chunk(&self, slot: usize) {
        self.claim(slot);
    }
}

/// The records that one owner needs: one bit in each slot.
struct Reach {
    owners: Arc<Owners>,
    bit: u16,
    late: Mutex<HashSet<Name>>,
}

impl Reach {
    fn reach(&self, slot: usize) -> bool {
        let slot = self.owners.slots.get(slot);
        slot.is_some_and(|slot| slot.fetch_or(self.bit, Ordering::Relaxed) & self.bit == 0)
    }
}

impl Visitor for Reach {
    fn node(&self, node: Reached<'_>) -> bool {
        match node {
            Reached::Slot(slot) => self.reach(slot),
            Reached::Late(name) => self.late.lock().insert(*name),
        }
    }

    fn chunk(&self, slot: usize) {
        self.reach(slot);
    }
}

/// Counts the space that each of `asked` takes, in their order. All of `roots` count as owners,
/// asked for or not.
///
/// Exclusive bytes take one walk over all trees, and a second over their shared parts. Shared bytes
/// take a walk over each tree that was asked for, which reads all of its leaves.
///
/// # Errors
///
/// [`Error::Limit`] for more than some 65 thousand owners; as [`survey`](super::survey::survey).
pub(crate) async fn usage(
    engine: &Arc<Engine>,
    pace: &Pace,
    roots: &[RootOwner],
    asked: &[OwnerId],
    with_shared: bool,
    names_max: u64,
) -> Result<Vec<Usage>> {
    if asked.len() >= usize::from(SHARED - FIRST) {
        return Err(Error::Limit(format!(
            "{} owners; {} can be told apart",
            asked.len(),
            SHARED - FIRST
        )));
    }
    let positions: HashMap<_, _> = asked.iter().zip(0usize..).collect();
    let mut trees: Vec<Vec<RootOwner>> = vec![Vec::new(); asked.len()];
    let mut others = Vec::new();
    for root in roots {
        let position = root.owner.record().and_then(|id| positions.get(id));
        let tree = position.and_then(|at| trees.get_mut(*at));
        tree.unwrap_or(&mut others).push(root.clone());
    }
    let mut exclusive = vec![0; asked.len()];
    let mut whole = vec![0; asked.len()];
    let mut from = Some([0; 32]);
    while let Some(start) = from {
        let ranks = Ranks::build(engine, start, names_max).await?;
        let slots = (0..ranks.len()).map(|_| AtomicU16::new(NOBODY)).collect();
        let owners = Arc::new(Owners {
            slots,
            late: Mutex::default(),
        });
        let owned = std::iter::once((OTHERS, &others)).chain((FIRST..).zip(&trees));
        for (owner, roots) in owned {
            let claim = Arc::new(Claim {
                owners: Arc::clone(&owners),
                owner,
            });
            walk(engine, &ranks, pace, roots, &claim).await?;
        }
        exclusive = sums(engine, &ranks, &owners, exclusive, |sums, owner, bytes| {
            let at = owner.checked_sub(FIRST).filter(|_| owner != SHARED);
            if let Some(sum) = at.and_then(|at| sums.get_mut(usize::from(at))) {
                *sum += bytes;
            }
        })
        .await?;
        let groups = trees.chunks(OWNERS_COUNTED).enumerate();
        for (group, trees) in groups.filter(|_| with_shared) {
            for slot in &owners.slots {
                slot.store(0, Ordering::Relaxed);
            }
            for (bit, roots) in trees.iter().enumerate() {
                let reach = Arc::new(Reach {
                    owners: Arc::clone(&owners),
                    bit: 1 << bit,
                    late: Mutex::default(),
                });
                walk(engine, &ranks, pace, roots, &reach).await?;
            }
            let first = group * OWNERS_COUNTED;
            whole = sums(engine, &ranks, &owners, whole, move |sums, bits, bytes| {
                let group = sums.iter_mut().skip(first).take(OWNERS_COUNTED);
                for (bit, sum) in group.enumerate() {
                    if bits & (1 << bit) != 0 {
                        *sum += bytes;
                    }
                }
            })
            .await?;
        }
        from = ranks.until();
    }
    // An owner that is asked for twice has one position.
    let usages = asked.iter().filter_map(|id| positions.get(id)).map(|at| {
        let of = |sums: &[u64]| sums.get(*at).copied().unwrap_or_default();
        Usage {
            exclusive_bytes: of(&exclusive),
            shared_bytes: with_shared.then(|| of(&whole).saturating_sub(of(&exclusive))),
        }
    });
    Ok(usages.collect())
}

/// Adds the bytes of all records of a slice to the sums that their slots select.
async fn sums(
    engine: &Arc<Engine>,
    ranks: &Arc<Ranks>,
    owners: &Arc<Owners>,
    before: Vec<u64>,
    add: impl Fn(&mut Vec<u64>, u16, u64) + Send + Sync + 'static,
) -> Result<Vec<u64>> {
    let owners = Arc::clone(owners);
    let add_row = move |sums: &mut Vec<u64>, ranks: &Ranks, name: Name, place: Location| {
        let slot = ranks.slot(&name).filter(|_| ranks.is_below(&place));
        if let Some(slot) = slot.and_then(|slot| owners.slots.get(slot)) {
            let bytes = place.payload.record_bytes();
            add(sums, slot.load(Ordering::Relaxed), bytes);
        }
    };
    fold_rows(engine, ranks, before, add_row).await
}
