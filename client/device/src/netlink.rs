//! The kernel's NBD client, by its generic netlink family. Numbers are those of
//! `include/uapi/linux/nbd-netlink.h`.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator, Parseable as _, ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{
        GenlCtrl, GenlCtrlCmd,
        nlas::{GenlCtrlAttrs, McastGrpAttrs},
    },
};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, Socket, TokioSocket, protocols::NETLINK_GENERIC,
};

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;
const MULTICAST_GROUP: &str = "nbd_mc_group";

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const CMD_LINK_DEAD: u8 = 4;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// Answers are a few attributes each.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A message of the family.
#[derive(Clone, Debug)]
struct Nbd {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Nbd {
    fn index(&self) -> Option<u32> {
        self.attributes.iter().find_map(|attribute| {
            use netlink_packet_core::Nla as _;
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            let value = value.try_into().ok()?;
            (attribute.kind() == ATTR_INDEX).then(|| u32::from_ne_bytes(value))
        })
    }
}

impl GenlFamily for Nbd {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Nbd {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Nbd {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| DefaultNla::parse(&attribute?));
        Ok(Self {
            command: header.cmd,
            attributes: attributes.collect::<Result<_, _>>()?,
        })
    }
}

/// The properties of a device.
#[derive(Debug)]
pub(super) struct NewDevice {
    pub(super) index: Option<u32>,
    pub(super) size_bytes: u64,
    pub(super) block_size_bytes: u32,
    pub(super) timeout: Duration,
    pub(super) dead_timeout: Duration,
    pub(super) flags: u16,
    /// Fields that identify the server.
    pub(super) backend: String,
}

/// A conversation with the kernel's NBD client.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: Socket,
    family: u16,
    multicast_group: u32,
    sequence: u32,
}

