//! Walks a pack from its beginning to its end, without the index.
//!
//! Every byte is checked: headers, payloads, the zeros between them, the footer. A footer counts if
//! it has the random bytes of the pack's header. In packs of version 1, which have none, or if the
//! header cannot be read, records count more than a footer: they have to end where it begins. The
//! scanner reports damage with its place, and continues at the next undamaged record. After a
//! damaged header, the footer of a sealed pack locates that record; in an unsealed pack the scanner
//! searches for a header. This search can be deceived: a payload may contain the bytes of a pack,
//! at the same offset by intent. So the id of a record is only a claim until the payload has been
//! hashed.
//!
//! A tear is what a loss of power leaves of writes that were not synced: sectors that were never
//! written, which read as zeros or are behind the end of the file, and parts of a footer.
//! Other bytes that are not as they were written are damage, wherever they are. A lost sector that
//! whole records follow can be either: the caller knows what was promised.

use std::{collections::VecDeque, io};

use bytes::Bytes;

use super::PackStore;
use crate::{
    Error, Result,
    error::Subject,
    format::{
        FormatError, PackId,
        pack::{
            FOOTER_ENTRY_BYTES, FooterEntry, Header, PACK_HEADER_BYTES, PackHeader, PackNonce,
            RECORD_ALIGN, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, TRAILER_BYTES, Trailer,
            decode_footer,
        },
    },
    limits,
};

/// [`RECORD_ALIGN`] in memory.
#[expect(clippy::cast_possible_truncation, reason = "it is 8")]
const RECORD_ALIGN_LEN: usize = RECORD_ALIGN as usize;

/// A disk writes a sector completely or not at all.
const SECTOR_BYTES: usize = 512;

/// An intact header that does not belong in this file.
#[derive(Debug)]
pub(super) struct ForeignHeader {
    /// Expected and found.
    pub(super) why: FormatError,
    /// The number of the pack that it names, if that is one of this store; otherwise 0.
    pub(super) number: u64,
}

/// The next finding of a scan.
#[derive(Debug, Clone)]
pub enum ScanItem {
    /// A record that is whole.
    Record(ScannedRecord),
    /// Damage: bytes that are not as they were written. If they may be a tear, something whole
    /// follows, or the pack is sealed.
    Damaged {
        /// Where.
        offset_bytes: u64,
        /// A write lost to a power cut explains it.
        may_be_tear: bool,
        /// Nothing whole follows, and the pack is not sealed.
        is_last: bool,
        /// The damaged or missing part.
        what: Subject,
        /// Expected and found.
        why: String,
    },
    /// The end.
    End(Tail),
}

/// A record that is whole.
#[derive(Debug, Clone)]
pub struct ScannedRecord {
    /// The record's offset, in bytes.
    pub offset_bytes: u64,
    /// The header of the record.
    pub header: RecordHeader,
    /// The payload, as it is stored.
    pub payload: Bytes,
}

/// The end of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// With a footer.
    Sealed {
        /// Where the footer begins.
        end_bytes: u64,
    },
    /// With a record or padding.
    Clean {
        /// Where that ends.
        end_bytes: u64,
    },
    /// With a tear. No whole record follows.
    Torn {
        /// Where the tear begins.
        at_bytes: u64,
        /// Expected and found.
        why: String,
    },
}

/// A scan under way.
#[derive(Debug)]
pub struct PackScanner<'a> {
    store: &'a dyn PackStore,
    pack: PackId,
    /// The end of the records: the footer, or the end of the file.
    end_bytes: u64,
    sealed: bool,
    /// `None` if it cannot be read.
    header: Option<PackHeader>,
    /// The first bytes that a footer would have: the first record's id and offset.
    footer_start: Option<Vec<u8>>,
    /// The entries of the footer, if it can be read.
    footer: Option<Vec<FooterEntry>>,
    position: u64,
    /// Bytes that were read, and their offset.
    window: Bytes,
    window_start: u64,
    /// Damage after the last whole record. If no other follows, it is a torn tail.
    doubtful: Vec<Doubtful>,
    /// Findings that were not returned yet.
    found: VecDeque<ScanItem>,
}

