//! Transmission phase, client to server.

use super::WireError;
use super::fields::Fields;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Length of the header of a compact request, in bytes.
pub const REQUEST_BYTES: usize = 28;
/// Length of the longest header of a request, an extended one, in bytes.
pub const MAX_REQUEST_HEADER_BYTES: usize = 32;

/// The kinds of messages in the transmission phase, as agreed in the handshake.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Framing {
    /// Compact requests and simple replies.
    #[default]
    Simple,
    /// Compact requests and structured replies.
    Structured,
    /// Extended requests and replies: lengths have 64 bits.
    Extended,
}

impl Framing {
    /// Length of the header of a request, in bytes.
    #[must_use]
    pub const fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => REQUEST_BYTES,
            Self::Extended => MAX_REQUEST_HEADER_BYTES,
        }
    }
}

/// The header of a request.
///
/// ```text
/// compact    0        4       6       8        16       24       28
///           ┌────────┬───────┬───────┬────────┬────────┬────────┐
///           │ magic  │ flags │ type  │ cookie │ offset │ length │
///           └────────┴───────┴───────┴────────┴────────┴────────┘
/// extended   0        4       6       8        16       24                32
///           ┌────────┬───────┬───────┬────────┬────────┬─────────────────┐
///           │ magic  │ flags │ type  │ cookie │ offset │     length      │
///           └────────┴───────┴───────┴────────┴────────┴─────────────────┘
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// The flags of the request.
    pub flags: CommandFlags,
    /// As sent: see [`Command::from_u16`].
    pub command: u16,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    /// Offset of the range in bytes.
    pub offset: u64,
    /// Length of the range, and of the payload if there is one; but the payload of `BLOCK_STATUS`
    /// has the length of its range.
    pub length_bytes: u64,
    /// True if `length_bytes` of payload follow.
    pub has_payload: bool,
}

impl Request {
    /// Returns true if the range lies within an export of this size.
    #[must_use]
    pub fn is_within(&self, size_bytes: u64) -> bool {
        self.offset
            .checked_add(self.length_bytes)
            .is_some_and(|end| end <= size_bytes)
    }

    /// Bytes that follow this header on the wire.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        if self.has_payload {
            self.length_bytes
        } else {
            0
        }
    }
}

/// Decodes a request's header of [`Framing::request_bytes`].
///
/// # Errors
///
/// The bytes are not such a header.
pub fn decode_request(bytes: &[u8], framing: Framing) -> Result<Request, WireError> {
    let mut fields = Fields::new("request", bytes);
    let is_extended = framing == Framing::Extended;
    fields.magic_u32(if is_extended {
        EXTENDED_REQUEST_MAGIC
    } else {
        REQUEST_MAGIC
    })?;
    let flags = CommandFlags(fields.u16("flags")?);
    let command = fields.u16("type")?;
    // The protocol wants the flag of an extended write as well, but QEMU up to 10 at least sends
    // none, and a write is nothing without its payload.
    let has_payload = Command::from_u16(command) == Some(Command::Write)
        || is_extended && flags.contains(CommandFlags::PAYLOAD_LEN);
    let request = Request {
        flags,
        command,
        cookie: fields.u64("cookie")?,
        offset: fields.u64("offset")?,
        length_bytes: if is_extended {
            fields.u64("length")?
        } else {
            fields.u32("length")?.into()
        },
        has_payload,
    };
    fields.end()?;
    Ok(request)
}

/// The payload of `BLOCK_STATUS`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatusQuery {
    /// Length of the range.
    pub length_bytes: u64,
    /// The requested ones of the agreed contexts.
    pub context_ids: Vec<u32>,
}

impl StatusQuery {
    /// Length of the payload of a query for this many contexts, in bytes.
    #[must_use]
    pub const fn payload_bytes(contexts: usize) -> usize {
        8 + 4 * contexts
    }
}

/// Decodes the payload of `BLOCK_STATUS`. The caller has bounded its length.
///
/// # Errors
///
/// The payload ends in the middle of a field.
pub fn decode_status_query(bytes: &[u8]) -> Result<StatusQuery, WireError> {
    let mut fields = Fields::new("payload of BLOCK_STATUS", bytes);
    let length_bytes = fields.u64("length")?;
    let mut context_ids = Vec::new();
    while !fields.is_empty() {
        context_ids.push(fields.u32("context")?);
    }
    Ok(StatusQuery {
        length_bytes,
        context_ids,
    })
}

/// "Request types".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// `NBD_CMD_READ`: bytes of a range.
    Read,
    /// `NBD_CMD_WRITE`: other bytes for a range.
    Write,
    /// `NBD_CMD_DISC`: the end, without a reply.
    Disconnect,
    /// `NBD_CMD_FLUSH`: makes all answered writes durable.
    Flush,
    /// `NBD_CMD_TRIM`: the client no longer needs a range.
    Trim,
    /// `NBD_CMD_CACHE`: a range is to be read soon.
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`: zeroes for a range.
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`: the extents of a range.
    BlockStatus,
}

impl Command {
    /// `None` for a type this server does not know, which the protocol answers with `EINVAL`.
    #[must_use]
    pub const fn from_u16(command: u16) -> Option<Self> {
        Some(match command {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }
}

/// "Command flags".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// Force unit access: after the reply, the bytes survive a power cut. Valid on every command
    /// once announced, and without effect on those that write nothing.
    pub const FUA: Self = Self(1 << 0);
    /// The zeroes must have their space allotted.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// Don't fragment: at most one content chunk.
    pub const DF: Self = Self(1 << 2);
    /// One extent per metadata context.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// The zeroes must be no slower than as many bytes written, or the request fails at once.
    pub const FAST_ZERO: Self = Self(1 << 4);
    /// The length is that of a payload. Only in extended requests.
    pub const PAYLOAD_LEN: Self = Self(1 << 5);
    /// No flag.
    pub const NONE: Self = Self(0);

    /// These flags and one more.
    #[must_use]
    pub const fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    /// These flags without one.
    #[must_use]
    pub const fn without(self, flag: Self) -> Self {
        Self(self.0 & !flag.0)
    }

    /// Returns true if a flag is set.
    #[must_use]
    pub const fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    /// Returns true if every bit is among `allowed`.
    #[must_use]
    pub const fn is_subset_of(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }
}
