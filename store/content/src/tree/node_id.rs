//! The ids of tree nodes and roots.

use crate::id::define_id;

// Frozen: another context gives every node another id.
const LEAF_CONTEXT: &str = "varve content tree v1 leaf";
const INNER_CONTEXT: &str = "varve content tree v1 inner node";
const ROOT_CONTEXT: &str = "varve content tree v1 root";

define_id! {
    /// Id of a leaf or an inner node: the BLAKE3 hash of its encoding in derive-key mode, with one
    /// context for leaves and one for inner nodes.
    pub struct NodeId, "a node id"
}

define_id! {
    /// Id of a root record, and so of a volume's whole content and size: the BLAKE3 hash of its
    /// encoding in derive-key mode, with a context of its own.
    pub struct RootId, "a root id"
}

impl NodeId {
    /// Computes the id of a leaf from its encoding.
    #[must_use]
    pub fn of_leaf(encoded: &[u8]) -> Self {
        Self(blake3::derive_key(LEAF_CONTEXT, encoded))
    }

    /// Computes the id of an inner node from its encoding.
    #[must_use]
    pub fn of_inner(encoded: &[u8]) -> Self {
        Self(blake3::derive_key(INNER_CONTEXT, encoded))
    }
}

impl RootId {
    /// Computes the id of a root record from its encoding.
    #[must_use]
    pub fn of(encoded: &[u8]) -> Self {
        Self(blake3::derive_key(ROOT_CONTEXT, encoded))
    }
}