#[derive(Debug)]
struct Doubtful {
    offset_bytes: u64,
    may_be_tear: bool,
    what: Subject,
    why: String,
}

/// Returns true if a sector of a footer's entries was never written. Behind the entries are zeros
/// in any footer.
fn lacks_entries(footer: &[u8], trailer: &Trailer) -> bool {
    let entries_len = trailer.records as usize * FOOTER_ENTRY_BYTES;
    let entries = footer.get(..entries_len).unwrap_or(footer);
    let mut sectors = entries.chunks(SECTOR_BYTES);
    sectors.any(|sector| sector.iter().all(|byte| *byte == 0))
}

impl<'a> PackScanner<'a> {
    /// Begins a scan. Bytes that a writer appends meanwhile are not seen.
    pub async fn open(store: &'a dyn PackStore, pack: PackId) -> Result<Self> {
        let len_bytes = store
            .len_bytes(pack)
            .await
            .map_err(|source| Error::io("open", &store.path(pack), source))?;
        let mut scanner = Self {
            store,
            pack,
            end_bytes: len_bytes,
            sealed: false,
            header: None,
            footer_start: None,
            footer: None,
            position: 0,
            window: Bytes::new(),
            window_start: 0,
            doubtful: Vec::new(),
            found: VecDeque::new(),
        };
        scanner.header = scanner.read_pack_header().await?.ok();
        scanner.find_footer().await?;
        Ok(scanner)
    }

    /// Returns the next finding. After the end: the end again.
    pub async fn next(&mut self) -> Result<ScanItem> {
        loop {
            if let Some(item) = self.found.pop_front() {
                return Ok(item);
            }
            if self.position == 0 {
                self.check_pack_header().await?;
            } else if self.position < self.end_bytes {
                self.step().await?;
            } else {
                return Ok(self.end());
            }
        }
    }

    /// Returns true if the pack has a footer.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The records that the footer lists; `None` if the pack has no footer that can be read.
    pub(crate) fn footer(&self) -> Option<&[FooterEntry]> {
        self.footer.as_deref()
    }

    /// Returns true if the pack's header can be read.
    pub(crate) const fn has_header(&self) -> bool {
        self.header.is_some()
    }

    /// The pack's random bytes; `None` in version 1, and where the header cannot be read.
    #[must_use]
    pub fn nonce(&self) -> Option<PackNonce> {
        self.header.and_then(|header| header.nonce)
    }

    fn end(&mut self) -> ScanItem {
        // Anything before the first tear is damage.
        let is_tear = |doubtful: &Doubtful| doubtful.may_be_tear && !self.sealed;
        let first_tear = self.doubtful.iter().position(is_tear);
        let count = first_tear.unwrap_or(self.doubtful.len());
        self.settle_doubtful(count, !self.sealed);
        if let Some(damaged) = self.found.pop_front() {
            return damaged;
        }
        ScanItem::End(match self.doubtful.first() {
            None if self.sealed => Tail::Sealed {
                end_bytes: self.end_bytes,
            },
            None => Tail::Clean {
                end_bytes: self.end_bytes,
            },
            Some(first) => Tail::Torn {
                at_bytes: first.offset_bytes,
                why: format!("{}: {}", first.what, first.why),
            },
        })
    }

    /// The first of the doubtful places are no torn tail: something whole follows, or no tear
    /// explains them.
    fn settle_doubtful(&mut self, count: usize, is_last: bool) {
        let settled = self.doubtful.drain(..count);
        self.found.extend(settled.map(|doubtful| ScanItem::Damaged {
            offset_bytes: doubtful.offset_bytes,
            may_be_tear: doubtful.may_be_tear,
            is_last,
            what: doubtful.what,
            why: doubtful.why,
        }));
    }

