//! The client's side of the NBD handshake. The kernel takes over after it.
//!
//! The messages are those of `varve-nbd`. It negotiates no extension: the kernel's client speaks
//! only compact requests and simple replies.

use std::{fmt, io, os::fd::OwnedFd, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use varve_nbd::{
    wire::{
        ClientFlags, ExportDetails, GREETING_BYTES, OPTION_REPLY_HEADER_BYTES, OptionCode,
        OptionReplyCode, TransmissionFlags, decode_export_info, decode_greeting,
        decode_option_reply_header, encode_client_flags, encode_info_request, encode_option,
    },
    without_tickets,
};

use super::NbdAddress;
use crate::error::{Error, ErrorKind, Result};

/// Time limit for connecting and for each step of the handshake, except the opening of the export.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for the opening: a volume that was not closed reads its journal first.
const OPEN_LIMIT: Duration = Duration::from_secs(600);
/// Longest data of a reply: an error's text, or details of an export.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// A connection that is past its handshake.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// The daemon's description of the export.
    pub(super) export: ExportDetails,
}

impl Connection {
    pub(super) fn is_read_only(&self) -> bool {
        self.export.flags.contains(TransmissionFlags::READ_ONLY)
    }

    /// Returns true if the export allows several connections.
    pub(super) fn can_multi_conn(&self) -> bool {
        self.export
            .flags
            .contains(TransmissionFlags::CAN_MULTI_CONN)
    }
}

/// The name by which an export is opened. It may have an attach ticket, which `Debug` leaves out.
#[derive(Clone)]
pub(super) struct Dialled(pub(super) String);

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&without_tickets(&self.0), f)
    }
}

/// Opens an export.
pub(super) async fn connect(address: &NbdAddress, export: &Dialled) -> Result<Connection> {
    let export = &export.0;
    let opened = match address {
        NbdAddress::Unix(path) => {
            let mut stream = within(STEP_LIMIT, UnixStream::connect(path))
                .await
                .map_err(|error| unreachable(address, &error))?;
            let export = shake(&mut stream, export).await?;
            (stream.into_std().map(OwnedFd::from), export)
        }
        NbdAddress::Tcp(host) => {
            let mut stream = within(STEP_LIMIT, TcpStream::connect(host))
                .await
                .map_err(|error| unreachable(address, &error))?;
            // Requests are small, and each is waited for.
            let prepared = stream.set_nodelay(true);
            prepared.map_err(|error| unreachable(address, &error))?;
            let export = shake(&mut stream, export).await?;
            (stream.into_std().map(OwnedFd::from), export)
        }
    };
    let (socket, export) = opened;
    let socket = socket.map_err(|error| unreachable(address, &error))?;
    Ok(Connection { socket, export })
}

async fn within<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, step)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn unreachable(address: &NbdAddress, error: &io::Error) -> Error {
    let what = format!("connect to {address}");
    Error::new(ErrorKind::Unreachable, what, error.to_string())
}

/// Shakes hands, and opens the export with `GO`.
async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    export: &str,
) -> Result<ExportDetails> {
    let what = || format!("open {}", without_tickets(export));
    let lost = |error: io::Error| {
        let why = format!("lost the connection in the handshake: {error}");
        Error::new(ErrorKind::Unreachable, what(), why)
    };
    let mut greeting = [0; GREETING_BYTES];
    within(STEP_LIMIT, stream.read_exact(&mut greeting))
        .await
        .map_err(lost)?;
    let server = match decode_greeting(&greeting) {
        Ok(flags) if flags.fixed_newstyle => flags,
        _ => {
            let why = "it does not greet like an NBD server";
            return Err(Error::protocol(what(), why));
        }
    };
    let flags = ClientFlags {
        fixed_newstyle: true,
        no_zeroes: server.no_zeroes,
    };
    let mut hello = encode_client_flags(flags).to_vec();
    // Only the information that the server sends unasked is of use.
    encode_option(
        &mut hello,
        OptionCode::Go,
        &encode_info_request(export, &[]),
    );
    within(STEP_LIMIT, stream.write_all(&hello))
        .await
        .map_err(lost)?;
    let mut details = None;
    loop {
        let (code, data) = within(OPEN_LIMIT, reply(stream)).await.map_err(lost)??;
        match OptionReplyCode::from_u32(code) {
            Some(OptionReplyCode::Ack) => {
                return details
                    .ok_or_else(|| Error::protocol(what(), "it sent no properties of the export"));
            }
            Some(OptionReplyCode::Info) => {
                if let Ok(Some(told)) = decode_export_info(&data) {
                    details = Some(told);
                }
            }
            Some(OptionReplyCode::TlsRequired) => {
                let why = "the daemon requires TLS there, which the kernel's NBD client does not \
                           support";
                return Err(Error::new(ErrorKind::Denied, what(), why));
            }
            known if OptionReplyCode::is_error(code) => {
                let kind = match known {
                    Some(OptionReplyCode::Unknown) => ErrorKind::NotFound,
                    _ => ErrorKind::Unavailable,
                };
                let why = match String::from_utf8(data) {
                    Ok(why) if !why.is_empty() => without_tickets(&why).into_owned(),
                    _ => format!("the daemon answered {code:#x}"),
                };
                return Err(Error::new(kind, what(), why));
            }
            // An unsolicited reply.
            _ => {}
        }
    }
}

