//! The client's side of the NBD handshake, up to where the kernel takes over.
//!
//! Layouts and numbers are those of `doc/proto.md` in <https://github.com/NetworkBlockDevice/nbd>. Of what there is to agree on, nothing is:
//! the kernel's client speaks compact requests and simple replies only.

use std::{io, os::fd::OwnedFd, time::Duration};

use bytes::{Buf, BufMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::NbdAddress;
use crate::error::{Error, ErrorKind, Result};

const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const REP_ERR_TLS_REQUIRED: u32 = REP_ERROR | 5;
const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
const INFO_EXPORT: u16 = 0;

/// "Transmission flags", as the kernel takes them.
const FLAG_READ_ONLY: u16 = 1 << 1;
const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

/// To connect and to shake hands, but for the opening of the export.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// A volume that was not closed reads its journal when it is opened.
const OPEN_LIMIT: Duration = Duration::from_secs(600);
/// Of an error's text, and of what is told about an export.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// A connection that is past its handshake.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) size_bytes: u64,
    /// Transmission flags.
    pub(super) flags: u16,
}

impl Connection {
    pub(super) fn is_read_only(&self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }

    /// Whether there may be more connections beside it.
    pub(super) fn can_multi_conn(&self) -> bool {
        self.flags & FLAG_CAN_MULTI_CONN != 0
    }
}

/// The flags of an export that is not to be written to.
pub(super) fn read_only(flags: u16) -> u16 {
    flags | FLAG_READ_ONLY
}

/// Opens an export.
pub(super) async fn connect(address: &NbdAddress, export: &str) -> Result<Connection> {
    let opened = match address {
        NbdAddress::Unix(path) => {
            let mut stream = within(STEP_LIMIT, UnixStream::connect(path))
                .await
                .map_err(|error| unreachable(address, &error))?;
            let (size_bytes, flags) = shake(&mut stream, export).await?;
            (stream.into_std().map(OwnedFd::from), size_bytes, flags)
        }
        NbdAddress::Tcp(host) => {
            let mut stream = within(STEP_LIMIT, TcpStream::connect(host))
                .await
                .map_err(|error| unreachable(address, &error))?;
            // Requests are small, and each is waited for.
            let prepared = stream.set_nodelay(true);
            prepared.map_err(|error| unreachable(address, &error))?;
            let (size_bytes, flags) = shake(&mut stream, export).await?;
            (stream.into_std().map(OwnedFd::from), size_bytes, flags)
        }
    };
    let (socket, size_bytes, flags) = opened;
    let socket = socket.map_err(|error| unreachable(address, &error))?;
    Ok(Connection {
        socket,
        size_bytes,
        flags,
    })
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

/// Shakes hands, and goes to the export. Gives its size and the transmission flags.
async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    export: &str,
) -> Result<(u64, u16)> {
    let what = || format!("open {export}");
    let lost = |error: io::Error| {
        let why = format!("lost the connection in the handshake: {error}");
        Error::new(ErrorKind::Unreachable, what(), why)
    };
    let mut greeting = [0; 18];
    within(STEP_LIMIT, stream.read_exact(&mut greeting))
        .await
        .map_err(lost)?;
    let mut greeting = &greeting[..];
    let magics = (greeting.get_u64(), greeting.get_u64());
    let server_flags = greeting.get_u16();
    if magics != (SERVER_MAGIC, OPTION_MAGIC) || server_flags & FIXED_NEWSTYLE == 0 {
        return Err(Error::protocol(
            what(),
            "it does not greet as NBD servers do",
        ));
    }
    let mut hello = Vec::new();
    hello.put_u32(u32::from(server_flags & (FIXED_NEWSTYLE | NO_ZEROES)));
    hello.put_u64(OPTION_MAGIC);
    hello.put_u32(OPT_GO);
    // The name with its length, and nothing that is asked for beyond the usual.
    let name_bytes = u32::try_from(export.len()).unwrap_or(u32::MAX);
    hello.put_u32(name_bytes.saturating_add(6));
    hello.put_u32(name_bytes);
    hello.put_slice(export.as_bytes());
    hello.put_u16(0);
    within(STEP_LIMIT, stream.write_all(&hello))
        .await
        .map_err(lost)?;
    let mut about = None;
    loop {
        let (kind, data) = within(OPEN_LIMIT, reply(stream)).await.map_err(lost)??;
        match kind {
            REP_ACK => {
                return about
                    .ok_or_else(|| Error::protocol(what(), "it tells nothing about the export"));
            }
            REP_INFO => {
                let mut data = &data[..];
                if data.len() == 12 && data.get_u16() == INFO_EXPORT {
                    about = Some((data.get_u64(), data.get_u16()));
                }
            }
            REP_ERR_TLS_REQUIRED => {
                let why = "the daemon wants TLS there, which the kernel's NBD client does not know";
                return Err(Error::new(ErrorKind::Denied, what(), why));
            }
            error if error & REP_ERROR != 0 => {
                let kind = if error == REP_ERR_UNKNOWN {
                    ErrorKind::NotFound
                } else {
                    ErrorKind::Unavailable
                };
                let why = match String::from_utf8(data) {
                    Ok(why) if !why.is_empty() => why,
                    _ => format!("the daemon answered {error:#x}"),
                };
                return Err(Error::new(kind, what(), why));
            }
            // Something that nobody asked for.
            _ => {}
        }
    }
}