    fn doubt(
        &mut self,
        offset_bytes: u64,
        may_be_tear: bool,
        what: impl Into<Subject>,
        why: &FormatError,
    ) {
        self.doubtful.push(Doubtful {
            offset_bytes,
            may_be_tear,
            what: what.into(),
            why: why.to_string(),
        });
    }

    /// Returns true if a sector of these bytes was never written.
    async fn lacks_sector(&mut self, offset_bytes: u64, end_bytes: u64) -> Result<bool> {
        if end_bytes > self.end_bytes {
            return Ok(true);
        }
        let start = offset_bytes - offset_bytes % SECTOR_BYTES as u64;
        let end = end_bytes.next_multiple_of(SECTOR_BYTES as u64);
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        let bytes = self.bytes(start, len).await?;
        let mut sectors = bytes.chunks(SECTOR_BYTES);
        Ok(sectors.any(|sector| sector.iter().all(|byte| *byte == 0)))
    }

    /// Returns true if a tear explains that there is no header of a record at an offset.
    async fn may_be_tear(&mut self, offset_bytes: u64) -> Result<bool> {
        let end_bytes = offset_bytes + RECORD_HEADER_BYTES as u64;
        if self.lacks_sector(offset_bytes, end_bytes).await? {
            return Ok(true);
        }
        let Some(footer_start) = self.footer_start.clone() else {
            return Ok(false);
        };
        let found = self.bytes(offset_bytes, footer_start.len()).await?;
        Ok(found == footer_start)
    }

    /// Reads the end of the pack: with a trailer it is sealed, and the footer has the places of the
    /// records.
    async fn find_footer(&mut self) -> Result<()> {
        let len_bytes = self.end_bytes;
        let Some(trailer_offset) = len_bytes.checked_sub(TRAILER_BYTES as u64) else {
            return Ok(());
        };
        let last = self.bytes(trailer_offset, TRAILER_BYTES).await?;
        let Ok(trailer) = Trailer::decode(&last, len_bytes) else {
            return Ok(());
        };
        if trailer.pack != self.pack || trailer.footer_offset_bytes < PACK_HEADER_BYTES as u64 {
            return Ok(());
        }
        let is_footer = match self.header {
            Some(header) if header.nonce != trailer.nonce => false,
            Some(PackHeader { nonce: Some(_), .. }) => true,
            // Only the end of the records tells it from a payload.
            Some(PackHeader { nonce: None, .. }) | None => {
                self.records_end_at(trailer.footer_offset_bytes).await?
            }
        };
        if !is_footer {
            return Ok(());
        }
        let offset_bytes = trailer.footer_offset_bytes;
        let footer_len = usize::try_from(len_bytes - offset_bytes).unwrap_or(usize::MAX);
        let footer = self.bytes(offset_bytes, footer_len).await?;
        let entries = decode_footer(&footer, &trailer);
        if entries.is_err() && lacks_entries(&footer, &trailer) {
            // A footer that was being written: its last sector is there, and another is missing.
            return Ok(());
        }
        self.sealed = true;
        self.end_bytes = offset_bytes;
        match entries {
            Ok(entries) => self.footer = Some(entries),
            Err(why) => self.found.push_back(ScanItem::Damaged {
                offset_bytes,
                may_be_tear: false,
                is_last: false,
                what: "footer".into(),
                why: why.to_string(),
            }),
        }
        Ok(())
    }

    /// Returns true if records follow one another exactly up to this place, as far as their headers
    /// can be read.
    async fn records_end_at(&mut self, end_bytes: u64) -> Result<bool> {
        let mut position = PACK_HEADER_BYTES as u64;
        while position < end_bytes {
            let head = self.bytes(position, RECORD_HEADER_BYTES).await?;
            position = match Header::decode(&head, position) {
                Ok(header) => position + header.total_bytes(),
                // Damage. A record found behind the footer proves that it is none.
                Err(_) => match self.find_next(position).await? {
                    next if next == self.end_bytes => end_bytes,
                    next => next,
                },
            };
        }
        let head = self.bytes(position, RECORD_HEADER_BYTES).await?;
        Ok(position == end_bytes && Header::decode(&head, position).is_err())
    }

