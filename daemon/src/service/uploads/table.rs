//! The table of open uploads.
//!
//! Invariants: an upload is found only by its id, which cannot be guessed. The number of uploads is
//! bounded, and some places are for peers on this machine only. An account has no more than its
//! quota, nor more than half of all places, unless it is the administrator's. An upload without
//! progress is dropped after a while, sooner when its place is needed, but never while the store
//! works on it. Calls that bring nothing are no progress. Dropping the ingest aborts the upload.

use std::{collections::HashMap, fmt, io, ops::Deref, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use varve_store::{AccountId, AccountRecord, Error, Quota};

use crate::{limits, resources::shares::Holder};

/// Open uploads by id. `I` is the store's ingest; the table does not look into it.
pub(crate) struct Uploads<I> {
    open: Mutex<HashMap<String, Entry<I>>>,
    most: usize,
    /// Places for peers on this machine only.
    local: usize,
    idle: Duration,
}

/// Whose upload is to be opened.
#[derive(Debug, Clone)]
pub(in crate::service) struct Uploader {
    pub(in crate::service) holder: Holder,
    pub(in crate::service) account: Arc<AccountRecord>,
}

struct Entry<I> {
    ingest: Arc<I>,
    account: AccountId,
    is_local: bool,
    /// Number of parts of calls that work on it.
    works: usize,
    /// Time at which work last began or ended.
    came_further: Instant,
    /// Cancelled when the upload is gone, for calls that work on it.
    gone: CancellationToken,
}

impl<I> Drop for Entry<I> {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

impl<I> fmt::Debug for Uploads<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads")
            .field("open", &self.len())
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

impl<I> Uploads<I> {
    /// An empty table whose uploads are dropped after `idle` without progress.
    #[must_use]
    pub(crate) fn new(idle: Duration) -> Self {
        Self::bounded(
            varve_store::limits::UPLOADS_MAX,
            limits::UPLOADS_LOCAL,
            idle,
        )
    }

    fn bounded(most: usize, local: usize, idle: Duration) -> Self {
        Self {
            open: Mutex::default(),
            most,
            local,
            idle,
        }
    }

    /// Number of open uploads.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Time that an upload may go without progress.
    pub(in crate::service) fn idle(&self) -> Duration {
        self.idle
    }

    /// Makes room for one more upload, before any work is done for one that would find no place.
    pub(in crate::service) fn make_room(&self, uploader: &Uploader) -> Result<(), Error> {
        let holder = uploader.holder;
        let yielded = {
            let mut open = self.open.lock();
            self.check_account(&open, uploader)?;
            if self.has_room(&open, holder) {
                return Ok(());
            }
            let now = Instant::now();
            let forgotten = open
                .iter()
                .filter(|(_, entry)| entry.works == 0 && (holder.is_local || !entry.is_local))
                .min_by_key(|(_, entry)| entry.came_further)
                .filter(|(_, entry)| now >= entry.came_further + limits::UPLOAD_YIELDS_AFTER)
                .map(|(id, _)| id.clone());
            forgotten.and_then(|id| open.remove_entry(&id))
        };
        let (id, _) = yielded.ok_or_else(|| self.full())?;
        info!(
            upload = id,
            "an upload that did not come further gives way to a new one"
        );
        Ok(())
    }

    fn has_room(&self, open: &HashMap<String, Entry<I>>, holder: Holder) -> bool {
        let remote = || open.values().filter(|entry| !entry.is_local).count();
        open.len() < self.most && (holder.is_local || remote() < self.most - self.local)
    }

    /// Checks that an account may have one more upload.
    fn check_account(
        &self,
        open: &HashMap<String, Entry<I>>,
        Uploader { account, .. }: &Uploader,
    ) -> Result<(), Error> {
        let limit = account.quotas.get(&Quota::Uploads);
        let share = self.most / 2;
        if limit.is_none() && account.id == AccountId::ADMINISTRATOR {
            return Ok(());
        }
        let used = open.values().filter(|it| it.account == account.id).count();
        match limit {
            Some(&limit) if used as u64 >= limit => Err(Error::Quota {
                account: account.name.clone(),
                quota: Quota::Uploads,
                limit,
                used: used as u64,
                more: 1,
            }),
            _ if used >= share && account.id != AccountId::ADMINISTRATOR => {
                Err(Error::Limit(format!(
                    "account {:?} has {used} uploads open, its share of all; commit or abort some, \
                     or try again later",
                    account.name
                )))
            }
            _ => Ok(()),
        }
    }

    /// Number of open uploads of an account.
    pub(in crate::service) fn of_account(&self, account: AccountId) -> u64 {
        let open = self.open.lock();
        open.values().filter(|it| it.account == account).count() as u64
    }

    /// Drops the uploads of an account that has no rights any more. Calls that work on them may
    /// end; no new call finds them.
    pub(in crate::service) fn drop_of(&self, account: AccountId) {
        // Release the lock before the drop: an ingest has work to do then.
        let is_own = |_: &String, entry: &mut Entry<I>| entry.account == account;
        let dropped: Vec<_> = self.open.lock().extract_if(is_own).collect();
        if !dropped.is_empty() {
            info!(%account, uploads = dropped.len(), "open uploads are dropped");
        }
    }

    /// Adds an upload. Returns its id.
    pub(in crate::service) fn open(&self, ingest: I, uploader: &Uploader) -> Result<String, Error> {
        let id = random_id()?;
        let mut open = self.open.lock();
        self.check_account(&open, uploader)?;
        if !self.has_room(&open, uploader.holder) {
            return Err(self.full());
        }
        let entry = Entry {
            ingest: Arc::new(ingest),
            account: uploader.account.id,
            is_local: uploader.holder.is_local,
            works: 0,
            came_further: Instant::now(),
            gone: CancellationToken::new(),
        };
        open.insert(id.clone(), entry);
        Ok(id)
    }

    /// The upload with this id, for one call.
    pub(in crate::service) fn lease(self: &Arc<Self>, id: &str) -> Result<Lease<I>, Error> {
        let open = self.open.lock();
        let entry = open.get(id).ok_or_else(|| not_found(id))?;
        Ok(Lease {
            table: Arc::clone(self),
            id: id.to_owned(),
            ingest: Arc::clone(&entry.ingest),
            gone: entry.gone.clone(),
        })
    }

    /// Removes an upload. Calls that work on it may end; no new call finds it.
    pub(in crate::service) fn remove(&self, id: &str) -> Result<Arc<I>, Error> {
        self.open
            .lock()
            .remove(id)
            .map(|entry| Arc::clone(&entry.ingest))
            .ok_or_else(|| not_found(id))
    }

    /// Drops all uploads.
    pub(crate) fn clear(&self) {
        // Release the lock before the drop: an ingest has work to do then.
        let dropped = std::mem::take(&mut *self.open.lock());
        if !dropped.is_empty() {
            info!(uploads = dropped.len(), "open uploads are dropped");
        }
    }

    /// Drops uploads without progress as they expire. Runs for ever.
    pub(crate) async fn expire(&self) {
        loop {
            tokio::time::sleep(self.until_next_expiry()).await;
            self.drop_expired();
        }
    }

    fn until_next_expiry(&self) -> Duration {
        let open = self.open.lock();
        let next = open
            .values()
            .filter(|entry| entry.works == 0)
            .map(|entry| entry.came_further + self.idle)
            .min();
        // If an upload is opened, or its work ends, while this sleeps, it expires no sooner than
        // `idle` after that.
        next.map_or(self.idle, |next| {
            next.saturating_duration_since(Instant::now())
        })
    }

    fn drop_expired(&self) {
        let now = Instant::now();
        let expired: Vec<_> = {
            let mut open = self.open.lock();
            open.extract_if(|_, entry| entry.works == 0 && now >= entry.came_further + self.idle)
                .collect()
        };
        for (id, entry) in expired {
            let idle_seconds = now.duration_since(entry.came_further).as_secs();
            info!(
                upload = id,
                idle_seconds, "an upload that did not come further is dropped"
            );
        }
    }

    fn full(&self) -> Error {
        Error::Limit(format!(
            "{} uploads are open, the most at one time; commit or abort some, or try again later",
            self.most
        ))
    }
}

/// An upload for the length of one call.
pub(in crate::service) struct Lease<I> {
    table: Arc<Uploads<I>>,
    id: String,
    ingest: Arc<I>,
    gone: CancellationToken,
}

/// Progress of an upload, until this is dropped.
pub(in crate::service) struct Work<'a, I>(&'a Lease<I>);

impl<I> Lease<I> {
    /// Fails if the upload was aborted, committed or dropped since.
    pub(in crate::service) fn check(&self) -> Result<(), Error> {
        if self.gone.is_cancelled() {
            return Err(not_found(&self.id));
        }
        Ok(())
    }

    /// Waits until the upload is gone.
    pub(in crate::service) async fn gone(&self) -> Error {
        self.gone.cancelled().await;
        not_found(&self.id)
    }

    /// Counts as progress of the upload until the returned value is dropped.
    pub(in crate::service) fn work(&self) -> Work<'_, I> {
        self.count(1);
        Work(self)
    }

    fn count(&self, change: isize) {
        if let Some(entry) = self.table.open.lock().get_mut(&self.id) {
            entry.works = entry.works.saturating_add_signed(change);
            entry.came_further = Instant::now();
        }
    }

    /// The error for an upload that is not there, or that the caller does not see.
    pub(in crate::service) fn not_found(&self) -> Error {
        not_found(&self.id)
    }

    /// The id of the upload.
    pub(in crate::service) fn id(&self) -> &str {
        &self.id
    }
}

