//! Reading a volume's content into the cache ahead of a reader.

use super::{
    Volume,
    layers::Place,
    read::{bytes_of, in_base},
};
use crate::{ContentReader, Result};

impl Volume {
    /// Reads the base's part of a range into the cache, as far as it fits. The page cache serves
    /// the journal's part.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub async fn prefetch(&self, offset_bytes: u64, len_bytes: usize) -> Result<()> {
        for (base, start, len_bytes) in self.in_base(offset_bytes, len_bytes)? {
            base.prefetch(start, len_bytes).await?;
        }
        Ok(())
    }

    /// The same for a reader that is about to come there, unless too many readers are served so
    /// already. Errors are left to that reader.
    pub async fn read_ahead(&self, offset_bytes: u64, len_bytes: usize) {
        for (base, start, len_bytes) in self.in_base(offset_bytes, len_bytes).unwrap_or_default() {
            base.read_ahead(start, len_bytes).await;
        }
    }

    /// The parts of a range that are in the base: start and length in bytes.
    fn in_base(
        &self,
        offset_bytes: u64,
        len_bytes: usize,
    ) -> Result<Vec<(ContentReader, u64, usize)>> {
        let (extents, base) = self.0.inner.extents_now(offset_bytes, len_bytes as u64)?;
        let extents = extents.iter().filter(|it| it.place == Place::Base);
        let Some(base) = base else {
            return Ok(Vec::new());
        };
        Ok(extents
            .filter_map(|extent| {
                let (start, end) = bytes_of(extent, offset_bytes, len_bytes as u64);
                let within = in_base(Some(&base), start, end);
                (within > 0).then(|| (base.clone(), start, within))
            })
            .collect())
    }
}
