//! A survey of all packs: the records in them that some roots need, and the rest.

use std::sync::Arc;

use super::{
    mark::{Live, MARK_BITS, mark},
    pace::Pace,
    ranks::{Ranks, names_max},
    roots::{self, RootOwner},
    tally::{PackTally, Tallies},
};
use crate::{Error, Result, engine::Engine};

/// The content of the packs.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) packs: Vec<PackTally>,
    /// Plain bytes of the chunks that are needed.
    pub(crate) live_plain_bytes: u64,
    /// Number of passes over all leaves: one for each slice of names.
    pub(crate) passes: u32,
    /// The marks, if one pass was enough.
    pub(crate) live: Option<Arc<Live>>,
}

/// Number of names that one pass ranks and marks, by the memory that there is.
pub(crate) const fn names_of_a_pass() -> u64 {
    names_max(MARK_BITS)
}

/// Finds out how much of each pack `roots` need. The caller has the turn to take stock, and has
/// borrowed the memory for it.
///
/// # Errors
///
/// As [`mark`](super::mark::mark), and [`Error::Limit`](crate::Error::Limit) if there are too many
/// tree nodes for the memory.
pub(crate) async fn survey(
    engine: &Arc<Engine>,
    pace: &Pace,
    roots: &[RootOwner],
    names_max: u64,
) -> Result<Survey> {
    let mut tallies = Tallies::default();
    let mut passes = 0;
    let mut from = Some([0; 32]);
    let mut last = None;
    while let Some(start) = from {
        // Frees the marks of a slice before those of the next are made.
        drop(last.take());
        let ranks = Ranks::build(engine, start, names_max).await?;
        let live = Arc::new(mark(engine, &ranks, pace, roots).await?);
        tallies = tallies.count(engine, Arc::clone(&live)).await?;
        passes += 1;
        from = ranks.until();
        last = Some(live);
    }
    Ok(Survey {
        live_plain_bytes: tallies.live_plain_bytes(),
        packs: tallies.finish(engine).await?,
        passes,
        live: last.filter(|_| passes == 1),
    })
}

/// The same for all roots that there are.
///
/// # Errors
///
/// As [`survey`].
pub(crate) async fn survey_all(
    engine: &Arc<Engine>,
    pace: &Pace,
    names_max: u64,
) -> Result<Survey> {
    let roots = roots::collect(engine).await?;
    match survey(engine, pace, &roots, names_max).await {
        Err(Error::Damaged(_)) if roots::have_gone(engine, &roots) => {
            let roots = roots::collect(engine).await?;
            survey(engine, pace, &roots, names_max).await
        }
        surveyed => surveyed,
    }
}
