//! The cache of reads: plain chunks and tree nodes, under one bound of bytes.
//!
//! They share one bound because their best proportion is not known in advance: a large volume that
//! is read all over needs its nodes, an eighth of a percent of its size; a small hot one needs its
//! chunks.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use quick_cache::{
    DefaultHashBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, GuardResult, PlaceholderGuard},
};

use super::{LocatedLeaf, VerifiedChunk, located::LocatedInner};
use crate::{Result, format::Name, limits};

#[derive(Debug, Clone)]
enum Value {
    Chunk(VerifiedChunk),
    Leaf(Arc<LocatedLeaf>),
    Inner(Arc<LocatedInner>),
}

impl Value {
    fn chunk(self) -> VerifiedChunk {
        match self {
            Self::Chunk(chunk) => chunk,
            Self::Leaf(_) | Self::Inner(_) => unreachable!("a name says what is under it"),
        }
    }

    fn leaf(self) -> Arc<LocatedLeaf> {
        match self {
            Self::Leaf(leaf) => leaf,
            Self::Chunk(_) | Self::Inner(_) => unreachable!("a name says what is under it"),
        }
    }

    fn inner(self) -> Arc<LocatedInner> {
        match self {
            Self::Inner(inner) => inner,
            Self::Chunk(_) | Self::Leaf(_) => unreachable!("a name says what is under it"),
        }
    }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Name, Value> for ByBytes {
    fn weight(&self, _: &Name, value: &Value) -> u64 {
        let bytes = match value {
            Value::Chunk(chunk) => chunk.plain().len(),
            Value::Leaf(leaf) => leaf.memory_bytes(),
            Value::Inner(inner) => inner.memory_bytes(),
        };
        bytes as u64 + 128
    }
}

/// The cache of a store. A chunk, a leaf and an inner node each have a name of their own kind.
#[derive(Debug)]
pub(crate) struct ReadCache {
    values: Cache<Name, Value, ByBytes>,
    /// Its bound in bytes while it has lent nothing.
    bytes: u64,
    /// The bytes that it has lent.
    lent_bytes: Mutex<u64>,
}

/// Memory that the cache lends. The cache gets it back when this is dropped.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    cache: &'a ReadCache,
    bytes: u64,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut lent_bytes = self.cache.lent_bytes.lock();
        *lent_bytes -= self.bytes;
        self.cache.bound(*lent_bytes);
    }
}

/// The right to load a chunk that others wait for.
pub(crate) struct ChunkGuard<'a>(
    PlaceholderGuard<'a, Name, Value, ByBytes, DefaultHashBuilder, DefaultLifecycle<Name, Value>>,
);

