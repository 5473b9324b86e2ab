//! NBD, message by message, for requests that no client would send.
//!
//! Numbers and layouts are from the protocol's own document, `doc/proto.md` of
//! <https://github.com/NetworkBlockDevice/nbd>, and not from the daemon's code.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
};

use crate::process::TIME_LIMIT;

/// The server's first magic.
pub const SERVER_MAGIC: &[u8; 8] = b"NBDMAGIC";
/// The magic of an option, and the server's second one.
pub const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
/// Client flags: fixed newstyle, no zeroes.
pub const CLIENT_FLAGS: u32 = 3;

/// Options of the handshake.
pub mod option {
    /// Ends the handshake with an export, the old way.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the handshake without an export.
    pub const ABORT: u32 = 2;
    /// Lists the exports.
    pub const LIST: u32 = 3;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// Ends the handshake with an export.
    pub const GO: u32 = 7;
    /// Requests structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Chooses metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Requests TLS.
    pub const STARTTLS: u32 = 5;
    /// Requests extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// Information about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit of all errors.
    pub const ERROR: u32 = 1 << 31;
    /// No such option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The option's data is wrong.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Not allowed, or not now.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Requests.
pub mod request {
    /// Reads.
    pub const READ: u16 = 0;
    /// Writes.
    pub const WRITE: u16 = 1;
    /// Disconnects.
    pub const DISCONNECT: u16 = 2;
    /// Makes writes durable.
    pub const FLUSH: u16 = 3;
    /// Discards a range.
    pub const TRIM: u16 = 4;
    /// Reads into the cache.
    pub const CACHE: u16 = 5;
    /// Writes zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Requests extents.
    pub const BLOCK_STATUS: u16 = 7;
}

/// The flag of an extended request that has a payload, as the lower byte of the flags.
pub const FLAG_PAYLOAD_LEN: u8 = 1 << 5;

/// Errors in replies.
pub mod errno {
    /// The disk is full.
    pub const ENOSPC: u32 = 28;
    /// The export is gone.
    pub const ESHUTDOWN: u32 = 108;
}

/// A connection.
#[derive(Debug)]
pub enum Peer {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Peer {
    /// Connects without sending anything.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        Ok(Self::Unix(stream))
    }

