//! Lists snapshots by the beginning of their names, and tags those that were not tagged yet.
//!
//! ```text
//! cargo run --example list_and_tag -- --address unix:/run/varve/grpc.sock web/ backup=done
//! ```

mod arguments;

use std::{collections::BTreeMap, error::Error};

use futures::TryStreamExt;
use varve_client::{Client, SnapshotFilter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (endpoint, names) = arguments::arguments("PREFIX KEY=VALUE", 2);
    let (key, value) = names[1].split_once('=').ok_or("write KEY=VALUE")?;
    let client = Client::connect(&endpoint).await?;

    // Pages are fetched as they are needed, so there may be any number of snapshots.
    let filter = SnapshotFilter {
        name_prefix: names[0].clone(),
        ..SnapshotFilter::default()
    };
    let mut snapshots = std::pin::pin!(client.snapshots(filter));
    while let Some(snapshot) = snapshots.try_next().await? {
        let is_tagged = snapshot.tags.get(key).is_some_and(|found| found == value);
        println!(
            "{} {} {} bytes{}",
            snapshot.id,
            snapshot.name,
            snapshot.size_bytes,
            if is_tagged { "" } else { ", tagged now" }
        );
        if !is_tagged {
            // By the id: the name may belong to another snapshot by now.
            let set = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            client.tag_snapshot(&snapshot.id, set, Vec::new()).await?;
        }
    }
    Ok(())
}
