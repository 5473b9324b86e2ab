//! Walks trees for whoever takes stock of them: each node that a visitor has not reached before,
//! leaves in the order of their places.
//!
//! Roots and inner nodes are found from the top, one after the other. Leaves are most of what there
//! is to read, so they wait until there are many of them, and are then read in the order of packs
//! and offsets, neighbours together. What waits is bounded; in a store whose leaves were written
//! tree by tree, the reads go through the packs once.
//!
//! A visitor knows nodes by their slots only where the [ranks](super::ranks) are sure to have them:
//! where the row points below the watermark. A slot that is nonsense could make a node pass for one
//! that was reached before, and everything under it would be taken for garbage. So each node is
//! looked up before it is visited, also because a node that is missing must not go unnoticed.
//! Nodes that were indexed after the view are told apart by their names.
//!
//! Chunks of a leaf below the watermark are not looked up. A leaf is indexed with its chunks or
//! after them, so they have slots. Where one has none, after damage or a crash, its nonsense slot
//! only makes another chunk pass for one that is needed: that one is kept longer than it had to be.
//! The chunk itself was then stored after the view, and counts as needed for that reason.

use std::sync::Arc;

use futures::{TryStreamExt as _, stream};
use varve_content::{
    NodeId,
    tree::{InnerNode, Leaf, Root},
};

use super::{pace::Pace, ranks::Ranks, roots::RootOwner};
use crate::{
    Damage, Error, Result,
    engine::{Engine, Priority},
    format::{Location, Name},
    limits,
    meta::Meta,
    pack::{PackReader, ReadError, ReadSpan, Span, plan_spans},
};

/// Plain bytes of leaves that one job takes: it marks some thousand chunks in a millisecond.
const JOB_BYTES: u64 = 128 << 10;
/// Names that are remembered as visited, to look them up once. A changed tree shares most of the
/// children of its changed nodes with the tree before it.
const RECENT_NAMES: usize = 32 << 10;

/// A node that is reached.
#[derive(Debug, Copy, Clone)]
pub(super) enum Reached<'a> {
    /// The slot of one that was indexed in the view of the ranks.
    Slot(usize),
    /// One that was indexed after that.
    Late(&'a Name),
}

/// Takes note of what a tree holds. Threads of the store call it side by side.
pub(super) trait Visitor: Send + Sync + 'static {
    /// A node is reached. Returns true if its children are wanted: each walk wants them once.
    fn node(&self, node: Reached<'_>) -> bool;

    /// A chunk is reached, by its slot: again and again if it occurs in many leaves.
    fn chunk(&self, slot: usize);
}

/// A leaf that waits to be read.
#[derive(Debug, Copy, Clone)]
struct Waiting {
    id: NodeId,
    place: Location,
    /// Of whose root it was found first: a position.
    owner: u32,
}

/// Visits what hangs on `roots`, in their order.
///
/// The walk holds nothing of the store while it waits for `pace`.
///
/// # Errors
///
/// [`Error::Damaged`] for a node that is missing or damaged, with the owner of the root: nobody
/// knows what hangs below it, so nothing may be concluded from this walk. Errors of reading.
pub(super) async fn walk<V: Visitor>(
    engine: &Arc<Engine>,
    ranks: &Arc<Ranks>,
    pace: &Pace,
    roots: &[RootOwner],
    visitor: &Arc<V>,
) -> Result<()> {
    let mut walk = Walk {
        engine,
        ranks,
        pace,
        roots,
        visitor,
        packs: engine.packs.past_cache(),
        leaves: Vec::new(),
        recent: Recent::default(),
    };
    for (position, root) in (0..).zip(roots) {
        let visited = walk.root(position, root).await;
        visited.map_err(|error| root.owner.named(error))?;
    }
    walk.read_leaves().await
}

struct Walk<'a, V> {
    engine: &'a Arc<Engine>,
    ranks: &'a Arc<Ranks>,
    pace: &'a Pace,
    roots: &'a [RootOwner],
    visitor: &'a Arc<V>,
    /// Past the page cache: every leaf is read once.
    packs: PackReader,
    leaves: Vec<Waiting>,
    recent: Recent,
}

