//! An inner node: up to 256 children of the level below.

#![warn(clippy::indexing_slicing)]

use super::{INNER_CHILDREN, MAX_HEIGHT, NodeId, TreeError};

const WHAT: &str = "inner node";
const TAG: u8 = b'I';
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 4;
const CHILD_BYTES: usize = 1 + NodeId::BYTES;

/// Bytes in the longest encoding of an inner node.
pub const INNER_MAX_BYTES: usize = HEADER_BYTES + INNER_CHILDREN * CHILD_BYTES;

/// An inner node: at least one child, in ascending order of slots. The range of an absent child is
/// all hole.
///
/// Encoding:
///
/// ```text
/// 0    1   b'I'
/// 1    1   version 1
/// 2    1   level, 1 to 3; 1 = the children are leaves
/// 3    1   number of children n less one
/// 4    33n children: slot (1), node id (32)
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InnerNode {
    level: u8,
    children: Vec<(u8, NodeId)>,
}

impl InnerNode {
    /// Creates an inner node with these children, each with its slot.
    ///
    /// # Errors
    ///
    /// * [`TreeError::Level`] if the level is not 1 to [`MAX_HEIGHT`].
    /// * [`TreeError::Empty`] if there is no child.
    /// * [`TreeError::SlotOrder`] if the slots do not ascend.
    pub fn new(level: u8, children: Vec<(u8, NodeId)>) -> Result<Self, TreeError> {
        if !(1..=MAX_HEIGHT).contains(&level) {
            return Err(TreeError::Level { level });
        }
        if children.is_empty() {
            return Err(TreeError::Empty { what: WHAT });
        }
        let out_of_order = children
            .iter()
            .zip(children.iter().skip(1))
            .find(|((previous, _), (slot, _))| slot <= previous);
        if let Some((&(previous, _), &(slot, _))) = out_of_order {
            return Err(TreeError::SlotOrder { slot, previous });
        }
        Ok(Self { level, children })
    }

    /// Creates an inner node. The caller guarantees that there are children and that they ascend.
    pub(super) fn from_ascending(level: u8, children: Vec<(u8, NodeId)>) -> Self {
        debug_assert!(Self::new(level, children.clone()).is_ok());
        Self { level, children }
    }

    /// The level of this node: 1 if its children are leaves.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The children with their slots, in ascending order.
    #[must_use]
    pub fn children(&self) -> &[(u8, NodeId)] {
        &self.children
    }

    /// The child in this slot; `None` if all is hole there.
    #[must_use]
    pub fn child(&self, slot: u8) -> Option<NodeId> {
        let index = self
            .children
            .binary_search_by_key(&slot, |&(slot, _)| slot)
            .ok()?;
        self.children.get(index).map(|&(_, node)| node)
    }

    /// Returns the encoding of this node, at most [`INNER_MAX_BYTES`] long. There is only one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::with_capacity(HEADER_BYTES + self.children.len() * CHILD_BYTES);
        let [count_less_one, ..] = (self.children.len() - 1).to_le_bytes();
        encoded.extend([TAG, VERSION, self.level, count_less_one]);
        for (slot, node) in &self.children {
            encoded.push(*slot);
            encoded.extend(node.as_bytes());
        }
        encoded
    }

    /// Decodes an inner node.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if these bytes are not the [encoding](Self::encode) of any inner node: tag,
    /// version or length are wrong, or [`new`](Self::new) refuses the children.
    pub fn decode(encoded: &[u8]) -> Result<Self, TreeError> {
        let Some((&[tag, version, level, count_less_one], children)) =
            encoded.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(TreeError::Length {
                what: WHAT,
                expected: HEADER_BYTES + CHILD_BYTES,
                found: encoded.len(),
            });
        };
        if (tag, version) != (TAG, VERSION) {
            return Err(TreeError::Tag {
                what: WHAT,
                tag,
                version,
                expected: TAG,
            });
        }
        let count = usize::from(count_less_one) + 1;
        let (children, rest) = children.as_chunks::<CHILD_BYTES>();
        if children.len() != count || !rest.is_empty() {
            return Err(TreeError::Length {
                what: WHAT,
                expected: HEADER_BYTES + count * CHILD_BYTES,
                found: encoded.len(),
            });
        }
        let children = children.iter().map(decode_child).collect();
        Self::new(level, children)
    }

    /// Computes the id of this node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId::of_inner(&self.encode())
    }
}

fn decode_child(encoded: &[u8; CHILD_BYTES]) -> (u8, NodeId) {
    let &[slot, ref id @ ..] = encoded;
    (slot, NodeId::from_bytes(*id))
}
