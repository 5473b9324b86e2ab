//! Packs: append-only files of records, each a chunk or a tree node under its id.
//!
//! ```text
//! 0                4096                                          footer, 4 KiB-aligned        end
//! +----------------+--------+--------+---------+--------+--------+----------------+---------+
//! | pack header    | record | record | padding | record |  ...   | footer entries | trailer |
//! +----------------+--------+--------+---------+--------+--------+----------------+---------+
//!                                    ^ flush   ^ 4 KiB-aligned
//! ```
//!
//! A record is a [`RecordHeader`] and its payload, zero-filled to a multiple of [`RECORD_ALIGN`]:
//! the next one begins right there. So that bytes that were synced are never written again, a flush
//! ends at a multiple of [`PACK_ALIGN`]: padding, which has a header of its own, fills the rest.
//! Where less than a header remains, padding continues through the next 4 KiB: a scan finds a
//! header at every step and never has to guess.
//!
//! A pack with a valid [`Trailer`] in its last bytes is sealed: nothing is ever added to it. A pack
//! without one is still being written, or was when the power failed; its last records may be torn.
//! The trailer repeats the random bytes of the header, which the store never discloses. In version
//! 1 there are none, and a payload at the end of a pack that is not sealed may look like a footer:
//! there the records have to end where the footer begins.
//!
//! | file | bytes of |
//! | --- | --- |
//! | `id.rs` | no bytes: the id of a pack |
//! | `header.rs` | the pack header |
//! | `record.rs` | record headers and padding |
//! | `footer.rs` | footer and trailer |

mod footer;
mod header;
mod id;
mod record;

#[cfg(test)]
pub(super) mod tests;

pub use self::{
    footer::{
        FOOTER_ENTRY_BYTES, FooterEntry, PACK_RECORDS_MAX, TRAILER_BYTES, Trailer, decode_footer,
        encode_footer,
    },
    header::{PACK_HEADER_BYTES, PackHeader, PackNonce},
    id::{PackId, PackKind},
    record::{
        Header, Location, PAYLOAD_BYTES_MAX, Payload, RECORD_ALIGN, RECORD_HEADER_BYTES,
        RECORD_MAGIC, RecordHeader, RecordKind, encode_padding, padding_bytes,
    },
};

/// Flushes end, and the footer begins, at multiples of this.
pub const PACK_ALIGN: u64 = 4096;
