//! The places of a node's children, as far as they were looked up.
//!
//! A place is a hint: it is right as long as its pack is there, so it stays with its node. In a
//! large store a look-up costs more than most other steps of a read, and most nodes are read in one
//! place before they leave the cache. So a read looks up the children that it needs, and besides as
//! many others as the node has places by then: a leaf that is read once costs one look-up, and one
//! that is read from end to end a few large ones.

use std::num::NonZeroU32;

use parking_lot::Mutex;
use varve_content::codec::Codec;

use crate::format::{
    Location, PackId,
    pack::{PAYLOAD_BYTES_MAX, Payload, RECORD_ALIGN, RecordKind},
};

/// Bits of a hint's number that hold the stored length.
const LENGTH_BITS: u32 = 20;
const _: () = assert!(PAYLOAD_BYTES_MAX < 1 << LENGTH_BITS);
/// The bit of a chunk with an open end. The codec is above it.
const OPEN_BIT: u32 = 1 << LENGTH_BITS;

/// A place without the facts that the node has about its child, in less than half of the memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    pack_number: u64,
    offset_units: u32,
    /// From the lowest bit on: stored length, open end, codec.
    payload: NonZeroU32,
}

/// Bytes of a hint in memory.
pub(super) const HINT_BYTES: usize = size_of::<Option<Hint>>();
const _: () = assert!(HINT_BYTES == 16);

impl Hint {
    /// `None` for a place that a hint cannot express: past the first 32 GiB of a pack.
    fn of(place: &Location) -> Option<Self> {
        let Payload {
            codec,
            end_open,
            stored_bytes,
            ..
        } = place.payload;
        let is_open = if end_open { OPEN_BIT } else { 0 };
        let payload = stored_bytes | is_open | (codec as u32) << (LENGTH_BITS + 1);
        Some(Self {
            pack_number: place.pack.number,
            offset_units: u32::try_from(place.offset_bytes / RECORD_ALIGN).ok()?,
            payload: NonZeroU32::new(payload)?,
        })
    }

    /// The place of a child of this kind and, if the node tells it, of this length. A node is
    /// stored as it is, so its length is known.
    pub(super) fn place(self, kind: RecordKind, plain_bytes: Option<u32>) -> Option<Location> {
        let payload = self.payload.get();
        let codec = u8::try_from(payload >> (LENGTH_BITS + 1)).ok()?;
        let codec = Codec::try_from(codec).ok()?;
        let stored_bytes = payload & (OPEN_BIT - 1);
        Some(Location {
            pack: PackId {
                kind: kind.pack_kind(),
                number: self.pack_number,
            },
            offset_bytes: u64::from(self.offset_units) * RECORD_ALIGN,
            payload: Payload {
                kind,
                codec,
                end_open: payload & OPEN_BIT != 0,
                plain_bytes: match plain_bytes {
                    Some(plain_bytes) => plain_bytes,
                    None if codec == Codec::Raw => stored_bytes,
                    None => return None,
                },
                stored_bytes,
            },
        })
    }
}

/// Hints for the children of a node, by their positions.
#[derive(Debug)]
pub(super) struct Hints(Mutex<Known>);

#[derive(Debug)]
struct Known {
    hints: Box<[Option<Hint>]>,
    count: usize,
}

impl Hints {
    /// Makes hints without any place.
    pub(super) fn new(children: usize) -> Self {
        Self(Mutex::new(Known {
            hints: vec![None; children].into_boxed_slice(),
            count: 0,
        }))
    }

    /// The hints at these positions.
    pub(super) fn at(&self, positions: &[usize]) -> Vec<Option<Hint>> {
        let known = self.0.lock();
        let hints = positions.iter();
        hints
            .map(|at| known.hints.get(*at).copied().flatten())
            .collect()
    }

    /// Children that are worth a look-up with the others before `from`: the next ones with unknown
    /// places, as many as there are known places.
    pub(super) fn ahead(&self, from: usize) -> Vec<usize> {
        let known = self.0.lock();
        let unknown = known.hints.iter().enumerate().skip(from);
        let unknown = unknown.filter(|(_, hint)| hint.is_none());
        unknown.take(known.count).map(|(at, _)| at).collect()
    }

