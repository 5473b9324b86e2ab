//! Walks trees to take stock of them: visits each node that a visitor has not reached before,
//! leaves in the order of their places.
//!
//! Roots and inner nodes are read from the top, several at once, because neighbours are read
//! together. Leaves are most of the data to read, so they wait until there are many, and are then
//! read in the order of packs and offsets. The number of waiting leaves is bounded; if the leaves
//! of a store were written tree by tree, the reads go through the packs once.
//!
//! A visitor knows nodes by their slots only where the [ranks](super::ranks) are sure to have them:
//! where the row points below the watermark. A nonsense slot could make a node pass for one that
//! was reached before, and everything under it would be taken for garbage. So each node is looked
//! up before it is visited, also because a missing node must not go unnoticed. Nodes that were
//! indexed after the view are told apart by their names.
//!
//! Chunks of a leaf below the watermark are not looked up. A leaf is indexed with its chunks or
//! after them, so they have slots. A chunk may have none after damage or a crash; its nonsense slot
//! then only makes another chunk pass for needed, which is kept longer than necessary. The chunk
//! itself was then stored after the view, and counts as needed for that reason.

use std::sync::Arc;

use futures::{TryStreamExt as _, stream};
use varve_content::{
    NodeId,
    tree::{InnerNode, Leaf, Root, TreeError},
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

/// Plain bytes of leaves in one job: it marks some thousand chunks in a millisecond.
const JOB_BYTES: u64 = 128 << 10;
/// Roots and inner nodes that are read together. While their children wait, each of two levels may
/// have 256 times as many, of some 80 bytes each.
const NODES_TOGETHER: usize = 32;
/// Names looked up in one job: it takes a millisecond or two.
const NAMES_OF_A_JOB: usize = 256;
/// Visited names that are remembered, so that each is looked up once. A changed tree shares most of
/// the children of its changed nodes with the tree before it.
const RECENT_NAMES: usize = 32 << 10;

/// A node that a walk has reached.
#[derive(Debug, Copy, Clone)]
pub(super) enum Reached<'a> {
    /// The slot of a node that was indexed in the view of the ranks.
    Slot(usize),
    /// A node that was indexed after that.
    Late(&'a Name),
}

/// Receives the nodes and chunks of a tree. Threads of the store call it concurrently.
pub(super) trait Visitor: Send + Sync + 'static {
    /// Called for a reached node. Returns true if its children are wanted: once in each walk.
    fn node(&self, node: Reached<'_>) -> bool;

    /// Called for a reached chunk, with its slot; repeatedly if the chunk occurs in many leaves.
    fn chunk(&self, slot: usize);

    /// Called for each leaf that was wanted, at its place.
    ///
    /// # Errors
    ///
    /// Errors of the index.
    fn leaf(&self, meta: &dyn Meta, ranks: &Ranks, place: &Location, leaf: &Leaf) -> Result<()>
    where
        Self: Sized,
    {
        visit_chunks(meta, ranks, self, place, leaf)
    }
}

/// A node that another node names, or a root.
#[derive(Debug, Copy, Clone)]
struct Child {
    name: Name,
    /// Of an inner node or a leaf.
    level: u8,
    /// The position of the root under which the node was found first.
    owner: u32,
}

/// A node that is to be read.
#[derive(Debug, Copy, Clone)]
struct Found {
    name: Name,
    place: Location,
    level: u8,
    owner: u32,
}

/// Visits the trees of `roots`, in their order.
///
/// The walk holds nothing of the store while it waits for `pace`.
///
/// # Errors
///
/// [`Error::Damaged`] for a node that is missing or damaged, with the owner of the root: the nodes
/// below it are unknown, so nothing may be concluded from this walk. Errors of reading.
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
    let mut owners = 0..;
    for some in roots.chunks(NODES_TOGETHER) {
        let some = some.iter().zip(owners.by_ref()).map(|(root, owner)| Child {
            name: Name::root(root.root),
            level: 0,
            owner,
        });
        // Boxed: otherwise the callers' futures would carry room for all of its steps.
        Box::pin(walk.roots(some.collect())).await?;
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
    leaves: Vec<Found>,
    recent: Recent,
}

impl<V: Visitor> Walk<'_, V> {
    /// Visits some roots and the nodes below them. Their leaves wait.
    async fn roots(&mut self, roots: Vec<Child>) -> Result<()> {
        let roots = self.reach(roots).await?;
        let mut tops = Vec::with_capacity(roots.len());
        for (owner, root) in self.read_nodes(&roots, Root::decode).await? {
            let Some(top) = root.top else { continue };
            tops.push(Child {
                name: Name::inner(top),
                level: root.height(),
                owner,
            });
        }
        let mut stack = self.reach(tops).await?;
        while !stack.is_empty() {
            let some = stack.split_off(stack.len().saturating_sub(NODES_TOGETHER));
            self.inners(&some, &mut stack).await?;
            if self.leaves.len() >= limits::GC_LEAVES_WAITING {
                self.read_leaves().await?;
            }
        }
        Ok(())
    }

    /// Reads inner nodes and reaches their children: leaves wait, inner nodes come next.
    async fn inners(&mut self, nodes: &[Found], stack: &mut Vec<Found>) -> Result<()> {
        let inners = self.read_nodes(nodes, InnerNode::decode).await?;
        let mut children = Vec::new();
        for (node, (owner, inner)) in nodes.iter().zip(inners) {
            if inner.level() != node.level {
                let expected = format!("expected level {}, found {}", node.level, inner.level());
                let id = NodeId::from_bytes(*node.name.as_bytes());
                let damage = Damage::in_tree(format_args!("node {id}"), expected);
                return Err(self.named(owner, damage.into()));
            }
            let level = node.level - 1;
            let ids = inner.children().iter().map(|(_, id)| *id);
            let names = ids.map(|id| match level {
                0 => Name::leaf(id),
                _ => Name::inner(id),
            });
            let names = names.filter(|name| self.recent.is_new(name));
            children.extend(names.map(|name| Child { name, level, owner }));
        }
        for children in children.chunks(NAMES_OF_A_JOB) {
            let reached = self.reach(children.to_vec()).await?;
            let (leaves, inners): (Vec<_>, Vec<_>) =
                reached.into_iter().partition(|node| node.level == 0);
            self.leaves.extend(leaves);
            stack.extend(inners);
        }
        Ok(())
    }

    /// Reports nodes to the visitor. Returns those whose children it wants.
    async fn reach(&self, nodes: Vec<Child>) -> Result<Vec<Found>> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let (ranks, visitor) = (Arc::clone(self.ranks), Arc::clone(self.visitor));
        let reach = move |meta: &dyn Meta| {
            let mut wanted = Vec::new();
            let names: Vec<_> = nodes.iter().map(|node| node.name).collect();
            for (node, place) in nodes.into_iter().zip(meta.lookup(&names)?) {
                let Some(place) = place else {
                    return Ok(Err(node));
                };
                let Child { name, level, owner } = node;
                let reached = match ranks.is_below(&place) {
                    true => Reached::Slot(slot_of(&ranks, &name)?),
                    false => Reached::Late(&name),
                };
                if visitor.node(reached) {
                    wanted.push(Found {
                        name,
                        place,
                        level,
                        owner,
                    });
                }
            }
            Ok(Ok(wanted))
        };
        let reached = self.engine.meta(Priority::Manage, reach).await?;
        reached.map_err(|node| self.named(node.owner, Damage::missing(node.name).into()))
    }

    /// Reads nodes, neighbours together. Returns them in their order, with their owners.
    async fn read_nodes<T>(
        &self,
        nodes: &[Found],
        decode: fn(&[u8]) -> Result<T, TreeError>,
    ) -> Result<Vec<(u32, T)>> {
        let places: Vec<_> = nodes.iter().map(|node| node.place).collect();
        let mut read = Vec::with_capacity(nodes.len());
        for span in plan_spans(&places) {
            self.pace.spend(span.len_bytes as u64).await;
            let members = span.members.clone();
            let together = match self.engine.read_span(&self.packs, span).await {
                Ok((_, together)) => Some(together),
                // The pack was removed since the look-up, or a node is damaged.
                Err(ReadError::PackGone(_) | ReadError::Other(Error::Damaged(_))) => None,
                Err(ReadError::Other(error)) => return Err(error),
            };
            for at in members {
                let Some(node) = nodes.get(at) else { continue };
                let found = together.as_ref().map(|read| decoded(node, read, decode));
                let found = match found {
                    Some(Ok(found)) => Ok(found),
                    // Reads the node alone, to find out which is damaged and how.
                    _ => {
                        let alone = self.engine.load_node(&self.packs, node.name, decode);
                        alone.await
                    }
                };
                let found = found.map_err(|error| self.named(node.owner, error))?;
                read.push((at, (node.owner, found)));
            }
        }
        read.sort_unstable_by_key(|(at, _)| *at);
        Ok(read.into_iter().map(|(_, node)| node).collect())
    }

    /// Reads all leaves that wait, and visits their chunks.
    async fn read_leaves(&mut self) -> Result<()> {
        let mut leaves = std::mem::take(&mut self.leaves);
        leaves.sort_unstable_by_key(|leaf| (leaf.place.pack, leaf.place.offset_bytes));
        let places: Vec<_> = leaves.iter().map(|leaf| leaf.place).collect();
        let spans = plan_spans(&places).into_iter().map(Ok::<_, Error>);
        drop(places);
        let (walk, leaves) = (&*self, &*leaves);
        // All reads are polled as long as this is: none stands still with what it holds.
        let reads = stream::iter(spans);
        reads
            .try_for_each_concurrent(limits::GC_READS_IN_FLIGHT, |span| {
                walk.read_span(leaves, span)
            })
            .await?;
        Ok(())
    }

    async fn read_span(&self, leaves: &[Found], span: Span) -> Result<()> {
        let members = span.members.iter().filter_map(|at| leaves.get(*at));
        let members: Vec<_> = members.copied().collect();
        self.pace.spend(span.len_bytes as u64).await;
        match self.engine.read_span(&self.packs, span).await {
            Ok((_, read)) => self.visit_all(&members, &read).await,
            // The pack was removed since the look-up, or a leaf is damaged: read one by one, to
            // tell which.
            Err(ReadError::PackGone(_) | ReadError::Other(Error::Damaged(_))) => {
                for member in members {
                    let leaf = self
                        .engine
                        .load_node(&self.packs, member.name, Leaf::decode);
                    let leaf = leaf
                        .await
                        .map_err(|error| self.named(member.owner, error))?;
                    self.visit(vec![member], move |_| Ok(leaf.clone())).await?;
                }
                Ok(())
            }
            Err(ReadError::Other(error)) => Err(error),
        }
    }

    /// Visits the leaves of a span, in jobs of several leaves.
    async fn visit_all(&self, members: &[Found], read: &ReadSpan) -> Result<()> {
        let mut rest = members.iter().copied().peekable();
        while rest.peek().is_some() {
            let mut bytes = 0;
            let mut job = Vec::new();
            while let Some(member) = rest.next_if(|_| bytes < JOB_BYTES) {
                bytes += member.place.payload.record_bytes();
                job.push(member);
            }
            let read = read.clone();
            self.visit(job, move |leaf| decoded(leaf, &read, Leaf::decode))
                .await?;
        }
        Ok(())
    }

    /// Reports the chunks of leaves to the visitor.
    async fn visit(
        &self,
        leaves: Vec<Found>,
        decode: impl Fn(&Found) -> Result<Leaf> + Send + 'static,
    ) -> Result<()> {
        let (ranks, visitor) = (Arc::clone(self.ranks), Arc::clone(self.visitor));
        let visit = move |meta: &dyn Meta| {
            for waiting in leaves {
                match decode(&waiting) {
                    Ok(leaf) => visitor.leaf(meta, &ranks, &waiting.place, &leaf)?,
                    Err(error) => return Ok(Err((waiting, error))),
                }
            }
            Ok(Ok(()))
        };
        let visited = self.engine.meta(Priority::Manage, visit).await?;
        visited.or_else(|(leaf, error)| {
            let noted = self.engine.noting_damage(Err(error));
            noted.map_err(|error| self.named(leaf.owner, error))
        })
    }

    /// Names an owner in an error of damage.
    fn named(&self, owner: u32, error: Error) -> Error {
        match self.roots.get(owner as usize) {
            Some(root) => root.owner.named(error),
            None => error,
        }
    }
}

/// Reports the chunks of a leaf at this place to a visitor.
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
    // A late leaf may have late chunks.
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

/// The slot of a node that must have one.
fn slot_of(ranks: &Ranks, name: &Name) -> Result<usize> {
    ranks
        .slot(name)
        .ok_or_else(|| Error::Internal(format!("{name} was indexed, and has no slot")))
}

/// A node of a span, checked against its id.
fn decoded<T>(
    node: &Found,
    read: &ReadSpan,
    decode: fn(&[u8]) -> Result<T, TreeError>,
) -> Result<T> {
    let Found { name, place, .. } = *node;
    let damage = |problem| Damage::in_pack(place.pack, place.offset_bytes, name, problem);
    let record = read.record(&place, name)?;
    let found = Name::of(name.kind(), record.payload());
    if found != name {
        return Err(damage(format!("its bytes have id {found}")).into());
    }
    decode(record.payload()).map_err(|error| damage(error.to_string()).into())
}

/// Names that this walk has visited lately. It forgets on a collision, and never errs.
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