impl<V: Visitor> Walk<'_, V> {
    async fn root(&mut self, owner: u32, root: &RootOwner) -> Result<()> {
        let name = Name::root(root.root);
        if self.reach(vec![name]).await?.is_empty() {
            return Ok(());
        }
        let Root {
            top, size_bytes, ..
        } = self.engine.load_root(&self.packs, root.root).await?;
        let Some(top) = top else { return Ok(()) };
        let mut stack = Vec::new();
        if !self.reach(vec![Name::inner(top)]).await?.is_empty() {
            stack.push((top, varve_content::tree::height(size_bytes)));
        }
        while let Some((id, level)) = stack.pop() {
            let inner = self.engine.load_inner(&self.packs, id).await?;
            self.pace.spend(size_of_val(inner.children()) as u64).await;
            if inner.level() != level {
                let expected = format!("expected level {level}, found {}", inner.level());
                return Err(Damage::in_tree(format_args!("node {id}"), expected).into());
            }
            self.children(owner, &inner, &mut stack).await?;
            if self.leaves.len() >= limits::GC_LEAVES_WAITING {
                self.read_leaves().await?;
            }
        }
        Ok(())
    }

    /// Reaches the children of a node: leaves wait, inner nodes come next.
    async fn children(
        &mut self,
        owner: u32,
        inner: &InnerNode,
        stack: &mut Vec<(NodeId, u8)>,
    ) -> Result<()> {
        let is_last = inner.level() == 1;
        let ids = inner.children().iter().map(|(_, id)| *id);
        let names: Vec<_> = ids
            .map(|id| match is_last {
                true => Name::leaf(id),
                false => Name::inner(id),
            })
            .filter(|name| self.recent.is_new(name))
            .collect();
        for (name, place) in self.reach(names).await? {
            let id = NodeId::from_bytes(*name.as_bytes());
            match is_last {
                true => self.leaves.push(Waiting { id, place, owner }),
                false => stack.push((id, inner.level() - 1)),
            }
        }
        Ok(())
    }

    /// Tells the visitor of nodes. Returns those whose children it wants.
    async fn reach(&self, names: Vec<Name>) -> Result<Vec<(Name, Location)>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let (ranks, visitor) = (Arc::clone(self.ranks), Arc::clone(self.visitor));
        let reach = move |meta: &dyn Meta| {
            let mut wanted = Vec::new();
            for (name, place) in names.iter().zip(meta.lookup(&names)?) {
                let place = place.ok_or_else(|| Damage::missing(*name))?;
                let node = match ranks.is_below(&place) {
                    true => Reached::Slot(slot_of(&ranks, name)?),
                    false => Reached::Late(name),
                };
                if visitor.node(node) {
                    wanted.push((*name, place));
                }
            }
            Ok(wanted)
        };
        self.engine.meta(Priority::Manage, reach).await
    }

    /// Reads all leaves that wait, and visits their chunks.
    async fn read_leaves(&mut self) -> Result<()> {
        let mut leaves = std::mem::take(&mut self.leaves);
        leaves.sort_unstable_by_key(|leaf| (leaf.place.pack, leaf.place.offset_bytes));
        let places: Vec<_> = leaves.iter().map(|leaf| leaf.place).collect();
        let spans = plan_spans(&places).into_iter().map(Ok::<_, Error>);
        drop(places);
        let (walk, leaves) = (&*self, &*leaves);
        // All of them are polled as long as this is: none stands still with what it holds.
        let reads = stream::iter(spans);
        reads
            .try_for_each_concurrent(limits::GC_READS_IN_FLIGHT, |span| {
                walk.read_span(leaves, span)
            })
            .await?;
        Ok(())
    }

    async fn read_span(&self, leaves: &[Waiting], span: Span) -> Result<()> {
        let members = span.members.iter().filter_map(|at| leaves.get(*at));
        let members: Vec<_> = members.copied().collect();
        self.pace.spend(span.len_bytes as u64).await;
        match self.engine.read_span(&self.packs, span).await {
            Ok((_, read)) => self.visit_all(&members, &read).await,
            // Its pack was removed since the look-up, or one of them is damaged: one by one, to
            // tell which.
            Err(ReadError::PackGone(_) | ReadError::Other(Error::Damaged(_))) => {
                for member in members {
                    let leaf = self.engine.load_plain_leaf(&self.packs, member.id).await;
                    let leaf = leaf.map_err(|error| self.named(&member, error))?;
                    self.visit(vec![member], move |_| Ok(leaf.clone())).await?;
                }
                Ok(())
            }
            Err(ReadError::Other(error)) => Err(error),
        }
    }

    /// Visits the leaves of a span, in jobs of some of them.
    async fn visit_all(&self, members: &[Waiting], read: &ReadSpan) -> Result<()> {
        let mut rest = members.iter().copied().peekable();
        while rest.peek().is_some() {
            let mut bytes = 0;
            let mut job = Vec::new();
            while let Some(member) = rest.next_if(|_| bytes < JOB_BYTES) {
                bytes += member.place.payload.record_bytes();
                job.push(member);
            }
            let read = read.clone();
            self.visit(job, move |leaf| decoded(leaf, &read)).await?;
        }
        Ok(())
    }

    /// Tells the visitor of the chunks of leaves.
    async fn visit(
        &self,
        leaves: Vec<Waiting>,
        decode: impl Fn(&Waiting) -> Result<Leaf> + Send + 'static,
    ) -> Result<()> {
        let (ranks, visitor) = (Arc::clone(self.ranks), Arc::clone(self.visitor));
        let visit = move |meta: &dyn Meta| {
            for waiting in leaves {
                match decode(&waiting) {
                    Ok(leaf) => visit_chunks(meta, &ranks, &*visitor, &waiting.place, &leaf)?,
                    Err(error) => return Ok(Err((waiting, error))),
                }
            }
            Ok(Ok(()))
        };
        let visited = self.engine.meta(Priority::Manage, visit).await?;
        visited.or_else(|(leaf, error)| {
            let noted = self.engine.noting_damage(Err(error));
            noted.map_err(|error| self.named(&leaf, error))
        })
    }

    /// Names the owner of a leaf in an error of damage.
    fn named(&self, leaf: &Waiting, error: Error) -> Error {
        match self.roots.get(leaf.owner as usize) {
            Some(root) => root.owner.named(error),
            None => error,
        }
    }
}

