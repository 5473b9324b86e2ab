//! The agreed terms of a connection: framing, metadata contexts, and the flags that follow.

use crate::{
    export::Access,
    wire::{Framing, TransmissionFlags},
};

/// The terms for the transmission phase, as agreed by both sides.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    pub(crate) framing: Framing,
    /// The contexts that `BLOCK_STATUS` reports; empty if the client may not ask.
    pub(crate) contexts: Vec<MetaContext>,
}

impl Terms {
    pub(super) fn transmission_flags(&self, access: Access) -> TransmissionFlags {
        let mut flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_CACHE);
        let many_connections = match access {
            Access::ReadOnly => {
                flags = flags.with(TransmissionFlags::READ_ONLY);
                true
            }
            Access::Writable { flush_covers_all } => {
                flags = flags
                    .with(TransmissionFlags::SEND_FLUSH)
                    .with(TransmissionFlags::SEND_FUA)
                    .with(TransmissionFlags::SEND_TRIM)
                    .with(TransmissionFlags::SEND_WRITE_ZEROES)
                    .with(TransmissionFlags::SEND_FAST_ZERO);
                flush_covers_all
            }
        };
        if many_connections {
            flags = flags.with(TransmissionFlags::CAN_MULTI_CONN);
        }
        if self.framing >= Framing::Structured {
            flags = flags.with(TransmissionFlags::SEND_DF);
        }
        if self.framing >= Framing::Extended {
            flags = flags.with(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        flags
    }
}

/// Prefix of the contexts of changes since a snapshot. QEMU gives the contexts of its bitmaps this
/// prefix, and other clients read them.
pub(super) const DIRTY_PREFIX: &str = "qemu:dirty-bitmap:";

/// "Metadata querying": a kind of extents that `BLOCK_STATUS` can report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum MetaContext {
    BaseAllocation,
    /// The changes since a snapshot, the chosen reference of this number.
    DirtySince {
        reference: u32,
        snapshot: String,
    },
}

impl MetaContext {
    /// The number of the context in replies: any number but zero, which listings use.
    pub(crate) const fn id(&self) -> u32 {
        match self {
            Self::BaseAllocation => 1,
            Self::DirtySince { reference, .. } => 2 + *reference,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::BaseAllocation => "base:allocation".to_owned(),
            Self::DirtySince { snapshot, .. } => format!("{DIRTY_PREFIX}{snapshot}"),
        }
    }

    /// Contexts of snapshots that were chosen as references.
    pub(super) fn dirty<'a>(
        snapshots: impl IntoIterator<Item = &'a str>,
    ) -> impl Iterator<Item = Self> {
        let snapshots: Vec<_> = snapshots.into_iter().map(str::to_owned).collect();
        (0..)
            .zip(snapshots)
            .map(|(reference, snapshot)| Self::DirtySince {
                reference,
                snapshot,
            })
    }
}

/// Returns true if a listing with this query shows a context. A query that ends with a colon is the
/// wildcard of a namespace.
pub(super) fn lists(query: &str, name: &str) -> bool {
    query == name || query.ends_with(':') && name.starts_with(query)
}
