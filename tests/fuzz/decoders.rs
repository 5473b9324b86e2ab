//! Every decoder, in one form: bytes in, accepted or refused, and the bytes of the re-encoding.

use varve_content::{
    Codec, codec,
    tree::{InnerNode, Leaf, Root},
};
use varve_nbd::{
    ExportName, split_ticket,
    wire::{self, Framing},
    without_tickets,
};
use varve_store::format::{
    AccessKeyRecord, AccountRecord, CatalogRecord as _, CopyRecord, ImageId, ImageRecord, Kinds,
    LastRun, Location, OwnerRecord, PackId, RemoteRecord, SnapshotRecord, TokenRecord, VolumeId,
    VolumeRecord,
    catalog_log::{
        self, Found, LOG_ALIGN, LogHeader, Position,
        checkpoint::{BlockReader, BlockWriter, Part},
    },
    journal::{Descriptor, FileHeader, JOURNAL_BLOCK_BYTES},
    keys::{self, Holdings, Identity, PackState, Totals},
    owner::OWNER_SLOT_BYTES,
    pack::{
        self, Header, PACK_HEADER_BYTES, PackHeader, RECORD_HEADER_BYTES, TRAILER_BYTES, Trailer,
    },
    record::{access_key::AccessKeyId, account::Identity as AccountIdentity},
    snapshot::{OfSnapshot, SnapshotId},
    store_file::StoreFile,
};

/// A decoder.
pub(super) struct Decoder {
    /// Also the name of its folder in the corpus.
    pub(super) name: &'static str,
    pub(super) decode: fn(&[u8]) -> Outcome,
    /// Corrects checksums, where the input has them.
    pub(super) repair: fn(&mut Vec<u8>),
}

/// The result of a decoder for an input.
pub(super) enum Outcome {
    Refused,
    /// The value has several encodings, or this repository has no encoder for it.
    Accepted,
    /// The re-encoding: all of the input if `whole`, otherwise its beginning.
    Same {
        again: Vec<u8>,
        whole: bool,
    },
}

