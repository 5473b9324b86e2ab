//! Reads records whose places the index knows.
//!
//! The reader trusts nothing: the bytes must be the requested record, as the index describes it.

use std::{io, sync::Arc};

use bytes::Bytes;

use super::PackStore;
use crate::{
    Damage, Error, Result,
    format::{
        FormatError, Location, Name, PackId,
        pack::{Header, Payload, RECORD_HEADER_BYTES, RecordHeader},
    },
    io::{AlignedBuf, BUFFER_ALIGN},
    limits,
};

/// Reads records.
#[derive(Debug, Clone)]
pub struct PackReader {
    store: Arc<dyn PackStore>,
    past_cache: bool,
}

/// A record that was read: it is the requested one, and its checksums are right. The payload is not
/// yet checked against the id.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    header: RecordHeader,
    stored: Bytes,
}

impl StoredRecord {
    /// The header of the record.
    #[must_use]
    pub const fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// The payload, as it is stored. It keeps all bytes of its read in memory.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.stored
    }
}

/// The reason why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The pack is gone. Its records may be in another one by now: look them up again.
    #[error(transparent)]
    PackGone(#[from] PackGone),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] Error),
}

/// There is no such pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pack {pack} is gone")]
pub struct PackGone {
    /// The pack.
    pub pack: PackId,
    /// Offset of the read in the pack, in bytes.
    pub offset_bytes: u64,
}

impl From<PackGone> for Damage {
    /// The error for a location that the index still has.
    fn from(gone: PackGone) -> Self {
        Self::in_pack(gone.pack, gone.offset_bytes, "records", "the pack is gone")
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::PackGone(gone) => Self::Damaged(gone.into()),
            ReadError::Other(error) => error,
        }
    }
}

/// Neighbouring records to be read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The pack.
    pub pack: PackId,
    /// Offset of the first record, in bytes.
    pub offset_bytes: u64,
    /// Length in bytes up to the end of the last record.
    pub len_bytes: usize,
    /// The positions of the requested locations in it.
    pub members: Vec<usize>,
}

/// Bytes of a [`Span`], not checked yet.
#[derive(Debug, Clone)]
pub struct ReadSpan {
    pack: PackId,
    offset_bytes: u64,
    bytes: Bytes,
}

impl PackReader {
    /// A reader of the packs that live there.
    #[must_use]
    pub fn new(store: Arc<dyn PackStore>) -> Self {
        Self {
            store,
            past_cache: false,
        }
    }

    /// The packs that it reads.
    pub(crate) fn store(&self) -> &Arc<dyn PackStore> {
        &self.store
    }

    /// A reader that bypasses all caches and reads from the disk.
    #[must_use]
    pub fn past_cache(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            past_cache: true,
        }
    }

    /// Reads one record, which must have this name.
    ///
    /// # Errors
    ///
    /// [`ReadError::PackGone`] if the pack does not exist; [`Error::Damaged`] if the bytes are not
    /// the record; errors of reading.
    pub async fn read_record(
        &self,
        location: &Location,
        name: Name,
    ) -> Result<StoredRecord, ReadError> {
        let len = record_len(&location.payload);
        let bytes = self.read(location.pack, location.offset_bytes, len).await?;
        Ok(check(location, name, &bytes)?)
    }

    /// Reads a span of [`plan_spans`].
    ///
    /// # Errors
    ///
    /// [`ReadError::PackGone`] if the pack does not exist; [`Error::Damaged`] if it ends before;
    /// errors of reading.
    pub async fn read_span(&self, span: &Span) -> Result<ReadSpan, ReadError> {
        Ok(ReadSpan {
            pack: span.pack,
            offset_bytes: span.offset_bytes,
            bytes: self
                .read(span.pack, span.offset_bytes, span.len_bytes)
                .await?,
        })
    }

    async fn read(&self, pack: PackId, offset_bytes: u64, len: usize) -> Result<Bytes, ReadError> {
        let read = match self.past_cache {
            false => self.store.read(pack, offset_bytes, len).await,
            true => return self.read_past_cache(pack, offset_bytes, len).await,
        };
        self.told(pack, offset_bytes, len, read.map(AlignedBuf::into_bytes))
    }

    async fn read_past_cache(
        &self,
        pack: PackId,
        offset_bytes: u64,
        len: usize,
    ) -> Result<Bytes, ReadError> {
        let align = BUFFER_ALIGN as u64;
        let start = offset_bytes / align * align;
        let skip = usize::try_from(offset_bytes - start).unwrap_or(0);
        let aligned_len = skip.saturating_add(len).next_multiple_of(BUFFER_ALIGN);
        let read = self.store.read_past_cache(pack, start, aligned_len).await;
        let read = read.and_then(|buf| {
            let range = skip..skip.saturating_add(len);
            match buf.len() >= range.end {
                true => Ok(buf.into_bytes().slice(range)),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        });
        self.told(pack, offset_bytes, len, read)
    }

    /// Turns the outcome of a read into that of a pack.
    fn told(
        &self,
        pack: PackId,
        offset_bytes: u64,
        len: usize,
        read: io::Result<Bytes>,
    ) -> Result<Bytes, ReadError> {
        read.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PackGone { pack, offset_bytes }.into(),
            io::ErrorKind::UnexpectedEof => {
                let problem = format!("{len} bytes expected, the pack ends before: {error}");
                Error::from(Damage::in_pack(pack, offset_bytes, "records", problem)).into()
            }
            _ => Error::io("read", &self.store.path(pack), error).into(),
        })
    }
}

