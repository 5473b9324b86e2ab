//! The door: each operation of each face passes through it, with its caller, its kind and its
//! target.
//!
//! Invariants: [`pass`] is the only way to an operation, and it is called before anything is looked
//! up or changed. An operation that continues after its answer has begun, as a stream, is reported
//! once more when it ends.

use std::{fmt, time::Instant};

use tracing::{debug, warn};

use super::Caller;
use crate::{error::Classified, limits};

macro_rules! actions {
    ($($name:ident,)*) => {
        /// An operation that a caller requests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Action {
            $($name,)*
        }

        impl Action {
            /// As the log calls it.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

actions! {
    ListSnapshots,
    GetSnapshot,
    CreateSnapshots,
    DeleteSnapshot,
    TagSnapshot,
    DiffSnapshots,
    VerifySnapshot,
    Download,
    ReadSnapshot,
    CreateVolume,
    CloneVolume,
    ResizeVolume,
    GetVolume,
    ListVolumes,
    TagVolume,
    DeleteVolume,
    AttachVolume,
    DetachVolume,
    BeginUpload,
    FindMissing,
    PutChunks,
    PutLeaves,
    CommitUpload,
    AbortUpload,
    FetchNodes,
    FetchChunks,
    CreateCopy,
    GetCopy,
    ListCopies,
    CancelCopy,
    LimitCopy,
    EstimateCopy,
    AddRemote,
    ListRemotes,
    RemoveRemote,
    GetStatus,
    ListExports,
    OpenExport,
    CompareExport,
}

/// The target of an operation, by the name or id that the caller gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource<'a> {
    Snapshot(&'a str),
    Volume(&'a str),
    /// The snapshot or the volume with this name.
    SnapshotOrVolume(&'a str),
    Upload(&'a str),
    Copy(&'a str),
    Remote(&'a str),
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, key) = match self {
            Self::Snapshot(key) => ("snapshot", key),
            Self::Volume(key) => ("volume", key),
            Self::SnapshotOrVolume(key) => ("snapshot or volume", key),
            Self::Upload(key) => ("upload", key),
            Self::Copy(key) => ("copy", key),
            Self::Remote(key) => ("remote", key),
        };
        // A key is whatever the caller sent.
        match key.char_indices().nth(limits::QUOTED_CHARS_MAX) {
            Some((end, _)) => write!(f, "{kind} {}...", &key[..end]),
            None => write!(f, "{kind} {key}"),
        }
    }
}

/// Several resources, for the log.
struct Listed<'a>(&'a [Resource<'a>]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, resource) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{resource}")?;
        }
        Ok(())
    }
}

/// Lets a caller do something: the one place that every operation passes.
///
/// `on` is all that the operation reads, changes or makes, as far as the caller has named it; none
/// means what the store holds as a whole.
///
/// # Errors
///
/// The errors of the work.
pub(crate) async fn pass<T, E: Classified>(
    caller: &Caller,
    action: Action,
    on: &[Resource<'_>],
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let attempt = Attempt::begin(caller, action);
    let outcome = work.await;
    attempt.end(on, outcome.as_ref().err());
    outcome
}

/// An operation under way, for the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    caller: Caller,
    action: Action,
    started: Instant,
}

impl Attempt {
    pub(crate) fn begin(caller: &Caller, action: Action) -> Self {
        Self {
            caller: *caller,
            action,
            started: Instant::now(),
        }
    }

    /// The name of the operation in the log.
    pub(crate) const fn name(&self) -> &'static str {
        self.action.name()
    }

    /// Logs the end: loud when the daemon or the disk is at fault, quiet when the caller is.
    pub(crate) fn end<E: Classified>(&self, on: &[Resource<'_>], error: Option<&E>) {
        let (call, caller) = (self.action.name(), &self.caller);
        let (on, seconds) = (Listed(on), self.started.elapsed().as_secs_f64());
        let Some(error) = error else {
            debug!(call, %caller, %on, seconds, "call served");
            return;
        };
        let (code, error) = (error.kind(), error.to_string());
        if code.is_alarming() {
            warn!(call, ?code, error, %caller, %on, seconds, "call failed");
        } else {
            debug!(call, ?code, error, %caller, %on, seconds, "call refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_shown_and_long_keys_are_cut() {
        let long = "ü".repeat(limits::QUOTED_CHARS_MAX + 1);
        let on = [Resource::Snapshot("web"), Resource::Volume(&long)];
        let shown = Listed(&on).to_string();
        let cut = "ü".repeat(limits::QUOTED_CHARS_MAX);
        assert_eq!(shown, format!("snapshot web, volume {cut}..."));
        assert_eq!(Listed(&[]).to_string(), "");
    }
}
