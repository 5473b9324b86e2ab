//! The interface to the store, as traits.
//!
//! Static dispatch throughout: a read that is answered from memory needs no allocation for its
//! future and no task switch.

use std::future::Future;

use bytes::Bytes;

use crate::names::without_tickets;

/// The properties of an export that a client learns before it opens it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExportInfo {
    /// The name that the client requests: `snapshot/<name>`.
    pub name: String,
    /// A description for people.
    pub description: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The access that a client has.
    pub access: Access,
}

/// The access that a client has to an export.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// The client may only read, and the content never changes.
    ReadOnly,
    /// The client may change the content.
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

    /// Opens the export that a client requests. The name is unchecked input of the client.
    fn open(&self, name: &str) -> impl Future<Output = Result<Self::Export, ExportError>> + Send;
}

/// One opened export. Its size does not change while it is open. Its content changes only by writes
/// through exports of it.
///
/// No range is empty or exceeds `info().size_bytes`: the server has checked that. The server calls
/// a method that changes the content only if `info().access` allows it.
///
/// Requests run concurrently, and each is polled once before the next is called, in the order in
/// which the client sent them. When a connection ends, futures may be dropped before they are done.
/// A change may then have happened or not, completely or in part, but no block is half changed.
///
/// A change that is answered `Ok` has reached the kernel: it survives a kill of the daemon, and any
/// read of the same connection that is started from then on sees it. If it was `durable`, or is
/// followed by a flush that is answered `Ok`, it also survives a power cut.
pub trait Export: Send + Sync + 'static {
    /// The properties that the server reports to clients.
    fn info(&self) -> &ExportInfo;

    /// Reads a range: pieces in order, exactly `length_bytes` long together.
    fn read(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<Vec<Piece>, ExportError>> + Send;

    /// Data and holes from `offset` on, without gaps. The last extent may exceed the range. The
    /// answer may cover less than the range, but is never empty.
    fn extents(
        &self,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send;

    /// Chooses the references: the snapshots for [`changes`](Self::changes), instead of earlier
    /// ones. Returns true for each one that exists.
    fn choose_references(
        &mut self,
        snapshots: &[&str],
    ) -> impl Future<Output = Result<Vec<bool>, ExportError>> + Send;

    /// Returns true for each of these snapshots that could be chosen.
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
    /// The numbers skip snapshots that do not exist.
    fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<Vec<ChangedExtent>, ExportError>> + Send;

    /// Reads a range into the cache. This is a hint: the export may do less.
    fn prefetch(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Writes a range. `data` may be a slice of a read buffer of up to
    /// [`READ_AHEAD_BYTES`](super::limits::READ_AHEAD_BYTES): an export that keeps it for longer
    /// than the call keeps the whole buffer alive, and should copy the bytes.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Makes a range read as zeroes, as a hole if that is allowed. It never takes longer than
    /// writing as many bytes.
    fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        may_punch_hole: bool,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Discards the content of a range that the client no longer needs. This is a hint: the export
    /// may do less.
    fn trim(
        &self,
        offset: u64,
        length_bytes: u64,
        durable: bool,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Makes all changes durable that were answered `Ok` before the call: on this connection, or on
    /// all connections if [`Access::Writable`] says so.
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send;
}

/// A part of a read. It is not empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// A hole of this many bytes.
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
    /// True if the range is not stored and reads as zeroes.
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

impl ExportError {
    /// The error for a name that a client requests and that is none here.
    #[must_use]
    pub fn not_found(name: &str) -> Self {
        Self::NotFound {
            name: without_tickets(name).into_owned(),
        }
    }
}

/// The error of an export. Its kinds stand for different answers to the client.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no export with that name.
    #[error("there is no export named {name:?}; the option LIST lists the exports")]
    NotFound {
        /// The requested name, without the secret of a ticket.
        name: String,
    },
    /// The range has damaged bytes, from `offset` of the export on. Other bytes may be intact.
    #[error("{message}")]
    Damaged {
        /// Where the damage begins, in bytes of the export.
        offset: u64,
        /// In words.
        message: String,
    },
    /// The client may not do this.
    #[error("{message}")]
    Denied {
        /// In words.
        message: String,
    },
    /// The store cannot answer, because the disk failed, for example.
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
    /// The volume was detached while connections were open.
    #[error("{message}")]
    Detached {
        /// In words.
        message: String,
    },
    /// The server stops.
    #[error("the server is shutting down")]
    Stopping,
}
