//! The table of open uploads.
//!
//! What must hold: an upload is found only by its id, which cannot be guessed; their number is bounded; one that
//! nothing is heard of is dropped after a while, sooner when its place is needed, but never while a call works on it. Dropping the
//! ingest is what aborts it.

use std::{collections::HashMap, fmt, io, ops::Deref, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;
use varve_store::Error;

use crate::limits;

/// Open uploads by id. `I` is the store's ingest; the table knows nothing of it.
pub struct Uploads<I> {
    open: Mutex<HashMap<String, Entry<I>>>,
    most: usize,
    idle: Duration,
}

struct Entry<I> {
    ingest: Arc<I>,
    calls: usize,
    last_call: Instant,
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
    /// An empty table whose uploads are dropped after `idle` without a call.
    #[must_use]
    pub fn new(idle: Duration) -> Self {
        Self::bounded(varve_store::limits::UPLOADS_MAX, idle)
    }

    fn bounded(most: usize, idle: Duration) -> Self {
        Self {
            open: Mutex::default(),
            most,
            idle,
        }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How long nothing may be heard of one.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    /// Makes room for one more, before any work is done for an upload that would find no place.
    pub(super) fn make_room(&self) -> Result<(), Error> {
        let yielded = {
            let mut open = self.open.lock();
            if open.len() < self.most {
                return Ok(());
            }
            let now = Instant::now();
            let forgotten = open
                .iter()
                .filter(|(_, entry)| entry.calls == 0)
                .min_by_key(|(_, entry)| entry.last_call)
                .filter(|(_, entry)| now >= entry.last_call + limits::UPLOAD_YIELDS_AFTER)
                .map(|(id, _)| id.clone());
            forgotten.and_then(|id| open.remove_entry(&id))
        };
        let (id, _) = yielded.ok_or_else(|| self.full())?;
        info!(
            upload = id,
            "an upload that nothing was heard of gives way to a new one"
        );
        Ok(())
    }

    /// Adds an upload. Returns its id.
    pub(super) fn open(&self, ingest: I) -> Result<String, Error> {
        let id = random_id()?;
        let mut open = self.open.lock();
        if open.len() >= self.most {
            return Err(self.full());
        }
        let entry = Entry {
            ingest: Arc::new(ingest),
            calls: 0,
            last_call: Instant::now(),
        };
        open.insert(id.clone(), entry);
        Ok(id)
    }

    /// The upload of that id, for one call.
    pub(super) fn lease(self: &Arc<Self>, id: &str) -> Result<Lease<I>, Error> {
        let mut open = self.open.lock();
        let entry = open.get_mut(id).ok_or_else(|| not_found(id))?;
        entry.calls += 1;
        entry.last_call = Instant::now();
        Ok(Lease {
            table: Arc::clone(self),
            id: id.to_owned(),
            ingest: Arc::clone(&entry.ingest),
        })
    }

    /// Takes an upload out. Calls that work on it may end; no new one finds it.
    pub(super) fn remove(&self, id: &str) -> Result<Arc<I>, Error> {
        self.open
            .lock()
            .remove(id)
            .map(|entry| entry.ingest)
            .ok_or_else(|| not_found(id))
    }

    /// Drops all.
    pub fn clear(&self) {
        // Dropped after the lock is released: an ingest has work to do then.
        let dropped = std::mem::take(&mut *self.open.lock());
        if !dropped.is_empty() {
            info!(uploads = dropped.len(), "open uploads are dropped");
        }
    }

    /// Drops uploads that have been idle for too long, again and again.
    pub async fn expire(&self) {
        loop {
            tokio::time::sleep(self.until_next_expiry()).await;
            self.drop_expired();
        }
    }

    fn until_next_expiry(&self) -> Duration {
        let open = self.open.lock();
        let next = open
            .values()
            .filter(|entry| entry.calls == 0)
            .map(|entry| entry.last_call + self.idle)
            .min();
        // One that is opened, or whose call ends, while this sleeps cannot expire sooner than `idle` from then.
        next.map_or(self.idle, |next| {
            next.saturating_duration_since(Instant::now())
        })
    }

    fn drop_expired(&self) {
        let now = Instant::now();
        let expired: Vec<_> = {
            let mut open = self.open.lock();
            open.extract_if(|_, entry| entry.calls == 0 && now >= entry.last_call + self.idle)
                .collect()
        };
        for (id, entry) in expired {
            let idle_seconds = now.duration_since(entry.last_call).as_secs();
            info!(
                upload = id,
                idle_seconds, "an upload that nothing was heard of is dropped"
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
pub(super) struct Lease<I> {
    table: Arc<Uploads<I>>,
    id: String,
    ingest: Arc<I>,
}

impl<I> Lease<I> {
    /// Tells that the upload is alive; an error if it was aborted or committed since.
    pub(super) fn renew(&self) -> Result<(), Error> {
        match self.table.open.lock().get_mut(&self.id) {
            Some(entry) => {
                entry.last_call = Instant::now();
                Ok(())
            }
            None => Err(not_found(&self.id)),
        }
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl<I> Deref for Lease<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.ingest
    }
}

impl<I> Drop for Lease<I> {
    fn drop(&mut self) {
        if let Some(entry) = self.table.open.lock().get_mut(&self.id) {
            entry.calls -= 1;
            entry.last_call = Instant::now();
        }
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
    getrandom::fill(&mut bytes).map_err(|error| Error::Io {
        verb: "read",
        path: "the kernel's random numbers".into(),
        source: io::Error::other(error.to_string()),
    })?;
    Ok(format!("up-{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    fn table(most: usize) -> Arc<Uploads<&'static str>> {
        Arc::new(Uploads::bounded(most, IDLE))
    }

    fn is_open(uploads: &Arc<Uploads<&'static str>>, id: &str) -> bool {
        uploads.open.lock().contains_key(id)
    }

    #[test]
    fn ids_differ_and_find_their_upload() {
        let uploads = table(8);
        let (a, b) = (uploads.open("a").unwrap(), uploads.open("b").unwrap());
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
        let first = uploads.open("a").unwrap();
        uploads.open("b").unwrap();
        assert!(matches!(uploads.make_room(), Err(Error::Limit(_))));
        assert!(matches!(uploads.open("c"), Err(Error::Limit(_))));
        uploads.remove(&first).unwrap();
        uploads.make_room().unwrap();
        uploads.open("c").unwrap();
        uploads.clear();
        assert!(uploads.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_upload_gives_way_and_a_busy_one_does_not() {
        let uploads = table(2);
        let busy = uploads.open("busy").unwrap();
        let lease = uploads.lease(&busy).ok().unwrap();
        let forgotten = uploads.open("forgotten").unwrap();
        tokio::time::advance(limits::UPLOAD_YIELDS_AFTER - Duration::from_secs(1)).await;
        assert!(matches!(uploads.make_room(), Err(Error::Limit(_))));
        tokio::time::advance(Duration::from_secs(2)).await;
        uploads.make_room().unwrap();
        assert!(!is_open(&uploads, &forgotten) && is_open(&uploads, &busy));
        uploads.open("next").unwrap();
        tokio::time::advance(limits::UPLOAD_YIELDS_AFTER).await;
        uploads.make_room().unwrap();
        uploads.open("after next").unwrap();
        assert!(matches!(uploads.make_room(), Err(Error::Limit(_))));
        assert_eq!(*lease, "busy");
    }

    #[test]
    fn a_lease_of_an_upload_that_was_aborted_says_so() {
        let uploads = table(2);
        let id = uploads.open("a").unwrap();
        let lease = uploads.lease(&id).ok().unwrap();
        lease.renew().unwrap();
        uploads.remove(&id).unwrap();
        assert!(matches!(lease.renew(), Err(Error::NotFound { .. })));
        assert_eq!(*lease, "a", "the call may end");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_uploads_are_dropped_and_busy_ones_are_not() {
        let uploads = table(8);
        let forgotten = uploads.open("forgotten").unwrap();
        let busy = uploads.open("busy").unwrap();
        let renewed = uploads.open("renewed").unwrap();
        let expiry = Arc::clone(&uploads);
        let watch = async {
            let lease = uploads.lease(&busy).ok().unwrap();
            tokio::time::sleep(IDLE / 2).await;
            drop(uploads.lease(&renewed).ok().unwrap());
            tokio::time::sleep(IDLE / 2 - Duration::from_secs(1)).await;
            assert!(is_open(&uploads, &forgotten), "one second early");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(!is_open(&uploads, &forgotten));
            assert!(is_open(&uploads, &renewed));
            tokio::time::sleep(IDLE / 2).await;
            assert!(!is_open(&uploads, &renewed));
            tokio::time::sleep(IDLE * 10).await;
            assert!(is_open(&uploads, &busy), "a call works on it");
            drop(lease);
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            assert!(is_open(&uploads, &busy), "idle since the call ended");
            tokio::time::sleep(IDLE).await;
            assert!(uploads.is_empty());
        };
        tokio::select! {
            () = expiry.expire() => unreachable!("it goes on for ever"),
            () = watch => {}
        }
    }
}
