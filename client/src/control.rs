//! How a long call is followed and ended: the same way for all of them.

use crate::{cancel::Cancel, progress::Progress};

/// Follows a long call and ends it early.
///
/// Every long call is prepared, given a control if anybody wants to follow or end it, and run:
///
/// ```no_run
/// use std::time::Duration;
///
/// use varve_client::{Client, Control, FileSource, Result};
///
/// # async fn import(client: &Client) -> Result<()> {
/// let control = Control::new();
/// let (progress, cancel) = (control.progress.clone(), control.cancel.clone());
/// std::thread::spawn(move || {
///     std::thread::sleep(Duration::from_secs(60));
///     eprintln!("{} of {} bytes", progress.done_bytes(), progress.total_bytes());
///     cancel.cancel();
/// });
/// let source = FileSource::open("/srv/images/web-1.img")?;
/// client.upload("web-1").control(&control).run(source).await?;
/// # Ok(())
/// # }
/// ```
///
/// A control is for one call; calls that are ended together share a [`Cancel`].
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Counters that the call keeps up to date.
    pub progress: Progress,
    /// Ends the call, with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub cancel: Cancel,
}

impl Control {
    /// Counters at zero, and a token of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}