impl Kernel {
    /// `None` if the kernel has no NBD client, or one without this interface.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        let mut kernel = Self {
            socket,
            family: 0,
            multicast_group: 0,
            sequence: 0,
        };
        let query = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        };
        let answers = match kernel.ask(GenlMessage::from_payload(query)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            answers => answers?,
        };
        for attribute in answers.into_iter().flat_map(|answer| answer.payload.nlas) {
            match attribute {
                GenlCtrlAttrs::FamilyId(family) => kernel.family = family,
                GenlCtrlAttrs::McastGroups(groups) => {
                    for group in groups {
                        let named = group.iter().any(
                            |it| matches!(it, McastGrpAttrs::Name(name) if name == MULTICAST_GROUP),
                        );
                        let id = group.iter().find_map(|it| match it {
                            McastGrpAttrs::Id(id) => Some(*id),
                            McastGrpAttrs::Name(_) => None,
                        });
                        if let Some(id) = id.filter(|_| named) {
                            kernel.multicast_group = id;
                        }
                    }
                }
                _ => {}
            }
        }
        let is_whole = kernel.family != 0 && kernel.multicast_group != 0;
        Ok(is_whole.then_some(kernel))
    }

    /// Attaches a device. Returns its number.
    pub(super) fn connect(
        &mut self,
        new: &NewDevice,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        let seconds = |time: Duration| time.as_secs().max(1);
        let mut attributes = vec![
            number(ATTR_SIZE_BYTES, new.size_bytes),
            number(ATTR_BLOCK_SIZE_BYTES, new.block_size_bytes.into()),
            number(ATTR_TIMEOUT, seconds(new.timeout)),
            number(ATTR_DEAD_CONN_TIMEOUT, seconds(new.dead_timeout)),
            number(ATTR_SERVER_FLAGS, new.flags.into()),
            text(ATTR_BACKEND_IDENTIFIER, &new.backend),
            sockets_of(sockets),
        ];
        attributes.extend(new.index.map(index_of));
        let answers = self.tell(CMD_CONNECT, attributes)?;
        let index = answers.iter().find_map(|answer| answer.payload.index());
        index.or(new.index).ok_or_else(|| {
            let why = "the kernel does not report the device that it attached";
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    /// Gives a device a socket in place of a dead one. Without a dead one, the kernel does not use
    /// the socket.
    pub(super) fn reconnect(
        &mut self,
        index: u32,
        backend: &str,
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        // Leave the size as it is: a change would wait for requests that wait for this socket.
        let attributes = vec![
            index_of(index),
            text(ATTR_BACKEND_IDENTIFIER, backend),
            sockets_of(&[socket]),
        ];
        self.tell(CMD_RECONFIGURE, attributes).map(drop)
    }

    /// Detaches a device. Requests that are under way fail.
    pub(super) fn disconnect(&mut self, index: u32) -> io::Result<()> {
        self.tell(CMD_DISCONNECT, vec![index_of(index)]).map(drop)
    }

    /// The announcements of the kernel from now on.
    pub(super) fn events(&self) -> io::Result<Events> {
        let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(self.multicast_group)?;
        Ok(Events {
            socket,
            family: self.family,
        })
    }

    fn tell(
        &mut self,
        command: u8,
        attributes: Vec<DefaultNla>,
    ) -> io::Result<Vec<GenlMessage<Nbd>>> {
        let mut message = GenlMessage::from_payload(Nbd {
            command,
            attributes,
        });
        message.set_resolved_family_id(self.family);
        self.ask(message)
    }

    /// Sends a request, and collects the answers up to the acknowledgement.
    fn ask<F>(&mut self, message: GenlMessage<F>) -> io::Result<Vec<GenlMessage<F>>>
    where
        F: GenlFamily
            + Emitable
            + ParseableParametrized<[u8], GenlHeader>
            + Clone
            + std::fmt::Debug,
    {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages::<F>(&datagram)? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram.
fn messages<F>(datagram: &[u8]) -> io::Result<Vec<NetlinkMessage<GenlMessage<F>>>>
where
    F: ParseableParametrized<[u8], GenlHeader> + std::fmt::Debug,
{
    let mut messages = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(rest);
        let message = message
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // Messages are aligned to four bytes.
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(1)..).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}

/// An announcement of the kernel's NBD client.
pub(super) struct Events {
    socket: TokioSocket,
    family: u16,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// An announcement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Announced {
    /// A connection of this device is dead.
    LinkDead(u32),
    /// The kernel dropped announcements: any connection may be dead.
    Lost,
}

impl Events {
    pub(super) async fn next(&mut self) -> io::Result<Announced> {
        loop {
            let mut datagram = bytes::BytesMut::with_capacity(MESSAGE_BYTES_MAX);
            match self.socket.recv(&mut datagram).await {
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
                {
                    return Ok(Announced::Lost);
                }
                received => received?,
            };
            for message in messages::<Nbd>(&datagram)? {
                let NetlinkPayload::InnerMessage(message) = message.payload else {
                    continue;
                };
                let is_ours = message.resolved_family_id() == self.family;
                if is_ours
                    && message.header.cmd == CMD_LINK_DEAD
                    && let Some(index) = message.payload.index()
                {
                    return Ok(Announced::LinkDead(index));
                }
            }
        }
    }
}

fn index_of(index: u32) -> DefaultNla {
    DefaultNla::new(ATTR_INDEX, index.to_ne_bytes().to_vec())
}

fn number(kind: u16, number: u64) -> DefaultNla {
    DefaultNla::new(kind, number.to_ne_bytes().to_vec())
}

fn text(kind: u16, text: &str) -> DefaultNla {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    DefaultNla::new(kind, bytes)
}

fn sockets_of(sockets: &[BorrowedFd<'_>]) -> DefaultNla {
    let items: Vec<_> = sockets
        .iter()
        .map(|socket| {
            let fd = socket.as_fd().as_raw_fd().to_ne_bytes();
            DefaultNla::new(
                SOCKET_ITEM,
                emitted(&[DefaultNla::new(SOCKET_FD, fd.to_vec())]),
            )
        })
        .collect();
    DefaultNla::new(ATTR_SOCKETS, emitted(&items))
}

fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn attributes_are_as_the_kernel_reads_them() {
        let device = tempfile::tempfile().unwrap();
        let fd = u8::try_from(device.as_raw_fd()).unwrap();
        let attributes = [
            index_of(3),
            number(ATTR_TIMEOUT, 8),
            text(ATTR_BACKEND_IDENTIFIER, "abcd"),
            sockets_of(&[device.as_fd()]),
        ];
        let little_endian = [
            &[8, 0, 1, 0, 3, 0, 0, 0][..],
            &[12, 0, 4, 0, 8, 0, 0, 0, 0, 0, 0, 0],
            b"\x09\0\x0a\0abcd\0\0\0\0",
            // A socket, in an item, in a list.
            &[16, 0, 7, 0, 12, 0, 1, 0, 8, 0, 1, 0, fd, 0, 0, 0],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(emitted(&attributes), little_endian.concat());
        }
    }

    #[test]
    fn an_announcement_is_read_and_torn_ones_are_refused() {
        let mut datagram = Vec::new();
        for index in [0_u32, 7] {
            let mut message = GenlMessage::from_payload(Nbd {
                command: CMD_LINK_DEAD,
                attributes: vec![index_of(index)],
            });
            message.set_resolved_family_id(33);
            let mut message =
                NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        let found: Vec<_> = messages::<Nbd>(&datagram)
            .unwrap()
            .into_iter()
            .map(|message| match message.payload {
                NetlinkPayload::InnerMessage(message) => {
                    assert_eq!(message.resolved_family_id(), 33);
                    (message.header.cmd, message.payload.index())
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, [(CMD_LINK_DEAD, Some(0)), (CMD_LINK_DEAD, Some(7))]);
        for length in 1..datagram.len() {
            let whole = length == datagram.len() / 2;
            assert_eq!(
                messages::<Nbd>(&datagram[..length]).is_ok(),
                whole,
                "{length}"
            );
        }
    }
}
