//! Comparing a volume with a snapshot.

use super::{Volume, layers::Place, read::bytes_of};
use crate::{
    Result, SnapshotReader,
    read::{ChangeExtent, push_change},
};

impl Volume {
    /// Lists which parts of a range may differ from a snapshot: a part that is not told to have
    /// changed is equal. Everything in the journal counts as changed.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read), and [`Error::Damaged`](crate::Error::Damaged) where the
    /// snapshot is damaged.
    pub async fn changes_since(
        &self,
        snapshot: &SnapshotReader,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<ChangeExtent>> {
        let (blocks, base) = self.0.inner.extents_now(offset_bytes, len_bytes)?;
        let mut extents = Vec::new();
        for extent in blocks {
            let (start, end) = bytes_of(&extent, offset_bytes, len_bytes);
            let len = usize::try_from(end - start).unwrap_or(usize::MAX);
            match extent.place {
                Place::Journal { .. } | Place::Zeros => push_change(&mut extents, len, true),
                Place::Base => {
                    for extent in snapshot
                        .changes_to(base.as_ref(), start, end - start)
                        .await?
                    {
                        let len = usize::try_from(extent.len_bytes).unwrap_or(usize::MAX);
                        push_change(&mut extents, len, extent.changed);
                    }
                }
            }
        }
        Ok(extents)
    }
}
