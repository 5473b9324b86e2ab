//! The cache of reads: plain chunks and tree nodes, under one bound of bytes.
//!
//! They share it, for how much of each is worth most is not known before: a large volume that is
//! read all over needs its nodes, a third of a percent of its size, and a miss of one costs some
//! 190 look-ups; a small one that is hot needs its chunks.

use std::time::Duration;

use quick_cache::{
    DefaultHashBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, GuardResult, PlaceholderGuard},
};
use varve_content::{ChunkId, NodeId};

use super::{CachedNode, VerifiedChunk};
use crate::{Result, limits};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Chunk(ChunkId),
    Node(NodeId),
}

#[derive(Debug, Clone)]
enum Value {
    Chunk(VerifiedChunk),
    Node(CachedNode),
}

impl Value {
    fn chunk(self) -> VerifiedChunk {
        match self {
            Self::Chunk(chunk) => chunk,
            Self::Node(_) => unreachable!("nodes are put under the keys of nodes"),
        }
    }

    fn node(self) -> CachedNode {
        match self {
            Self::Node(node) => node,
            Self::Chunk(_) => unreachable!("chunks are put under the keys of chunks"),
        }
    }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Value> for ByBytes {
    fn weight(&self, _: &Key, value: &Value) -> u64 {
        match value {
            Value::Chunk(chunk) => chunk.plain().len() as u64 + 128,
            Value::Node(node) => node.weight(),
        }
    }
}

/// The cache of a store.
#[derive(Debug)]
pub(crate) struct ReadCache(Cache<Key, Value, ByBytes>);

/// The right to load a chunk that others wait for.
pub(crate) struct ChunkGuard<'a>(
    PlaceholderGuard<'a, Key, Value, ByBytes, DefaultHashBuilder, DefaultLifecycle<Key, Value>>,
);

impl ChunkGuard<'_> {
    /// Keeps the chunk.
    pub(crate) fn insert(self, chunk: VerifiedChunk) {
        // It may have been taken from under the guard, which does not change the chunk.
        let _ = self.0.insert(Value::Chunk(chunk));
    }
}

/// The state of a chunk in the cache.
pub(crate) enum Found<'a> {
    Chunk(VerifiedChunk),
    /// It is absent, and the caller loads it.
    Nothing(ChunkGuard<'a>),
    /// Another caller is loading it.
    OnItsWay,
}

impl ReadCache {
    /// For so many bytes of chunks, and what nodes need at least beside them.
    pub(crate) fn new(chunk_bytes: u64) -> Self {
        let bytes = chunk_bytes + limits::node_cache_bytes(chunk_bytes);
        let estimated = usize::try_from(bytes / (32 << 10)).unwrap_or(usize::MAX);
        Self(Cache::with_weighter(estimated.max(16), bytes, ByBytes))
    }

    /// A chunk, if it is there.
    pub(crate) fn chunk(&self, id: ChunkId) -> Option<VerifiedChunk> {
        self.0.get(&Key::Chunk(id)).map(Value::chunk)
    }

    /// A chunk, or the right to load it; without waiting.
    pub(crate) fn chunk_or_guard(&self, id: ChunkId) -> Found<'_> {
        let found = self
            .0
            .get_value_or_guard(&Key::Chunk(id), Some(Duration::ZERO));
        match found {
            GuardResult::Value(value) => Found::Chunk(value.chunk()),
            GuardResult::Guard(guard) => Found::Nothing(ChunkGuard(guard)),
            GuardResult::Timeout => Found::OnItsWay,
        }
    }

    /// A chunk, loaded by `bring` if it is absent. Of several callers one loads it.
    pub(crate) async fn chunk_or(
        &self,
        id: ChunkId,
        bring: impl Future<Output = Result<VerifiedChunk>>,
    ) -> Result<VerifiedChunk> {
        let bring = async { bring.await.map(Value::Chunk) };
        let found = self.0.get_or_insert_async(&Key::Chunk(id), bring).await;
        found.map(Value::chunk)
    }

    /// A node, if it is there.
    pub(crate) fn node(&self, id: NodeId) -> Option<CachedNode> {
        self.0.get(&Key::Node(id)).map(Value::node)
    }

    /// A node, loaded by `bring` if it is absent. Of several callers one loads it.
    pub(crate) async fn node_or(
        &self,
        id: NodeId,
        bring: impl Future<Output = Result<CachedNode>>,
    ) -> Result<CachedNode> {
        let bring = async { bring.await.map(Value::Node) };
        let found = self.0.get_or_insert_async(&Key::Node(id), bring).await;
        found.map(Value::node)
    }

    /// Forgets a node.
    pub(crate) fn forget_node(&self, id: NodeId) {
        self.0.remove(&Key::Node(id));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use varve_content::tree::InnerNode;

    use super::*;

    #[test]
    fn nodes_have_the_room_that_chunks_leave() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let cache = ReadCache::new(8 << 20);
        let id = |number: u32| NodeId::of_inner(&number.to_le_bytes());
        let children = (0..=255).map(|slot| (slot, id(0))).collect();
        let node = CachedNode::Inner(Arc::new(InnerNode::new(1, children).unwrap()));
        let count = u32::try_from((6 << 20) / node.weight()).unwrap();
        runtime.block_on(async {
            for number in 0..count {
                let brought = cache.node_or(id(number), async { Ok(node.clone()) });
                brought.await.unwrap();
            }
        });
        let kept = (0..count).filter(|number| cache.node(id(*number)).is_some());
        let kept = kept.count() as u64 * node.weight();
        assert!(kept > 4 << 20, "{kept} bytes of nodes are kept");
    }
}
