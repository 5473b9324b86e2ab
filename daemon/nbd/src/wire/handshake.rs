//! Handshake phase: its numbers, and the messages as a server decodes and encodes them.

use bytes::BufMut;

use super::WireError;
use super::fields::Fields;
use super::reply::truncate_text;
use crate::limits::MAX_META_QUERIES;

pub(super) const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// "Handshake flags" and "Client flags": the same bits in both directions.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;
/// Sent after the reply to `EXPORT_NAME` to clients that did not ask to be spared.
const RESERVED_ZEROES: usize = 124;

/// The information that is sent unasked: size and flags.
pub(super) const INFO_EXPORT: u16 = 0;

/// Length of the client's flags.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// Length of the header of an option.
pub const OPTION_HEADER_BYTES: usize = 16;

/// The server's first words: both magics and `FIXED_NEWSTYLE | NO_ZEROES`.
pub type Greeting = [u8; 18];

/// The greeting of this server.
#[must_use]
pub fn encode_greeting() -> Greeting {
    let mut bytes = [0; 18];
    let mut out = bytes.as_mut_slice();
    out.put_u64(SERVER_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(FIXED_NEWSTYLE | NO_ZEROES);
    bytes
}

/// The client's answer to the greeting.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientFlags {
    /// Understands replies to options. Without it only `EXPORT_NAME` makes sense.
    pub fixed_newstyle: bool,
    /// Does without the zeroes after the reply to `EXPORT_NAME`.
    pub no_zeroes: bool,
}

/// Decodes the client's flags; unknown bits are an error that the protocol answers by closing.
///
/// # Errors
///
/// The bytes are not flags of a client.
pub fn decode_client_flags(bytes: &[u8]) -> Result<ClientFlags, WireError> {
    let mut fields = Fields::new("client flags", bytes);
    let flags = fields.u32("flags")?;
    fields.end()?;
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(WireError::ClientFlags { flags });
    }
    Ok(ClientFlags {
        fixed_newstyle: flags & u32::from(FIXED_NEWSTYLE) != 0,
        no_zeroes: flags & u32::from(NO_ZEROES) != 0,
    })
}

/// The header of an option.
///
/// ```text
///  0          8        12       16
/// ┌──────────┬────────┬────────┬─ ─ ─ ─ ─ ─ ─
/// │ IHAVEOPT │ option │ length │ option data
/// └──────────┴────────┴────────┴─ ─ ─ ─ ─ ─ ─
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OptionHeader {
    /// As sent: see [`OptionCode::from_u32`].
    pub option: u32,
    /// Length of the data that follow.
    pub data_bytes: u32,
}

/// Decodes an option's header of [`OPTION_HEADER_BYTES`].
///
/// # Errors
///
/// The bytes are not such a header.
pub fn decode_option_header(bytes: &[u8]) -> Result<OptionHeader, WireError> {
    let mut fields = Fields::new("option", bytes);
    fields.magic_u64(OPTION_MAGIC)?;
    let header = OptionHeader {
        option: fields.u32("option")?,
        data_bytes: fields.u32("length")?,
    };
    fields.end()?;
    Ok(header)
}

/// "Option types".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum OptionCode {
    /// Opens an export and ends the handshake, without a way to refuse it.
    ExportName = 1,
    /// Ends the handshake.
    Abort = 2,
    /// Lists the exports.
    List = 3,
    /// Begins TLS.
    StartTls = 5,
    /// Asks about an export.
    Info = 6,
    /// Opens an export and ends the handshake.
    Go = 7,
    /// Asks for structured replies.
    StructuredReply = 8,
    /// Lists the metadata contexts of an export.
    ListMetaContext = 9,
    /// Chooses metadata contexts of an export.
    SetMetaContext = 10,
    /// Asks for extended headers.
    ExtendedHeaders = 11,
}

