//! NBD as clients use it, and as hostile peers abuse it.

mod activation;
mod bitmaps;
mod exports;
mod hostile;
mod newer;
mod protocol;
mod tls;
mod tools;

/// Data extents of a volume: ranges without chunks are holes.
fn data_extents(volume: &std::path::Path) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(volume).unwrap();
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for (block, content) in (0u64..).zip(bytes.chunks(4096)) {
        if content.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (offset, len) = (block * 4096, content.len() as u64);
        match extents.last_mut() {
            Some((start, length)) if *start + *length == offset => *length += len,
            _ => extents.push((offset, len)),
        }
    }
    extents
}
