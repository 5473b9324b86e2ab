//! Transmission phase, client to server.

use super::WireError;
use super::fields::Fields;

const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The request header; a `WRITE` is followed by its payload.
pub const REQUEST_BYTES: usize = 28;

/// ```text
///  0        4       6       8        16       24       28
/// ┌────────┬───────┬───────┬────────┬────────┬────────┐
/// │ magic  │ flags │ type  │ cookie │ offset │ length │
/// └────────┴───────┴───────┴────────┴────────┴────────┘
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    pub flags: CommandFlags,
    /// As sent: see [`Command::from_u16`].
    pub command: u16,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    pub offset: u64,
    pub length_bytes: u32,
}

impl Request {
    /// Whether the range lies within an export of this size.
    #[must_use]
    pub fn is_within(&self, size_bytes: u64) -> bool {
        self.offset
            .checked_add(u64::from(self.length_bytes))
            .is_some_and(|end| end <= size_bytes)
    }

    /// Bytes that follow this header on the wire.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        match Command::from_u16(self.command) {
            Some(Command::Write) => self.length_bytes,
            _ => 0,
        }
    }
}

/// Decodes a request header of [`REQUEST_BYTES`].
pub fn decode_request(bytes: &[u8]) -> Result<Request, WireError> {
    let mut fields = Fields::new("request", bytes);
    fields.magic_u32(REQUEST_MAGIC)?;
    let request = Request {
        flags: CommandFlags(fields.u16("flags")?),
        command: fields.u16("type")?,
        cookie: fields.u64("cookie")?,
        offset: fields.u64("offset")?,
        length_bytes: fields.u32("length")?,
    };
    fields.end()?;
    Ok(request)
}

/// "Request types".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
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
    /// Force unit access: the reply says that the bytes survive a power cut. Valid on every command
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
    pub const NONE: Self = Self(0);

    #[must_use]
    pub const fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    #[must_use]
    pub const fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    /// Whether every bit is among `allowed`.
    #[must_use]
    pub const fn is_subset_of(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }
}
