//! The places of nodes' children, by hints or by the index.

use varve_content::NodeId;

use super::{
    hints::Hints,
    located::{Child, LocatedInner, LocatedLeaf},
};
use crate::{
    Result,
    engine::{Engine, Priority},
    format::Location,
    meta::Meta,
};

impl Engine {
    /// Places of chunks of a leaf, by the positions of their entries, in this order; `None` for a
    /// chunk that the index lacks.
    ///
    /// # Errors
    ///
    /// Errors of reading the index.
    pub(crate) async fn places(
        &self,
        of: &LocatedLeaf,
        positions: &[usize],
    ) -> Result<Vec<Option<Location>>> {
        self.children(&of.hints, positions, |at| of.child(at)).await
    }

    /// Places of all chunks of a leaf.
    ///
    /// # Errors
    ///
    /// Errors of reading the index.
    pub(crate) async fn all_places(&self, of: &LocatedLeaf) -> Result<Vec<Option<Location>>> {
        let all: Vec<_> = (0..of.leaf().entries().len()).collect();
        self.places(of, &all).await
    }

    /// The place of a child of an inner node.
    pub(super) async fn place_under(
        &self,
        parent: &LocatedInner,
        id: NodeId,
    ) -> Result<Option<Location>> {
        let Some(position) = parent.position(id) else {
            return Ok(None);
        };
        let child = |at| parent.child(at);
        let places = self.children(&parent.hints, &[position], child).await?;
        Ok(places.into_iter().next().flatten())
    }

    /// Places of children of a node, by their positions.
    ///
    /// A known place is not looked up again, unless it is lost: the record may be in another pack
    /// by now. A record that the index lacks may come back, by an upload or a copy.
    async fn children(
        &self,
        hints: &Hints,
        positions: &[usize],
        child: impl Fn(usize) -> Option<Child>,
    ) -> Result<Vec<Option<Location>>> {
        let known = positions.iter().zip(hints.at(positions));
        let known = known.map(|(at, hint)| {
            let Child { name, plain_bytes } = child(*at)?;
            hint?.place(name.kind(), plain_bytes)
        });
        let mut places: Vec<_> = known.collect();
        {
            let lost = self.lost.read();
            if !lost.is_empty() {
                for place in &mut places {
                    *place = place.filter(|place| !lost.hold(place));
                }
            }
        }
        let unknown = positions.iter().zip(&places);
        let unknown = unknown.filter(|(_, place)| place.is_none());
        let mut asked: Vec<_> = unknown.map(|(at, _)| *at).collect();
        let Some(last) = asked.iter().max() else {
            return Ok(places);
        };
        asked.extend(hints.ahead(last + 1));
        let asked = asked.into_iter();
        let asked: Vec<_> = asked.filter_map(|at| Some((at, child(at)?))).collect();
        let names: Vec<_> = asked.iter().map(|(_, child)| child.name).collect();
        let ask = move |meta: &dyn Meta| meta.lookup(&names);
        let mut found = self.meta(Priority::Read, ask).await?;
        for ((_, child), place) in asked.iter().zip(&mut found) {
            *place = place.filter(|place| is_as_told(child, place));
        }
        let all = asked.into_iter().zip(&found);
        hints.learn(all.map(|((at, _), place)| (at, *place)));
        // The children looked up ahead come behind these.
        let unknown = places.iter_mut().filter(|place| place.is_none());
        unknown.zip(found).for_each(|(place, found)| *place = found);
        Ok(places)
    }
}

/// Returns true if a place agrees with the node's entry for the child.
fn is_as_told(child: &Child, place: &Location) -> bool {
    let found = place.payload.plain_bytes;
    let is_so = child.plain_bytes.is_none_or(|told| told == found);
    if !is_so {
        let Child { name, plain_bytes } = child;
        tracing::error!(%name, expected = plain_bytes, found, "a chunk's length differs");
    }
    is_so
}
