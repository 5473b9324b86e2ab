//! The leaves of an upload, and the tree over them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use varve_content::{
    NodeId,
    tree::{Root, TreeBuilder},
};

use crate::{Error, Result, engine::RootPin, format::Name, pack::EncodedRecord};

/// The leaves of an upload.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    /// By segment, in the order they came.
    pub(super) ids: Vec<(u32, NodeId)>,
    /// Room for them, out of the share of all open uploads.
    pub(super) room: LeafRoom,
    pub(super) data_blocks: u64,
    /// Pins that keep the leaves that were taken over.
    pub(super) pins: Vec<RootPin>,
    pub(super) committed: bool,
}

/// Room for leaves, of the [`limits::UPLOAD_LEAVES_MAX`] that open uploads share; given back when
/// it is dropped.
#[derive(Debug, Default)]
pub(super) struct LeafRoom(Option<OwnedSemaphorePermit>);

impl LeafRoom {
    pub(super) fn take(all: &Arc<Semaphore>, count: usize) -> Option<Self> {
        let permit = Arc::clone(all).try_acquire_many_owned(u32::try_from(count).ok()?);
        permit.ok().map(|permit| Self(Some(permit)))
    }

    pub(super) fn join(&mut self, more: Self) {
        match (&mut self.0, more.0) {
            (Some(permit), Some(more)) => permit.merge(more),
            (none, more) => *none = more,
        }
    }
}

/// Builds the tree over leaves: its root, and the nodes above the leaves as records.
///
/// # Errors
///
/// [`Error::Invalid`] if a segment has two leaves.
pub(super) fn build(
    size_bytes: u64,
    leaves: &mut [(u32, NodeId)],
) -> Result<(Root, Vec<EncodedRecord>)> {
    leaves.sort_unstable_by_key(|(segment, _)| *segment);
    if let Some(pair) = leaves
        .windows(2)
        .find(|pair| matches!(pair, [a, b] if a.0 == b.0))
    {
        let segment = pair.first().map_or(0, |(segment, _)| *segment);
        return Err(Error::Invalid(format!(
            "the leaf of segment {segment} was put twice"
        )));
    }
    let mut builder = TreeBuilder::new(size_bytes)?;
    for (segment, id) in leaves.iter() {
        builder.push(*segment, *id)?;
    }
    let (root, inners) = builder.finish();
    let mut records: Vec<_> = inners
        .iter()
        .map(|inner| EncodedRecord::node(Name::inner(inner.id()), &inner.encode()))
        .collect();
    records.push(EncodedRecord::node(Name::root(root.id()), &root.encode()));
    Ok((root, records))
}