/// Tells a visitor of the chunks of a leaf at this place.
fn visit_chunks<V: Visitor>(
    meta: &dyn Meta,
    ranks: &Ranks,
    visitor: &V,
    leaf_place: &Location,
    leaf: &Leaf,
) -> Result<()> {
    let names = leaf.entries().iter().map(|entry| Name::chunk(entry.chunk));
    if ranks.is_below(leaf_place) {
        let slots = names.filter_map(|name| ranks.slot(&name));
        slots.for_each(|slot| visitor.chunk(slot));
        return Ok(());
    }
    // Of a leaf that is late, some may be late, too.
    let names: Vec<_> = names.collect();
    for (name, place) in names.iter().zip(meta.lookup(&names)?) {
        if place.is_some_and(|place| ranks.is_below(&place))
            && let Some(slot) = ranks.slot(name)
        {
            visitor.chunk(slot);
        }
    }
    Ok(())
}

/// The slot of a node that has one.
fn slot_of(ranks: &Ranks, name: &Name) -> Result<usize> {
    ranks
        .slot(name)
        .ok_or_else(|| Error::Internal(format!("{name} was indexed, and has no slot")))
}

/// A leaf of a span, checked against its id.
fn decoded(leaf: &Waiting, read: &ReadSpan) -> Result<Leaf> {
    let (name, place) = (Name::leaf(leaf.id), leaf.place);
    let damage = |problem| Damage::in_pack(place.pack, place.offset_bytes, name, problem);
    let record = read.record(&place, name)?;
    let found = Name::of(name.kind(), record.payload());
    if found != name {
        return Err(damage(format!("its bytes have id {found}")).into());
    }
    Leaf::decode(record.payload()).map_err(|error| damage(error.to_string()).into())
}

/// Names that this walk has visited lately. It forgets at once, and never errs.
struct Recent(Vec<Option<Name>>);

impl Default for Recent {
    fn default() -> Self {
        Self(vec![None; RECENT_NAMES])
    }
}

impl Recent {
    /// Remembers a name. Returns false if it was remembered before.
    fn is_new(&mut self, name: &Name) -> bool {
        let [a, b, c, d, ..] = *name.as_bytes();
        let at = u32::from_le_bytes([a, b, c, d]) as usize % RECENT_NAMES;
        match self.0.get_mut(at) {
            Some(kept) if *kept == Some(*name) => false,
            Some(kept) => {
                *kept = Some(*name);
                true
            }
            None => true,
        }
    }
}
