//! A run of the collector: it finds the records that nobody needs, and gives their space back.
//!
//! | step | what |
//! | --- | --- |
//! | 1 | all roots, and what they reach; what that leaves in each pack |
//! | 2 | open packs that are mostly dead are sealed; the floors of running work; the plan |
//! | 3 | for some packs of the plan at a time: they are condemned, unless somebody relies on them |
//! | 4 | all roots again, and what is new under them |
//! | 5 | the condemned packs are swept |
//!
//! # Why nothing is lost
//!
//! *Claim.* Every name that a root reaches, whenever after step 4 a record or a pin names that
//! root, is marked, or its row does not point into the condemned packs.
//!
//! Step 4 marks every root that it sees: all that a record names at one moment, and all that are
//! pinned at that moment, also if the pin is dropped soon after. If a root is still in use but its
//! record is gone by then, the root was pinned before its record went ([`pins`](crate::engine)), so
//! step 4 sees its pin.
//!
//! A root that is first named later is the work of an ingest. Each name under it is one of these:
//!
//! - *It had a row when the ingest asked, in a pack that was not condemned.* The ingest has held
//!   that pack since, and a pack that is held is not condemned. Rows of packs that are there do not
//!   change, so the row still points there.
//! - *It had a row in a condemned pack.* The ingest was told that the name is unknown, and sent it
//!   again. Its copy has replaced the row, because a pack stays condemned until it is gone.
//! - *It had no row.* Its row was made after the ingest had begun, so the row points into a pack at
//!   or above the floors of the ingest. If the ingest was open when step 2 read the floors, no such
//!   pack is in the plan. If it began later, no such pack is in the plan either: the index had
//!   called every pack of the plan sealed before, and such a pack has no record without a row, and
//!   gets no other. The same holds for a row that a collection has moved since the ingest began, in
//!   favour of which the ingest's own copy was dropped: packs that records are moved into count for
//!   the floors of all ingests that begin meanwhile.
//! - *It was taken over from another root, with its leaf or alone.* The ingest has pinned that
//!   root, when a record or another pin named it. If that pin is held at the moment of step 4, the
//!   root is marked. If it was taken later, by induction over the order of such pins the claim
//!   holds for that root.
//!
//! No clock, age or grace time is part of this.
//!
//! # Failure
//!
//! A run that fails or is stopped leaves its packs condemned. The next run sweeps these first,
//! except that drops come before them. Condemned packs cannot be acquitted: an ingest may have been
//! told that a name is unknown whose row was kept instead of its copy. After a restart nothing is
//! condemned, because nothing relies on anything.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

use super::{
    absent,
    account::is_candidate,
    mark::{Live, mark},
    pace::{Pace, Stop},
    plan::{GcAction, GcSettings, GcStep, is_worth_it, plan},
    ranks::Ranks,
    roots::{self, RootOwner},
    survey::{Survey, survey_all},
    sweep::{Sweep, Swept, file_bytes},
    tally::{NeededPlaces, PackTally},
};
use crate::{
    Error, Result,
    engine::{Engine, HeldPack},
    failpoints::{Failpoint, reach},
    format::{GcReport, Location, Name, PackId},
    limits,
};

/// The phase of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GcPhase {
    /// Finds out which records are needed.
    #[default]
    Marking,
    /// Moves records, and removes packs.
    Sweeping,
}

/// The progress of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcProgress {
    /// The current phase.
    pub phase: GcPhase,
    /// Packs of the plan.
    pub packs_planned: u64,
    /// Packs that are gone.
    pub packs_removed: u64,
    /// Bytes of records that were copied.
    pub copied_bytes: u64,
    /// Bytes of the files that were removed.
    pub removed_bytes: u64,
}

/// The state that a run shares with its observers.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) progress: Mutex<GcProgress>,
    pub(crate) stop: Arc<Stop>,
}

impl Watch {
    fn is_stopped(&self) -> bool {
        self.stop.is_set()
    }

    fn sweeping(&self, packs: u64) {
        let mut progress = self.progress.lock();
        progress.phase = GcPhase::Sweeping;
        progress.packs_planned = packs;
    }

    fn swept(&self, swept: &Swept) {
        let mut progress = self.progress.lock();
        progress.packs_removed = swept.packs;
        progress.copied_bytes = swept.copied_bytes;
        progress.removed_bytes = swept.removed_bytes;
    }
}

/// The needed records of condemned packs.
enum Needed {
    /// The marks of all names.
    Marks(Arc<Live>),
    /// The places that remain of the marks of several slices.
    Places(NeededPlaces),
}

impl Needed {
    fn has(&self, name: &Name, place: &Location) -> bool {
        match self {
            Self::Marks(live) => live.needs(name, place),
            Self::Places(places) => places.contains(place),
        }
    }
}

