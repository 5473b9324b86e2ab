//! Changes that break decoders: bits, lengths, ends, and pieces of other inputs.

use varve_tests::random::Random;

/// Numbers at the edge of something.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    63,
    64,
    65,
    4095,
    4096,
    4097,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX - 4095,
    u64::MAX,
];

/// One of the inputs, changed in one to four places.
pub(super) fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.index(corpus.len())].clone();
    for _ in 0..random.within(1..5) {
        mutate(&mut input, corpus, random);
    }
    input
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(random.byte());
        return;
    }
    // The fields are mostly at the front, and long inputs are mostly zeros.
    let reach = if random.one_in(2) {
        input.len().min(128)
    } else {
        input.len()
    };
    let at = random.index(reach);
    match random.within(0..10) {
        0 | 1 => input[at] ^= 1 << random.within(0..8),
        2 => input[at] = random.byte(),
        3 => put_number(input, at, random),
        4 => input.truncate(at),
        5 => {
            let until = (at + random.index(64) + 1).min(input.len());
            input.drain(at..until);
        }
        6 => {
            let count = random.index(64) + 1;
            let byte = if random.one_in(2) { 0 } else { random.byte() };
            input.splice(at..at, std::iter::repeat_n(byte, count));
        }
        7 => {
            let until = (at + random.index(200) + 1).min(input.len());
            let piece = input[at..until].to_vec();
            let to = random.index(input.len());
            input.splice(to..to, piece);
        }
        8 => {
            let other = &corpus[random.index(corpus.len())];
            let from = random.index(other.len().max(1)).min(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let other = random.index(input.len());
            input.swap(at, other);
        }
    }
}

/// A boundary number, or one next to the present value, in either byte order and of some width.
fn put_number(input: &mut [u8], at: usize, random: &mut Random) {
    let width = [1, 2, 4, 8][random.index(4)].min(input.len() - at);
    let place = &mut input[at..at + width];
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(place);
    let near = u64::from_le_bytes(bytes);
    let number = match random.within(0..4) {
        0 => near.wrapping_add(1),
        1 => near.wrapping_sub(1),
        _ => EDGES[random.index(EDGES.len())],
    };
    if random.one_in(2) {
        place.copy_from_slice(&number.to_le_bytes()[..width]);
    } else {
        place.copy_from_slice(&number.to_be_bytes()[8 - width..]);
    }
}
