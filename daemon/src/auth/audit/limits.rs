//! Every bound of the audit log.
//!
//! Bounds on texts are of their escaped form, in bytes, so that their sum bounds a line.

use std::time::Duration;

/// Length of a line, with its line feed. The reader takes a longer one for damage.
pub(super) const LINE_BYTES_MAX: usize = 8 << 10;
/// Account numbers have 12 digits. The rest is for the caller who sends something else.
pub(super) const ACCOUNT_BYTES_MAX: usize = 32;
/// A user, the id of a token, or the subject of a certificate, which has at most 64 characters in
/// each of a few parts.
pub(super) const IDENTITY_BYTES_MAX: usize = 256;
/// An address with its port, or the process and user of a unix socket.
pub(super) const FROM_BYTES_MAX: usize = 128;
/// Names of faces, actions and error kinds, which are ours and short.
pub(super) const WORD_BYTES_MAX: usize = 64;
/// An id of a request, which may be the caller's own, or of what a change has changed.
pub(super) const REQUEST_BYTES_MAX: usize = 128;
/// Ids of what a change has made, changed or deleted, as a JSON list: some 50 UUIDs.
pub(super) const CHANGED_BYTES_MAX: usize = 2 << 10;
/// Resources of a change: some 30 names of the greatest length.
pub(super) const CHANGE_RESOURCES_BYTES_MAX: usize = 3 << 10;
/// The error of a change that failed halfway.
pub(super) const CHANGE_MESSAGE_BYTES_MAX: usize = 1 << 10;
/// Resources of a refusal: a stranger chooses them, and how many refusals there are.
pub(super) const REFUSAL_RESOURCES_BYTES_MAX: usize = 512;
/// The error of a refusal, which may repeat what a stranger sent.
pub(super) const REFUSAL_MESSAGE_BYTES_MAX: usize = 512;
/// Numbers, times and the names of fields in a line.
const FRAME_BYTES_MAX: usize = 512;

/// Events that wait for the thread. With full lines they take 8 MiB. No more changes than the calls
/// of the daemon (1024) are under way at one time, so a disk that works never fills the queue.
pub(super) const QUEUE_EVENTS_MAX: usize = 1024;
/// Events that the thread takes from the queue at one time. The queue has room again for as many
/// before they are written.
pub(super) const BATCH_EVENTS_MAX: usize = 256;
/// Time that a change waits for its line. A disk that takes longer is slower than any answer may
/// become because of it.
pub(super) const RECORD_WITHIN: Duration = Duration::from_secs(2);
/// Time from one `fdatasync` to the next. It is what a power failure may take away.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before a failed write is tried again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The same while the log closes, and its deadline is near.
pub(super) const CLOSING_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Time from one warning in the daemon's log to the next.
pub(super) const WARN_INTERVAL: Duration = Duration::from_mins(1);

/// Time in which equal refusals become one line.
pub(super) const REFUSAL_WINDOW: Duration = Duration::from_secs(1);
/// Different refusals in one window. Further ones become one line without details.
pub(super) const REFUSALS_MAX: usize = 1024;
/// Lines of refusals per second in the long run; a quiet time saves up to [`REFUSALS_MAX`]. A
/// stranger with ever new names or addresses cannot push the lines of changes out of the files: at
/// some 400 bytes a line, 1 GiB lasts for a week of flood.
pub(super) const REFUSALS_PER_SECOND: u64 = 4;

/// Length at which the current file is rotated, by default.
pub(super) const FILE_BYTES: u64 = 64 << 20;
/// Length of all files, by default.
pub(super) const TOTAL_BYTES: u64 = 1 << 30;
/// Length of the part of a file that is searched for its last line at one time.
pub(super) const TAIL_BYTES: u64 = 64 << 10;
/// Numbers above this are not exact in every reader of JSON. A log never gets there: a million
/// lines per second take 285 years.
pub(super) const SEQ_MAX: u64 = 1 << 53;

/// Events on a page, at most: with full lines 8 MiB.
pub(super) const PAGE_EVENTS_MAX: usize = 1024;
/// Bytes that are read for one page, at most: a filter that matches little must not read all files
/// in one call.
pub(super) const PAGE_SCAN_BYTES_MAX: u64 = 64 << 20;

const _: () = assert!(
    FRAME_BYTES_MAX
        + ACCOUNT_BYTES_MAX
        + IDENTITY_BYTES_MAX
        + FROM_BYTES_MAX
        // Face, action, result.
        + 3 * WORD_BYTES_MAX
        + REQUEST_BYTES_MAX
        + CHANGED_BYTES_MAX
        + CHANGE_RESOURCES_BYTES_MAX
        + CHANGE_MESSAGE_BYTES_MAX
        <= LINE_BYTES_MAX
);
const _: () = assert!(TAIL_BYTES >= 4 * LINE_BYTES_MAX as u64);
