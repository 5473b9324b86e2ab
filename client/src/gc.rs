//! Garbage collection, and what snapshots and volumes take.

use std::{fmt, time::SystemTime};

use varve_proto::v1;

use crate::{
    cancel::unless_cancelled,
    connect::Client,
    control::Control,
    convert::system_time,
    error::{Error, ErrorKind, Result},
    retry,
};

/// Options of a collection. `None` takes the setting of the daemon.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GcOptions {
    /// A pack is rewritten if at least this part of its bytes is dead, in percent: 1 to 100.
    pub rewrite_dead_percent: Option<u32>,
    /// The most bytes read and written in a second; 0: no limit.
    pub bytes_per_second: Option<u64>,
}

/// The phases of a collection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum GcPhase {
    /// It finds the live records, and has changed nothing.
    Marking,
    /// It copies live records out of packs, and removes the packs.
    Sweeping,
    /// A phase that this version of the client does not know.
    Unknown,
}

impl GcPhase {
    /// The phase as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Marking => "marking",
            Self::Sweeping => "sweeping",
            Self::Unknown => "unknown",
        }
    }
}

/// The progress of a collection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcProgress {
    /// Its phase.
    pub phase: GcPhase,
    /// Packs that are to be removed; 0 until that is known.
    pub packs_planned: u64,
    /// Packs that were removed.
    pub packs_removed: u64,
    /// Bytes of their files.
    pub removed_bytes: u64,
    /// Bytes of live records that were copied into other packs.
    pub copied_bytes: u64,
}

/// The outcome of a collection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcReport {
    /// Packs that were removed.
    pub packs_removed: u64,
    /// Bytes of their files. The store is smaller by these, less `copied_bytes`.
    pub removed_bytes: u64,
    /// Bytes that were written for that: copies of live records, with the headers and footers of
    /// their packs, and the footers of packs that were sealed.
    pub copied_bytes: u64,
    /// Bytes of dead records, as the collection found them.
    pub dead_bytes: u64,
    /// Bytes of live records, as the collection found them.
    pub live_bytes: u64,
    /// Packs that stay because work under way relies on them.
    pub packs_held: u64,
    /// The first of that work: snapshots and volumes that are being stored.
    pub held_by: Vec<String>,
    /// Packs that stay because live records in them are damaged, or whose files are gone.
    pub packs_damaged: u64,
    /// The first of that damage.
    pub damage: Vec<String>,
    /// True if it was stopped before its end.
    pub stopped: bool,
}

impl GcReport {
    /// Bytes by which the store has shrunk.
    #[must_use]
    pub fn returned_bytes(&self) -> u64 {
        self.removed_bytes.saturating_sub(self.copied_bytes)
    }
}

/// The collection that is running, and the last one that has ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcStatus {
    /// The one that is running.
    pub running: Option<GcRunning>,
    /// The last one of this store.
    pub last: Option<GcEnded>,
}

/// A collection that is running.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcRunning {
    /// When it began.
    pub started_at: Option<SystemTime>,
    /// Its progress.
    pub progress: GcProgress,
}

/// A collection that has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcEnded {
    /// When it began.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub ended_at: Option<SystemTime>,
    /// Its report, or the reason why it failed.
    pub outcome: Result<GcReport, String>,
}

/// A plan of a collection.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcPlan {
    /// The first steps.
    pub steps: Vec<GcStep>,
    /// Packs that are dropped: nothing in them is live.
    pub packs_dropped: u64,
    /// Packs that are rewritten: enough of each is dead.
    pub packs_rewritten: u64,
    /// Packs that are merged, because they are short.
    pub packs_merged: u64,
    /// Bytes of live records that are copied.
    pub copied_bytes: u64,
    /// Bytes of the files that are removed. The store shrinks by these, less `copied_bytes`.
    pub removed_bytes: u64,
    /// The space that the store takes now.
    pub usage: StoreUsage,
}

impl GcPlan {
    /// Bytes by which the store would shrink.
    #[must_use]
    pub fn returned_bytes(&self) -> u64 {
        self.removed_bytes.saturating_sub(self.copied_bytes)
    }
}

/// The actions of a collection on packs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum GcAction {
    /// A pack is removed: nothing in it is live.
    Drop,
    /// A pack is removed after its live records are copied.
    Rewrite,
    /// Several packs are removed after their live records are copied into one.
    Merge,
    /// An action that this version of the client does not know.
    Unknown,
}