impl ReadSpan {
    /// One of its records, which must have this name.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the bytes are not the record.
    pub fn record(&self, location: &Location, name: Name) -> Result<StoredRecord> {
        let start = location
            .offset_bytes
            .checked_sub(self.offset_bytes)
            .and_then(|start| usize::try_from(start).ok());
        let range =
            start.and_then(|start| Some(start..start.checked_add(record_len(&location.payload))?));
        match range {
            Some(range) if location.pack == self.pack && range.end <= self.bytes.len() => {
                check(location, name, &self.bytes.slice(range))
            }
            _ => Err(Error::Internal(format!(
                "the record at offset {} of pack {} is not among the {} bytes read at offset {} \
                of pack {}",
                location.offset_bytes,
                location.pack,
                self.bytes.len(),
                self.offset_bytes,
                self.pack
            ))),
        }
    }
}

/// Bytes of a record in memory.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a header and at most PAYLOAD_BYTES_MAX"
)]
const fn record_len(payload: &Payload) -> usize {
    payload.record_bytes() as usize
}

/// The record in `bytes`, if it is the one that the index describes.
fn check(location: &Location, name: Name, bytes: &Bytes) -> Result<StoredRecord> {
    let damage =
        |problem: FormatError| Damage::in_pack(location.pack, location.offset_bytes, name, problem);
    let header = Header::decode(bytes, location.offset_bytes).map_err(damage)?;
    let Header::Record(record) = header else {
        return Err(damage(FormatError::differs("record", "a record", "padding")).into());
    };
    if record.payload != location.payload {
        let (expected, found) = (
            format!("{:?}", location.payload),
            format!("{:?}", record.payload),
        );
        return Err(damage(FormatError::differs("record header", expected, found)).into());
    }
    if record.name() != name {
        return Err(damage(FormatError::differs(
            "id of a record",
            "the id asked for",
            record.name(),
        ))
        .into());
    }
    let body = bytes.slice(RECORD_HEADER_BYTES..);
    header.check_body(&body).map_err(damage)?;
    Ok(StoredRecord {
        header: record,
        stored: body.slice(..record.payload.stored_bytes as usize),
    })
}

/// Groups records to read together: neighbours with no more than [`limits::READ_GAP_BYTES`] between
/// them, up to [`limits::READ_SPAN_BYTES`] in all. Spans are in the order of packs and offsets;
/// every location is in one span.
#[must_use]
pub fn plan_spans(locations: &[Location]) -> Vec<Span> {
    let mut order: Vec<usize> = (0..locations.len()).collect();
    let place = |at: usize| {
        locations
            .get(at)
            .map(|location| (location.pack, location.offset_bytes))
    };
    order.sort_unstable_by_key(|at| place(*at));
    let mut spans: Vec<Span> = Vec::new();
    for at in order {
        let Some(location) = locations.get(at) else {
            continue;
        };
        let record_len = record_len(&location.payload);
        if let Some(span) = spans.last_mut()
            && span.pack == location.pack
            && let Some(len) = extended(span, location.offset_bytes, record_len)
        {
            span.len_bytes = len;
            span.members.push(at);
            continue;
        }
        spans.push(Span {
            pack: location.pack,
            offset_bytes: location.offset_bytes,
            len_bytes: record_len,
            members: vec![at],
        });
    }
    spans
}

/// The length of a span with one more record, which does not begin before it, if that may be.
fn extended(span: &Span, offset_bytes: u64, record_len: usize) -> Option<usize> {
    let start = usize::try_from(offset_bytes - span.offset_bytes).ok()?;
    let gap = start.saturating_sub(span.len_bytes);
    let len = span.len_bytes.max(start.checked_add(record_len)?);
    (gap as u64 <= limits::READ_GAP_BYTES && len <= limits::READ_SPAN_BYTES).then_some(len)
}
