//! The seam to the store: what the NBD server needs from it, as traits.
//!
//! Static dispatch throughout: a read that is answered from memory costs no allocation for its
//! future and no task switch.

use std::future::Future;

use bytes::Bytes;

/// What a client learns about an export before it opens it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExportInfo {
    /// What the client asks for: `snapshot/<name>`.
    pub name: String,
    /// For people.
    pub description: String,
    pub size_bytes: u64,
    pub access: Access,
}

/// What a client may do with an export.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing that changes it, and nobody else changes it either.
    ReadOnly,
    Writable {
        /// Whether all connections see each other's writes at once, and a flush on one covers what
        /// was answered on any. Clients open several connections only if so.
        flush_covers_all: bool,
    },
}

impl Access {
    #[must_use]
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::Writable { .. })
    }
}

/// The directory of exports.
pub trait Exports: Send + Sync + 'static {
    type Export: Export;

    /// The first exports (at most `limit`) whose name sorts after `after`, in the order of names.
    /// An empty answer ends the listing.
    fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ExportInfo>, ExportError>> + Send;

    /// Opens the export that a client asked for. The name is whatever the client sent.
    fn open(&self, name: &str) -> impl Future<Output = Result<Self::Export, ExportError>> + Send;
}

/// One opened export. Its size does not change while it is open, and its content only by what is
/// written through exports of it.
///
/// No range is empty, and none goes beyond `info().size_bytes`: the server has checked it. What
/// changes the content is called only if `info().access` allows it.
///
/// Requests run side by side, and each is polled once before the next is called: that is the order
/// in which the client sent them. A future may be dropped before it is done, when its connection
/// ends. A change may then have happened or not, in whole or in part, but no block is half changed.
///
/// A change that is answered `Ok` has reached the kernel: it survives a kill of the daemon, and any
/// read of the same connection that is started from then on sees it. If it was `durable`, or is
/// followed by a flush that is answered `Ok`, it also survives a power cut.
pub trait Export: Send + Sync + 'static {
    fn info(&self) -> &ExportInfo;

    /// The bytes of a range as pieces that together are exactly `length_bytes` long, in order.
    fn read(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<Vec<Piece>, ExportError>> + Send;

    /// What is data and what is hole, from `offset` on, without gaps. The last extent may go
    /// beyond the range, and the answer may cover less than the range, but not nothing.
    fn extents(
        &self,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send;

    /// Chooses snapshots that changes are told since, in place of those chosen before. Which of these there are.
    fn choose_references(
        &mut self,
        snapshots: &[&str],
    ) -> impl Future<Output = Result<Vec<bool>, ExportError>> + Send;

    /// Which of these snapshots there are to choose from.
    fn has_references(
        &self,
        snapshots: &[&str],
    ) -> impl Future<Output = Result<Vec<bool>, ExportError>> + Send;

    /// Snapshots that it descends from and that changes can be told since, the nearest first, at most `limit`.
    fn ancestors(
        &self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<String>, ExportError>> + Send;

    /// What may have changed since the chosen snapshot of this number, counted without those that are not there: like
    /// [`extents`](Self::extents).
    fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<Vec<ChangedExtent>, ExportError>> + Send;

    /// Brings a range into the cache. A hint: it may do less.
    fn prefetch(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Replaces a range. `data` may be a slice of what the client sent in one go, up to
    /// [`READ_AHEAD_BYTES`](super::limits::READ_AHEAD_BYTES): whoever keeps it for longer than the
    /// call keeps all that alive, and better copies it.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Makes a range read as zeroes, if it may by not storing it any more. It never takes longer than to write as many bytes.
    fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        may_punch_hole: bool,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// The client has no use for a range any more, and does not care what it reads as. A hint: it
    /// may do less.
    fn trim(
        &self,
        offset: u64,
        length_bytes: u64,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Makes durable what was answered `Ok` before the call: on this connection, or on all of them
    /// if the export said so in [`Access::Writable`].
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send;
}

/// Part of what was read. Neither kind is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    Data(Bytes),
    /// A hole of so many bytes.
    Zero(u32),
}

impl Piece {
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zero(length_bytes) => u64::from(*length_bytes),
        }
    }
}

/// A run of bytes that is all data or all hole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    pub length_bytes: u64,
    /// Not stored, and reads as zeroes.
    pub hole: bool,
}

/// A run of bytes that is as it was, or may not be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChangedExtent {
    pub length_bytes: u64,
    pub changed: bool,
}

/// Why an export cannot do what was asked, by what the client is told.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("there is no export named {name:?}; the option LIST tells which there are")]
    NotFound { name: String },
    /// Bytes of the range cannot be vouched for, from `offset` of the export on. Others may be fine.
    #[error("{message}")]
    Damaged { offset: u64, message: String },
    /// The store cannot answer: the disk failed, say.
    #[error("{message}")]
    Unavailable { message: String },
    /// The store is full. What was written before is not affected.
    #[error("{message}")]
    NoSpace { message: String },
    #[error("the export is read-only")]
    ReadOnly,
    /// The export was taken away from under its connections.
    #[error("{message}")]
    Detached { message: String },
    #[error("the server is shutting down")]
    Stopping,
}
