//! A survey of everything: what the packs hold, for the needs of some roots.

use std::sync::Arc;

use super::{
    mark::{Live, MARK_BITS, mark},
    pace::Pace,
    ranks::{Ranks, names_max},
    roots::RootOwner,
    tally::{PackTally, Tallies},
};
use crate::{Result, engine::Engine};

/// What the packs hold.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) packs: Vec<PackTally>,
    /// Plain bytes of the chunks that are needed.
    pub(crate) live_plain_bytes: u64,
    /// How often all leaves were read: once for each slice of names.
    pub(crate) passes: u32,
    /// The marks, if one pass was enough.
    pub(crate) live: Option<Arc<Live>>,
}

/// Names that one pass ranks and marks, by the memory that there is.
pub(crate) const fn names_of_a_pass() -> u64 {
    names_max(MARK_BITS)
}

/// Finds out what all packs hold that `roots` need. The caller has the turn to take stock, and has
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
        // The marks of a slice go before those of the next come.
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
