//! The survey of an unsealed pack for recovery: its records and its end.

use std::fmt;

use super::{PackScanner, PackStore, PlacedRecord, ScanItem, Tail};
use crate::{
    Damage, Error, Result,
    format::{
        Location, PackId,
        pack::{PACK_HEADER_BYTES, PACK_RECORDS_MAX, PackNonce, RECORD_ALIGN, padding_bytes},
    },
};

/// The result of surveying a pack.
#[derive(Debug, Clone)]
pub struct RecoveredPack {
    /// Id of the pack.
    pub pack: PackId,
    /// Its whole records, in order. The records of an unsealed pack may still be lost until
    /// [`PackWriter::resume`](super::PackWriter::resume) has taken it over.
    pub records: Vec<PlacedRecord>,
    /// Damage: bytes that are not as they were written.
    pub damage: Vec<Damage>,
    /// The end of the records, in bytes: the footer of a sealed pack; otherwise writing continues
    /// here, or behind.
    pub end_bytes: u64,
    /// It has a footer.
    pub sealed: bool,
    /// Its random bytes; `None` in version 1, and where the header cannot be read.
    pub nonce: Option<PackNonce>,
    /// The reason why the bytes behind the end are given up, if there are any.
    pub torn: Option<String>,
    /// The file is none of this pack, as far as can be told, and stays as it is. The damage says
    /// why.
    pub is_foreign: bool,
    /// The number of the pack that its header names, if it is another one of this store; otherwise
    /// 0.
    pub names_number: u64,
}

/// Scans a whole pack.
///
/// `promised_bytes` is the length up to which the pack is durable according to the index; `None`
/// without an index. A broken record before that is damage, and the records behind it are kept.
///
/// After that, the first tear is the place where an unsealed pack ends: a loss of power leaves
/// unsynced writes as sectors that were never written, and nothing behind them was promised to
/// anyone, whole or not. Without an index, only a tear without any whole record behind it is given
/// up. Anything else that is not as it was written is damage also where the index promises nothing,
/// and nothing is cut off: no crash leaves such bytes. An index may be older than its packs, or may
/// have been rebuilt while a pack was elsewhere. So its silence about a pack does not prove that
/// nobody needs it. The one exception is the end of a pack of which the index knows an earlier
/// part: without a whole record behind, it is given up whatever its bytes are.
///
/// A file is left alone if its header is intact and belongs to another pack, another store or an
/// unknown version, or if neither its header nor any record can be read and no tear explains that.
pub async fn recover_tail(
    store: &dyn PackStore,
    pack: PackId,
    promised_bytes: Option<u64>,
) -> Result<RecoveredPack> {
    let mut scanner = PackScanner::open(store, pack).await?;
    let mut found = RecoveredPack {
        pack,
        records: Vec::new(),
        damage: Vec::new(),
        end_bytes: 0,
        sealed: false,
        nonce: scanner.nonce(),
        torn: None,
        is_foreign: false,
        names_number: 0,
    };
    if let Some(foreign) = scanner.foreign_header().await? {
        found.names_number = foreign.number;
        found.leave_alone(foreign.why);
        return Ok(found);
    }
    let has_header = scanner.has_header();
    // True if any part of this pack was indexed.
    let is_known = promised_bytes.is_some_and(|promised_bytes| promised_bytes > 0);
    let promised = |offset_bytes: u64| {
        promised_bytes.is_none_or(|promised_bytes| offset_bytes < promised_bytes)
    };
    loop {
        match scanner.next().await? {
            ScanItem::Record(record) if found.records.len() >= PACK_RECORDS_MAX as usize => {
                let what = format!("record {}", found.records.len() + 1);
                let why = format!("a pack has at most {PACK_RECORDS_MAX}");
                found
                    .damage
                    .push(Damage::in_pack(pack, record.offset_bytes, what, why));
                // One report is enough.
                found.end_bytes = store
                    .len_bytes(pack)
                    .await
                    .map_err(|source| Error::io("open", &store.path(pack), source))?;
                return Ok(found);
            }
            ScanItem::Record(record) => found.records.push(PlacedRecord {
                name: record.header.name(),
                location: Location {
                    pack,
                    offset_bytes: record.offset_bytes,
                    payload: record.header.payload,
                },
            }),
            ScanItem::Damaged {
                offset_bytes,
                may_be_tear,
                is_last,
                what,
                why,
            } => {
                let is_torn = may_be_tear || is_last && is_known;
                if !is_torn || scanner.is_sealed() || promised(offset_bytes) {
                    found
                        .damage
                        .push(Damage::in_pack(pack, offset_bytes, what, why));
                } else {
                    found.end_bytes = offset_bytes;
                    found.torn = Some(torn(offset_bytes, &format!("{what}: {why}")));
                    return Ok(found);
                }
            }
            ScanItem::End(Tail::Sealed { end_bytes }) => {
                found.sealed = true;
                found.end_bytes = end_bytes;
                return Ok(found);
            }
            ScanItem::End(tail) => {
                found.finish(tail, promised_bytes.unwrap_or(0));
                if !is_known
                    && !has_header
                    && found.records.is_empty()
                    && let Some(first) = found.damage.first()
                {
                    let why = first.problem.clone();
                    found.leave_alone(why);
                }
                return Ok(found);
            }
        }
    }
}

fn torn(at_bytes: u64, why: &str) -> String {
    format!("at offset {at_bytes}: {why}")
}

impl RecoveredPack {
    fn leave_alone(&mut self, why: impl fmt::Display) {
        let why = format!("{why}; the file stays as it is");
        self.damage = vec![Damage::in_pack(self.pack, 0, "pack header", why)];
        self.is_foreign = true;
        self.torn = None;
    }

    /// The end of a pack that is not sealed.
    fn finish(&mut self, tail: Tail, promised_bytes: u64) {
        let (end_bytes, why) = match tail {
            Tail::Clean { end_bytes } | Tail::Sealed { end_bytes } => (end_bytes, None),
            Tail::Torn { at_bytes, why } => (at_bytes, Some(why)),
        };
        if end_bytes < promised_bytes {
            // Records that the index knows are gone. Their place stays empty: nothing else is
            // written there.
            let why = why.unwrap_or_else(|| {
                format!("the pack ends here, it was synced up to {promised_bytes}")
            });
            self.damage
                .push(Damage::in_pack(self.pack, end_bytes, "records", why));
            self.end_bytes = promised_bytes;
        } else {
            // No damaged bytes are cut off, and a record begins at a multiple of this.
            self.end_bytes = end_bytes.next_multiple_of(RECORD_ALIGN);
            self.torn = why.map(|why| torn(end_bytes, &why));
        }
    }

    /// Returns true if the pack is empty: the power failed right after it was created.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.damage.is_empty()
            && self.end_bytes <= PACK_HEADER_BYTES as u64
    }

    /// The place where writing continues after padding.
    pub(super) const fn aligned_end_bytes(&self) -> u64 {
        self.end_bytes + padding_bytes(self.end_bytes) as u64
    }
}