impl<I> Deref for Lease<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.ingest
    }
}

impl<I> Drop for Work<'_, I> {
    fn drop(&mut self) {
        self.0.count(-1);
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound {
        what: "upload",
        name: id.chars().take(limits::QUOTED_CHARS_MAX).collect(),
    }
}

fn random_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::System {
        verb: "draw random numbers",
        source: io::Error::other(error.to_string()),
    })?;
    Ok(format!("up-{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    fn administrator() -> Uploader {
        Uploader {
            holder: Holder::OWN,
            account: Arc::new(AccountRecord::administrator()),
        }
    }

    fn account(number: u64, limit: Option<u64>) -> Uploader {
        let account = AccountRecord {
            id: AccountId::from_number(number).unwrap(),
            name: format!("account{number}"),
            quotas: limit
                .map(|limit| (Quota::Uploads, limit))
                .into_iter()
                .collect(),
            ..AccountRecord::administrator()
        };
        Uploader {
            account: Arc::new(account),
            ..administrator()
        }
    }

    #[test]
    fn an_account_has_its_quota_and_not_all_places() {
        let uploads = table(8);
        let web = account(1, Some(2));
        for _ in 0..2 {
            uploads.make_room(&web).unwrap();
            uploads.open("web", &web).unwrap();
        }
        for refused in [
            uploads.make_room(&web).unwrap_err(),
            uploads.open("web", &web).unwrap_err(),
        ] {
            let text = refused.to_string();
            assert!(text.contains("limit 2, used 2, left 0, needed 1"), "{text}");
        }
        let db = account(2, None);
        let first = uploads.open("db", &db).unwrap();
        for _ in 1..4 {
            uploads.open("db", &db).unwrap();
        }
        let refused = uploads.open("db", &db).unwrap_err();
        assert!(matches!(refused, Error::Limit(_)), "{refused}");
        assert_eq!(uploads.of_account(db.account.id), 4);
        // The places that are left are for others.
        uploads.open("admin", &administrator()).unwrap();
        uploads.remove(&first).unwrap();
        uploads.open("db", &db).unwrap();
        // A quota of the administrator holds, too.
        let admin = Uploader {
            account: Arc::new(AccountRecord {
                quotas: [(Quota::Uploads, 1)].into(),
                ..AccountRecord::administrator()
            }),
            ..administrator()
        };
        let refused = uploads.make_room(&admin).unwrap_err();
        assert!(matches!(refused, Error::Quota { used: 1, .. }), "{refused}");
        // An account without rights keeps none, and takes nobody else's with it.
        uploads.drop_of(db.account.id);
        assert_eq!(uploads.of_account(db.account.id), 0);
        assert_eq!(uploads.of_account(AccountId::ADMINISTRATOR), 1);
    }

    fn table(most: usize) -> Arc<Uploads<&'static str>> {
        Arc::new(Uploads::bounded(most, most / 4, IDLE))
    }

    fn is_open(uploads: &Arc<Uploads<&'static str>>, id: &str) -> bool {
        uploads.open.lock().contains_key(id)
    }

    #[test]
    fn ids_differ_and_find_their_upload() {
        let uploads = table(8);
        let open = |name| uploads.open(name, &administrator()).unwrap();
        let (a, b) = (open("a"), open("b"));
        assert_ne!(a, b);
        assert_eq!(*uploads.lease(&a).ok().unwrap(), "a");
        assert_eq!(*uploads.remove(&b).unwrap(), "b");
        for gone in [b.as_str(), "", "up-0"] {
            let error = uploads.lease(gone).err().unwrap();
            assert!(
                matches!(&error, Error::NotFound { what: "upload", name } if name == gone),
                "{error}"
            );
        }
        assert!(uploads.remove(&b).is_err());
    }

    #[test]
    fn the_number_is_bounded_and_room_comes_back() {
        let uploads = table(2);
        let open = |name| uploads.open(name, &administrator());
        let first = open("a").unwrap();
        open("b").unwrap();
        let room = uploads.make_room(&administrator());
        assert!(matches!(room, Err(Error::Limit(_))));
        assert!(matches!(open("c"), Err(Error::Limit(_))));
        uploads.remove(&first).unwrap();
        uploads.make_room(&administrator()).unwrap();
        open("c").unwrap();
        uploads.clear();
        assert!(uploads.len() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_network_leaves_places_to_this_machine_and_takes_none_of_it() {
        let uploads = table(4);
        let remote = Uploader {
            holder: Holder {
                number: 7,
                is_local: false,
            },
            ..administrator()
        };
        let own = uploads.open("own", &administrator()).unwrap();
        for _ in 0..3 {
            uploads.make_room(&remote).unwrap();
            uploads.open("remote", &remote).unwrap();
        }
        assert!(uploads.make_room(&remote).is_err());
        tokio::time::advance(limits::UPLOAD_YIELDS_AFTER).await;
        for _ in 0..5 {
            uploads.make_room(&remote).unwrap();
            uploads.open("remote", &remote).unwrap();
            tokio::time::advance(limits::UPLOAD_YIELDS_AFTER).await;
        }
        assert!(is_open(&uploads, &own));
        uploads.make_room(&administrator()).unwrap();
        assert!(
            !is_open(&uploads, &own),
            "the one that did not come further for longest"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_upload_gives_way_and_a_busy_one_does_not() {
        let uploads = table(2);
        let open = |name| uploads.open(name, &administrator()).unwrap();
        let room = || uploads.make_room(&administrator());
        let busy = open("busy");
        let lease = uploads.lease(&busy).ok().unwrap();
        let work = lease.work();
        let forgotten = open("forgotten");
        // Calls that bring nothing.
        let kept = uploads.lease(&forgotten).ok().unwrap();
        tokio::time::advance(limits::UPLOAD_YIELDS_AFTER - Duration::from_secs(1)).await;
        assert!(matches!(room(), Err(Error::Limit(_))));
        drop(uploads.lease(&forgotten).ok().unwrap());
        tokio::time::advance(Duration::from_secs(2)).await;
        room().unwrap();
        assert!(!is_open(&uploads, &forgotten) && is_open(&uploads, &busy));
        assert!(kept.check().is_err());
        assert!(matches!(kept.gone().await, Error::NotFound { .. }));
        open("next");
        tokio::time::advance(limits::UPLOAD_YIELDS_AFTER).await;
        room().unwrap();
        open("after next");
        assert!(matches!(room(), Err(Error::Limit(_))));
        lease.check().unwrap();
        // Otherwise both made progress at the same moment, and either would give way.
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(work);
        tokio::time::advance(limits::UPLOAD_YIELDS_AFTER).await;
        // The other one has been without progress for longer.
        room().unwrap();
        open("last");
        assert!(is_open(&uploads, &busy));
        room().unwrap();
        assert!(!is_open(&uploads, &busy));
        assert_eq!(*lease, "busy", "the call may end");
    }

    #[test]
    fn a_lease_of_an_upload_that_was_aborted_says_so() {
        let uploads = table(2);
        let id = uploads.open("a", &administrator()).unwrap();
        let lease = uploads.lease(&id).ok().unwrap();
        lease.check().unwrap();
        uploads.remove(&id).unwrap();
        assert!(matches!(lease.check(), Err(Error::NotFound { .. })));
        assert_eq!(*lease, "a", "the call may end");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_uploads_are_dropped_and_busy_ones_are_not() {
        let uploads = table(8);
        let open = |name| uploads.open(name, &administrator()).unwrap();
        let forgotten = open("forgotten");
        let busy = open("busy");
        let renewed = open("renewed");
        let expiry = Arc::clone(&uploads);
        let watch = async {
            let lease = uploads.lease(&busy).ok().unwrap();
            let work = lease.work();
            tokio::time::sleep(IDLE / 2).await;
            drop(uploads.lease(&forgotten).ok().unwrap());
            drop(uploads.lease(&renewed).ok().unwrap().work());
            tokio::time::sleep(IDLE / 2 - Duration::from_secs(1)).await;
            assert!(is_open(&uploads, &forgotten), "one second early");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(!is_open(&uploads, &forgotten));
            assert!(is_open(&uploads, &renewed));
            tokio::time::sleep(IDLE / 2).await;
            assert!(!is_open(&uploads, &renewed));
            tokio::time::sleep(IDLE * 10).await;
            assert!(is_open(&uploads, &busy), "a call works on it");
            drop(work);
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            assert!(is_open(&uploads, &busy), "idle since the work ended");
            tokio::time::sleep(IDLE).await;
            assert!(uploads.len() == 0);
        };
        tokio::select! {
            () = expiry.expire() => unreachable!("it goes on for ever"),
            () = watch => {}
        }
    }
}