/// Collects garbage once, and marks `names_max` names at a time. Must run to its end: if dropped,
/// it leaves packs of survivors without a writer until a restart.
///
/// # Errors
///
/// [`Error::Damaged`](crate::Error::Damaged) for a tree node that cannot be read, with the owners
/// that need it: nothing is collected then. [`Error::Full`](crate::Error::Full) and shortages end
/// the run, and the store goes on.
pub(crate) async fn run(
    engine: &Arc<Engine>,
    settings: &GcSettings,
    names_max: u64,
    watch: &Watch,
) -> Result<GcReport> {
    let pace = Pace::until(Arc::clone(&watch.stop), settings.bytes_per_second);
    let taking_stock = async {
        let stocktaking = engine.take_stock().await;
        let surveyed = survey_all(engine, &pace, names_max).await?;
        Ok::<_, Error>((stocktaking, surveyed))
    };
    let (_stocktaking, surveyed) = tokio::select! {
        surveyed = taking_stock => surveyed?,
        // Nothing has changed so far.
        () = watch.stop.wait() => return Ok(GcReport { stopped: true, ..GcReport::default() }),
    };
    let Survey {
        mut packs,
        passes,
        mut live,
        ..
    } = surveyed;
    reach(Failpoint::GcMarked);
    let sum = |of: fn(&PackTally) -> u64| packs.iter().map(of).sum();
    let mut report = GcReport {
        passes,
        live_bytes: sum(|it| it.live.bytes),
        dead_bytes: sum(|it| it.dead.bytes),
        ..GcReport::default()
    };
    let missing = absent::missing(&packs);
    absent::forget(engine, &packs).await?;
    let grown_bytes = seal(engine, &mut packs, settings).await?;
    let floors = engine.reliance.floors();
    let (steps, without_space) = steps(engine, &packs, settings, |it| {
        it.sealed && it.file_bytes > 0 && floors.are_above(it.pack)
    })?;
    let would_go = packs
        .iter()
        .filter(|it| it.file_bytes > 0 && (it.live.records == 0 || is_worth_it(it, settings)));
    let held_back = engine.reliance.held_back(would_go.map(|it| it.pack));
    note_held(&mut report, &held_back);
    note_held(&mut report, &without_space);
    let planned: usize = steps.iter().map(|step| step.action.packs().count()).sum();
    watch.sweeping(planned as u64);
    let mut sweep = Sweep::new(Arc::clone(engine));
    let mut steps = &steps[..];
    while !steps.is_empty() && !watch.is_stopped() {
        let (some, rest) = steps.split_at(together(steps));
        steps = rest;
        let packs: Vec<_> = some.iter().flat_map(|step| step.action.packs()).collect();
        note_held(&mut report, &engine.commit.condemn(packs.clone()).await?);
        reach(Failpoint::GcCondemned);
        let condemned = engine.reliance.condemned();
        let packs: Vec<_> = packs
            .into_iter()
            .filter(|it| condemned.contains(it))
            .collect();
        let finding = needed(engine, &pace, &packs, live.take(), names_max);
        let needed = tokio::select! {
            needed = finding => needed?,
            // The packs stay condemned, and the next run begins with them.
            () = watch.stop.wait() => break,
        };
        for pack in packs {
            if watch.is_stopped() {
                break;
            }
            let has = |name: &Name, place: &Location| needed.has(name, place);
            let swept = sweep.empty(pack, &has, &pace).await;
            watch.swept(&sweep.report);
            swept?;
        }
        // Before the next packs are condemned, so that few are condemned at any time.
        sweep.end_group().await?;
        watch.swept(&sweep.report);
        if let Needed::Marks(marks) = needed {
            live = Some(marks);
        }
    }
    report.stopped = watch.is_stopped();
    let swept = sweep.finish().await?;
    watch.swept(&swept);
    report.packs_removed = swept.packs;
    report.removed_bytes = swept.removed_bytes;
    report.copied_bytes = swept.written_bytes + grown_bytes;
    let damage: Vec<_> = missing.into_iter().chain(swept.kept).collect();
    report.packs_damaged = damage.len() as u64;
    let damage = damage.iter().take(limits::GC_REASONS_MAX);
    report.damage = damage.map(|it| reason(&it.to_string())).collect();
    Ok(report)
}

/// Seals open packs that are worth a collection. Without it, a store would keep its open packs for
/// ever after everything in it was deleted.
async fn seal(engine: &Arc<Engine>, packs: &mut [PackTally], settings: &GcSettings) -> Result<u64> {
    // The packs of an ingest under way are kept anyway.
    let floors = engine.reliance.floors();
    let is_worth_it =
        |it: &&PackTally| !it.sealed && is_candidate(it, settings) && floors.are_above(it.pack);
    let open: Vec<_> = packs.iter().filter(is_worth_it).map(|it| it.pack).collect();
    if open.is_empty() {
        return Ok(0);
    }
    let sealed = match engine.commit.seal(open).await {
        // The run still gets space from other packs; these are sealed another time.
        Err(error @ (Error::Full { .. } | Error::Dropped)) => {
            tracing::warn!(%error, "open packs are not sealed");
            return Ok(0);
        }
        sealed => sealed?,
    };
    let mut grown_bytes = 0;
    for tally in packs.iter_mut().filter(|it| sealed.contains(&it.pack)) {
        tally.sealed = true;
        let now_bytes = file_bytes(engine, tally.pack).await?;
        grown_bytes += now_bytes.saturating_sub(tally.file_bytes);
    }
    Ok(grown_bytes)
}

