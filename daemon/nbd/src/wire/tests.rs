//! Golden bytes, written down from the protocol's text: they must not change. And decoders against
//! invalid bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use proptest::prelude::*;

use super::*;

const COOKIE: u64 = 0x0102_0304_0506_0708;

fn hex(bytes: &[u8]) -> String {
    let words: Vec<_> = bytes
        .chunks(4)
        .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect::<Vec<String>>();
    words.join(" ")
}

#[test]
fn greeting_is_both_magics_and_fixed_newstyle_no_zeroes() {
    assert_eq!(encode_greeting(), *b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn a_server_understands_what_a_client_sends() {
    for (fixed_newstyle, no_zeroes) in [(true, true), (true, false), (false, true)] {
        let flags = ClientFlags {
            fixed_newstyle,
            no_zeroes,
        };
        assert_eq!(
            decode_client_flags(&encode_client_flags(flags)).unwrap(),
            flags
        );
    }
    let data = encode_info_request("volume/a", &[InfoKind::Name, InfoKind::BlockSize]);
    let mut option = Vec::new();
    encode_option(&mut option, OptionCode::Go, &data);
    assert_eq!(
        option,
        b"IHAVEOPT\0\0\0\x07\0\0\0\x12\0\0\0\x08volume/a\0\x02\0\x01\0\x03"
    );
    let (header, rest) = option.split_at(OPTION_HEADER_BYTES);
    let header = decode_option_header(header).unwrap();
    assert_eq!(OptionCode::from_u32(header.option), Some(OptionCode::Go));
    assert_eq!(header.data_bytes as usize, rest.len());
    let request = decode_info_request(rest).unwrap();
    assert_eq!(request.name, "volume/a");
    assert_eq!(request.wants, [InfoKind::Name, InfoKind::BlockSize]);
}

#[test]
fn a_client_understands_what_a_server_sends() {
    let server = decode_greeting(&encode_greeting()).unwrap();
    assert!(server.fixed_newstyle && server.no_zeroes);
    assert!(decode_greeting(b"SSH-2.0-OpenSSH_9.").is_err());

    let flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::READ_ONLY);
    assert!(flags.contains(TransmissionFlags::READ_ONLY));
    assert!(!flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    let info = encode_export_info(12_345, flags);
    let mut reply = Vec::new();
    encode_option_reply(
        &mut reply,
        OptionCode::Go as u32,
        OptionReplyCode::Info,
        &info,
    );
    let (header, data) = reply.split_at(OPTION_REPLY_HEADER_BYTES);
    let header = decode_option_reply_header(header).unwrap();
    assert_eq!(header.option, 7);
    assert_eq!(
        OptionReplyCode::from_u32(header.code),
        Some(OptionReplyCode::Info)
    );
    assert_eq!(header.data_bytes as usize, data.len());
    let size_bytes = 12_345;
    let details = ExportDetails { size_bytes, flags };
    assert_eq!(decode_export_info(data).unwrap(), Some(details));
    let other = encode_block_size_info(1, 4096, 4096);
    assert_eq!(decode_export_info(&other).unwrap(), None);
    assert!(decode_export_info(&data[..11]).is_err());
}

#[test]
fn every_reply_code_is_known_by_its_number() {
    for code in [
        OptionReplyCode::Ack,
        OptionReplyCode::Server,
        OptionReplyCode::Info,
        OptionReplyCode::MetaContext,
        OptionReplyCode::Unsupported,
        OptionReplyCode::Policy,
        OptionReplyCode::Invalid,
        OptionReplyCode::TlsRequired,
        OptionReplyCode::Unknown,
        OptionReplyCode::Stopping,
        OptionReplyCode::TooBig,
        OptionReplyCode::ExtendedHeaders,
    ] {
        assert_eq!(OptionReplyCode::from_u32(code as u32), Some(code));
        assert_eq!(
            OptionReplyCode::is_error(code as u32),
            code as u32 >= 0x8000_0000
        );
    }
    assert_eq!(OptionReplyCode::from_u32(0x8000_0004), None);
    assert!(OptionReplyCode::is_error(0x8000_0004));
}

#[test]
fn option_reply_bytes() {
    let mut bytes = Vec::new();
    encode_option_reply(&mut bytes, 0x99, OptionReplyCode::Unsupported, b"no");
    assert_eq!(
        hex(&bytes),
        "0003e889 045565a9 00000099 80000001 00000002 6e6f"
    );
    for (code, number) in [
        (OptionReplyCode::Ack, 1),
        (OptionReplyCode::Server, 2),
        (OptionReplyCode::Info, 3),
        (OptionReplyCode::MetaContext, 4),
        (OptionReplyCode::Invalid, 0x8000_0003),
        (OptionReplyCode::Unknown, 0x8000_0006),
        (OptionReplyCode::Stopping, 0x8000_0007),
        (OptionReplyCode::TooBig, 0x8000_0009),
    ] {
        assert_eq!(code as u32, number);
    }
}

#[test]
fn option_reply_data_bytes() {
    assert_eq!(hex(&encode_listed_export("ab", "c")), "00000002 616263");
    let flags = TransmissionFlags::HAS_FLAGS
        .with(TransmissionFlags::READ_ONLY)
        .with(TransmissionFlags::SEND_DF)
        .with(TransmissionFlags::CAN_MULTI_CONN)
        .with(TransmissionFlags::SEND_CACHE);
    assert_eq!(
        hex(&encode_export_info(0x1_0000_0000, flags)),
        "00000000 00010000 00000583"
    );
    let flags = TransmissionFlags::HAS_FLAGS
        .with(TransmissionFlags::SEND_FLUSH)
        .with(TransmissionFlags::SEND_FUA)
        .with(TransmissionFlags::SEND_TRIM)
        .with(TransmissionFlags::SEND_WRITE_ZEROES);
    assert_eq!(
        hex(&encode_export_info(0x2000, flags)),
        "00000000 00000000 2000006d"
    );
    assert_eq!(hex(&encode_text_info(InfoKind::Name, "n")), "00016e");
    assert_eq!(hex(&encode_text_info(InfoKind::Description, "d")), "000264");
    assert_eq!(
        hex(&encode_block_size_info(1, 4096, 32 << 20)),
        "00030000 00010000 10000200 0000"
    );
    assert_eq!(hex(&encode_meta_context(7, "x:y")), "00000007 783a79");
}

#[test]
fn export_name_reply_bytes() {
    let flags = TransmissionFlags::HAS_FLAGS;
    let short = encode_export_name_reply(5, flags, true);
    assert_eq!(hex(&short), "00000000 00000005 0001");
    let long = encode_export_name_reply(5, flags, false);
    assert_eq!(long.len(), 134);
    assert_eq!(long[..10], short[..]);
    assert!(long[10..].iter().all(|&byte| byte == 0));
}

const STRUCTURED: Answered = Answered {
    framing: Framing::Structured,
    cookie: COOKIE,
    offset: 0x1000,
};
const EXTENDED: Answered = Answered {
    framing: Framing::Extended,
    ..STRUCTURED
};

#[test]
fn extended_reply_bytes() {
    assert_eq!(
        hex(encode_done(&EXTENDED).bytes()),
        "6e8a278c 00010000 01020304 05060708 00000000 00001000 00000000 00000000"
    );
    assert_eq!(
        hex(encode_offset_data_header(&EXTENDED, false, 0x1200, 0x200).bytes()),
        "6e8a278c 00000001 01020304 05060708 00000000 00001000 00000000 00000208 \
         00000000 00001200"
    );
    assert_eq!(
        hex(encode_offset_hole(&EXTENDED, true, 0x1200, 0x200).bytes()),
        "6e8a278c 00010002 01020304 05060708 00000000 00001000 00000000 0000000c \
         00000000 00001200 00000200"
    );
    assert_eq!(
        hex(&encode_block_status(
            &EXTENDED,
            true,
            1,
            &[(1 << 40, StatusFlags::DATA), (0x2000, StatusFlags::HOLE)]
        )),
        "6e8a278c 00010006 01020304 05060708 00000000 00001000 00000000 00000028 \
         00000001 00000002 00000100 00000000 00000000 00000000 \
         00000000 00002000 00000000 00000003"
    );
    assert_eq!(
        hex(&encode_error(&EXTENDED, ErrorCode::Io, Some(9), "bad")),
        "6e8a278c 00018002 01020304 05060708 00000000 00001000 00000000 00000011 \
         00000005 00036261 64000000 00000000 09"
    );
}

#[test]
fn transmission_reply_bytes() {
    assert_eq!(
        hex(encode_simple_reply(COOKIE, None).bytes()),
        "67446698 00000000 01020304 05060708"
    );
    assert_eq!(
        hex(encode_simple_reply(COOKIE, Some(ErrorCode::NotPermitted)).bytes()),
        "67446698 00000001 01020304 05060708"
    );
    assert_eq!(
        hex(encode_done(&STRUCTURED).bytes()),
        "668e33ef 00010000 01020304 05060708 00000000"
    );
    assert_eq!(
        hex(encode_offset_data_header(&STRUCTURED, false, 0x1000, 0x200).bytes()),
        "668e33ef 00000001 01020304 05060708 00000208 00000000 00001000"
    );
    assert_eq!(
        hex(encode_offset_hole(&STRUCTURED, true, 0x1000, 0x200).bytes()),
        "668e33ef 00010002 01020304 05060708 0000000c 00000000 00001000 00000200"
    );
    assert_eq!(
        hex(&encode_block_status(
            &STRUCTURED,
            true,
            1,
            &[(0x1000, StatusFlags::DATA), (0x2000, StatusFlags::HOLE)]
        )),
        "668e33ef 00010005 01020304 05060708 00000014 00000001 \
         00001000 00000000 00002000 00000003"
    );
    assert_eq!(
        hex(&encode_error(&STRUCTURED, ErrorCode::Io, None, "bad")),
        "668e33ef 00018001 01020304 05060708 00000009 00000005 00036261 64"
    );
    assert_eq!(
        hex(&encode_error(&STRUCTURED, ErrorCode::Io, Some(9), "bad")),
        "668e33ef 00018002 01020304 05060708 00000011 00000005 00036261 64000000 00000000 09"
    );
    for (code, number) in [
        (ErrorCode::NotPermitted, 1),
        (ErrorCode::Io, 5),
        (ErrorCode::Invalid, 22),
        (ErrorCode::NoSpace, 28),
        (ErrorCode::Overflow, 75),
        (ErrorCode::Stopping, 108),
    ] {
        assert_eq!(code as u32, number);
    }
}

#[test]
fn long_messages_are_cut_between_characters() {
    let message = format!("x{}", "é".repeat(4096));
    let bytes = encode_error(&STRUCTURED, ErrorCode::Io, None, &message);
    let text = std::str::from_utf8(&bytes[20 + 6..]).unwrap();
    assert_eq!(text.len(), 4095);
    assert!(message.starts_with(text));
}

#[test]
fn request_bytes() {
    let bytes = [
        0x25, 0x60, 0x95, 0x13, 0, 4, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];
    let request = Request {
        flags: CommandFlags::DF,
        command: 0,
        cookie: COOKIE,
        offset: 0x1000,
        length_bytes: 0x200,
        has_payload: false,
    };
    let decode_request = |bytes: &[u8]| decode_request(bytes, Framing::Structured);
    assert_eq!(decode_request(&bytes), Ok(request));
    for at in 0..4 {
        let mut bytes = bytes;
        bytes[at] ^= 1;
        let error = decode_request(&bytes).unwrap_err();
        assert!(matches!(error, WireError::Magic { .. }), "{error}");
    }
    for length in 0..bytes.len() {
        let error = decode_request(&bytes[..length]).unwrap_err();
        assert!(matches!(error, WireError::Truncated { .. }), "{error}");
    }
}

#[test]
fn extended_request_bytes() {
    let bytes = [
        0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
        0, 0, 1, 0, 0, 0, 2, 0,
    ];
    let decoded = decode_request(&bytes, Framing::Extended);
    let request = Request {
        flags: CommandFlags::PAYLOAD_LEN,
        command: 1,
        cookie: COOKIE,
        offset: 0x1000,
        length_bytes: 0x100_0000_0200,
        has_payload: true,
    };
    assert_eq!(decoded, Ok(request));
    assert_eq!(request.payload_bytes(), 0x100_0000_0200);
    let mut trim = bytes;
    (trim[5], trim[7]) = (0, 4);
    let decoded = decode_request(&trim, Framing::Extended).unwrap();
    assert_eq!((decoded.has_payload, decoded.payload_bytes()), (false, 0));
    let mut write = bytes;
    write[5] = 0;
    let decoded = decode_request(&write, Framing::Extended).unwrap();
    assert!(decoded.has_payload, "as QEMU sends it");
    for length in 0..bytes.len() {
        let error = decode_request(&bytes[..length], Framing::Extended).unwrap_err();
        assert!(matches!(error, WireError::Truncated { .. }), "{error}");
    }
    let error = decode_request(&bytes[..28], Framing::Structured).unwrap_err();
    assert!(matches!(error, WireError::Magic { .. }), "{error}");
}

#[test]
fn status_query_bytes() {
    let bytes = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1];
    let query = decode_status_query(&bytes).unwrap();
    assert_eq!(
        (query.length_bytes, query.context_ids),
        (1 << 40, vec![2, 1])
    );
    for length in 0..bytes.len() {
        let whole = [8, 12].contains(&length);
        assert_eq!(decode_status_query(&bytes[..length]).is_ok(), whole);
    }
    assert_eq!(StatusQuery::payload_bytes(2), bytes.len());
}

#[test]
fn ranges_do_not_wrap_around() {
    let bytes = crate::testing::request_bytes(0, 0, 0, 6, 4);
    let mut request = decode_request(&bytes, Framing::Simple).unwrap();
    assert!(request.is_within(10));
    assert!(!request.is_within(9));
    request.offset = u64::MAX;
    assert!(!request.is_within(u64::MAX));
}

#[test]
fn client_flags_bytes() {
    let flags = decode_client_flags(&[0, 0, 0, 3]).unwrap();
    assert!(flags.fixed_newstyle && flags.no_zeroes);
    let flags = decode_client_flags(&[0, 0, 0, 1]).unwrap();
    assert!(flags.fixed_newstyle && !flags.no_zeroes);
    assert_eq!(
        decode_client_flags(&[0, 0, 0, 7]),
        Err(WireError::ClientFlags { flags: 7 })
    );
    assert_eq!(
        decode_client_flags(&[0x80, 0, 0, 3]),
        Err(WireError::ClientFlags { flags: 0x8000_0003 })
    );
}

#[test]
fn option_header_bytes() {
    let header = decode_option_header(b"IHAVEOPT\0\0\0\x07\0\0\x01\0").unwrap();
    assert_eq!((header.option, header.data_bytes), (7, 256));
    assert!(decode_option_header(b"IHAVEOPT\0\0\0\x07\0\0\x01").is_err());
    assert!(decode_option_header(b"IHAVEOPX\0\0\0\x07\0\0\x01\0").is_err());
}

#[test]
fn info_request_bytes() {
    let data = b"\0\0\0\x01a\0\x04\0\x03\0\x63\0\x01\0\x03";
    let request = decode_info_request(data).unwrap();
    assert_eq!(request.name, "a");
    // 99 is unknown and ignored, and the second 3 asks for nothing new.
    assert_eq!(request.wants, [InfoKind::BlockSize, InfoKind::Name]);
    for length in 0..data.len() {
        assert!(decode_info_request(&data[..length]).is_err(), "{length}");
    }
    let longer = [data.as_slice(), b"x"].concat();
    let error = decode_info_request(&longer).unwrap_err();
    assert!(matches!(error, WireError::Trailing { extra_bytes: 1, .. }));
}

#[test]
fn meta_query_bytes() {
    let data = b"\0\0\0\x01a\0\0\0\x02\0\0\0\x05base:\0\0\0\0";
    let query = decode_meta_query(data).unwrap();
    assert_eq!((query.export, query.queries), ("a", vec!["base:", ""]));
    for length in 0..data.len() {
        assert!(decode_meta_query(&data[..length]).is_err(), "{length}");
    }
    let many = b"\0\0\0\x01a\xff\xff\xff\xff";
    let error = decode_meta_query(many).unwrap_err();
    assert!(matches!(error, WireError::TooManyQueries { .. }));
}

#[test]
fn strings_are_short_text_without_nul() {
    assert_eq!(decode_export_name(b"snapshot/a"), Ok("snapshot/a"));
    assert!(matches!(
        decode_export_name(b"a\0b"),
        Err(WireError::NotText { .. })
    ));
    assert!(matches!(
        decode_export_name(b"a\xff"),
        Err(WireError::NotText { .. })
    ));
    assert!(decode_export_name(&[b'a'; 4096]).is_ok());
    assert!(matches!(
        decode_export_name(&[b'a'; 4097]),
        Err(WireError::StringTooLong { .. })
    ));
    let mut data = 0x7fff_ffff_u32.to_be_bytes().to_vec();
    data.extend_from_slice(b"abc");
    assert!(matches!(
        decode_info_request(&data),
        Err(WireError::Truncated { .. })
    ));
}

/// Invalid bytes: random ones, or a good message with a few bytes changed.
fn nearly(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    let edits = prop::collection::vec((0..length, any::<u8>()), 0..4);
    let mutated = (edits, 0..=length + 4).prop_map(move |(edits, keep)| {
        let mut bytes = good.clone();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.resize(keep, 0);
        bytes
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), mutated]
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(
        bytes in nearly(crate::testing::request_bytes(0, 0, 1, 2, 3)),
    ) {
        if let Ok(request) = decode_request(&bytes, Framing::Structured) {
            let again = crate::testing::request_bytes(
                request.command,
                request.flags.0,
                request.cookie,
                request.offset,
                u32::try_from(request.length_bytes).unwrap(),
            );
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn any_bytes_are_an_extended_request_or_an_error(
        bytes in nearly(crate::testing::extended_request_bytes(1, 0x20, 1, 2, 3)),
    ) {
        if let Ok(request) = decode_request(&bytes, Framing::Extended) {
            let again = crate::testing::extended_request_bytes(
                request.command,
                request.flags.0,
                request.cookie,
                request.offset,
                request.length_bytes,
            );
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn any_bytes_are_an_option_or_an_error(
        bytes in nearly(b"IHAVEOPT\0\0\0\x07\0\0\x01\0".to_vec()),
    ) {
        prop_assert_eq!(decode_option_header(&bytes).is_ok(), bytes.len() == 16 && bytes.starts_with(b"IHAVEOPT"));
        let _ = decode_client_flags(&bytes);
        let _ = decode_export_name(&bytes);
    }

    #[test]
    fn any_bytes_are_an_info_request_or_an_error(
        bytes in nearly(crate::testing::info_data("snapshot/a", &[1, 2, 3])),
    ) {
        if let Ok(request) = decode_info_request(&bytes) {
            prop_assert!(request.name.len() <= bytes.len());
            prop_assert!(request.wants.len() <= 3);
        }
    }

    #[test]
    fn any_bytes_are_a_meta_query_or_an_error(
        bytes in nearly(crate::testing::meta_data("snapshot/a", &["base:", "base:allocation"])),
    ) {
        if let Ok(query) = decode_meta_query(&bytes) {
            let again = crate::testing::meta_data(query.export, &query.queries);
            prop_assert_eq!(again, bytes);
        }
    }
}
