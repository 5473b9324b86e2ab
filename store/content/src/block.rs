//! The units of a volume: 4 KiB blocks, and 8 MiB segments of blocks.
//!
//! A block is the unit of change. An all-zero block is a hole: it is never stored and reads as
//! zeros. One leaf of the tree describes one segment, and chunks never cross the edge of a segment.

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks in a segment.
pub const SEGMENT_BLOCKS: u32 = 2048;

/// Bytes in a segment: 8 MiB.
pub const SEGMENT_BYTES: usize = SEGMENT_BLOCKS as usize * BLOCK_BYTES;

/// Bytes in the largest volume: 64 TiB, which is 2^23 segments.
pub const MAX_VOLUME_BYTES: u64 = 64 << 40;

/// Bytes at the end that [`is_zero`] looks at before anything else. Data mostly shows there that it
/// is not zero, and the chunker needs this cache line of a block anyway: the misses on one line of
/// each block are most of what cutting costs when a segment is not in the processor's cache.
const PROBE_BYTES: usize = 64;

/// Bytes that [`is_zero`] combines between two tests: long enough for the compiler to keep several
/// vector registers busy, short enough to stop early.
const STRIDE_BYTES: usize = 512;

/// Returns true if every byte is zero. An empty slice counts as zero.
///
/// Runs at memory speed over zeros and returns after one or two cache lines for most other data.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    if let Some(probe) = bytes.last_chunk::<PROBE_BYTES>()
        && any_bit(probe)
    {
        return false;
    }
    let (strides, rest) = bytes.as_chunks::<STRIDE_BYTES>();
    strides.iter().all(|stride| !any_bit(stride)) && !rest.iter().any(|&byte| byte != 0)
}

/// Returns true if any bit is set. It has no branches, so that it compiles to vector code.
fn any_bit<const N: usize>(bytes: &[u8; N]) -> bool {
    const { assert!(N.is_multiple_of(8), "lanes of 8 bytes must cover the array") };
    let (lanes, _) = bytes.as_chunks::<8>();
    let bits = lanes
        .iter()
        .fold(0, |bits, lane| bits | u64::from_ne_bytes(*lane));
    bits != 0
}

/// Number of segments in a volume of `size_bytes`, of which the last may be short: at most 2^23 up
/// to [`MAX_VOLUME_BYTES`]. Returns `u32::MAX` if the count does not fit; no volume is that large.
#[must_use]
pub fn segment_count(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.div_ceil(SEGMENT_BYTES as u64)).unwrap_or(u32::MAX)
}

/// Number of blocks in segment number `segment` of a volume of `size_bytes`: [`SEGMENT_BLOCKS`]
/// except in the last segment, and 0 beyond the end of the volume.
///
/// If the size is not a multiple of [`BLOCK_BYTES`], the partial block at the end counts as a whole
/// one, padded with zeros.
#[must_use]
pub fn segment_blocks(size_bytes: u64, segment: u32) -> u32 {
    let start_byte = u64::from(segment) * SEGMENT_BYTES as u64;
    let blocks = size_bytes
        .saturating_sub(start_byte)
        .div_ceil(BLOCK_BYTES as u64);
    u32::try_from(blocks).map_or(SEGMENT_BLOCKS, |blocks| blocks.min(SEGMENT_BLOCKS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn is_zero_finds_a_bit_at_any_place() {
        for len in [0, 1, 7, 63, 64, 65, 511, 512, 513, 576, BLOCK_BYTES] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes), "{len} zeros");
            for at in 0..len {
                bytes[at] = 0x10;
                assert!(!is_zero(&bytes), "{len} bytes with a bit at {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn segments_of_odd_sizes() {
        let segment = SEGMENT_BYTES as u64;
        assert_eq!((segment_count(0), segment_blocks(0, 0)), (0, 0));
        assert_eq!((segment_count(1), segment_blocks(1, 0)), (1, 1));
        assert_eq!((segment_count(4096), segment_blocks(4096, 0)), (1, 1));
        assert_eq!((segment_count(4097), segment_blocks(4097, 0)), (1, 2));
        assert_eq!(
            (segment_count(segment), segment_blocks(segment, 0)),
            (1, 2048)
        );
        assert_eq!(segment_blocks(segment, 1), 0);
        let size = segment + 1;
        assert_eq!(segment_count(size), 2);
        assert_eq!(
            [0, 1, 2].map(|segment| segment_blocks(size, segment)),
            [2048, 1, 0]
        );
    }

    #[test]
    fn segments_of_the_largest_volume() {
        assert_eq!(segment_count(MAX_VOLUME_BYTES), 1 << 23);
        assert_eq!(segment_blocks(MAX_VOLUME_BYTES, (1 << 23) - 1), 2048);
        assert_eq!(segment_blocks(MAX_VOLUME_BYTES, 1 << 23), 0);
        assert_eq!(segment_count(u64::MAX), u32::MAX);
        assert_eq!(segment_blocks(u64::MAX, 0), 2048);
    }

    proptest! {
        #[test]
        fn is_zero_equals_the_naive_check(
            len in 0usize..3 * BLOCK_BYTES,
            marks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            skip in 0usize..64,
        ) {
            let mut bytes = vec![0u8; len];
            for (at, byte) in marks {
                if len > 0 {
                    bytes[at.index(len)] = byte;
                }
            }
            // An odd start, so that lanes are not aligned in memory.
            let bytes = bytes.get(skip..).unwrap_or_default();
            prop_assert_eq!(is_zero(bytes), bytes.iter().all(|&byte| byte == 0));
        }

        #[test]
        fn segments_add_up_to_the_size(size_bytes in 1u64..1 << 32) {
            let count = segment_count(size_bytes);
            let blocks: u64 = (0..count).map(|segment| u64::from(segment_blocks(size_bytes, segment))).sum();
            prop_assert_eq!(blocks, size_bytes.div_ceil(BLOCK_BYTES as u64));
            prop_assert_eq!(segment_blocks(size_bytes, count), 0);
        }
    }
}