impl GcAction {
    /// The action as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Rewrite => "rewrite",
            Self::Merge => "merge",
            Self::Unknown => "unknown",
        }
    }
}

/// A step of a collection.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct GcStep {
    /// The action.
    pub action: GcAction,
    /// Names of the packs that are removed.
    pub packs: Vec<String>,
    /// Bytes of live records that are copied.
    pub copied_bytes: u64,
    /// Bytes of the files that are removed.
    pub removed_bytes: u64,
}

/// The space that the whole store takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct StoreUsage {
    /// Sum of the sizes of all snapshots, in bytes.
    pub logical_bytes: u64,
    /// Sum of their bytes that are not holes.
    pub data_bytes: u64,
    /// Plain bytes of the live chunks, each counted once.
    pub unique_bytes: u64,
    /// Bytes of live records as they are stored: chunks and tree nodes.
    pub live_bytes: u64,
    /// Bytes of dead records.
    pub dead_bytes: u64,
    /// Bytes of the files of all packs.
    pub file_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
}

/// An estimate of the space that a deletion of snapshots gives back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct DeleteEstimate {
    /// Stored bytes that nothing but these snapshots needs.
    pub dead_bytes: u64,
    /// Bytes by which the deletion makes the store shrink further in the next collection.
    pub returned_bytes: u64,
}

/// The space that snapshots and volumes take, each in the order of the request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Usages {
    /// Usage of the snapshots.
    pub snapshots: Vec<Usage>,
    /// Usage of the bases of the volumes, without their journals.
    pub volumes: Vec<Usage>,
}

/// The space that a snapshot, or the base of a volume, takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Stored bytes that nothing else needs.
    pub exclusive_bytes: u64,
    /// Stored bytes that other snapshots or volumes need, too; 0 unless they were requested.
    pub shared_bytes: u64,
}

/// A collection to be run: see [`Client::run_gc`].
#[must_use = "nothing is collected until this is run"]
pub struct GcRun<'a> {
    client: &'a Client,
    options: GcOptions,
    control: Control,
    on_progress: Box<dyn FnMut(&GcProgress) + Send + 'a>,
}

