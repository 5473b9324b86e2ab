//! Work that the daemon begins by itself, when it is time.
//!
//! - `due`: decides when a collection is due.

mod due;

use std::{path::PathBuf, pin::pin, time::Duration};

use jiff::Zoned;
use rustix::fs::statvfs;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use varve_store::{Error, GcReport, Store, now_ns};

use self::due::{Moment, Reason};
use crate::{
    config::{GcConfig, GcTime},
    limits,
};

/// Begins collections by itself.
#[derive(Debug)]
pub(crate) struct Collections {
    store: Store,
    config: GcConfig,
    data_dir: PathBuf,
    stop: CancellationToken,
}

impl Collections {
    pub(crate) fn new(
        store: Store,
        config: GcConfig,
        data_dir: PathBuf,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            config,
            data_dir,
            stop,
        }
    }

    /// Begins collections when they are due, until the daemon stops. Waits for the one that runs
    /// then.
    pub(crate) async fn run(self) {
        let (first, look) = match self.config.when {
            GcTime::Off => return,
            GcTime::Every(time) => (time.min(limits::GC_FIRST), time.min(limits::GC_LOOK)),
            GcTime::Window(_) => (limits::GC_FIRST, limits::GC_LOOK),
        };
        let mut pause = first;
        while self.stop.run_until_cancelled(sleep(pause)).await.is_some() {
            pause = look;
            let moment = match moment(self.data_dir.clone()).await {
                Ok(moment) => moment,
                Err(error) => {
                    warn!(error, "it is unknown if a garbage collection is due");
                    continue;
                }
            };
            let status = self.store.gc_status();
            let last = status.last.map(|last| last.started_at_ns);
            if status.running.is_none()
                && let Some(reason) = moment.due(self.config.when, last)
            {
                self.collect(reason, &moment).await;
            }
        }
    }

    /// Runs a collection.
    async fn collect(&self, reason: Reason, moment: &Moment) {
        let mut settings = self.config.settings;
        if moment.is_low_on_space() {
            settings.rewrite_dead_percent = settings.rewrite_dead_percent.div_ceil(2);
        }
        info!(
            ?reason,
            free_bytes = moment.free_bytes,
            "garbage collection is due"
        );
        let begun = tokio::time::Instant::now();
        let mut running = pin!(self.store.gc_run(settings));
        let mut over = pin!(self.over(reason));
        let mut is_over = false;
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut running => break outcome,
                () = &mut over, if !is_over => {
                    is_over = true;
                    match self.stop.is_cancelled() {
                        // The daemon continues the collection after its next start.
                        true => self.store.gc_end(),
                        false => self.store.gc_stop(),
                    }
                }
            }
        };
        tell(begun.elapsed(), outcome);
    }

    /// Waits until a collection should end: the daemon stops, or the window of the day is over.
    async fn over(&self, reason: Reason) {
        let window = match self.config.when {
            GcTime::Window(window) if reason == Reason::Window => window,
            _ => return self.stop.cancelled().await,
        };
        while self
            .stop
            .run_until_cancelled(sleep(limits::GC_LOOK))
            .await
            .is_some()
        {
            if window.minutes_in(minute_of_day()).is_none() {
                return;
            }
        }
    }
}

/// Logs the end of a collection.
fn tell(elapsed: Duration, outcome: Result<GcReport, Error>) {
    let seconds = elapsed.as_secs_f64();
    match outcome {
        Ok(report) => info!(
            seconds,
            packs_removed = report.packs_removed,
            removed_bytes = report.removed_bytes,
            copied_bytes = report.copied_bytes,
            dead_bytes = report.dead_bytes,
            live_bytes = report.live_bytes,
            packs_held = report.packs_held,
            packs_damaged = report.packs_damaged,
            stopped = report.stopped,
            "garbage collection ended"
        ),
        Err(error) => {
            let error = error.to_string();
            warn!(seconds, error, "garbage collection failed");
        }
    }
}

/// The facts for the decision now.
async fn moment(data_dir: PathBuf) -> Result<Moment, String> {
    // A file system may take long to answer.
    let found = tokio::task::spawn_blocking(move || statvfs(&data_dir)).await;
    let found = found.map_err(|error| error.to_string())?;
    let found = found.map_err(|error| error.to_string())?;
    Ok(Moment {
        unix_ns: now_ns(),
        minute_of_day: minute_of_day(),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// Minutes since midnight, by local time.
fn minute_of_day() -> u16 {
    let now = Zoned::now();
    u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs())
}
