//! The copies of a daemon: begins, retries, cancels and shows them.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use varve_store::{AccountId, CopyId, CopyRecord, Error, RemoteRecord, Store, now_ns};

use super::{
    job::{Begun, Job, Status},
    patience::{Next, Patience},
    remotes::Source,
    source::CopyError,
    transfer::{self, CopyEngine, Estimate},
};
use crate::{config::CopiesConfig, limits, resources::shares::Shares, tasks::Tasks};

/// A copy to begin.
#[derive(Debug, Clone)]
pub(crate) struct NewCopy {
    /// The account that the copy and its snapshot will belong to.
    pub(crate) owner: AccountId,
    pub(crate) source: Source,
    /// Name of the snapshot here; empty: as at the source.
    pub(crate) name: String,
    /// Tags in addition to those at the source.
    pub(crate) tags: BTreeMap<String, String>,
    /// Limit of the rate; 0: none.
    pub(crate) bytes_per_second: u64,
}

/// Copies of snapshots from other stores to this one. Clones are handles to the same table.
#[derive(Debug, Clone)]
pub(crate) struct Copies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: CopyEngine,
    tasks: Tasks,
    stop: CancellationToken,
    /// In the order in which they were begun.
    jobs: Mutex<Vec<Arc<Job>>>,
    /// Held while a copy is begun or a remote is removed, so that the remote of a copy exists.
    changing: AsyncMutex<()>,
    /// Turns of running copies of the administrator.
    turns: Shares,
    /// Those of all other accounts: they take none from the administrator.
    turns_of_accounts: Shares,
}

