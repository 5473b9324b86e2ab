//! Long looks at the index: they run on a thread that may block, and end with their caller.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::ranks::Ranks;
use crate::{
    Error, Result,
    engine::Engine,
    format::{Location, Name, PackKind},
    io::{MayBeShortage as _, offload},
    meta::IndexView,
};

/// Tells a look that nobody waits for its result any more.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted(Arc<AtomicBool>);

/// Ends a look when it is dropped.
struct Wanting(Wanted);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Wanted {
    /// Gives `row` the rows of packs of a kind from a name on, as long as the look is wanted.
    ///
    /// # Errors
    ///
    /// Errors of the index, and [`Error::Closing`] if the look is not wanted any more.
    pub(super) fn scan(
        &self,
        view: &dyn IndexView,
        kind: PackKind,
        from: &[u8; 32],
        row: &mut dyn FnMut(Name, Location) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut row = |name, place| match self.0.load(Ordering::Relaxed) {
            false => row(name, place),
            true => ControlFlow::Break(()),
        };
        view.scan_from(kind, from, &mut row)?;
        match self.0.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::Closing),
        }
    }
}

/// Looks at the index as it is at one moment. A look at a hundred million rows takes a minute, so
/// none of the store's own threads does it. If the index has to be opened again meanwhile, the look
/// starts over.
///
/// # Errors
///
/// Errors of `look` and of the index.
pub(super) async fn look<T, F>(engine: &Arc<Engine>, look: F) -> Result<T>
where
    T: Send + 'static,
    F: Fn(&dyn IndexView, &Wanted) -> Result<T> + Send + Sync + 'static,
{
    let look = Arc::new(look);
    let mut tries = engine.disk.patience().tries();
    loop {
        let wanting = Wanting(Wanted::default());
        let (meta, look, wanted) = (
            Arc::clone(&engine.meta),
            Arc::clone(&look),
            wanting.0.clone(),
        );
        let seen = offload(move || {
            let mut seen = None;
            meta.view(&mut |view| {
                seen = Some(look(view, &wanted)?);
                Ok(())
            })?;
            seen.ok_or_else(|| Error::Internal("an index showed nothing".to_owned()))
        });
        match seen.await? {
            Err(error) if error.is_shortage() && tries.again(&error).await => {}
            seen => return seen,
        }
    }
}

/// Folds all rows of a slice as they are now: the rows of its chunks, and in the first slice also
/// those of nodes. A fold that starts over begins with `init`.
///
/// # Errors
///
/// Errors of the index.
pub(super) async fn fold_rows<T, F>(
    engine: &Arc<Engine>,
    ranks: &Arc<Ranks>,
    init: T,
    fold: F,
) -> Result<T>
where
    T: Clone + Send + Sync + 'static,
    F: Fn(&mut T, &Ranks, Name, Location) + Send + Sync + 'static,
{
    let ranks = Arc::clone(ranks);
    let fold_view = move |view: &dyn IndexView, wanted: &Wanted| {
        let mut folded = init.clone();
        let mut row = |name: Name, place| {
            if !ranks.covers(&name) {
                return ControlFlow::Break(());
            }
            fold(&mut folded, &ranks, name, place);
            ControlFlow::Continue(())
        };
        if ranks.is_first() {
            wanted.scan(view, PackKind::Nodes, &[0; 32], &mut row)?;
        }
        wanted.scan(view, PackKind::Chunks, ranks.from(), &mut row)?;
        Ok(folded)
    };
    look(engine, fold_view).await
}