impl Client {
    /// Prepares a collection: the daemon removes what no snapshot, volume or work under way needs.
    pub fn run_gc(&self, options: GcOptions) -> GcRun<'_> {
        GcRun {
            client: self,
            options,
            control: Control::default(),
            on_progress: Box::new(|_| ()),
        }
    }

    /// Returns the collection that is running, and the last one that has ended.
    ///
    /// # Errors
    ///
    /// Errors of the connection.
    pub async fn gc_status(&self) -> Result<GcStatus> {
        const WHAT: &str = "get the status of garbage collection";
        let answer = retry::idempotent(|| {
            let mut service = self.gc_service();
            async move { service.get_gc_status(v1::GetGcStatusRequest {}).await }
        })
        .await;
        let answer = answer.map_err(|status| Error::rpc(WHAT, status))?;
        GcStatus::from_proto(WHAT, answer.into_inner())
    }

    /// Asks the collection that is running to end, and does not wait for its end. Returns the
    /// status at that moment: `running` is `None` if none was running.
    ///
    /// # Errors
    ///
    /// Errors of the connection.
    pub async fn stop_gc(&self) -> Result<GcStatus> {
        const WHAT: &str = "stop garbage collection";
        let answer = retry::idempotent(|| {
            let mut service = self.gc_service();
            async move { service.stop_gc(v1::StopGcRequest {}).await }
        })
        .await;
        let answer = answer.map_err(|status| Error::rpc(WHAT, status))?;
        GcStatus::from_proto(WHAT, answer.into_inner())
    }

    /// Returns what a collection would do now. For that the daemon looks at the content of all
    /// snapshots and volumes, at its own rate: it ignores the rate of the options.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for an option that is not valid, [`ErrorKind::Conflict`] if this
    /// takes longer than five seconds while a collection runs, [`ErrorKind::Damaged`] if a tree
    /// node cannot be read; errors of the connection.
    pub async fn plan_gc(&self, options: GcOptions) -> Result<GcPlan> {
        const WHAT: &str = "plan a garbage collection";
        let request = v1::PlanGcRequest {
            options: Some(options.to_proto()),
        };
        let answer = retry::idempotent(|| {
            let mut service = self.gc_service();
            async move { service.plan_gc(request).await }
        })
        .await;
        let answer = answer.map_err(|status| Error::rpc(WHAT, status))?;
        Ok(GcPlan::from_proto(answer.into_inner()))
    }

    /// Returns how much the deletion of these snapshots, by name or id, would give back: at most
    /// [`USAGE_RECORDS_MAX`](crate::USAGE_RECORDS_MAX) of them. For that the daemon looks at the
    /// content of all snapshots and volumes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if one does not exist, [`ErrorKind::Conflict`] if this takes longer
    /// than five seconds while a collection runs, [`ErrorKind::Damaged`] if a tree node cannot be
    /// read; errors of the connection.
    pub async fn estimate_delete(&self, snapshots: Vec<String>) -> Result<DeleteEstimate> {
        let request = v1::EstimateDeleteRequest { snapshots };
        let answer = retry::idempotent(|| {
            let (mut service, request) = (self.gc_service(), request.clone());
            async move { service.estimate_delete(request).await }
        })
        .await;
        let estimate = answer
            .map_err(|status| Error::rpc("estimate a deletion", status))?
            .into_inner();
        Ok(DeleteEstimate {
            dead_bytes: estimate.dead_bytes,
            returned_bytes: estimate.returned_bytes,
        })
    }

    /// Returns how much space these snapshots and volumes, by name or id, take: together at most
    /// [`USAGE_RECORDS_MAX`](crate::USAGE_RECORDS_MAX). For that the daemon looks at the content of
    /// all snapshots and volumes. Shared bytes take longer.
    ///
    /// # Errors
    ///
    /// As for [`estimate_delete`](Self::estimate_delete).
    pub async fn usage(
        &self,
        snapshots: Vec<String>,
        volumes: Vec<String>,
        with_shared: bool,
    ) -> Result<Usages> {
        const WHAT: &str = "get what snapshots and volumes take";
        let request = v1::GetUsageRequest {
            snapshots,
            volumes,
            with_shared,
        };
        let answer = retry::idempotent(|| {
            let (mut service, request) = (self.gc_service(), request.clone());
            async move { service.get_usage(request).await }
        })
        .await;
        let answer = answer.map_err(|status| Error::rpc(WHAT, status))?;
        let v1::GetUsageResponse { snapshots, volumes } = answer.into_inner();
        for (found, asked) in [
            (snapshots.len(), request.snapshots.len()),
            (volumes.len(), request.volumes.len()),
        ] {
            if found != asked {
                let why = format!("{found} answers to {asked} questions");
                return Err(Error::protocol(WHAT, why));
            }
        }
        Ok(Usages {
            snapshots: snapshots.into_iter().map(Usage::from_proto).collect(),
            volumes: volumes.into_iter().map(Usage::from_proto).collect(),
        })
    }
}

impl<'a> GcRun<'a> {
    /// Sets the control of the call. Cancelling it does not stop the collection, which continues in
    /// the daemon: see [`Client::stop_gc`]. Its progress counts bytes of removed files.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Sets a function that takes the progress whenever the daemon reports it.
    pub fn on_progress(mut self, take: impl FnMut(&GcProgress) + Send + 'a) -> Self {
        self.on_progress = Box::new(take);
        self
    }

    /// Runs the collection, and waits for its end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if a collection is running, [`ErrorKind::Invalid`] for an option
    /// that is not valid, [`ErrorKind::Damaged`] if a tree node cannot be read,
    /// [`ErrorKind::OutOfSpace`], [`ErrorKind::Cancelled`]; errors of the connection.
    pub async fn run(self) -> Result<GcReport> {
        use v1::run_gc_response::State;

        const WHAT: &str = "collect garbage";
        let Self {
            client,
            options,
            control,
            mut on_progress,
        } = self;
        let running = async {
            let request = v1::RunGcRequest {
                options: Some(options.to_proto()),
            };
            let answers = client.gc_service().run_gc(request).await;
            let mut answers = answers
                .map_err(|status| Error::rpc(WHAT, status))?
                .into_inner();
            while let Some(answer) = answers
                .message()
                .await
                .map_err(|status| Error::rpc(WHAT, status))?
            {
                match answer.state {
                    Some(State::Report(report)) => return Ok(GcReport::from_proto(report)),
                    Some(State::Progress(progress)) => {
                        let progress = GcProgress::from_proto(&progress);
                        control.progress.set_done(progress.removed_bytes);
                        on_progress(&progress);
                    }
                    None => {}
                }
            }
            let why = "the daemon ended the answer without a report";
            Err(Error::new(ErrorKind::Internal, WHAT, why))
        };
        let outcome = "the collection goes on in the daemon";
        unless_cancelled(WHAT, outcome, &control.cancel, running).await
    }
}

