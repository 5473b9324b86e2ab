//! The survey of an unsealed pack for recovery: its records and its end.

use super::{PackScanner, PackStore, PlacedRecord, ScanItem, Tail};
use crate::{
    Damage, Error, Result,
    format::{
        Location, PackId,
        pack::{PACK_HEADER_BYTES, PACK_RECORDS_MAX, PackNonce, padding_bytes},
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
}

/// Scans a whole pack.
///
/// `promised_bytes` is the length up to which the pack is durable according to the index; `None`
/// without an index. A broken record before that is damage, and the records behind it are kept. The
/// first broken record after that is the place where an unsealed pack was torn: nothing behind it
/// was promised to anyone, whole or not. Without an index, only a tail without any whole record is
/// given up.
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
    };
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
                // One word about it is enough.
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
                what,
                why,
            } => {
                if scanner.is_sealed() || promised(offset_bytes) {
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
                return Ok(found);
            }
        }
    }
}

fn torn(at_bytes: u64, why: &str) -> String {
    format!("at offset {at_bytes}: {why}")
}

impl RecoveredPack {
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
            self.end_bytes = end_bytes;
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
