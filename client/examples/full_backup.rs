//! A full backup: writes a snapshot's content to a file.
//!
//! ```text
//! cargo run --example full_backup -- --address unix:/run/varve/grpc.sock web/sunday sunday.img
//! ```

mod arguments;

use tokio::signal::ctrl_c;
use varve_client::{Client, Control, Existing, FileSink, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let (endpoint, names) = arguments::arguments("SNAPSHOT FILE", 2);
    let (snapshot, file) = (&names[0], &names[1]);
    let client = Client::connect(&endpoint).await?;

    // The file is sparse, and takes its name only when all of it has been verified and synced.
    let sink = FileSink::create(file, Existing::Keep)?;
    let control = Control::new();
    let download = client.download(snapshot).control(&control).run(sink);

    // Ctrl-C ends the download; nothing is left of the file then.
    let mut download = std::pin::pin!(download);
    let report = tokio::select! {
        report = &mut download => report?,
        _ = ctrl_c() => {
            control.cancel.cancel();
            download.await?
        }
    };

    // The root identifies the whole content. Keep it with the backup, to verify later what was
    // backed up.
    let root = report.snapshot.root.map(|root| root.to_string());
    println!(
        "{file}: {} bytes, {} of them data, root {}",
        report.snapshot.size_bytes,
        report.data_bytes,
        root.unwrap_or_default()
    );
    Ok(())
}
