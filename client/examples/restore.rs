//! A restore: makes snapshots of a full backup and of patches on it, in the order in which they were
//! made.
//!
//! ```text
//! cargo run --example restore -- --address unix:/run/varve/grpc.sock \
//!     restored sunday.img monday.patch tuesday.patch
//! ```
//!
//! The snapshots are called `restored/0`, `restored/1` and `restored/2`. The last one's content is
//! that of Tuesday's snapshot, and so is its root.

mod arguments;

use std::{error::Error, fs, fs::File};

use varve_client::{Client, FileSource, PatchSource};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (endpoint, names) = arguments::arguments("NAME FILE [PATCH ...]", 2);
    let (name, file, patches) = (&names[0], &names[1], &names[2..]);
    let client = Client::connect(&endpoint).await?;

    // Holes of the file are not read; chunks that the store has are not sent.
    let mut restored = format!("{name}/0");
    let full = FileSource::open(file)?;
    let mut report = client.upload(&restored).run(full).await?;
    for (number, path) in (1..).zip(patches) {
        // Only what a patch changes is sent; the rest is taken from the snapshot before.
        let base = std::mem::replace(&mut restored, format!("{name}/{number}"));
        report = client
            .upload(&restored)
            .base(base)
            .run(patch(path)?)
            .await?;
    }
    let root = report.snapshot.root.map(|root| root.to_string());
    println!("{restored}: root {}", root.unwrap_or_default());
    Ok(())
}

/// Reads the index of a patch that `incremental_backup` has written.
fn patch(path: &str) -> Result<PatchSource, Box<dyn Error>> {
    let index = fs::read_to_string(format!("{path}.index"))?;
    let mut lines = index.lines();
    let size_bytes = lines.next().and_then(|line| line.strip_prefix("size "));
    let size_bytes = size_bytes.ok_or("the index does not begin with a size")?;
    let mut patch = PatchSource::new(File::open(path)?, path, size_bytes.parse()?);
    let mut file_offset_bytes = 0;
    for line in lines {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["data", offset, len] => {
                let (offset, len): (u64, u64) = (offset.parse()?, len.parse()?);
                patch.data(offset..offset + len, file_offset_bytes)?;
                file_offset_bytes += len;
            }
            ["zeros", offset, len] => {
                let (offset, len): (u64, u64) = (offset.parse()?, len.parse()?);
                patch.zeros(offset..offset + len)?;
            }
            ["end"] => return Ok(patch),
            _ => break,
        }
    }
    Err(format!("{path}: the index is not complete").into())
}
