//! Space: the needs of content, the return of a deletion, and the plan of a collection.
//!
//! Each of these looks at all content, which takes minutes in a large store. They run one after the
//! other, and the cache of reads lends them its memory meanwhile. None of them changes anything,
//! and each may be given up at any time: when a collection runs, which may take hours and may be
//! urgent, they end after some seconds.

use std::{collections::HashSet, future::Future};

use tokio::time::sleep;

use super::Store;
use crate::{
    Error, Result,
    format::{GcReport, SnapshotRecord, VolumeRecord},
    gc::{
        DeleteEstimate, GcPlan, GcSettings, GcStatus, Usage,
        account::{self, names_of_an_estimate, names_of_usage},
        pace::Pace,
        roots::{self, OwnerId},
        survey::names_of_a_pass,
    },
    limits,
    meta::{Key, SnapshotKey, VolumeKey},
};

impl Store {
    /// Returns the space that the deletion of snapshots, all together, gives back. Readers that
    /// have them open are not considered: they keep the content until they end.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) for a snapshot that is not there;
    /// [`Error::Collecting`](crate::Error::Collecting) if it takes longer than
    /// [`limits::GC_ESTIMATE_TIME`] and a collection runs;
    /// [`Error::Damaged`](crate::Error::Damaged) if a tree node of any snapshot or volume cannot be
    /// read, because the needs of that one are unknown; [`Error::Limit`](crate::Error::Limit) for
    /// more tree nodes than memory for them; those of reading.
    pub async fn estimate_delete(
        &self,
        snapshots: &[SnapshotKey],
        settings: &GcSettings,
    ) -> Result<DeleteEstimate> {
        let mut asked = HashSet::new();
        for key in snapshots {
            let id = self.snapshot(key).await?.id;
            asked.insert(OwnerId::of::<SnapshotRecord>(&id));
        }
        let work = async {
            let _stocktaking = self.engine.take_stock().await;
            let roots = roots::of_records(&self.engine, None).await?;
            let is_asked = |root: &roots::RootOwner| {
                let record = root.owner.record();
                record.is_some_and(|record| asked.contains(record))
            };
            let (gone, kept): (Vec<_>, Vec<_>) = roots.into_iter().partition(is_asked);
            let pace = Pace::new(settings.bytes_per_second);
            let roots = (&*kept, &*gone);
            let names_max = names_of_an_estimate();
            account::estimate_delete(&self.engine, &pace, roots, settings, names_max).await
        };
        self.estimate(Box::pin(work)).await
    }

    /// Returns the space that snapshots and volumes take, first the snapshots and then the volumes,
    /// in this order. For a volume, this is its base without its journal.
    ///
    /// Shared bytes are counted only if they are asked for: that reads all leaves of each of the
    /// trees.
    ///
    /// # Errors
    ///
    /// As of [`estimate_delete`](Self::estimate_delete).
    pub async fn usage(
        &self,
        snapshots: &[SnapshotKey],
        volumes: &[VolumeKey],
        with_shared: bool,
        settings: &GcSettings,
    ) -> Result<Vec<Usage>> {
        let mut asked = Vec::with_capacity(snapshots.len() + volumes.len());
        for key in snapshots {
            let id = self.snapshot(key).await?.id;
            asked.push(OwnerId::of::<SnapshotRecord>(&id));
        }
        for key in volumes {
            let id = self.engine.find::<VolumeRecord>(Key::clone(key)).await?.id;
            asked.push(OwnerId::of::<VolumeRecord>(&id));
        }
        let work = async {
            let _stocktaking = self.engine.take_stock().await;
            let roots = roots::of_records(&self.engine, None).await?;
            let pace = Pace::new(settings.bytes_per_second);
            let names_max = names_of_usage();
            account::usage(&self.engine, &pace, &roots, &asked, with_shared, names_max).await
        };
        self.estimate(Box::pin(work)).await
    }

    /// Returns the plan of a collection that would run now, without uploads or other work under
    /// way, and the space that the store takes. Collects nothing.
    ///
    /// # Errors
    ///
    /// As of [`estimate_delete`](Self::estimate_delete).
    pub async fn gc_plan(&self, settings: &GcSettings) -> Result<GcPlan> {
        let work = async {
            let _stocktaking = self.engine.take_stock().await;
            let pace = Pace::new(settings.bytes_per_second);
            account::plan_now(&self.engine, &pace, settings, names_of_a_pass()).await
        };
        self.estimate(Box::pin(work)).await
    }

    /// Does work that takes stock of all content, unless a collection runs: neither waits long for
    /// the other. Callers pass it in a box, or their futures would carry room for all of its steps.
    pub(crate) async fn estimate<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let collecting = async {
            loop {
                sleep(limits::GC_ESTIMATE_TIME).await;
                if self.collector.status().running.is_some() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            () = collecting => Err(Error::Collecting),
        }
    }

    /// Collects garbage once: removes packs without needed records, and copies the needed records
    /// out of packs that are mostly dead. It runs in a task of its own to its end, even if the
    /// caller stops waiting, and beside everything else.
    ///
    /// # Errors
    ///
    /// [`Error::Collecting`](crate::Error::Collecting) while another collection runs;
    /// [`Error::Damaged`](crate::Error::Damaged) if a tree node of any snapshot or volume cannot be
    /// read: nothing is collected then; [`Error::Limit`](crate::Error::Limit) for more tree nodes
    /// than memory for them; [`Error::Full`](crate::Error::Full) if there is no space for what is
    /// copied; those of reading and writing.
    pub async fn gc_run(&self, settings: GcSettings) -> Result<GcReport> {
        self.collector.run(settings).await
    }

    /// Makes the collection under way, if there is one, end after the current pack, as fast as
    /// possible. The next collection continues its work.
    pub fn gc_stop(&self) {
        self.collector.stop();
    }

    /// The same before the store is closed: no other collection begins, and the next start goes by
    /// the outcome of the one before.
    pub fn gc_end(&self) {
        self.collector.end();
    }

    /// The collection under way, and the last one.
    #[must_use]
    pub fn gc_status(&self) -> GcStatus {
        self.collector.status()
    }
}
