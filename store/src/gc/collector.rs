//! The collector of a store: one run at a time.

use std::{num::NonZeroU64, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    plan::GcSettings,
    run::{GcProgress, Watch, reason, run},
    survey::names_of_a_pass,
};
use crate::{
    Error, Result,
    engine::{Engine, Priority, joined},
    format::{GcReport, LastRun},
    meta,
};

/// The runs of a store.
#[derive(Debug)]
pub(crate) struct Collector {
    engine: Arc<Engine>,
    state: Mutex<State>,
    /// Held while a run is under way.
    running: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    last: Option<LastRun>,
    closed: bool,
}

#[derive(Debug)]
struct Running {
    started_at_ns: u64,
    watch: Arc<Watch>,
}

/// The state of the collector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcStatus {
    /// The run under way: when it began, in nanoseconds since 1970, and how far it is.
    pub running: Option<(u64, GcProgress)>,
    /// The last run that ended.
    pub last: Option<LastRun>,
}

impl Collector {
    /// Makes the collector of a store that has just been opened.
    pub(crate) async fn new(engine: Arc<Engine>) -> Arc<Self> {
        let last = engine.meta(Priority::Manage, |meta| meta.last_run()).await;
        let last = last.unwrap_or_else(|error| {
            tracing::warn!(%error, "the last garbage collection is not known");
            None
        });
        Arc::new(Self {
            engine,
            state: Mutex::new(State {
                last,
                ..State::default()
            }),
            running: AsyncMutex::default(),
        })
    }

    /// Runs once, in a task of its own: the run goes on if the caller goes away.
    pub(crate) async fn run(self: &Arc<Self>, settings: GcSettings) -> Result<GcReport> {
        let watch = Arc::<Watch>::default();
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::Closing);
            }
            if state.running.is_some() {
                return Err(Error::Collecting);
            }
            state.running = Some(Running {
                started_at_ns: meta::now_ns(),
                watch: Arc::clone(&watch),
            });
        }
        tracing::info!(
            rewrite_dead_percent = settings.rewrite_dead_percent,
            bytes_per_second = settings.bytes_per_second.map_or(0, NonZeroU64::get),
            "garbage collection begins"
        );
        let ending = Ending(Arc::clone(self));
        #[expect(
            clippy::disallowed_methods,
            reason = "`close` waits for it; a run that is dropped leaves packs without a writer"
        )]
        let task = tokio::spawn(async move {
            let collector = &ending.0;
            let _running = collector.running.lock().await;
            let outcome = run(&collector.engine, &settings, names_of_a_pass(), &watch).await;
            if let Some(last) = collector.ended(&outcome) {
                collector.keep(last).await;
            }
            outcome
        });
        joined(task).await
    }

    /// Notes the end of the run under way, unless noted already. Returns the outcome to keep.
    fn ended(&self, outcome: &Result<GcReport>) -> Option<LastRun> {
        let mut state = self.state.lock();
        let running = state.running.take()?;
        let outcome = outcome.as_ref().cloned();
        let last = LastRun {
            started_at_ns: running.started_at_ns,
            ended_at_ns: meta::now_ns(),
            outcome: outcome.map_err(|error| reason(&error.to_string())),
        };
        state.last = Some(last.clone());
        // A run that the store has stopped is not over: the next start goes on with it.
        (!state.closed).then_some(last)
    }

    /// Keeps the outcome of a run over a restart. If it is lost, the next run comes too early, and
    /// nothing worse happens.
    async fn keep(&self, last: LastRun) {
        if let Err(error) = self.engine.commit.note_run(last).await {
            tracing::warn!(%error, "the outcome of a garbage collection is lost at a restart");
        }
    }

    /// Makes the run under way end after the current pack, and lifts its rate limit until then.
    pub(crate) fn stop(&self) {
        if let Some(running) = &self.state.lock().running {
            running.watch.stop.set();
        }
    }

    /// Like [`stop`](Self::stop), because the store is about to close: no other run begins, and
    /// after a restart the run under way does not count as the last one.
    pub(crate) fn end(&self) {
        self.state.lock().closed = true;
        self.stop();
    }

    pub(crate) fn status(&self) -> GcStatus {
        let state = self.state.lock();
        let running = state.running.as_ref();
        GcStatus {
            running: running.map(|it| (it.started_at_ns, *it.watch.progress.lock())),
            last: state.last.clone(),
        }
    }

    /// Stops the run under way, waits for its end, and lets no other run begin.
    pub(crate) async fn close(&self) {
        self.end();
        drop(self.running.lock().await);
    }
}

/// Notes the end of a run that panicked.
struct Ending(Arc<Collector>);

impl Drop for Ending {
    fn drop(&mut self) {
        let panicked = Error::Internal("the collection has panicked".to_owned());
        let _ = self.0.ended(&Err(panicked));
    }
}