impl Copies {
    /// A table without copies: see [`resume`](Self::resume). Copies that are under way at `stop`
    /// continue at the next start.
    pub(crate) fn new(
        store: Store,
        tls: CopiesConfig,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            engine: CopyEngine::new(store, tls),
            tasks,
            stop,
            jobs: Mutex::default(),
            changing: AsyncMutex::default(),
            turns: transfer::places(
                "copies",
                limits::COPIES_RUNNING_MAX,
                (limits::COPIES_RUNNING_MAX, 0),
            ),
            turns_of_accounts: transfer::places(
                "copies of accounts",
                limits::COPIES_RUNNING_MAX,
                (0, 1),
            ),
        }))
    }

    /// Loads the copies that have records, and continues those under way.
    ///
    /// # Errors
    ///
    /// The catalog cannot be read.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        for record in self.0.engine.store.copies().await? {
            let job = Arc::new(Job::new(record));
            self.0.jobs.lock().push(Arc::clone(&job));
            if !job.state().has_ended() {
                self.start(job);
            }
        }
        Ok(())
    }

    /// Begins a copy.
    pub(crate) async fn begin(&self, new: NewCopy) -> Result<Status, CopyError> {
        let remotes = &self.0.engine.remotes;
        remotes.address(new.owner, &new.source).await?;
        let _changing = self.0.changing.lock().await;
        remotes.check(new.owner, &new.source).await?;
        let (id, source) = (CopyId::random()?, new.source);
        let job = Arc::new(Job::new(CopyRecord {
            owner: new.owner,
            allow_plaintext: source.allow_plaintext,
            name: new.name,
            tags: new.tags,
            bytes_per_second: new.bytes_per_second,
            ..CopyRecord::begun(id, source.endpoint, source.snapshot, now_ns())
        }));
        let forgotten: Vec<_> = {
            let mut jobs = self.0.jobs.lock();
            let ended = jobs.iter().filter(|job| job.state().has_ended()).count();
            if jobs.len() - ended >= limits::COPIES_MAX {
                return Err(Error::Limit(format!(
                    "{} copies are under way, the most at one time; cancel some, or try again later",
                    limits::COPIES_MAX
                ))
                .into());
            }
            let under_way = jobs.iter().filter(|job| !job.state().has_ended());
            let is_account = |owner| owner != AccountId::ADMINISTRATOR;
            let of_accounts = under_way.filter(|job| is_account(job.owner()));
            let (own, others): (Vec<_>, Vec<_>) =
                of_accounts.partition(|job| job.owner() == new.owner);
            // They leave some to the administrator.
            let is_full = own.len() + others.len() >= limits::COPIES_OF_ACCOUNTS_MAX;
            if is_account(new.owner) && (is_full || own.len() >= limits::COPIES_OF_ACCOUNT_MAX) {
                return Err(Error::Limit(format!(
                    "as many copies are under way as the account may have, {}, or all accounts \
                     together, {}; cancel some, or try again later",
                    limits::COPIES_OF_ACCOUNT_MAX,
                    limits::COPIES_OF_ACCOUNTS_MAX
                ))
                .into());
            }
            let mut too_many = (ended + 1).saturating_sub(limits::COPIES_ENDED_MAX);
            let forgotten = jobs.extract_if(.., |job| {
                let forget = too_many > 0 && job.settled.is_cancelled();
                too_many -= usize::from(forget);
                forget
            });
            forgotten.map(|job| job.id).collect()
        };
        self.0.engine.store.forget_copies(forgotten).await?;
        // From this record on the copy survives a restart.
        self.0.engine.store.put_copy(job.record()).await?;
        self.0.jobs.lock().push(Arc::clone(&job));
        self.start(Arc::clone(&job));
        Ok(job.status())
    }

    fn start(&self, job: Arc<Job>) {
        let inner = Arc::clone(&self.0);
        drop(self.0.tasks.spawn("copy", async move {
            let stop = inner.stop.clone();
            let driven = Box::pin(inner.drive(&job));
            // A stopped copy continues at the next start.
            let _ = stop.run_until_cancelled_owned(driven).await;
        }));
    }

    /// The status of a copy.
    pub(crate) fn status(&self, id: CopyId) -> Result<Status, Error> {
        Ok(self.0.find(id)?.status())
    }

    /// Copies that were begun before `before`, the newest first. The iterator makes each status
    /// when it reaches it.
    pub(crate) fn list(&self, before: Option<Begun>) -> impl Iterator<Item = Status> + use<> {
        let mut jobs: Vec<_> = {
            let jobs = self.0.jobs.lock();
            let jobs = jobs.iter().map(|job| (job.begun(), Arc::clone(job)));
            jobs.filter(|(begun, _)| before.is_none_or(|before| *begun < before))
                .collect()
        };
        jobs.sort_unstable_by_key(|(begun, _)| Reverse(*begun));
        jobs.into_iter().map(|(_, job)| job.status())
    }

    /// Cancels a copy, and waits until that is recorded.
    pub(crate) async fn cancel(&self, id: CopyId) -> Result<Status, Error> {
        let job = self.0.find(id)?;
        job.cancel.cancel();
        // Wait until the record is written: otherwise the copy would continue after a restart.
        tokio::select! {
            () = job.settled.cancelled() => Ok(job.status()),
            () = self.0.stop.cancelled() => Err(Error::Closing),
        }
    }

    /// Limits the rate of a copy from now on.
    pub(crate) async fn limit(&self, id: CopyId, bytes_per_second: u64) -> Result<Status, Error> {
        let job = self.0.find(id)?;
        job.limit(bytes_per_second);
        let _writing = job.writing.lock().await;
        if !job.settled.is_cancelled() {
            self.0.engine.store.put_copy(job.to_record()).await?;
        }
        Ok(job.status())
    }

    /// Estimates how much a copy of an account would fetch.
    pub(crate) async fn estimate(
        &self,
        owner: AccountId,
        source: &Source,
    ) -> Result<Estimate, CopyError> {
        self.0.engine.estimate(owner, source).await
    }

    /// Adds a remote. Returns its record with the time at which it was added.
    pub(crate) async fn add_remote(&self, remote: RemoteRecord) -> Result<RemoteRecord, CopyError> {
        let remote = RemoteRecord {
            created_at_ns: now_ns(),
            ..remote
        };
        self.0.engine.remotes.add(remote.clone()).await?;
        Ok(remote)
    }

    /// Removes a remote that no copy under way comes from.
    pub(crate) async fn remove_remote(
        &self,
        owner: AccountId,
        name: String,
    ) -> Result<(), CopyError> {
        let _changing = self.0.changing.lock().await;
        let user = {
            let jobs = self.0.jobs.lock();
            let mut jobs = jobs.iter();
            let is_of = |job: &Arc<Job>| job.owner() == owner && job.source.endpoint == name;
            let user = jobs.find(|job| is_of(job) && !job.state().has_ended());
            user.map(|job| job.id)
        };
        if let Some(id) = user {
            return Err(CopyError::Refused(format!(
                "{id} is under way from remote {name:?}: wait for it, or cancel it"
            )));
        }
        Ok(self.0.engine.store.remove_remote(owner, name).await?)
    }

    /// Lists all remotes, by owner and name.
    pub(crate) async fn remotes(&self) -> Result<Vec<RemoteRecord>, Error> {
        self.0.engine.store.remotes().await
    }
}

