//! Handshake phase from the other side: what a client sends, encoded, and what it receives,
//! decoded.

use bytes::BufMut;

use super::WireError;
use super::fields::Fields;
use super::handshake::{
    ClientFlags, FIXED_NEWSTYLE, INFO_EXPORT, InfoKind, NO_ZEROES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionCode, SERVER_MAGIC, TransmissionFlags,
};

/// Length of the greeting.
pub const GREETING_BYTES: usize = 18;
/// Length of the header of a reply to an option.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// The flags in the server's greeting: "Handshake flags".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServerFlags {
    /// The server answers options. All servers in use do.
    pub fixed_newstyle: bool,
    /// The server leaves out the 124 zeroes after `EXPORT_NAME` if the client asks it to.
    pub no_zeroes: bool,
}

/// Decodes the greeting of [`GREETING_BYTES`]. Unknown flags are no error: they offer something.
///
/// # Errors
///
/// The greeting is not that of a newstyle server.
pub fn decode_greeting(bytes: &[u8]) -> Result<ServerFlags, WireError> {
    let mut fields = Fields::new("greeting", bytes);
    fields.magic_u64(SERVER_MAGIC)?;
    fields.magic_u64(OPTION_MAGIC)?;
    let flags = fields.u16("flags")?;
    fields.end()?;
    Ok(ServerFlags {
        fixed_newstyle: flags & FIXED_NEWSTYLE != 0,
        no_zeroes: flags & NO_ZEROES != 0,
    })
}

/// The client's answer to the greeting.
#[must_use]
pub fn encode_client_flags(flags: ClientFlags) -> [u8; 4] {
    let fixed_newstyle = if flags.fixed_newstyle {
        FIXED_NEWSTYLE
    } else {
        0
    };
    let no_zeroes = if flags.no_zeroes { NO_ZEROES } else { 0 };
    u32::from(fixed_newstyle | no_zeroes).to_be_bytes()
}

/// Appends an option: its header, laid out as in [`OptionHeader`](super::OptionHeader), and its
/// data.
pub fn encode_option(out: &mut Vec<u8>, option: OptionCode, data: &[u8]) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option as u32);
    // No server takes data near 4 GiB: it refuses the option by its length.
    out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.put_slice(data);
}

/// The data of `INFO` and `GO`.
#[must_use]
pub fn encode_info_request(name: &str, wants: &[InfoKind]) -> Vec<u8> {
    let mut data = Vec::with_capacity(6 + name.len() + 2 * wants.len());
    data.put_u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
    data.put_slice(name.as_bytes());
    data.put_u16(u16::try_from(wants.len()).unwrap_or(u16::MAX));
    for want in wants {
        data.put_u16(*want as u16);
    }
    data
}

/// The header of a reply to an option. The reply's data follow it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OptionReplyHeader {
    /// The option that is answered, as sent.
    pub option: u32,
    /// As received: see [`OptionReplyCode::from_u32`](super::OptionReplyCode::from_u32).
    pub code: u32,
    /// Length of the data. The client bounds it.
    pub data_bytes: u32,
}

/// Decodes a reply's header of [`OPTION_REPLY_HEADER_BYTES`].
///
/// # Errors
///
/// The bytes are not such a header.
pub fn decode_option_reply_header(bytes: &[u8]) -> Result<OptionReplyHeader, WireError> {
    let mut fields = Fields::new("reply to an option", bytes);
    fields.magic_u64(OPTION_REPLY_MAGIC)?;
    let header = OptionReplyHeader {
        option: fields.u32("option")?,
        code: fields.u32("type")?,
        data_bytes: fields.u32("length")?,
    };
    fields.end()?;
    Ok(header)
}

/// The properties of an export in an `INFO` reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExportDetails {
    /// The export's length in bytes.
    pub size_bytes: u64,
    /// The abilities of the server on this export.
    pub flags: TransmissionFlags,
}

/// Decodes the data of an `INFO` reply; `None` if they are about something else than the export's
/// size and flags.
///
/// # Errors
///
/// The data are cut off, or too long.
pub fn decode_export_info(data: &[u8]) -> Result<Option<ExportDetails>, WireError> {
    let mut fields = Fields::new("INFO reply", data);
    if fields.u16("type")? != INFO_EXPORT {
        return Ok(None);
    }
    let details = ExportDetails {
        size_bytes: fields.u64("size")?,
        flags: TransmissionFlags(fields.u16("flags")?),
    };
    fields.end()?;
    Ok(Some(details))
}
