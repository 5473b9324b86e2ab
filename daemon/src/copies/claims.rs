//! Claims on missing chunks, so that no two copies fetch the same chunk.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use varve_content::ChunkId;

/// The chunks that copies are fetching.
#[derive(Debug, Default)]
pub(super) struct Claims {
    taken: Mutex<HashSet<ChunkId>>,
    released: Notify,
}

/// Claimed chunks, until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    all: Arc<Claims>,
    pub(super) ids: Vec<ChunkId>,
}

impl Claims {
    /// Claims those of `ids` that nobody has claimed. Returns the others, too.
    ///
    /// The claimer of a chunk looks for it in the store afterwards: a chunk that was fetched just
    /// now is known by then.
    pub(super) fn claim(
        self: &Arc<Self>,
        ids: impl IntoIterator<Item = ChunkId>,
    ) -> (Claim, Vec<ChunkId>) {
        let mut taken = self.taken.lock();
        let (ids, foreign) = ids.into_iter().partition(|id| taken.insert(*id));
        let all = Arc::clone(self);
        (Claim { all, ids }, foreign)
    }

    /// Waits until none of these chunks is claimed.
    pub(super) async fn released(&self, ids: &[ChunkId]) {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            // From here on this sees every release.
            released.as_mut().enable();
            let none_left = {
                let taken = self.taken.lock();
                !ids.iter().any(|id| taken.contains(id))
            };
            if none_left {
                return;
            }
            released.await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        {
            let mut taken = self.all.taken.lock();
            for id in &self.ids {
                taken.remove(id);
            }
        }
        self.all.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ids(numbers: &[u8]) -> Vec<ChunkId> {
        let ids = numbers.iter().map(|n| ChunkId::from_bytes([*n; 32]));
        ids.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_chunk_is_claimed_once_and_its_release_is_seen() {
        let claims = Arc::new(Claims::default());
        let (first, foreign) = claims.claim(ids(&[1, 2, 3]));
        assert_eq!((first.ids.len(), foreign.len()), (3, 0));
        let (second, foreign) = claims.claim(ids(&[2, 3, 4]));
        assert_eq!(
            (second.ids.clone(), foreign.clone()),
            (ids(&[4]), ids(&[2, 3]))
        );
        let waiting = claims.released(&foreign);
        let mut waiting = std::pin::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_secs(1), &mut waiting).await;
        assert!(early.is_err());
        drop(second);
        let early = tokio::time::timeout(Duration::from_secs(1), &mut waiting).await;
        assert!(early.is_err());
        drop(first);
        waiting.await;
        assert_eq!(claims.claim(ids(&[2, 3])).1, []);
    }
}
