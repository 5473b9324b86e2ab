//! The seam to the store, as traits: what the NBD server needs of it.
//!
//! Static dispatch throughout: a read that is answered from memory costs no allocation for its
//! future and no task switch.

use std::future::Future;

use bytes::Bytes;

/// The properties of an export that a client learns before it opens it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExportInfo {
    /// The name that the client requests: `snapshot/<name>`.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The access that a client has.
    pub access: Access,
}

/// The access that a client has to an export.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing that changes it, and nobody else changes it either.
    ReadOnly,
    /// Its content may be changed.
    Writable {
        /// True if all connections see each other's writes at once, and a flush on one covers the
        /// writes answered on any. Clients open several connections only if this is set.
        flush_covers_all: bool,
    },
}

impl Access {
    /// Returns true if a client may change the content.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::Writable { .. })
    }
}

/// The directory of exports.
pub trait Exports: Send + Sync + 'static {
    /// One export, opened.
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
/// No range is empty or exceeds `info().size_bytes`: the server has checked that. The server calls
/// a method that changes the content only if `info().access` allows it.
///
/// Requests run side by side, and each is polled once before the next is called: that is the order
/// in which the client sent them. A future may be dropped before it is done, when its connection
/// ends. A change may then have happened or not, in whole or in part, but no block is half changed.
///
/// A change that is answered `Ok` has reached the kernel: it survives a kill of the daemon, and any
/// read of the same connection that is started from then on sees it. If it was `durable`, or is
/// followed by a flush that is answered `Ok`, it also survives a power cut.
pub trait Export: Send + Sync + 'static {
    /// The properties that the server reports to clients.
    fn info(&self) -> &ExportInfo;

    /// The bytes of a range as pieces that together are exactly `length_bytes` long, in order.
    fn read(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<Vec<Piece>, ExportError>> + Send;

    /// Data and holes from `offset` on, without gaps. The last extent may go beyond the range. The
    /// answer may cover less than the range, but not nothing.
    fn extents(
        &self,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send;

    /// Chooses the snapshots to tell changes since, in place of those chosen before. Returns, for
    /// each of them, whether it is there.
    fn choose_references(
        &mut self,
        snapshots: &[&str],
    ) -> impl Future<Output = Result<Vec<bool>, ExportError>> + Send;

    /// Returns, for each of these snapshots, whether it could be chosen.
    fn has_references(
        &self,
        snapshots: &[&str],
    ) -> impl Future<Output = Result<Vec<bool>, ExportError>> + Send;

    /// Snapshots that the export descends from and that could be chosen, the nearest first, at most
    /// `limit`.
    fn ancestors(
        &self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<String>, ExportError>> + Send;

    /// Possible changes since the chosen snapshot of this number, like [`extents`](Self::extents).
    /// Numbers do not count snapshots that were not there.
    fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<Vec<ChangedExtent>, ExportError>> + Send;

    /// Brings a range into the cache. This is a hint: the export may do less.
    fn prefetch(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Replaces a range. `data` may be a slice of what the client sent in one go, up to
    /// [`READ_AHEAD_BYTES`](super::limits::READ_AHEAD_BYTES): an export that keeps it for longer
    /// than the call keeps all that alive, and should copy it.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Makes a range read as zeroes: if it may, by not storing it any more. It never takes longer
    /// than writing as many bytes.
    fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        may_punch_hole: bool,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Forgets the content of a range, which the client has no use for any more. This is a hint:
    /// the export may do less.
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

/// A part of a read. It is not empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// A hole of so many bytes.
    Zero(u32),
}

impl Piece {
    /// Its length.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zero(length_bytes) => u64::from(*length_bytes),
        }
    }
}

/// A range that is all data or all hole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// Its length.
    pub length_bytes: u64,
    /// Not stored, and reads as zeroes.
    pub hole: bool,
}

/// A range that may have changed, or has not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChangedExtent {
    /// Its length.
    pub length_bytes: u64,
    /// True if the range may have changed.
    pub changed: bool,
}

/// Why an export cannot do what was asked, by what the client is told.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nothing is exported by that name.
    #[error("there is no export named {name:?}; the option LIST lists the exports")]
    NotFound {
        /// The requested name.
        name: String,
    },
    /// The store does not vouch for bytes of the range, from `offset` of the export on. Other bytes
    /// may be fine.
    #[error("{message}")]
    Damaged {
        /// Where the damage begins, in bytes of the export.
        offset: u64,
        /// In words.
        message: String,
    },
    /// The store cannot answer: the disk failed, say.
    #[error("{message}")]
    Unavailable {
        /// In words.
        message: String,
    },
    /// The store is full. Earlier writes are not affected.
    #[error("{message}")]
    NoSpace {
        /// In words.
        message: String,
    },
    /// The export does not change.
    #[error("the export is read-only")]
    ReadOnly,
    /// The export was taken away from under its connections.
    #[error("{message}")]
    Detached {
        /// In words.
        message: String,
    },
    /// The server stops.
    #[error("the server is shutting down")]
    Stopping,
}