/// One reply to `GO`: its type and its data.
async fn reply<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Result<(u32, Vec<u8>)>> {
    let mut header = [0; 20];
    stream.read_exact(&mut header).await?;
    let mut header = &header[..];
    let (magic, option) = (header.get_u64(), header.get_u32());
    let (kind, data_bytes) = (header.get_u32(), header.get_u32());
    if magic != OPTION_REPLY_MAGIC || option != OPT_GO || data_bytes > REPLY_BYTES_MAX {
        let why = "a reply in the NBD handshake is none";
        return Ok(Err(Error::protocol("open an export", why)));
    }
    let mut data = vec![0; data_bytes as usize];
    stream.read_exact(&mut data).await?;
    Ok(Ok((kind, data)))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]

    use super::*;

    const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

    fn reply_bytes(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u64(OPTION_REPLY_MAGIC);
        bytes.put_u32(OPT_GO);
        bytes.put_u32(kind);
        bytes.put_u32(data.len() as u32);
        bytes.put_slice(data);
        bytes
    }

    fn export_info(size_bytes: u64, flags: u16) -> Vec<u8> {
        let mut data = Vec::new();
        data.put_u16(INFO_EXPORT);
        data.put_u64(size_bytes);
        data.put_u16(flags);
        reply_bytes(REP_INFO, &data)
    }

    /// Shakes hands with a server that says this. Gives the outcome, and what the client said.
    async fn against(says: &[u8]) -> (Result<(u64, u16)>, Vec<u8>) {
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
        // Block sizes, which nobody asked for.
        says.extend(reply_bytes(REP_INFO, &[0, 3, 0, 0, 0, 1]));
        says.extend(export_info(12345, 0x0103));
        says.extend(reply_bytes(REP_ACK, b""));
        let (outcome, said) = against(&says).await;
        assert_eq!(outcome.unwrap(), (12345, 0x0103));
        let mut wanted = vec![0, 0, 0, 3];
        wanted.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x0e\0\0\0\x08volume/a\0\0");
        assert_eq!(said, wanted);
    }

    #[tokio::test]
    async fn what_the_daemon_says_is_passed_on() {
        for (kind, text, is) in [
            (REP_ERR_UNKNOWN, "is not attached", ErrorKind::NotFound),
            (REP_ERR_TLS_REQUIRED, "wants TLS", ErrorKind::Denied),
            (REP_ERROR | 7, "shutting down", ErrorKind::Unavailable),
        ] {
            let mut says = GREETING.to_vec();
            says.extend(reply_bytes(kind, text.as_bytes()));
            let error = against(&says).await.0.unwrap_err();
            assert_eq!(error.kind(), is);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_server_is_noticed() {
        let much = {
            let mut much = reply_bytes(REP_ACK, b"");
            much[16..].copy_from_slice(&u32::MAX.to_be_bytes());
            much
        };
        for says in [
            b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec(),
            b"NBDMAGICIHAVEOPT\0\0".to_vec(),
            [GREETING, &reply_bytes(REP_ACK, b"")].concat(),
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