    /// Returns the reason if the file begins with the intact header of another pack, of another
    /// store, or of an unknown version.
    pub(super) async fn foreign_header(&mut self) -> Result<Option<ForeignHeader>> {
        let bytes = self.bytes(0, PACK_HEADER_BYTES).await?;
        Ok(match PackHeader::decode_intact(&bytes) {
            None => None,
            Some(Err(why)) => Some(ForeignHeader { why, number: 0 }),
            Some(Ok(header)) => self.check_owner(&header).err().map(|why| ForeignHeader {
                why,
                number: if header.store == self.store.store_id() {
                    header.pack.number
                } else {
                    0
                },
            }),
        })
    }

    fn check_owner(&self, header: &PackHeader) -> Result<(), FormatError> {
        const WHAT: &str = "pack header";
        let store = self.store.store_id();
        if header.pack != self.pack {
            return Err(FormatError::differs(WHAT, self.pack, header.pack));
        }
        if header.store != store {
            return Err(FormatError::differs(WHAT, store, header.store));
        }
        Ok(())
    }

    /// Reads the pack header, and checks that it belongs to this pack.
    async fn read_pack_header(&mut self) -> Result<Result<PackHeader, FormatError>> {
        let bytes = self.bytes(0, PACK_HEADER_BYTES).await?;
        Ok(PackHeader::decode(&bytes).and_then(|header| {
            self.check_owner(&header)?;
            Ok(header)
        }))
    }

    async fn check_pack_header(&mut self) -> Result<()> {
        if let Err(why) = self.read_pack_header().await? {
            // All sectors but the first are zeros as they were written.
            let may_be_tear = if self.end_bytes < PACK_HEADER_BYTES as u64 {
                let head = self.bytes(0, PACK_HEADER_BYTES).await?;
                head.iter().all(|byte| *byte == 0) || PackHeader::decode_intact(&head).is_some()
            } else {
                self.lacks_sector(0, SECTOR_BYTES as u64).await?
            };
            self.doubt(0, may_be_tear, "pack header", &why);
        }
        // Records begin here even if the header is unreadable.
        self.position = (PACK_HEADER_BYTES as u64).min(self.end_bytes).max(1);
        Ok(())
    }

    /// Looks at one place where a record may begin.
    async fn step(&mut self) -> Result<()> {
        let offset_bytes = self.position;
        let head = self.bytes(offset_bytes, RECORD_HEADER_BYTES).await?;
        let header = match Header::decode(&head, offset_bytes) {
            Ok(header) => header,
            Err(why) => {
                let may_be_tear = self.may_be_tear(offset_bytes).await?;
                self.doubt(offset_bytes, may_be_tear, "record", &why);
                self.position = self.find_next(offset_bytes).await?;
                return Ok(());
            }
        };
        let body_len =
            usize::try_from(header.total_bytes()).unwrap_or(usize::MAX) - RECORD_HEADER_BYTES;
        let body = self
            .bytes(offset_bytes + RECORD_HEADER_BYTES as u64, body_len)
            .await?;
        let checked = header
            .check_body(&body)
            .and_then(|()| self.check_listed(offset_bytes, &header));
        // The header's checksum is right, and so is the length in it.
        let end_bytes = offset_bytes + header.total_bytes();
        self.position = end_bytes.min(self.end_bytes);
        match (checked, header) {
            (Ok(()), header) => {
                self.settle_doubtful(self.doubtful.len(), false);
                if let Header::Record(header) = header {
                    self.footer_start.get_or_insert_with(|| {
                        [&header.id[..], &offset_bytes.to_le_bytes()].concat()
                    });
                    self.found.push_back(ScanItem::Record(ScannedRecord {
                        offset_bytes,
                        header,
                        payload: body.slice(..header.payload.stored_bytes as usize),
                    }));
                }
            }
            (Err(why), Header::Record(record)) => {
                let may_be_tear = self.lacks_sector(offset_bytes, end_bytes).await?;
                self.doubt(offset_bytes, may_be_tear, record.name(), &why);
            }
            (Err(why), Header::Padding { .. }) => {
                // Lost sectors of zeros are as they were written.
                let may_be_tear = end_bytes > self.end_bytes;
                self.doubt(offset_bytes, may_be_tear, "padding", &why);
            }
        }
        Ok(())
    }