impl ChunkGuard<'_> {
    /// Keeps the chunk.
    pub(crate) fn insert(self, chunk: VerifiedChunk) {
        // The entry may have been removed under the guard, which does not change the chunk.
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
    /// Makes a cache for `chunk_bytes` of chunks, plus the least that nodes need.
    pub(crate) fn new(chunk_bytes: u64) -> Self {
        let bytes = chunk_bytes + limits::node_cache_bytes(chunk_bytes);
        let estimated = usize::try_from(bytes / (32 << 10)).unwrap_or(usize::MAX);
        Self {
            values: Cache::with_weighter(estimated.max(16), bytes, ByBytes),
            bytes,
            lent_bytes: Mutex::new(0),
        }
    }

    /// Lends memory, and evicts entries beyond the lower bound. The cache always keeps a quarter of
    /// its bytes, so a cache smaller than the default lends less than `bytes`. The borrower may
    /// still use all that it asked for: the sum of the store's memory counts with the default.
    pub(crate) fn lend(&self, bytes: u64) -> Lent<'_> {
        let mut lent_bytes = self.lent_bytes.lock();
        let bytes = bytes.min((self.bytes - self.bytes / 4).saturating_sub(*lent_bytes));
        *lent_bytes += bytes;
        self.bound(*lent_bytes);
        Lent { cache: self, bytes }
    }

    fn bound(&self, lent_bytes: u64) {
        self.values.set_capacity(self.bytes - lent_bytes);
    }

    /// A chunk, if it is there.
    pub(crate) fn chunk(&self, name: Name) -> Option<VerifiedChunk> {
        self.values.get(&name).map(Value::chunk)
    }

    /// A chunk, or the right to load it; without waiting.
    pub(crate) fn chunk_or_guard(&self, name: Name) -> Found<'_> {
        match self.values.get_value_or_guard(&name, Some(Duration::ZERO)) {
            GuardResult::Value(value) => Found::Chunk(value.chunk()),
            GuardResult::Guard(guard) => Found::Nothing(ChunkGuard(guard)),
            GuardResult::Timeout => Found::OnItsWay,
        }
    }

    /// A chunk, loaded by `bring` if it is absent. Of several callers one loads it.
    pub(crate) async fn chunk_or<F: Future<Output = Result<VerifiedChunk>>>(
        &self,
        name: Name,
        bring: impl FnOnce() -> F,
    ) -> Result<VerifiedChunk> {
        let bring = || async { bring().await.map(Value::Chunk) };
        self.value_or(name, bring).await.map(Value::chunk)
    }

    /// A leaf, if it is there.
    pub(crate) fn leaf(&self, name: Name) -> Option<Arc<LocatedLeaf>> {
        self.values.get(&name).map(Value::leaf)
    }

    /// A leaf, loaded by `bring` if it is absent. Of several callers one loads it.
    pub(crate) async fn leaf_or<F: Future<Output = Result<LocatedLeaf>>>(
        &self,
        name: Name,
        bring: impl FnOnce() -> F,
    ) -> Result<Arc<LocatedLeaf>> {
        let bring = || async { bring().await.map(|leaf| Value::Leaf(Arc::new(leaf))) };
        self.value_or(name, bring).await.map(Value::leaf)
    }

    /// An inner node, loaded by `bring` if it is absent. Of several callers one loads it.
    pub(super) async fn inner_or<F: Future<Output = Result<LocatedInner>>>(
        &self,
        name: Name,
        bring: impl FnOnce() -> F,
    ) -> Result<Arc<LocatedInner>> {
        let bring = || async { bring().await.map(|inner| Value::Inner(Arc::new(inner))) };
        self.value_or(name, bring).await.map(Value::inner)
    }

    /// The load is boxed, and made only if it is needed: the futures of warm reads are moved
    /// several times for each request, and would carry room for all of its steps.
    async fn value_or<F: Future<Output = Result<Value>>>(
        &self,
        name: Name,
        bring: impl FnOnce() -> F,
    ) -> Result<Value> {
        match self.values.get(&name) {
            Some(value) => Ok(value),
            None => Box::pin(self.values.get_or_insert_async(&name, bring())).await,
        }
    }

    /// Forgets the entry of this name.
    #[cfg(test)]
    pub(crate) fn forget(&self, name: Name) {
        self.values.remove(&name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use varve_content::{NodeId, tree::InnerNode};

    use super::*;

    #[test]
    fn nodes_have_the_room_that_chunks_leave() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let cache = ReadCache::new(8 << 20);
        let id = |number: u32| NodeId::of_inner(&number.to_le_bytes());
        let children = (0..=255).map(|slot| (slot, id(0))).collect();
        let inner = InnerNode::new(1, children).unwrap();
        let node = || LocatedInner::new(inner.clone());
        let name = |number| Name::inner(id(number));
        let weight = ByBytes.weight(&name(0), &Value::Inner(Arc::new(node())));
        let count = u32::try_from((6 << 20) / weight).unwrap();
        runtime.block_on(async {
            for number in 0..count {
                let brought = cache.inner_or(name(number), || async { Ok(node()) });
                brought.await.unwrap();
            }
        });
        let kept = (0..count).filter(|number| cache.values.get(&name(*number)).is_some());
        let kept = kept.count() as u64 * weight;
        assert!(kept > 4 << 20, "{kept} bytes of nodes are kept");
    }

    #[test]
    fn memory_is_lent_until_the_guard_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let cache = ReadCache::new(8 << 20);
        let whole = cache.values.capacity();
        let id = |number: u32| NodeId::of_inner(&number.to_le_bytes());
        let children = (0..=255).map(|slot| (slot, id(0))).collect();
        let inner = InnerNode::new(1, children).unwrap();
        let node = || LocatedInner::new(inner.clone());
        runtime.block_on(async {
            for number in 0..2000 {
                let name = Name::inner(id(number));
                let brought = cache.inner_or(name, || async { Ok(node()) });
                brought.await.unwrap();
            }
        });
        let full = cache.values.weight();
        let first = cache.lend(3 << 20);
        assert!(cache.values.capacity() <= whole - (3 << 20) + 1024);
        assert!(cache.values.weight() <= cache.values.capacity());
        assert!(full > cache.values.capacity(), "{full}");
        // The cache never lends its last quarter.
        let second = cache.lend(1 << 40);
        assert!(cache.values.capacity() >= whole / 4);
        let third = cache.lend(1 << 40);
        assert_eq!(third.bytes, 0);
        drop(first);
        assert!(cache.values.capacity() >= 3 << 20);
        drop((second, third));
        assert_eq!(cache.values.capacity(), whole);
    }
}