/// Notes packs that stay because work under way relies on them.
fn note_held(report: &mut GcReport, held: &[HeldPack]) {
    report.packs_held += held.len() as u64;
    for held in held {
        let by = reason(&held.by);
        if report.held_by.len() < limits::GC_REASONS_MAX && !report.held_by.contains(&by) {
            report.held_by.push(by);
        }
    }
}

/// Shortens a reason to the length that a report keeps.
pub(super) fn reason(text: &str) -> String {
    let end = text.floor_char_boundary(limits::GC_REASON_BYTES_MAX);
    text.get(..end).unwrap_or_default().to_owned()
}

/// The plan, after the packs that an earlier run has left condemned; drops come before both.
fn steps(
    engine: &Engine,
    packs: &[PackTally],
    settings: &GcSettings,
    is_candidate: impl Fn(&PackTally) -> bool,
) -> Result<(Vec<GcStep>, Vec<HeldPack>)> {
    let condemned = engine.reliance.condemned();
    // `absent::missing` has already reported a pack that has live records and no file.
    let is_left = |it: &&PackTally| it.file_bytes > 0 || it.live.records == 0;
    let left = packs.iter().filter(|it| condemned.contains(&it.pack));
    let left = left.filter(is_left);
    let left = left.map(|it| GcStep {
        action: match it.live.records {
            0 => GcAction::Drop(it.pack),
            _ => GcAction::Rewrite(it.pack),
        },
        copied_bytes: it.live.bytes,
        returned_bytes: it.file_bytes,
    });
    let mut steps: Vec<_> = left.collect();
    let free_bytes = engine.space.free_bytes()?;
    let is_new = |it: &PackTally| is_candidate(it) && !condemned.contains(&it.pack);
    let new = plan(packs, free_bytes, settings, is_new);
    let fit: BTreeSet<_> = new.iter().flat_map(|it| it.action.packs()).collect();
    let all = plan(packs, u64::MAX, settings, is_new);
    let all = all.iter().flat_map(|it| it.action.packs());
    let without_space = all.filter(|it| !fit.contains(it)).map(|pack| HeldPack {
        pack,
        by: "too little free space to copy their live data".to_owned(),
    });
    let without_space = without_space.collect();
    steps.extend(new);
    // Drops need no space and free some for the others. On a full disk that ended the last run at a
    // rewrite, each run would otherwise end at the same one.
    steps.sort_by_key(|step| !matches!(step.action, GcAction::Drop(_)));
    Ok((steps, without_space))
}

/// Returns how many of the steps are done together. Records in a condemned pack are stored again by
/// any upload that sends them, so few packs are condemned at a time: a slow run would cost space.
/// Drops are done before anything is copied, which may fail for lack of space.
fn together(steps: &[GcStep]) -> usize {
    let mut bytes = 0;
    let mut packs = 0;
    let is_drop = |step: &GcStep| matches!(step.action, GcAction::Drop(_));
    let first_is_drop = steps.first().is_some_and(is_drop);
    let some = steps.iter().take_while(|step| {
        let fits =
            packs == 0 || packs < limits::GC_CONDEMNED_PACKS && bytes < limits::GC_CONDEMNED_BYTES;
        bytes += step.copied_bytes;
        packs += step.action.packs().count();
        fits && is_drop(step) == first_is_drop
    });
    some.count()
}

/// The needed records of condemned packs, by the roots of this moment.
async fn needed(
    engine: &Arc<Engine>,
    pace: &Pace,
    packs: &[PackId],
    live: Option<Arc<Live>>,
    names_max: u64,
) -> Result<Needed> {
    let roots = roots::collect(engine).await?;
    let live = live.and_then(Arc::into_inner);
    match needed_by(engine, pace, packs, &roots, live, names_max).await {
        Err(Error::Damaged(_)) if roots::have_gone(engine, &roots) => {
            let roots = roots::collect(engine).await?;
            needed_by(engine, pace, packs, &roots, None, names_max).await
        }
        needed => needed,
    }
}

/// The records of condemned packs that `roots` need. `live` are marks of roots there were before.
async fn needed_by(
    engine: &Arc<Engine>,
    pace: &Pace,
    packs: &[PackId],
    roots: &[RootOwner],
    live: Option<Live>,
    names_max: u64,
) -> Result<Needed> {
    if let Some(live) = live {
        let live = live.and(engine, pace, roots).await?;
        return Ok(Needed::Marks(Arc::new(live)));
    }
    let packs: Arc<BTreeSet<_>> = Arc::new(packs.iter().copied().collect());
    let mut places = NeededPlaces::default();
    let mut from = Some([0; 32]);
    while let Some(start) = from {
        let ranks = Ranks::build(engine, start, names_max).await?;
        let live = mark(engine, &ranks, pace, roots).await?;
        places = places
            .add(engine, Arc::new(live), Arc::clone(&packs))
            .await?;
        from = ranks.until();
    }
    Ok(Needed::Places(places))
}
