//! Nodes and chunks as the disk has them now, past the store's caches and the kernel's.

use std::sync::Arc;

use varve_content::{
    NodeId, RootId,
    tree::{InnerNode, NodePlace, NodeSource, Root},
};

use super::{ContentReader, Segment};
use crate::{
    Error, Result,
    engine::{CheckedChunk, Engine},
    format::Name,
    pack::PackReader,
};

/// Reads nodes and chunks as the disk has them, past all caches, to find out whether they are
/// sound.
#[derive(Debug)]
pub(crate) struct DiskSource {
    engine: Arc<Engine>,
    packs: PackReader,
}

impl DiskSource {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self {
            packs: engine.packs.past_cache(),
            engine,
        }
    }

    pub(crate) async fn root(&self, id: RootId) -> Result<Root> {
        self.engine
            .load_node(&self.packs, Name::root(id), Root::decode)
            .await
    }

    /// A segment, by its leaf.
    pub(crate) async fn segment(&self, index: u32, leaf: NodeId) -> Result<Segment> {
        let located = self.engine.load_leaf(&self.packs, leaf).await?;
        Ok(Segment {
            index,
            located: Arc::new(located),
        })
    }

    /// A segment's distinct chunks, or their errors, each with the position of its first entry.
    pub(crate) async fn check_chunks(
        &self,
        content: &ContentReader,
        segment: &Segment,
    ) -> Result<Vec<CheckedChunk>> {
        content.check_chunks(&self.packs, segment).await
    }
}

impl NodeSource for DiskSource {
    type Error = Error;

    async fn inner(&self, id: NodeId, _: NodePlace) -> Result<Arc<InnerNode>> {
        let inner = self
            .engine
            .load_node(&self.packs, Name::inner(id), InnerNode::decode);
        inner.await.map(Arc::new)
    }
}
