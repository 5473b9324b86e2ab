//! Space: garbage collection, and what snapshots and volumes take.

use std::pin::pin;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use varve_store::{
    DeleteEstimate, GcPlan, GcProgress, GcReport, GcSettings, GcStatus, Store, Usage,
};

use super::{
    Service,
    error::{Error, Result},
    request,
    streams::{self, Items, Outlet},
};
use crate::{
    auth::{Action, Attempt, Caller, Resource, done},
    config::limited_rate,
    limits,
};

/// Options of a collection. `None` takes the setting of the daemon.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GcChoice {
    pub(crate) rewrite_dead_percent: Option<u32>,
    /// 0: no limit.
    pub(crate) bytes_per_second: Option<u64>,
}

/// The progress of a collection, and its report at the end.
#[derive(Debug, Clone)]
pub(crate) enum GcState {
    Running(GcProgress),
    Ended(GcReport),
}

/// The space that snapshots and volumes take, each in the order of the request.
#[derive(Debug, Clone)]
pub(crate) struct Usages {
    pub(crate) snapshots: Vec<Usage>,
    pub(crate) volumes: Vec<Usage>,
}

impl Service {
    /// Runs a collection. It continues if the caller goes away.
    pub(crate) fn run_gc(&self, caller: &Caller, choice: GcChoice) -> Result<Items<GcState>> {
        let attempt = self.begin(caller, Action::RunGc, &[])?;
        let settings = match self.gc_settings(choice) {
            Ok(settings) => settings,
            Err(error) => {
                attempt.fail(&error);
                return Err(error);
            }
        };
        let (store, stop) = (self.store().clone(), self.0.parts.stop.clone());
        let work = |outlet| run(store, settings, stop, outlet);
        Ok(streams::spawn(self.tasks(), attempt, None, work, tell))
    }

    /// The collection that is running, and the last one.
    pub(crate) async fn gc_status(&self, caller: &Caller) -> Result<GcStatus> {
        let status = async { Ok(self.store().gc_status()) };
        self.pass(caller, Action::GetGcStatus, &[], status).await
    }

    /// Asks the collection that is running to end.
    pub(crate) async fn stop_gc(&self, caller: &Caller) -> Result<GcStatus> {
        let store = self.store().clone();
        let change = async move {
            store.gc_stop();
            Ok(store.gc_status())
        };
        let call = (caller, Action::StopGc);
        self.change(call, &[], change, |attempt, status: &GcStatus| {
            let was_running = status.running.is_some();
            done!(attempt, was_running, "garbage collection asked to stop");
        })
        .await
    }

    /// Plans a collection without running it. The plan reads at the rate of the daemon and ignores
    /// the rate of the choice: the next collection waits for it.
    pub(crate) async fn plan_gc(&self, caller: &Caller, choice: GcChoice) -> Result<GcPlan> {
        self.pass(caller, Action::PlanGc, &[], async {
            let settings = self.gc_settings(GcChoice {
                bytes_per_second: None,
                ..choice
            })?;
            Ok(self.store().gc_plan(&settings).await?)
        })
        .await
    }

    /// Estimates the space that the deletion of snapshots would give back.
    pub(crate) async fn estimate_delete(
        &self,
        caller: &Caller,
        keys: &[String],
    ) -> Result<DeleteEstimate> {
        let on: Vec<_> = keys.iter().map(|key| Resource::Snapshot(key)).collect();
        let sight = self.sight(caller);
        self.pass(caller, Action::EstimateDelete, &on, async {
            if keys.is_empty() {
                return Err(Error::field("snapshots", "there are none"));
            }
            at_most("snapshots", keys.len())?;
            let keys = sight.snapshots(keys)?;
            let settings = &self.0.parts.gc;
            Ok(self.store().estimate_delete(&keys, settings).await?)
        })
        .await
    }

    /// Counts the space that snapshots and volumes take.
    pub(crate) async fn usage(
        &self,
        caller: &Caller,
        snapshots: &[String],
        volumes: &[String],
        with_shared: bool,
    ) -> Result<Usages> {
        let on = snapshots.iter().map(|key| Resource::Snapshot(key));
        let on: Vec<_> = on
            .chain(volumes.iter().map(|key| Resource::Volume(key)))
            .collect();
        let sight = self.sight(caller);
        self.pass(caller, Action::GetUsage, &on, async {
            at_most("snapshots", snapshots.len() + volumes.len())?;
            let keys = sight.snapshots(snapshots)?;
            let volumes = sight.volumes(volumes)?;
            let settings = &self.0.parts.gc;
            let found = self.store().usage(&keys, &volumes, with_shared, settings);
            let mut found = found.await?;
            let volumes = found.split_off(keys.len().min(found.len()));
            Ok(Usages {
                snapshots: found,
                volumes,
            })
        })
        .await
    }

    /// The settings of the daemon, replaced by the choices of a caller.
    fn gc_settings(&self, choice: GcChoice) -> Result<GcSettings> {
        let mut settings = self.0.parts.gc;
        if let Some(percent) = choice.rewrite_dead_percent {
            settings.rewrite_dead_percent = match u8::try_from(percent) {
                Ok(percent @ 1..=100) => percent,
                _ => {
                    let why = format!("{percent}, it is a percentage from 1 to 100");
                    return Err(Error::field("rewrite_dead_percent", why));
                }
            };
        }
        if let Some(rate) = choice.bytes_per_second {
            let limited = limited_rate(rate);
            let told = |why| Error::field("bytes_per_second", format!("{rate}, {why}"));
            let limited = limited.map_err(told);
            settings.bytes_per_second = limited?;
        }
        Ok(settings)
    }
}

fn at_most(field: &'static str, found: usize) -> Result<()> {
    let most = limits::USAGE_RECORDS_MAX;
    request::at_most(field, "snapshots and volumes", found, most)
}

/// Runs a collection to its end, and reports its progress to the caller while it listens.
async fn run(
    store: Store,
    settings: GcSettings,
    stop: CancellationToken,
    outlet: Outlet<GcState>,
) -> Result<GcReport> {
    let mut running = pin!(store.gc_run(settings));
    let mut stopping = pin!(stop.cancelled());
    let mut is_stopping = false;
    loop {
        tokio::select! {
            biased;
            report = &mut running => {
                let report = report?;
                // A caller that has gone away finds the report in the status.
                let _ = outlet.send(GcState::Ended(report.clone())).await;
                return Ok(report);
            }
            () = &mut stopping, if !is_stopping => {
                is_stopping = true;
                store.gc_end();
            }
            () = sleep(limits::GC_PROGRESS_INTERVAL) => {
                if let Some((_, progress)) = store.gc_status().running {
                    let _ = outlet.send(GcState::Running(progress)).await;
                }
            }
        }
    }
}

fn tell(attempt: &Attempt, report: &GcReport) {
    done!(
        attempt,
        packs_removed = report.packs_removed,
        removed_bytes = report.removed_bytes,
        copied_bytes = report.copied_bytes,
        dead_bytes = report.dead_bytes,
        live_bytes = report.live_bytes,
        packs_held = report.packs_held,
        packs_damaged = report.packs_damaged,
        stopped = report.stopped,
        "garbage collection ended"
    );
}