/// Receives one reply to `GO`: its code and its data.
async fn reply<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Result<(u32, Vec<u8>)>> {
    let mut header = [0; OPTION_REPLY_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = decode_option_reply_header(&header);
    let header = header.ok().filter(|header| {
        header.option == OptionCode::Go as u32 && header.data_bytes <= REPLY_BYTES_MAX
    });
    let Some(header) = header else {
        let why = "an invalid reply in the NBD handshake";
        return Ok(Err(Error::protocol("open an export", why)));
    };
    let mut data = vec![0; header.data_bytes as usize];
    stream.read_exact(&mut data).await?;
    Ok(Ok((header.code, data)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

    use varve_nbd::wire::{encode_export_info, encode_option_reply};

    use super::*;

    const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
    const GO: u32 = 7;

    fn reply_bytes(code: OptionReplyCode, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_option_reply(&mut bytes, GO, code, data);
        bytes
    }

    /// Runs a handshake with a server that sends these bytes. Returns the outcome, and the bytes
    /// that the client sent.
    async fn against(says: &[u8]) -> (Result<ExportDetails>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        server.write_all(says).await.unwrap();
        let outcome = shake(&mut client, "volume/a").await;
        drop(client);
        let mut said = Vec::new();
        // The server's half still has what was not read.
        server.read_to_end(&mut said).await.unwrap();
        (outcome, said)
    }

    #[tokio::test]
    async fn an_export_is_opened() {
        let mut says = GREETING.to_vec();
        // Unsolicited block sizes.
        says.extend(reply_bytes(OptionReplyCode::Info, &[0, 3, 0, 0, 0, 1]));
        let flags = TransmissionFlags(0x0103);
        let told = encode_export_info(12345, flags);
        says.extend(reply_bytes(OptionReplyCode::Info, &told));
        says.extend(reply_bytes(OptionReplyCode::Ack, b""));
        let (outcome, said) = against(&says).await;
        let size_bytes = 12345;
        assert_eq!(outcome.unwrap(), ExportDetails { size_bytes, flags });
        let mut wanted = vec![0, 0, 0, 3];
        wanted.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x0e\0\0\0\x08volume/a\0\0");
        assert_eq!(said, wanted);
    }

    #[tokio::test]
    async fn a_ticket_is_in_no_error() {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        let name = "volume/vol-1@7:varve_ticket_0a1b";
        let mut says = GREETING.to_vec();
        let echo = format!("there is no {name}");
        says.extend(reply_bytes(OptionReplyCode::Unknown, echo.as_bytes()));
        server.write_all(&says).await.unwrap();
        let error = shake(&mut client, name).await.unwrap_err();
        let shown = format!("{error} {error:?} {:?}", Dialled(name.to_owned()));
        assert_eq!(
            shown.matches("vol-1@7:varve_ticket_...").count(),
            5,
            "{shown}"
        );
        assert!(!shown.contains("0a1b"), "{shown}");
    }

    #[tokio::test]
    async fn what_the_daemon_says_is_passed_on() {
        use OptionReplyCode::{Stopping, TlsRequired, Unknown};
        for (code, text, is) in [
            (Unknown, "is not attached", ErrorKind::NotFound),
            (TlsRequired, "requires TLS", ErrorKind::Denied),
            (Stopping, "shutting down", ErrorKind::Unavailable),
        ] {
            let mut says = GREETING.to_vec();
            says.extend(reply_bytes(code, text.as_bytes()));
            let error = against(&says).await.0.unwrap_err();
            assert_eq!(error.kind(), is);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_server_is_noticed() {
        let much = {
            let mut much = reply_bytes(OptionReplyCode::Ack, b"");
            much[16..].copy_from_slice(&u32::MAX.to_be_bytes());
            much
        };
        for says in [
            b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec(),
            b"NBDMAGICIHAVEOPT\0\0".to_vec(),
            [GREETING, &reply_bytes(OptionReplyCode::Ack, b"")].concat(),
            [GREETING, b"garbage that is long enough"].concat(),
            [GREETING, &much].concat(),
        ] {
            let error = against(&says).await.0.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        }
        for length in 0..GREETING.len() {
            let (mut client, mut server) = tokio::io::duplex(100);
            server.write_all(&GREETING[..length]).await.unwrap();
            drop(server);
            let error = shake(&mut client, "volume/a").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        }
    }
}
