//! What of a volume is other than in a snapshot.

use super::{Volume, layers::Place, volume::bytes_of};
use crate::{
    Result, SnapshotReader,
    read::{ChangeExtent, push_change},
};

impl Volume {
    /// Which parts of a range may be other than in a snapshot: what is not told to have changed since is equal. All that is in the journal counts
    /// as changed.
    pub async fn changes_since(
        &self,
        snapshot: &SnapshotReader,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<ChangeExtent>> {
        let (stretches, base) = self.0.inner.stretches(offset_bytes, len_bytes)?;
        let mut extents = Vec::new();
        for stretch in stretches {
            let (start, end) = bytes_of(&stretch, offset_bytes, len_bytes);
            let len = usize::try_from(end - start).unwrap_or(usize::MAX);
            match stretch.place {
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
