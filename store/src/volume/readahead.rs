//! What of a volume is brought into the cache before it is read.

use super::{
    Volume,
    layers::Place,
    volume::{bytes_of, in_base},
};
use crate::{ContentReader, Result};

impl Volume {
    /// Brings what a range has of the volume's base into the cache, as far as it fits there. What is in the journal is left to the
    /// page cache.
    pub async fn prefetch(&self, offset_bytes: u64, len_bytes: usize) -> Result<()> {
        for (base, start, len_bytes) in self.in_base(offset_bytes, len_bytes)? {
            base.prefetch(start, len_bytes).await?;
        }
        Ok(())
    }

    /// The same for a reader that will come there, unless that is done for too many others already.
    pub async fn read_ahead(&self, offset_bytes: u64, len_bytes: usize) {
        for (base, start, len_bytes) in self.in_base(offset_bytes, len_bytes).unwrap_or_default() {
            base.read_ahead(start, len_bytes).await;
        }
    }

    /// What of a range is in the base.
    fn in_base(
        &self,
        offset_bytes: u64,
        len_bytes: usize,
    ) -> Result<Vec<(ContentReader, u64, usize)>> {
        let (stretches, base) = self.0.inner.stretches(offset_bytes, len_bytes as u64)?;
        let stretches = stretches.iter().filter(|it| it.place == Place::Base);
        let Some(base) = base else {
            return Ok(Vec::new());
        };
        Ok(stretches
            .filter_map(|stretch| {
                let (start, end) = bytes_of(stretch, offset_bytes, len_bytes as u64);
                let within = in_base(Some(&base), start, end);
                (within > 0).then(|| (base.clone(), start, within))
            })
            .collect())
    }
}