impl Inner {
    fn find(&self, id: CopyId) -> Result<Arc<Job>, Error> {
        let jobs = self.jobs.lock();
        let found = jobs.iter().find(|job| job.id == id);
        found.cloned().ok_or_else(|| Error::NotFound {
            what: "copy",
            name: id.to_string(),
        })
    }

    /// Drives a copy to its end, through all retries.
    async fn drive(&self, job: &Job) {
        let (id, endpoint) = (job.id, job.source.endpoint.as_str());
        let mut patience = Patience::new();
        loop {
            let before = job.received_bytes();
            let attempt = async {
                job.queue();
                let turns = match job.owner() {
                    AccountId::ADMINISTRATOR => &self.turns,
                    _ => &self.turns_of_accounts,
                };
                let turn = turns.take(job.holder(), 1, limits::FOREVER).await?;
                job.run();
                self.engine.copy(job, Arc::new(turn)).await
            };
            let error = match job.cancel.run_until_cancelled(attempt).await {
                None => return self.cancelled(job).await,
                Some(Ok(record)) => {
                    job.complete(&record);
                    while !self.write_down(job).await {
                        sleep(limits::COPY_RECORD_PAUSE).await;
                    }
                    job.settled.cancel();
                    info!(
                        %id,
                        endpoint,
                        snapshot = &*record.label(),
                        received_bytes = job.received_bytes(),
                        "copy completed: the roots are equal"
                    );
                    return;
                }
                Some(Err(error)) => error,
            };
            let pause = match patience.after(error.remedy(), job.got_further(before)) {
                Next::After(pause) => pause,
                end => {
                    let gave_up = end == Next::GiveUp;
                    warn!(%id, endpoint, error = error.to_string(), gave_up, "copy failed");
                    job.fail(&error, gave_up);
                    self.write_down(job).await;
                    return job.settled.cancel();
                }
            };
            let seconds = pause.as_secs();
            // A thousand copies from an unreachable source would fill the log with warnings.
            let is_first = job.wait(&error);
            let error = error.to_string();
            if is_first {
                warn!(%id, endpoint, error, seconds, "copy is tried again");
            } else {
                debug!(%id, endpoint, error, seconds, "copy is tried again");
            }
            // A try alone needs no record: after a restart, the copy is tried at once.
            if job.is_worth_a_record() {
                self.write_down(job).await;
            }
            if job.cancel.run_until_cancelled(sleep(pause)).await.is_none() {
                return self.cancelled(job).await;
            }
        }
    }

    async fn cancelled(&self, job: &Job) {
        job.cancelled();
        self.write_down(job).await;
        job.settled.cancel();
        // The door logs the call that cancelled it, with its caller.
        debug!(id = %job.id, "copy ended: it was cancelled");
    }

    /// Writes the record of a copy. Returns false if that fails: the copy then continues from the
    /// older record at the next start.
    async fn write_down(&self, job: &Job) -> bool {
        let _writing = job.writing.lock().await;
        let written = self.engine.store.put_copy(job.to_record()).await;
        if let Err(error) = &written {
            let error = error.to_string();
            warn!(id = %job.id, error, "the state of a copy could not be written down");
        }
        written.is_ok()
    }
}