    /// Keeps places that were looked up.
    pub(super) fn learn(&self, found: impl Iterator<Item = (usize, Option<Location>)>) {
        let mut known = self.0.lock();
        let Known { hints, count } = &mut *known;
        for (at, place) in found {
            let (Some(hint), Some(place)) = (hints.get_mut(at), place) else {
                continue;
            };
            *count -= usize::from(hint.is_some());
            *hint = Hint::of(&place);
            *count += usize::from(hint.is_some());
        }
    }

    /// Forgets the places in a pack of this number, which is gone.
    pub(super) fn forget(&self, pack_number: u64) {
        let mut known = self.0.lock();
        let Known { hints, count } = &mut *known;
        for hint in hints {
            if hint.is_some_and(|hint| hint.pack_number == pack_number) {
                *hint = None;
                *count -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::format::PackKind;

    fn place(number: u64, offset_bytes: u64) -> Location {
        Location {
            pack: PackId {
                kind: PackKind::Chunks,
                number,
            },
            offset_bytes,
            payload: Payload {
                kind: RecordKind::Chunk,
                codec: Codec::Raw,
                end_open: false,
                plain_bytes: 4096,
                stored_bytes: 4096,
            },
        }
    }

    fn places(hints: &Hints, positions: &[usize]) -> Vec<Option<Location>> {
        let hints = hints.at(positions).into_iter();
        hints
            .map(|hint| hint?.place(RecordKind::Chunk, Some(4096)))
            .collect()
    }

    #[test]
    fn places_are_kept_as_they_are() {
        let mut all = vec![place(0, 0), place(u64::MAX, (32 << 30) - 8)];
        for codec in [Codec::Lz4, Codec::Zstd] {
            for (end_open, stored_bytes) in [(false, 1), (true, 4095)] {
                let mut place = place(7, 4096);
                place.payload.codec = codec;
                place.payload.end_open = end_open;
                place.payload.stored_bytes = stored_bytes;
                all.push(place);
            }
        }
        let hints = Hints::new(all.len());
        hints.learn(all.iter().copied().map(Some).enumerate());
        let positions: Vec<_> = (0..all.len()).collect();
        let all: Vec<_> = all.into_iter().map(Some).collect();
        assert_eq!(places(&hints, &positions), all);
    }

    #[test]
    fn the_length_of_a_node_is_that_of_its_bytes() {
        let mut node = place(3, 8);
        node.pack.kind = PackKind::Nodes;
        node.payload.kind = RecordKind::Leaf;
        let hint = Hint::of(&node).unwrap();
        assert_eq!(hint.place(RecordKind::Leaf, None), Some(node));
        node.payload.codec = Codec::Lz4;
        let hint = Hint::of(&node).unwrap();
        assert_eq!(hint.place(RecordKind::Leaf, None), None);
    }

    #[test]
    fn a_place_that_no_hint_can_hold_is_asked_for_again() {
        let hints = Hints::new(2);
        hints.learn([(0, Some(place(1, 32 << 30))), (1, None), (2, None)].into_iter());
        assert_eq!(places(&hints, &[0, 1, 2]), [None; 3]);
        assert_eq!(hints.ahead(0), [0; 0]);
    }

    #[test]
    fn what_is_asked_for_ahead_grows_with_what_is_known() {
        let hints = Hints::new(10);
        assert_eq!(hints.ahead(0), [0; 0]);
        let learn = |all: &[usize]| hints.learn(all.iter().map(|at| (*at, Some(place(1, 8)))));
        learn(&[4]);
        learn(&[4]);
        assert_eq!(hints.ahead(3), [3]);
        assert_eq!(hints.ahead(4), [5]);
        learn(&[5, 7]);
        assert_eq!(hints.ahead(5), [6, 8, 9]);
        assert_eq!(hints.ahead(9), [9]);
        assert_eq!(hints.ahead(10), [0; 0]);
    }

    #[test]
    fn places_in_a_pack_that_is_gone_are_forgotten() {
        let hints = Hints::new(3);
        let all = [place(1, 8), place(2, 8), place(1, 16)];
        hints.learn(all.into_iter().map(Some).enumerate());
        hints.forget(1);
        assert_eq!(places(&hints, &[0, 1, 2]), [None, Some(all[1]), None]);
        assert_eq!(hints.ahead(0), [0]);
    }
}
