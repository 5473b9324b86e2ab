//! NBD as clients meet it, and clients as the daemon should not meet them.

mod activation;
mod bitmaps;
mod exports;
mod hostile;
mod newer;
mod protocol;
mod tls;
mod tools;

/// Data extents of a volume: what the chunker leaves out is a hole.
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