    /// Checks that a sealed pack's footer lists the record correctly, and that its kind belongs
    /// into this pack.
    fn check_listed(&self, offset_bytes: u64, header: &Header) -> Result<(), FormatError> {
        let Header::Record(record) = header else {
            return Ok(());
        };
        if record.payload.kind.pack_kind() != self.pack.kind {
            return Err(FormatError::differs(
                "kind of a record",
                self.pack,
                record.payload.kind,
            ));
        }
        let Some(footer) = &self.footer else {
            return Ok(());
        };
        let listed = footer
            .binary_search_by_key(&offset_bytes, |entry| entry.offset_bytes)
            .ok();
        match listed.and_then(|at| footer.get(at)) {
            Some(entry) if entry.id == record.id && entry.payload == record.payload => Ok(()),
            Some(entry) => Err(FormatError::differs(
                "record",
                format_args!("{}, as the footer says", entry.name()),
                "another",
            )),
            None => Err(FormatError::differs(
                "record",
                "none here, as the footer says",
                "one",
            )),
        }
    }

    /// The next place to look after an unreadable header; the end, if there is none.
    async fn find_next(&mut self, offset_bytes: u64) -> Result<u64> {
        if let Some(footer) = &self.footer {
            let next = footer.partition_point(|entry| entry.offset_bytes <= offset_bytes);
            return Ok(footer
                .get(next)
                .map_or(self.end_bytes, |entry| entry.offset_bytes));
        }
        let mut from = offset_bytes + RECORD_ALIGN;
        while from < self.end_bytes {
            let bytes = self.bytes(from, RECORD_HEADER_BYTES).await?;
            if bytes.len() < RECORD_HEADER_BYTES {
                break;
            }
            let at = usize::try_from(from - self.window_start).unwrap_or(usize::MAX);
            let window = self.window.get(at..).unwrap_or_default();
            let (places, _) = window.as_chunks::<RECORD_ALIGN_LEN>();
            match places
                .iter()
                .position(|place| place.starts_with(&RECORD_MAGIC))
            {
                Some(place) => {
                    from += place as u64 * RECORD_ALIGN;
                    let head = self.bytes(from, RECORD_HEADER_BYTES).await?;
                    if Header::decode(&head, from).is_ok() {
                        return Ok(from);
                    }
                    from += RECORD_ALIGN;
                }
                None => from += places.len() as u64 * RECORD_ALIGN,
            }
        }
        Ok(self.end_bytes)
    }

    /// Bytes from an offset, fewer if the records end before.
    async fn bytes(&mut self, offset_bytes: u64, len: usize) -> Result<Bytes> {
        let there = self.end_bytes.saturating_sub(offset_bytes);
        let len = usize::try_from(there).map_or(len, |there| there.min(len));
        let start = offset_bytes
            .checked_sub(self.window_start)
            .and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        if let Some(range) = range.filter(|range| range.end <= self.window.len()) {
            return Ok(self.window.slice(range));
        }
        let read_len = usize::try_from(there).map_or(usize::MAX, |there| {
            there.min(len.max(limits::READ_SPAN_BYTES))
        });
        let read = self.store.read(self.pack, offset_bytes, read_len).await;
        self.window = match read {
            Ok(buf) => buf.into_bytes(),
            // The pack was truncated since its length was read.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Bytes::new(),
            Err(error) => return Err(Error::io("read", &self.store.path(self.pack), error)),
        };
        self.window_start = offset_bytes;
        Ok(self.window.slice(..len.min(self.window.len())))
    }
}
