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

/// One opened export. Its content and size do not change while it is open.
///
/// `offset + length` never exceeds `info().size_bytes`: the server has checked it. A future may be
/// dropped before it is done, when its connection ends.
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

    /// Brings a range into the cache. A hint: it may do less.
    fn prefetch(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;
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
    #[error("the server is shutting down")]
    Stopping,
}
