//! Every conversion between the protocol and the service's types.
//!
//! - `records`: snapshots, volumes, copies, remotes, status.
//! - `accounts`: accounts, tokens and access keys.
//! - `images`: images.
//! - `gc`: collections, and what snapshots and volumes take.
//! - `content`: uploads, downloads, ranges, chunks, leaves, nodes.
//!
//! Invariants: a value that does not fit the service's types is refused with an [`Error`] that
//! names the field and the value. The service and the store check everything else.

mod accounts;
mod content;
mod gc;
mod images;
mod records;

use bytes::Bytes;
use prost_types::Timestamp;
use varve_content::{ChunkId, RootId};

pub(super) use self::{
    accounts::{
        access_key, account, account_change, account_use, audit_page, audit_query, new_account,
        new_token, token, who_am_i,
    },
    content::{
        chunk_ids, chunk_message, chunk_request, diff_extent, download_part, incoming_leaf,
        new_upload, node, node_request, range_part, root, stored_chunk, verify_state,
    },
    gc::{dead_bytes, gc_choice, gc_plan, gc_state, gc_status, usage},
    images::{image, image_change, list_images, new_image},
    records::{
        copy, copy_source, deletion, estimate, list_copies, list_snapshots, list_volumes,
        new_clone, new_copy, new_remote, new_snapshots, new_volume, remote, snapshot, status,
        volume, volume_details,
    },
};
use crate::service::{Error, Result};

/// A time in nanoseconds since 1970.
fn timestamp(unix_ns: u64) -> Timestamp {
    const NANOS: u64 = 1_000_000_000;
    let nanos = (unix_ns % NANOS) as i32;
    Timestamp {
        seconds: (unix_ns / NANOS).cast_signed(),
        nanos,
    }
}

/// A time since 1970, in nanoseconds.
fn unix_ns(field: &'static str, time: Option<Timestamp>) -> Result<u64> {
    let wrong = || Error::field(field, "it is not a time between 1970 and 2554");
    let time = time.ok_or_else(wrong)?;
    let seconds = u64::try_from(time.seconds).map_err(|_| wrong())?;
    let nanos = u64::try_from(time.nanos).map_err(|_| wrong())?;
    if nanos >= 1_000_000_000 {
        return Err(wrong());
    }
    let whole = seconds.checked_mul(1_000_000_000);
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .ok_or_else(wrong)
}

/// The bytes of a root's id; none for no root.
fn root_bytes(root: Option<RootId>) -> Bytes {
    root.map_or_else(Bytes::new, |root| Bytes::copy_from_slice(root.as_bytes()))
}

fn wrong_id_length(field: &'static str, bytes: &[u8]) -> Error {
    Error::field(
        field,
        format!("{} bytes, an id has {}", bytes.len(), ChunkId::BYTES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds() {
        let time = timestamp(1_700_000_000_123_456_789);
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_456_789));
        let back = unix_ns("created_at", Some(time));
        assert!(back.is_ok_and(|unix_ns| unix_ns == 1_700_000_000_123_456_789));
    }
}
