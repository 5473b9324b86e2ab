//! Counts of what accounts with a quota of stored bytes have.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::Store;
use crate::{
    Result,
    engine::{Count, Due, Ledger, Priority},
    format::AccountId,
    gc::{
        pace::Pace,
        stored::{roots_of, stored_bytes},
    },
    limits,
    meta::{Meta, Records as _},
    volume::Tried,
};

impl Store {
    /// Counts what accounts with a quota of stored bytes have, again and again: soon when one of
    /// them may have reached its quota, seldom otherwise. An account with much content is counted
    /// beside the others, so that it does not keep them waiting. Does not end by itself.
    pub async fn keep_counting_stored_bytes(&self, bytes_per_second: Option<NonZeroU64>) {
        let pace = Pace::new(bytes_per_second);
        tokio::join!(
            self.keep_counting(&pace, false),
            self.keep_counting(&pace, true)
        );
    }

    /// Counts those of the accounts with much content, or of the others, for half of the time at
    /// most.
    async fn keep_counting(&self, pace: &Pace, are_large: bool) {
        let mut tried = Tried::new();
        loop {
            self.engine.ledgers.wanted().await;
            let begun = Instant::now();
            let has_counted = Box::pin(self.count_stored_bytes(pace, are_large, &mut tried)).await;
            let least = match has_counted {
                true => Duration::ZERO,
                false => limits::STORED_COUNT_LOOK,
            };
            sleep(begun.elapsed().max(least)).await;
        }
    }

    /// Plain bytes of the chunks that the snapshots and volumes of an account have, each chunk
    /// counted once, and of its uploads under way. As of the last count; `None` if there was none,
    /// because the account has no quota of stored bytes.
    #[must_use]
    pub fn stored_bytes(&self, account: AccountId) -> Option<u64> {
        self.engine.ledgers.of(account).stored_bytes()
    }

    /// Makes the count that is due most. Returns false if none is due.
    async fn count_stored_bytes(&self, pace: &Pace, are_large: bool, tried: &mut Tried) -> bool {
        let Some((due, ledger)) = self.engine.ledgers.due(are_large) else {
            return false;
        };
        let mut counting = ledger.begin_count();
        let counted = async {
            let has_journals = match due {
                // Its guests' writes may be over others.
                Due::Urgent => self.volumes.take_in(ledger.account, tried).await?,
                Due::Later => false,
            };
            counting.walks();
            Ok((self.counted(pace, &ledger).await?, has_journals))
        };
        let counted: Result<_> = match are_large {
            true => counted.await,
            false => match timeout(limits::STORED_COUNT_LARGE, counted).await {
                Ok(counted) => counted,
                Err(_) => {
                    counting.takes_long();
                    return true;
                }
            },
        };
        match counted {
            Ok((count, has_journals)) => counting.end(count, has_journals),
            Err(error) => {
                let account = ledger.account;
                tracing::warn!(%account, %error, "what an account stores was not counted");
            }
        }
        true
    }

    /// What an account has now.
    async fn counted(&self, pace: &Pace, ledger: &Ledger) -> Result<Count> {
        let own = roots_of(&self.engine, ledger.account).await?;
        if let Some(count) = ledger.counted().filter(|count| count.of == own.hash) {
            return Ok(count);
        }
        let _memory = self
            .engine
            .cache
            .lend(limits::STORED_COUNT_BYTES / limits::STORED_COUNTS);
        let bytes = stored_bytes(&self.engine, pace, &own, limits::STORED_COUNT_CHUNKS);
        let bytes = Box::pin(bytes).await?;
        Ok(Count {
            bytes,
            of: own.hash,
        })
    }

    /// The same, of every account that is due.
    #[cfg(test)]
    pub(crate) async fn count_all_stored_bytes(&self) {
        let (pace, mut tried) = (Pace::new(None), Tried::new());
        for are_large in [false, true] {
            while self.count_stored_bytes(&pace, are_large, &mut tried).await {}
        }
    }

    /// Sets the quotas that accounts have now. If they cannot be read, those before hold until the
    /// next change of an account: the change that was made stays.
    pub(super) async fn set_stored_quotas(&self) {
        let engine = Arc::clone(&self.engine);
        let set = move |meta: &dyn Meta| engine.ledgers.set(|| meta.all());
        if let Err(error) = self.engine.meta(Priority::Manage, set).await {
            tracing::warn!(%error, "quotas of stored bytes hold as before until an account changes");
        }
    }
}