    /// Connects over TCP without sending anything.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        // A request and its data are sent one after the other. The second must not wait for the
        // acknowledgement of the first.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        Ok(Self::Tcp(stream))
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        }
    }

    /// Number of bytes that have arrived and were not received.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        let unread = match self {
            Self::Unix(stream) => rustix::io::ioctl_fionread(stream),
            Self::Tcp(stream) => rustix::io::ioctl_fionread(stream),
        };
        unread.expect("a socket tells what it has")
    }

    /// Receives this many bytes.
    pub fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self {
            Self::Unix(stream) => stream.read_exact(&mut bytes)?,
            Self::Tcp(stream) => stream.read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    fn receive_u32(&mut self) -> io::Result<u32> {
        let bytes = self.receive(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }

    fn receive_u64(&mut self) -> io::Result<u64> {
        let bytes = self.receive(8)?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// Reads until the server closes, as it must after something that it cannot answer.
    pub fn receive_until_closed(mut self) {
        loop {
            match self.receive(1) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                    ) =>
                {
                    return;
                }
                Err(error) => panic!("the server should have closed the connection: {error}"),
            }
        }
    }

    /// Receives the server's greeting and answers it.
    pub fn greet(&mut self) -> io::Result<()> {
        let greeting = self.receive(18)?;
        assert_eq!(&greeting[..8], SERVER_MAGIC);
        assert_eq!(&greeting[8..16], OPTION_MAGIC);
        assert_eq!(greeting[17] & 1, 1, "the server speaks fixed newstyle");
        self.send(&CLIENT_FLAGS.to_be_bytes())
    }

    /// Sends an option.
    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.send(&option_bytes(
            option,
            u32::try_from(data.len()).expect("option data are short"),
        ))?;
        self.send(data)
    }

    /// Receives one reply to an option: its type and its data.
    pub fn receive_option_reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        assert_eq!(
            self.receive_u64()?,
            0x0003_e889_0455_65a9,
            "magic of a reply to an option"
        );
        assert_eq!(self.receive_u32()?, option, "the option replied to");
        let (kind, len) = (self.receive_u32()?, self.receive_u32()?);
        Ok((kind, self.receive(len as usize)?))
    }

    /// Sends an option, and receives all its replies up to the last.
    pub fn ask(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<(u32, Vec<u8>)>> {
        self.send_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.receive_option_reply(option)?;
            let last = reply.0 == option_reply::ACK || reply.0 & option_reply::ERROR != 0;
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// Sends an option, and returns the type of the last reply.
    pub fn ask_outcome(&mut self, option: u32, data: &[u8]) -> io::Result<u32> {
        Ok(self
            .ask(option, data)?
            .last()
            .expect("there is a last reply")
            .0)
    }

    /// Runs the handshake, with structured replies, up to an export. Returns its size.
    pub fn open(&mut self, export: &str) -> io::Result<u64> {
        self.greet()?;
        assert_eq!(
            self.ask_outcome(option::STRUCTURED_REPLY, &[])?,
            option_reply::ACK
        );
        let replies = self.ask(option::GO, &go_data(export))?;
        let outcome = replies.last().expect("there is a last reply").0;
        if outcome != option_reply::ACK {
            return Err(io::Error::other(format!(
                "GO was answered with {outcome:#x}"
            )));
        }
        let info = replies
            .iter()
            .find(|(kind, data)| *kind == option_reply::INFO && data.starts_with(&[0, 0]));
        let size = &info.expect("GO tells the size").1[2..10];
        Ok(u64::from_be_bytes(size.try_into().expect("eight bytes")))
    }

    /// Sends a request's header.
    pub fn send_request(
        &mut self,
        command: u16,
        cookie: u64,
        offset: u64,
        len: u32,
    ) -> io::Result<()> {
        self.send(&request_bytes(command, cookie, offset, len))
    }

    /// Receives all chunks of one structured reply. Returns the number of bytes, or the error.
    pub fn receive_reply(&mut self, cookie: u64) -> io::Result<Reply> {
        self.receive_chunks(Some(cookie), |_, _| {})
            .map(|(_, reply)| reply)
    }

    /// The same for the first request that is replied to. Also returns its cookie.
    pub fn receive_any_reply(&mut self) -> io::Result<(u64, Reply)> {
        self.receive_chunks(None, |_, _| {})
    }

    /// The same; passes each range that is not a hole to `data`, with its offset.
    fn receive_chunks(
        &mut self,
        mut cookie: Option<u64>,
        mut data: impl FnMut(u64, &[u8]),
    ) -> io::Result<(u64, Reply)> {
        let mut reply = Reply::default();
        loop {
            assert_eq!(
                self.receive_u32()?,
                0x668e_33ef,
                "magic of a structured reply"
            );
            let head = self.receive(4)?;
            let found = self.receive_u64()?;
            let cookie = *cookie.get_or_insert(found);
            assert_eq!(found, cookie, "the request replied to");
            let len = self.receive_u32()?;
            let payload = self.receive(len as usize)?;
            match u16::from_be_bytes([head[2], head[3]]) {
                0 => {}
                1 => {
                    let (offset, piece) = payload.split_at(8);
                    reply.data_bytes += piece.len() as u64;
                    data(
                        u64::from_be_bytes(offset.try_into().expect("eight bytes")),
                        piece,
                    );
                }
                2 => {
                    reply.data_bytes += u64::from(u32::from_be_bytes(
                        payload[8..12].try_into().expect("four bytes"),
                    ))
                }
                kind if kind & 1 << 15 != 0 => {
                    reply.error = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
                }
                kind => panic!("a reply chunk of type {kind} was not asked for"),
            }
            if head[1] & 1 != 0 {
                return Ok((cookie, reply));
            }
        }
    }

    /// Reads, and returns the outcome.
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Reply> {
        self.send_request(request::READ, offset, offset, len)?;
        self.receive_reply(offset)
    }

    /// Reads, and returns the bytes, or the error of the reply.
    pub fn read_bytes(&mut self, offset: u64, len: u32) -> io::Result<Result<Vec<u8>, u32>> {
        self.send_request(request::READ, offset, offset, len)?;
        let mut bytes = vec![0; len as usize];
        let (_, reply) = self.receive_chunks(Some(offset), |at, piece| {
            let start = usize::try_from(at - offset).expect("pieces are of what was asked for");
            bytes[start..start + piece.len()].copy_from_slice(piece);
        })?;
        Ok(match reply.error {
            0 => Ok(bytes),
            error => Err(error),
        })
    }

    /// Sends a write without waiting for its reply.
    pub fn send_write(&mut self, cookie: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).expect("a write is not that long");
        self.send_request(request::WRITE, cookie, offset, len)?;
        self.send(bytes)
    }

    /// Writes. Returns the error of the reply; 0: none.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<u32> {
        self.send_write(offset, offset, bytes)?;
        Ok(self.receive_reply(offset)?.error)
    }

    /// Trims, or writes zeros. Returns the error of the reply; 0: none.
    pub fn clear(&mut self, command: u16, offset: u64, len: u32) -> io::Result<u32> {
        self.send_request(command, offset, offset, len)?;
        Ok(self.receive_reply(offset)?.error)
    }

    /// Flushes. Returns the error of the reply; 0: none.
    pub fn flush(&mut self) -> io::Result<u32> {
        self.send_request(request::FLUSH, 0, 0, 0)?;
        Ok(self.receive_reply(0)?.error)
    }
}

/// The outcome of a request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Bytes that arrived, holes included.
    pub data_bytes: u64,
    /// 0: none.
    pub error: u32,
}

/// The header of an option.
#[must_use]
pub fn option_bytes(option: u32, data_bytes: u32) -> Vec<u8> {
    [
        OPTION_MAGIC.as_slice(),
        &option.to_be_bytes(),
        &data_bytes.to_be_bytes(),
    ]
    .concat()
}

/// The header of an extended request without flags.
#[must_use]
pub fn extended_request_bytes(command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0_u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    for number in [cookie, offset, length] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// The header of a request.
#[must_use]
pub fn request_bytes(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        0x2560_9513u32.to_be_bytes().as_slice(),
        &0u16.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

/// Data of a GO or INFO without information requests.
#[must_use]
pub fn go_data(export: &str) -> Vec<u8> {
    let len = u32::try_from(export.len()).expect("names are short");
    [&len.to_be_bytes(), export.as_bytes(), &0u16.to_be_bytes()].concat()
}
