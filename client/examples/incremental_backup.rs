//! An incremental backup: writes what has changed in a snapshot since an earlier one.
//!
//! ```text
//! cargo run --example incremental_backup -- --address unix:/run/varve/grpc.sock \
//!     web/monday web/sunday monday.patch
//! ```
//!
//! The patch is two files. `monday.patch` has the bytes of all changes, one after the other, and
//! `monday.patch.index` says in lines where they belong:
//!
//! ```text
//! size 10737418240
//! data 1048576 65536
//! zeros 8388608 4096
//! end
//! ```

mod arguments;

use std::{
    error::Error,
    fs::File,
    io::{BufWriter, Write},
};

use futures::TryStreamExt;
use varve_client::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (endpoint, names) = arguments::arguments("SNAPSHOT BASE PATCH", 3);
    let (snapshot, base, path) = (&names[0], &names[1], &names[2]);
    let client = Client::connect(&endpoint).await?;

    // The roots of the two snapshots prove both the bytes and their places.
    let mut changes = client.read_snapshot(snapshot).since(base).run().await?;
    let mut patch = BufWriter::new(File::create_new(path)?);
    let mut index = BufWriter::new(File::create_new(format!("{path}.index"))?);
    writeln!(index, "size {}", changes.snapshot().size_bytes)?;
    let mut changed_bytes = 0;
    while let Some(extent) = changes.try_next().await? {
        let kind = match &extent.data {
            Some(data) => {
                patch.write_all(data)?;
                "data"
            }
            // The base has data here; the newer snapshot has zeros.
            None => "zeros",
        };
        writeln!(index, "{kind} {} {}", extent.offset_bytes, extent.len_bytes)?;
        changed_bytes += extent.len_bytes;
    }

    // The index is complete only with its last line, which comes when the bytes are on disk.
    patch.into_inner()?.sync_all()?;
    writeln!(index, "end")?;
    index.into_inner()?.sync_all()?;
    println!("{path}: {changed_bytes} bytes have changed since {base}");
    Ok(())
}