impl OptionCode {
    /// `None` for an option that this server does not know, which it answers with `ERR_UNSUP`.
    #[must_use]
    pub const fn from_u32(option: u32) -> Option<Self> {
        Some(match option {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            _ => return None,
        })
    }
}

/// Decodes the data of `EXPORT_NAME`: nothing but the name.
///
/// # Errors
///
/// The data are not a name.
pub fn decode_export_name(data: &[u8]) -> Result<&str, WireError> {
    Fields::new("EXPORT_NAME", data).final_text("name")
}

/// The data of `INFO` and `GO`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InfoRequest<'a> {
    /// The export.
    pub name: &'a str,
    /// The information that the client requests and this server supports.
    pub wants: Vec<InfoKind>,
}

/// "`NBD_REP_INFO`", besides the export's size and flags, which are sent in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum InfoKind {
    /// The export's name.
    Name = 1,
    /// A description of the export for people.
    Description = 2,
    /// The lengths and alignments of requests.
    BlockSize = 3,
}

/// Decodes the data of `INFO` and `GO`.
///
/// # Errors
///
/// The data do not have the layout of the option.
pub fn decode_info_request(data: &[u8]) -> Result<InfoRequest<'_>, WireError> {
    let mut fields = Fields::new("GO or INFO", data);
    let name = fields.counted_text("name")?;
    let mut wants = Vec::new();
    for _ in 0..fields.u16("number of information requests")? {
        let want = match fields.u16("information request")? {
            1 => InfoKind::Name,
            2 => InfoKind::Description,
            3 => InfoKind::BlockSize,
            // The protocol: "MUST ignore any information requests it does not understand".
            _ => continue,
        };
        if !wants.contains(&want) {
            wants.push(want);
        }
    }
    fields.end()?;
    Ok(InfoRequest { name, wants })
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetaQuery<'a> {
    /// The name of the export.
    pub export: &'a str,
    /// Contexts, or wildcards of them.
    pub queries: Vec<&'a str>,
}

/// Decodes the data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
///
/// # Errors
///
/// The data are not what the option has, or hold too many queries.
pub fn decode_meta_query(data: &[u8]) -> Result<MetaQuery<'_>, WireError> {
    let message = "metadata context query";
    let mut fields = Fields::new(message, data);
    let export = fields.counted_text("export name")?;
    let count = fields.u32("number of queries")?;
    if count as usize > MAX_META_QUERIES {
        return Err(WireError::TooManyQueries { message, count });
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.counted_text("query")?);
    }
    fields.end()?;
    Ok(MetaQuery { export, queries })
}

/// "Option reply types".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum OptionReplyCode {
    /// The option is done.
    Ack = 1,
    /// One export of a listing.
    Server = 2,
    /// Something about an export.
    Info = 3,
    /// One metadata context.
    MetaContext = 4,
    /// The server does not know the option.
    Unsupported = 1 << 31 | 1,
    /// The server does not allow it, now or ever.
    Policy = 1 << 31 | 2,
    /// The data of the option are invalid.
    Invalid = 1 << 31 | 3,
    /// The client must begin TLS first.
    TlsRequired = 1 << 31 | 5,
    /// There is no such export.
    Unknown = 1 << 31 | 6,
    /// The server stops.
    Stopping = 1 << 31 | 7,
    /// The option exceeds a limit of the server.
    TooBig = 1 << 31 | 9,
    /// Extended headers were agreed on, and supersede this option.
    ExtendedHeaders = 1 << 31 | 10,
}

impl OptionReplyCode {
    const ERROR: u32 = 1 << 31;

    /// `None` for a code that this crate does not know; see [`is_error`](Self::is_error).
    #[must_use]
    pub const fn from_u32(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Ack,
            2 => Self::Server,
            3 => Self::Info,
            4 => Self::MetaContext,
            0x8000_0001 => Self::Unsupported,
            0x8000_0002 => Self::Policy,
            0x8000_0003 => Self::Invalid,
            0x8000_0005 => Self::TlsRequired,
            0x8000_0006 => Self::Unknown,
            0x8000_0007 => Self::Stopping,
            0x8000_0009 => Self::TooBig,
            0x8000_000a => Self::ExtendedHeaders,
            _ => return None,
        })
    }

    /// Returns true if a code, known or not, refuses the option.
    #[must_use]
    pub const fn is_error(code: u32) -> bool {
        code & Self::ERROR != 0
    }
}

