//! Counts of what accounts with a quota of stored bytes have.

use std::{num::NonZeroU64, sync::Arc};

use tokio::time::{Instant, sleep};

use super::Store;
use crate::{
    Result,
    engine::{Count, Due, Priority},
    format::AccountId,
    gc::{
        pace::Pace,
        stored::{roots_of, stored_bytes},
    },
    limits,
    meta::{Meta, Records as _},
};

impl Store {
    /// Counts what accounts with a quota of stored bytes have, again and again: soon when one of
    /// them may have reached its quota, seldom otherwise, and never for more than half of the time.
    /// Does not end by itself.
    pub async fn keep_counting_stored_bytes(&self, bytes_per_second: Option<NonZeroU64>) {
        let pace = Pace::new(bytes_per_second);
        loop {
            self.engine.ledgers.wanted().await;
            let begun = Instant::now();
            Box::pin(self.count_stored_bytes(&pace)).await;
            sleep(begun.elapsed().max(limits::STORED_COUNT_LOOK)).await;
        }
    }

    /// Plain bytes of the chunks that the snapshots and volumes of an account have, each chunk
    /// counted once, and of its uploads under way. As of the last count; `None` if there was none,
    /// because the account has no quota of stored bytes.
    #[must_use]
    pub fn stored_bytes(&self, account: AccountId) -> Option<u64> {
        self.engine.ledgers.of(account).stored_bytes()
    }

    /// Counts what is due. A count that fails is tried again when it is due the next time.
    pub(crate) async fn count_stored_bytes(&self, pace: &Pace) {
        let due = self.engine.ledgers.due();
        if due.is_empty() {
            return;
        }
        let mut counts = Vec::with_capacity(due.len());
        for (due, ledger) in due {
            let counting = ledger.begin_count();
            let has_journals = match due {
                // Its guests' writes may be over others.
                Due::Urgent => self.volumes.take_in(ledger.account).await,
                Due::Later => false,
            };
            counts.push((ledger, counting, has_journals));
        }
        let accounts: Vec<_> = counts.iter().map(|(ledger, ..)| ledger.account).collect();
        let roots = match roots_of(&self.engine, &accounts).await {
            Ok(roots) => roots,
            Err(error) => {
                tracing::warn!(%error, "what accounts store was not counted");
                return;
            }
        };
        let _memory = self.engine.cache.lend(limits::STORED_COUNT_BYTES);
        for ((ledger, counting, has_journals), own) in counts.into_iter().zip(roots) {
            let known = ledger.counted().filter(|count| count.of == own.hash);
            let bytes = match known {
                Some(count) => Ok(count.bytes),
                None => stored_bytes(&self.engine, pace, &own, limits::STORED_COUNT_CHUNKS).await,
            };
            match bytes {
                Ok(bytes) => counting.end(
                    Count {
                        bytes,
                        of: own.hash,
                    },
                    has_journals,
                ),
                Err(error) => {
                    let account = ledger.account;
                    tracing::warn!(%account, %error, "what an account stores was not counted");
                }
            }
        }
    }

    /// Sets the quotas that accounts have now.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub(super) async fn set_stored_quotas(&self) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let set = move |meta: &dyn Meta| engine.ledgers.set(|| meta.all());
        self.engine.meta(Priority::Manage, set).await
    }
}
