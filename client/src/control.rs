//! Progress and cancellation of long calls, in the same way for all of them.

use crate::{cancel::Cancel, progress::Progress};

/// Shows the progress of a long call, and cancels it.
///
/// To follow or cancel a long call, give it a control before you run it:
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
/// A control is for one call. Calls that are cancelled together share a [`Cancel`].
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Counters that the call keeps up to date.
    pub progress: Progress,
    /// Cancels the call, which then fails with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub cancel: Cancel,
}

impl Control {
    /// Creates a control with counters at zero and a token of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}