/// Appends a reply to an option.
///
/// ```text
///  0       8        12      16       20
/// ┌───────┬────────┬───────┬────────┬─ ─ ─ ─ ─ ─ ─
/// │ magic │ option │ reply │ length │ reply's data
/// └───────┴────────┴───────┴────────┴─ ─ ─ ─ ─ ─ ─
/// ```
pub fn encode_option_reply(out: &mut Vec<u8>, option: u32, code: OptionReplyCode, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(code as u32);
    // Replies are made of strings that are cut to 4096 bytes: never near 4 GiB.
    out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.put_slice(data);
}

/// "Transmission flags".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// Always set.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// Nothing changes the export.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// `FLUSH` is known.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// Every command may carry the flag FUA.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// `TRIM` is known.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// `WRITE_ZEROES` is known.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// `READ` may carry the flag DF. Only if structured replies were agreed on.
    pub const SEND_DF: Self = Self(1 << 7);
    /// Every connection sees the writes of the others, and a flush on one covers all.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// `CACHE` is known.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// `WRITE_ZEROES` may carry the flag `FAST_ZERO`.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);
    /// `BLOCK_STATUS` may carry a payload. Only with extended headers.
    pub const BLOCK_STATUS_PAYLOAD: Self = Self(1 << 12);

    /// These flags and one more.
    #[must_use]
    pub const fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    /// Returns true if a flag is set.
    #[must_use]
    pub const fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }
}

/// Data of a `SERVER` reply: one line of a listing.
#[must_use]
pub fn encode_listed_export(name: &str, description: &str) -> Vec<u8> {
    let name = truncate_text(name);
    let description = truncate_text(description);
    let mut data = Vec::with_capacity(4 + name.len() + description.len());
    data.put_u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
    data.put_slice(name.as_bytes());
    data.put_slice(description.as_bytes());
    data
}

/// Data of an `INFO` reply: the export's size and flags.
#[must_use]
pub fn encode_export_info(size_bytes: u64, flags: TransmissionFlags) -> Vec<u8> {
    let mut data = Vec::with_capacity(12);
    data.put_u16(INFO_EXPORT);
    data.put_u64(size_bytes);
    data.put_u16(flags.0);
    data
}

/// Data of an `INFO` reply: a name or a description.
#[must_use]
pub fn encode_text_info(kind: InfoKind, text: &str) -> Vec<u8> {
    let text = truncate_text(text);
    let mut data = Vec::with_capacity(2 + text.len());
    data.put_u16(kind as u16);
    data.put_slice(text.as_bytes());
    data
}

/// Data of an `INFO` reply: block size constraints.
#[must_use]
pub fn encode_block_size_info(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let mut data = Vec::with_capacity(14);
    data.put_u16(InfoKind::BlockSize as u16);
    data.put_u32(minimum);
    data.put_u32(preferred);
    data.put_u32(maximum);
    data
}

/// Data of a `META_CONTEXT` reply.
#[must_use]
pub fn encode_meta_context(id: u32, name: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(4 + name.len());
    data.put_u32(id);
    data.put_slice(name.as_bytes());
    data
}

/// The reply to `EXPORT_NAME`, which has a shape of its own.
#[must_use]
pub fn encode_export_name_reply(
    size_bytes: u64,
    flags: TransmissionFlags,
    no_zeroes: bool,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10 + RESERVED_ZEROES);
    bytes.put_u64(size_bytes);
    bytes.put_u16(flags.0);
    if !no_zeroes {
        bytes.put_bytes(0, RESERVED_ZEROES);
    }
    bytes
}