pub(super) const DECODERS: [Decoder; 44] = [
    Decoder {
        name: "pack-header",
        decode: pack_header,
        repair: |input| put_crc32(input, 60),
    },
    Decoder {
        name: "pack-record-header",
        decode: pack_record_header,
        repair: |input| put_crc32_in(input, 8, RECORD_HEADER_BYTES - 4),
    },
    Decoder {
        name: "pack-record",
        decode: pack_record,
        repair: repair_pack_record,
    },
    Decoder {
        name: "pack-footer",
        decode: pack_footer,
        repair: repair_pack_footer,
    },
    Decoder {
        name: "pack-id",
        decode: |input| text::<PackId>(input),
        repair: |_| {},
    },
    Decoder {
        name: "catalog-log-header",
        decode: log_header,
        repair: |input| put_crc32(input, 60),
    },
    Decoder {
        name: "catalog-log",
        decode: log_records,
        repair: repair_log_records,
    },
    Decoder {
        name: "catalog-log-checkpoint",
        decode: log_checkpoint,
        repair: repair_log_checkpoint,
    },
    Decoder {
        name: "journal-header",
        decode: journal_header,
        repair: |input| put_crc32(input, 124),
    },
    Decoder {
        name: "journal-owner",
        decode: |input| {
            start(OwnerRecord::decode(input), |it| {
                it.encode().unwrap().to_vec()
            })
        },
        repair: |input| put_crc32(input, OWNER_SLOT_BYTES - 4),
    },
    Decoder {
        name: "journal-descriptor",
        decode: journal_descriptor,
        repair: |input| put_crc32(input, JOURNAL_BLOCK_BYTES - 4),
    },
    Decoder {
        name: "snapshot-record",
        decode: |input| whole(SnapshotRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "volume-record",
        decode: |input| whole(VolumeRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "copy-record",
        decode: |input| whole(CopyRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "remote-record",
        decode: |input| whole(RemoteRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "account-record",
        decode: |input| whole(AccountRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "image-record",
        decode: |input| whole(ImageRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "image-id",
        decode: |input| text::<ImageId>(input),
        repair: |_| {},
    },
    Decoder {
        name: "token-record",
        decode: |input| whole(TokenRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "access-key-record",
        decode: |input| whole(AccessKeyRecord::decode(input), |it| it.encode()),
        repair: |_| {},
    },
    Decoder {
        name: "access-key-id",
        decode: |input| text::<AccessKeyId>(input),
        repair: |_| {},
    },
    Decoder {
        name: "account-identity",
        decode: |input| text::<AccountIdentity>(input),
        repair: |_| {},
    },
    Decoder {
        name: "volume-id",
        decode: |input| text::<VolumeId>(input),
        repair: |_| {},
    },
    Decoder {
        name: "snapshot-id",
        decode: |input| text::<SnapshotId>(input),
        repair: |_| {},
    },
    Decoder {
        name: "store-file",
        decode: |input| whole(StoreFile::decode(input), |it| it.encode().into_bytes()),
        repair: repair_store_file,
    },
    Decoder {
        name: "index-location",
        decode: |input| whole(Location::decode(input), |it| it.encode().to_vec()),
        repair: |_| {},
    },
    Decoder {
        name: "index-pack-state",
        decode: pack_state,
        repair: |_| {},
    },
    Decoder {
        name: "index-totals",
        decode: |input| whole(Totals::decode(input), Totals::encode),
        repair: |_| {},
    },
    Decoder {
        name: "index-holdings",
        decode: |input| whole(Holdings::decode(input), |it| it.encode().to_vec()),
        repair: |_| {},
    },
    Decoder {
        name: "index-last-run",
        decode: |input| whole(LastRun::decode(input), LastRun::encode),
        repair: |_| {},
    },
    Decoder {
        name: "index-identity",
        decode: |input| whole(Identity::decode(input), |it| it.encode().to_vec()),
        repair: |_| {},
    },
    Decoder {
        name: "index-sequence",
        decode: |input| {
            whole(keys::decode_sequence(input), |it| {
                keys::encode_sequence(*it).to_vec()
            })
        },
        repair: |_| {},
    },
    Decoder {
        name: "index-named",
        decode: |input| {
            whole(keys::decode_named::<OfSnapshot>(input), |it| {
                it.as_bytes().to_vec()
            })
        },
        repair: |_| {},
    },
    Decoder {
        name: "tree-leaf",
        decode: |input| whole(Leaf::decode(input), Leaf::encode),
        repair: |_| {},
    },
    Decoder {
        name: "tree-inner",
        decode: |input| whole(InnerNode::decode(input), InnerNode::encode),
        repair: |_| {},
    },
    Decoder {
        name: "tree-root",
        decode: |input| whole(Root::decode(input), |it| it.encode().to_vec()),
        repair: |_| {},
    },
    Decoder {
        name: "chunk-codec",
        decode: chunk_codec,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-client-flags",
        decode: nbd_client_flags,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-option",
        decode: nbd_option,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-option-data",
        decode: nbd_option_data,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-export-name",
        decode: nbd_export_name,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-request",
        decode: nbd_request,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-extended-request",
        decode: nbd_extended_request,
        repair: |_| {},
    },
    Decoder {
        name: "nbd-status-query",
        decode: nbd_status_query,
        repair: |_| {},
    },
];

fn whole<T, E>(decoded: Result<T, E>, encode: impl Fn(&T) -> Vec<u8>) -> Outcome {
    decoded.map_or(Outcome::Refused, |value| Outcome::Same {
        again: encode(&value),
        whole: true,
    })
}

fn start<T, E>(decoded: Result<T, E>, encode: impl Fn(&T) -> Vec<u8>) -> Outcome {
    decoded.map_or(Outcome::Refused, |value| Outcome::Same {
        again: encode(&value),
        whole: false,
    })
}

fn text<T: std::str::FromStr + ToString>(input: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(input) else {
        return Outcome::Refused;
    };
    whole(text.parse::<T>(), |it| it.to_string().into_bytes())
}

/// The first `N` bytes as a little-endian number, and the rest.
fn number_and_rest(input: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = input.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn prefixed(number: u64, bytes: &[u8]) -> Vec<u8> {
    [number.to_le_bytes().as_slice(), bytes].concat()
}

fn pack_header(input: &[u8]) -> Outcome {
    start(PackHeader::decode(input), |it| it.encode().to_vec())
}

/// The header's offset, then the header.
fn pack_record_header(input: &[u8]) -> Outcome {
    let Some((offset, rest)) = number_and_rest(input) else {
        return Outcome::Refused;
    };
    start(Header::decode(rest, offset), |header| {
        prefixed(offset, &encode_header(header, offset))
    })
}

fn encode_header(header: &Header, offset: u64) -> [u8; RECORD_HEADER_BYTES] {
    match header {
        Header::Record(record) => record.encode(offset),
        Header::Padding { .. } => pack::encode_padding(offset),
    }
}

/// The header's offset, then the header and everything up to the next one.
fn pack_record(input: &[u8]) -> Outcome {
    let Some((offset, rest)) = number_and_rest(input) else {
        return Outcome::Refused;
    };
    let Ok(header) = Header::decode(rest, offset) else {
        return Outcome::Refused;
    };
    let body = &rest[RECORD_HEADER_BYTES..];
    if header.check_body(body).is_err() {
        return Outcome::Refused;
    }
    assert_eq!(rest.len() as u64, header.total_bytes());
    Outcome::Same {
        again: prefixed(offset, &encode_header(&header, offset)),
        whole: false,
    }
}

fn repair_pack_record(input: &mut Vec<u8>) {
    // The header has the stored length and the CRC-32 of the payload, and a checksum of its own.
    if let Some(stored) = number_at(input, 8 + 12)
        && let Some(payload) = input
            .get(8 + RECORD_HEADER_BYTES..)
            .and_then(|body| body.get(..stored as usize))
    {
        let crc32 = crc32fast::hash(payload);
        input[8 + 48..8 + 52].copy_from_slice(&crc32.to_le_bytes());
    }
    put_crc32_in(input, 8, RECORD_HEADER_BYTES - 4);
}

/// The length of the pack, then everything from the footer's offset on.
fn pack_footer(input: &[u8]) -> Outcome {
    let Some((pack_bytes, footer)) = number_and_rest(input) else {
        return Outcome::Refused;
    };
    let Ok(trailer) = Trailer::decode(footer, pack_bytes) else {
        return Outcome::Refused;
    };
    whole(pack::decode_footer(footer, &trailer), |entries| {
        prefixed(
            pack_bytes,
            &pack::encode_footer(
                trailer.pack,
                trailer.nonce,
                trailer.footer_offset_bytes,
                entries,
            ),
        )
    })
}

fn repair_pack_footer(input: &mut Vec<u8>) {
    let Some(trailer) = input.len().checked_sub(TRAILER_BYTES).filter(|at| *at >= 8) else {
        return;
    };
    let crc32 = crc32fast::hash(&input[8..trailer]);
    input[trailer + 36..trailer + 40].copy_from_slice(&crc32.to_le_bytes());
    put_crc32_in(input, trailer, TRAILER_BYTES - 4);
}

fn log_header(input: &[u8]) -> Outcome {
    start(LogHeader::decode(input), |it| it.encode().to_vec())
}

/// All records up to the first that is not whole.
fn log_records(input: &[u8]) -> Outcome {
    let mut again = Vec::new();
    let mut scan = catalog_log::scan(Kinds::ALL, input, Position::START, true);
    for found in &mut scan {
        if let Found::Record {
            offset_bytes,
            sequence,
            record,
        } = found
        {
            assert_eq!(
                offset_bytes,
                Position::START.offset_bytes + again.len() as u64
            );
            again.extend(record.encode(sequence));
        }
    }
    assert_eq!(
        scan.position().offset_bytes,
        Position::START.offset_bytes + again.len() as u64
    );
    if again.is_empty() {
        Outcome::Refused
    } else {
        Outcome::Same {
            again,
            whole: false,
        }
    }
}

fn repair_log_records(input: &mut Vec<u8>) {
    for at in (0..input.len()).step_by(LOG_ALIGN) {
        if let Some(len) = number_at(input, at + 16)
            && let Some(payload) = input
                .get(at + 32..)
                .and_then(|rest| rest.get(..len as usize))
        {
            let crc32 = crc32fast::hash(payload);
            input[at + 20..at + 24].copy_from_slice(&crc32.to_le_bytes());
        }
        put_crc32_in(input, at, 28);
    }
}

/// The generation of the log, then its checkpoint. The first part of it is encoded again: how many
/// changes a block has is for its writer to choose, so the blocks together may come out otherwise.
fn log_checkpoint(input: &[u8]) -> Outcome {
    let Some((generation, mut rest)) = number_and_rest(input) else {
        return Outcome::Refused;
    };
    let mut reader = BlockReader::new(Kinds::ALL, generation);
    let mut first = None;
    while let Ok((len, part)) = reader.part(rest) {
        rest = &rest[len..];
        let is_end = part == Part::End;
        first.get_or_insert((len, part));
        if is_end {
            break;
        }
    }
    let Some((len, first)) = first else {
        return Outcome::Refused;
    };
    let mut writer = BlockWriter::new(generation);
    if let Part::Block(changes) = first {
        for change in &changes {
            assert_eq!(writer.push(change), None, "they were in one block");
        }
    }
    let mut again = writer.finish();
    again.truncate(len);
    Outcome::Same {
        again: prefixed(generation, &again),
        whole: false,
    }
}

/// Of the first part: an end mark has zeros in place of the length and the CRC-32 of a payload.
fn repair_log_checkpoint(input: &mut Vec<u8>) {
    if let Some(len) = number_at(input, 8 + 20)
        && let Some(payload) = input
            .get(8 + 32..)
            .and_then(|rest| rest.get(..len as usize))
    {
        let crc32 = crc32fast::hash(payload);
        input[8 + 24..8 + 28].copy_from_slice(&crc32.to_le_bytes());
    }
    put_crc32_in(input, 8, 28);
}

/// Version 1 is read, and no longer written.
fn journal_header(input: &[u8]) -> Outcome {
    match start(FileHeader::decode(input), |it| it.encode().to_vec()) {
        Outcome::Same { .. } if number_at(input, 8) == Some(1) => Outcome::Accepted,
        outcome => outcome,
    }
}

/// Its statements about its batch agree with each other: recovery relies on that.
fn journal_descriptor(input: &[u8]) -> Outcome {
    let decoded = Descriptor::decode(input);
    if let Ok(descriptor) = &decoded {
        let data = descriptor.entries.iter().filter(|entry| !entry.zeros);
        let blocks: u64 = data.map(|entry| u64::from(entry.blocks)).sum();
        assert_eq!(blocks, descriptor.data_crcs.len() as u64);
        assert!(descriptor.synced_sequence < descriptor.sequence);
        assert!(Descriptor::fits(
            descriptor.entries.len(),
            descriptor.data_crcs.len()
        ));
        assert_eq!(
            descriptor.batch_bytes(),
            (1 + blocks) * JOURNAL_BLOCK_BYTES as u64
        );
    }
    start(decoded, |it| it.encode().to_vec())
}

fn repair_store_file(input: &mut Vec<u8>) {
    const KEY: &[u8] = b"crc32 = ";
    if let Some(at) = input.windows(KEY.len()).position(|window| window == KEY) {
        let crc32 = crc32fast::hash(&input[..at]);
        input.truncate(at);
        input.extend_from_slice(format!("crc32 = {crc32:08x}\n").as_bytes());
    }
}

/// The key, then the value.
fn pack_state(input: &[u8]) -> Outcome {
    let Some((key, value)) = input.split_at_checked(8) else {
        return Outcome::Refused;
    };
    whole(PackState::decode(key, value), |it| {
        [PackState::key_of(it.pack).as_slice(), &it.encode()].concat()
    })
}

/// The codec, the plain length, then the packed bytes. The unpacked bytes have exactly that length.
fn chunk_codec(input: &[u8]) -> Outcome {
    let Some(([codec, a, b, c], packed)) = input.split_first_chunk() else {
        return Outcome::Refused;
    };
    let Ok(codec) = Codec::try_from(*codec) else {
        return Outcome::Refused;
    };
    // A chunk has at most 256 KiB, and the decoder is never called with more.
    let plain_bytes = u32::from_le_bytes([*a, *b, *c, 0]) as usize % ((256 << 10) + 1);
    let mut plain = Vec::new();
    match codec::Decoder::new().decode(codec, packed, plain_bytes, &mut plain) {
        Ok(()) => {
            assert_eq!(plain.len(), plain_bytes);
            Outcome::Accepted
        }
        Err(_) => Outcome::Refused,
    }
}

fn nbd_client_flags(input: &[u8]) -> Outcome {
    whole(wire::decode_client_flags(input), |flags| {
        (u32::from(flags.fixed_newstyle) | u32::from(flags.no_zeroes) << 1)
            .to_be_bytes()
            .to_vec()
    })
}

fn nbd_option(input: &[u8]) -> Outcome {
    whole(wire::decode_option_header(input), |header| {
        varve_tests::nbd::option_bytes(header.option, header.data_bytes)
    })
}

/// The option, then its data.
fn nbd_option_data(input: &[u8]) -> Outcome {
    use wire::OptionCode;
    let Some((option, data)) = input.split_first_chunk() else {
        return Outcome::Refused;
    };
    match OptionCode::from_u32(u32::from_be_bytes(*option)) {
        Some(OptionCode::ExportName) => whole(wire::decode_export_name(data), |name| {
            [option.as_slice(), name.as_bytes()].concat()
        }),
        // Unknown information requests are skipped, so these are not re-encoded.
        Some(OptionCode::Info | OptionCode::Go) => {
            wire::decode_info_request(data).map_or(Outcome::Refused, |_| Outcome::Accepted)
        }
        Some(OptionCode::ListMetaContext | OptionCode::SetMetaContext) => {
            whole(wire::decode_meta_query(data), |query| {
                let texts = std::iter::once(query.export).chain(query.queries.iter().copied());
                let mut again = option.to_vec();
                for (number, text) in texts.enumerate() {
                    again.extend((text.len() as u32).to_be_bytes());
                    again.extend(text.as_bytes());
                    if number == 0 {
                        again.extend((query.queries.len() as u32).to_be_bytes());
                    }
                }
                again
            })
        }
        Some(
            OptionCode::Abort
            | OptionCode::List
            | OptionCode::StructuredReply
            | OptionCode::ExtendedHeaders
            | OptionCode::StartTls,
        )
        | None => Outcome::Refused,
    }
}

/// A name of an export with everything that is done to it, and to texts that repeat it.
fn nbd_export_name(input: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(input) else {
        return Outcome::Refused;
    };
    let shown = without_tickets(text);
    assert_eq!(without_tickets(&shown), shown, "nothing is left to hide");
    let Some(name) = ExportName::parse(text) else {
        return Outcome::Refused;
    };
    let again = match split_ticket(text) {
        Some((before, ticket)) => format!("{before}:{ticket}"),
        None => name.to_string(),
    };
    Outcome::Same {
        again: again.into_bytes(),
        whole: true,
    }
}

fn nbd_request(input: &[u8]) -> Outcome {
    whole(wire::decode_request(input, Framing::Simple), |request| {
        let mut again = varve_tests::nbd::request_bytes(
            request.command,
            request.cookie,
            request.offset,
            request.length_bytes as u32,
        );
        again[4..6].copy_from_slice(&request.flags.0.to_be_bytes());
        // The check of ranges does not overflow.
        let _ = request.is_within(u64::MAX);
        again
    })
}

fn nbd_extended_request(input: &[u8]) -> Outcome {
    whole(wire::decode_request(input, Framing::Extended), |request| {
        let mut again = varve_tests::nbd::extended_request_bytes(
            request.command,
            request.cookie,
            request.offset,
            request.length_bytes,
        );
        again[4..6].copy_from_slice(&request.flags.0.to_be_bytes());
        let _ = (request.is_within(u64::MAX), request.payload_bytes());
        again
    })
}

fn nbd_status_query(input: &[u8]) -> Outcome {
    whole(wire::decode_status_query(input), |query| {
        let mut again = query.length_bytes.to_be_bytes().to_vec();
        for id in &query.context_ids {
            again.extend_from_slice(&id.to_be_bytes());
        }
        again
    })
}

fn number_at(input: &[u8], at: usize) -> Option<u32> {
    input
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

/// Writes the CRC-32 of the first `len` bytes behind them.
fn put_crc32(input: &mut [u8], len: usize) {
    put_crc32_in(input, 0, len);
}

fn put_crc32_in(input: &mut [u8], at: usize, len: usize) {
    if let Some(bytes) = input.get(at..at + len) {
        let crc32 = crc32fast::hash(bytes);
        if let Some(place) = input.get_mut(at + len..at + len + 4) {
            place.copy_from_slice(&crc32.to_le_bytes());
        }
    }
}

const _: () = assert!(PACK_HEADER_BYTES == LOG_ALIGN);
