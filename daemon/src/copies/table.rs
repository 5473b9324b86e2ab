//! The copies of a daemon: begun, tried again, cancelled, shown.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use varve_client::Tls;
use varve_store::{CopyId, Error, Store};

use super::{
    job::{Job, Request, Status},
    source::{CopyError, SourceAddress},
    transfer::{Common, Estimate},
};
use crate::{limits, tasks::Tasks};

/// Copies of snapshots from other stores to this one.
#[derive(Debug, Clone)]
pub struct Copies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    common: Common,
    tasks: Tasks,
    stop: CancellationToken,
    /// In the order in which they were begun.
    jobs: Mutex<Vec<Arc<Job>>>,
    /// Whose turn it is.
    turns: Semaphore,
}

impl Copies {
    /// No copies yet: see [`resume`](Self::resume). Those that are under way when `stop` comes go on at the next start.
    #[must_use]
    pub fn new(store: Store, tls: Tls, tasks: Tasks, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            common: Common::new(store, tls),
            tasks,
            stop,
            jobs: Mutex::default(),
            turns: Semaphore::new(limits::COPIES_RUNNING_MAX),
        }))
    }

    /// Goes on with the copies that are written down.
    ///
    /// # Errors
    ///
    /// The catalog cannot be read.
    pub async fn resume(&self) -> Result<(), Error> {
        for record in self.0.common.store.copies().await? {
            let id = record.id;
            let job = match Job::from_record(record) {
                Ok(job) => Arc::new(job),
                Err(error) => {
                    warn!(%id, %error, "a copy cannot go on");
                    continue;
                }
            };
            self.0.jobs.lock().push(Arc::clone(&job));
            if !job.state().has_ended() {
                self.start(job);
            }
        }
        Ok(())
    }

    /// Begins a copy.
    pub(crate) async fn begin(&self, request: Request) -> Result<Status, Error> {
        let job = Arc::new(Job::new(CopyId::random()?, request, now_ns()));
        let forgotten: Vec<_> = {
            let mut jobs = self.0.jobs.lock();
            let ended = jobs.iter().filter(|job| job.state().has_ended()).count();
            if jobs.len() - ended >= limits::COPIES_MAX {
                return Err(Error::Limit(format!(
                    "{} copies are under way, the most at one time; cancel some, or try again later",
                    limits::COPIES_MAX
                )));
            }
            let mut too_many = (ended + 1).saturating_sub(limits::COPIES_ENDED_MAX);
            let forgotten = jobs.extract_if(.., |job| {
                let forget = too_many > 0 && job.settled.is_cancelled();
                too_many -= usize::from(forget);
                forget
            });
            forgotten.map(|job| job.id).collect()
        };
        self.0.common.store.forget_copies(forgotten).await?;
        // It is promised from here on.
        self.0.common.store.put_copy(job.record()).await?;
        self.0.jobs.lock().push(Arc::clone(&job));
        self.start(Arc::clone(&job));
        Ok(job.status())
    }

    fn start(&self, job: Arc<Job>) {
        let inner = Arc::clone(&self.0);
        drop(self.0.tasks.spawn("copy", async move {
            let stop = inner.stop.clone();
            let driven = Box::pin(inner.drive(&job));
            // It goes on at the next start.
            let _ = stop.run_until_cancelled_owned(driven).await;
        }));
    }

    /// One of them.
    pub(crate) fn status(&self, id: &str) -> Result<Status, Error> {
        Ok(self.0.find(id)?.status())
    }

    /// All of them, the newest first.
    pub(crate) fn list(&self) -> Vec<Status> {
        let jobs = self.0.jobs.lock();
        jobs.iter().rev().map(|job| job.status()).collect()
    }

    /// Ends one.
    pub(crate) async fn cancel(&self, id: &str) -> Result<Status, Error> {
        let job = self.0.find(id)?;
        job.cancel.cancel();
        // Until that is written down: or it would go on after a restart.
        tokio::select! {
            () = job.settled.cancelled() => Ok(job.status()),
            () = self.0.stop.cancelled() => Err(Error::Closing),
        }
    }

    /// Lets one be so fast from now on.
    pub(crate) async fn limit(&self, id: &str, bytes_per_second: u64) -> Result<Status, Error> {
        let job = self.0.find(id)?;
        job.limiter.set(bytes_per_second);
        let _writing = job.writing.lock().await;
        if !job.settled.is_cancelled() {
            self.0.common.store.put_copy(job.record()).await?;
        }
        Ok(job.status())
    }

    /// What a copy would fetch.
    pub(crate) async fn estimate(&self, source: &SourceAddress) -> Result<Estimate, CopyError> {
        self.0.common.estimate(source).await
    }
}

impl Inner {
    fn find(&self, id: &str) -> Result<Arc<Job>, Error> {
        let jobs = self.jobs.lock();
        let wanted = id.parse::<CopyId>().ok();
        let found = jobs.iter().find(|job| Some(job.id) == wanted);
        found.cloned().ok_or_else(|| Error::NotFound {
            what: "copy",
            name: id.chars().take(limits::QUOTED_CHARS_MAX).collect(),
        })
    }

    /// Brings a copy to its end, however often it has to be tried.
    async fn drive(&self, job: &Job) {
        let (id, endpoint) = (job.id, &job.request.source.endpoint);
        let (mut pause, most) = limits::COPY_PAUSES;
        loop {
            let before = job.received_bytes();
            let attempt = async {
                let turn = self.turns.acquire().await;
                let _turn = turn.map_err(|_| Error::Closing)?;
                job.run();
                self.common.copy(job).await
            };
            let error = match job.cancel.run_until_cancelled(attempt).await {
                None => return self.cancelled(job).await,
                Some(Ok(record)) => {
                    job.complete(&record, now_ns());
                    self.write_down(job).await;
                    let status = job.status();
                    info!(
                        %id,
                        %endpoint,
                        snapshot = record.name,
                        received_bytes = status.received_bytes,
                        "copy completed: the roots are equal"
                    );
                    return;
                }
                Some(Err(error)) => error,
            };
            if !error.passes() {
                warn!(%id, %endpoint, %error, "copy failed");
                job.fail(&error, now_ns());
                return self.write_down(job).await;
            }
            if job.received_bytes() > before {
                pause = limits::COPY_PAUSES.0;
            }
            warn!(%id, %endpoint, %error, seconds = pause.as_secs(), "copy is tried again");
            job.wait(&error);
            self.write_down(job).await;
            if job.cancel.run_until_cancelled(sleep(pause)).await.is_none() {
                return self.cancelled(job).await;
            }
            pause = (pause * 2).min(most);
        }
    }

    async fn cancelled(&self, job: &Job) {
        job.cancelled(now_ns());
        self.write_down(job).await;
        info!(id = %job.id, "copy cancelled");
    }

    /// A copy that could not be written down as it is goes on from what was, at the next start.
    async fn write_down(&self, job: &Job) {
        let _writing = job.writing.lock().await;
        if let Err(error) = self.common.store.put_copy(job.record()).await {
            warn!(id = %job.id, %error, "the state of a copy could not be written down");
        }
        if job.state().has_ended() {
            job.settled.cancel();
        }
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