impl fmt::Debug for GcRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcRun")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl GcOptions {
    fn to_proto(self) -> v1::GcOptions {
        v1::GcOptions {
            rewrite_dead_percent: self.rewrite_dead_percent,
            bytes_per_second: self.bytes_per_second,
        }
    }
}

impl GcProgress {
    fn from_proto(progress: &v1::GcProgress) -> Self {
        Self {
            phase: match progress.phase() {
                v1::GcPhase::Marking => GcPhase::Marking,
                v1::GcPhase::Sweeping => GcPhase::Sweeping,
                v1::GcPhase::Unspecified => GcPhase::Unknown,
            },
            packs_planned: progress.packs_planned,
            packs_removed: progress.packs_removed,
            removed_bytes: progress.removed_bytes,
            copied_bytes: progress.copied_bytes,
        }
    }
}

impl GcReport {
    fn from_proto(report: v1::GcReport) -> Self {
        Self {
            packs_removed: report.packs_removed,
            removed_bytes: report.removed_bytes,
            copied_bytes: report.copied_bytes,
            dead_bytes: report.dead_bytes,
            live_bytes: report.live_bytes,
            packs_held: report.packs_held,
            held_by: report.held_by,
            packs_damaged: report.packs_damaged,
            damage: report.damage,
            stopped: report.stopped,
        }
    }
}

impl GcStatus {
    pub(crate) fn from_proto(what: &str, status: v1::GcStatus) -> Result<Self> {
        let running = status.running.map(|running| GcRunning {
            started_at: running.started_at.and_then(system_time),
            progress: GcProgress::from_proto(&running.progress.unwrap_or_default()),
        });
        let last = status.last.map(|last| GcEnded::from_proto(what, last));
        Ok(Self {
            running,
            last: last.transpose()?,
        })
    }
}

impl GcEnded {
    fn from_proto(what: &str, ended: v1::GcEnded) -> Result<Self> {
        use v1::gc_ended::Outcome;

        Ok(Self {
            started_at: ended.started_at.and_then(system_time),
            ended_at: ended.ended_at.and_then(system_time),
            outcome: match ended.outcome {
                Some(Outcome::Report(report)) => Ok(GcReport::from_proto(report)),
                Some(Outcome::Error(error)) => Err(error),
                None => return Err(Error::protocol(what, "a collection without its outcome")),
            },
        })
    }
}

impl GcPlan {
    fn from_proto(plan: v1::GcPlan) -> Self {
        let usage = plan.usage.unwrap_or_default();
        Self {
            steps: plan.steps.into_iter().map(GcStep::from_proto).collect(),
            packs_dropped: plan.packs_dropped,
            packs_rewritten: plan.packs_rewritten,
            packs_merged: plan.packs_merged,
            copied_bytes: plan.copied_bytes,
            removed_bytes: plan.removed_bytes,
            usage: StoreUsage {
                logical_bytes: usage.logical_bytes,
                data_bytes: usage.data_bytes,
                unique_bytes: usage.unique_bytes,
                live_bytes: usage.live_bytes,
                dead_bytes: usage.dead_bytes,
                file_bytes: usage.file_bytes,
                free_bytes: usage.free_bytes,
            },
        }
    }
}

impl GcStep {
    fn from_proto(step: v1::GcStep) -> Self {
        Self {
            action: match step.action() {
                v1::GcAction::Drop => GcAction::Drop,
                v1::GcAction::Rewrite => GcAction::Rewrite,
                v1::GcAction::Merge => GcAction::Merge,
                v1::GcAction::Unspecified => GcAction::Unknown,
            },
            packs: step.packs,
            copied_bytes: step.copied_bytes,
            removed_bytes: step.removed_bytes,
        }
    }
}

impl Usage {
    fn from_proto(usage: v1::Usage) -> Self {
        Self {
            exclusive_bytes: usage.exclusive_bytes,
            shared_bytes: usage.shared_bytes,
        }
    }
}
