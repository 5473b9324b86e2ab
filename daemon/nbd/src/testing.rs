//! Helpers for the tests of this crate: exports in memory and a client that speaks bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::export::{
    Access, ChangedExtent, Export, ExportError, ExportInfo, Exports, Extent, Piece,
};

const BLOCK: usize = 4096;

/// An export whose zero blocks are holes, with ways to make it slow and faulty.
#[derive(Debug)]
pub struct MemoryExport {
    pub info: ExportInfo,
    content: Mutex<Vec<u8>>,
    /// A byte that cannot be read.
    pub damaged_at: Option<u64>,
    /// The error of every change.
    pub refuse: Option<fn() -> ExportError>,
    /// Reads and changes below this offset wait until they are let go.
    pub held_below: u64,
    pub hold: watch::Sender<bool>,
    pub reads_started: AtomicUsize,
    pub prefetched: AtomicUsize,
    changes: Mutex<Vec<Change>>,
    /// The content at the time of each snapshot.
    pub ancestors: BTreeMap<String, Vec<u8>>,
    chosen: Mutex<Vec<String>>,
}

/// A call that changes an export, as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    Write {
        offset: u64,
        data: Bytes,
        durable: bool,
    },
    WriteZeroes {
        offset: u64,
        length_bytes: u64,
        may_punch_hole: bool,
        durable: bool,
    },
    Trim {
        offset: u64,
        length_bytes: u64,
        durable: bool,
    },
    Flush,
}

impl MemoryExport {
    /// `blocks`: the byte that fills each block; zero makes a hole.
    pub fn new(name: &str, blocks: &[u8]) -> Self {
        let data: Vec<u8> = blocks.iter().flat_map(|&fill| [fill; BLOCK]).collect();
        Self {
            info: ExportInfo {
                name: name.to_owned(),
                description: format!("what {name} is"),
                size_bytes: data.len() as u64,
                access: Access::ReadOnly,
            },
            content: Mutex::new(data),
            damaged_at: None,
            refuse: None,
            held_below: 0,
            hold: watch::Sender::new(true),
            reads_started: AtomicUsize::new(0),
            prefetched: AtomicUsize::new(0),
            changes: Mutex::new(Vec::new()),
            ancestors: BTreeMap::new(),
            chosen: Mutex::default(),
        }
    }

    pub fn writable(name: &str, blocks: &[u8]) -> Self {
        let mut export = Self::new(name, blocks);
        export.info.access = Access::Writable {
            flush_covers_all: true,
        };
        export
    }

    /// A copy of all bytes.
    pub fn data(&self) -> Bytes {
        self.content.lock().clone().into()
    }

    /// Every change that was started, in that order.
    pub fn all_changes(&self) -> Vec<Change> {
        self.changes.lock().clone()
    }

    /// Chooses references, as the handshake does.
    pub fn choose(&self, ancestor: &str) {
        *self.chosen.lock() = vec![ancestor.to_owned()];
    }

    pub fn let_go(&self) {
        self.hold.send_replace(false);
    }

    pub fn started(&self) -> usize {
        self.reads_started.load(Ordering::SeqCst)
    }

    /// Runs of equal kind within a range, as (start, end, hole).
    fn runs(data: &[u8], offset: u64, end: u64) -> Vec<(usize, usize, bool)> {
        let (mut at, end) = (offset as usize, end as usize);
        let mut runs: Vec<(usize, usize, bool)> = Vec::new();
        while at < end {
            let next = (at / BLOCK * BLOCK + BLOCK).min(end);
            let hole = data[at..next].iter().all(|&byte| byte == 0);
            match runs.last_mut() {
                Some(last) if last.2 == hole => last.1 = next,
                _ => runs.push((at, next, hole)),
            }
            at = next;
        }
        runs
    }

    async fn held(&self, offset: u64) {
        if offset < self.held_below {
            let mut hold = self.hold.subscribe();
            hold.wait_for(|held| !held).await.unwrap();
        }
    }

    async fn change(&self, offset: u64, bytes: &[u8], change: Change) -> Result<(), ExportError> {
        assert!(self.info.access.is_writable());
        self.changes.lock().push(change);
        self.held(offset).await;
        if let Some(refuse) = self.refuse {
            return Err(refuse());
        }
        if !bytes.is_empty() {
            self.content.lock()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl Export for Arc<MemoryExport> {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<Vec<Piece>, ExportError> {
        self.reads_started.fetch_add(1, Ordering::SeqCst);
        self.held(offset).await;
        let end = offset + u64::from(length_bytes);
        if let Some(at) = self.damaged_at.filter(|at| (offset..end).contains(at)) {
            return Err(ExportError::Damaged {
                offset: at,
                message: "chunk c0ffee is damaged".to_owned(),
            });
        }
        let data = self.content.lock();
        let runs = MemoryExport::runs(&data, offset, end).into_iter();
        Ok(runs
            .map(|(start, end, hole)| {
                if hole {
                    Piece::Zero((end - start) as u32)
                } else {
                    Piece::Data(Bytes::copy_from_slice(&data[start..end]))
                }
            })
            .collect())
    }

    async fn extents(&self, offset: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        let data = self.content.lock();
        let runs = MemoryExport::runs(&data, offset, offset + length_bytes).into_iter();
        Ok(runs
            .map(|(start, end, hole)| Extent {
                length_bytes: (end - start) as u64,
                hole,
            })
            .collect())
    }

    async fn choose_references(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        let known = self.has_references(snapshots).await?;
        let chosen = snapshots.iter().zip(&known).filter(|(_, known)| **known);
        *self.chosen.lock() = chosen.map(|(name, _)| (*name).to_owned()).collect();
        Ok(known)
    }

    async fn has_references(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        let known = snapshots.iter();
        Ok(known
            .map(|name| self.ancestors.contains_key(*name))
            .collect())
    }

    async fn ancestors(&self, limit: usize) -> Result<Vec<String>, ExportError> {
        Ok(self.ancestors.keys().take(limit).cloned().collect())
    }

    async fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> Result<Vec<ChangedExtent>, ExportError> {
        let before = &self.ancestors[&self.chosen.lock()[reference]];
        let data = self.content.lock();
        let changed: Vec<u8> = data
            .iter()
            .zip(before)
            .map(|(now, then)| now ^ then)
            .collect();
        let runs = MemoryExport::runs(&changed, offset, offset + length_bytes).into_iter();
        Ok(runs
            .map(|(start, end, equal)| ChangedExtent {
                length_bytes: (end - start) as u64,
                changed: !equal,
            })
            .collect())
    }

    async fn prefetch(&self, _offset: u64, length_bytes: u32) -> Result<(), ExportError> {
        self.prefetched
            .fetch_add(length_bytes as usize, Ordering::SeqCst);
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), ExportError> {
        let change = Change::Write {
            offset,
            data: data.clone(),
            durable,
        };
        self.change(offset, &data, change).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        may_punch_hole: bool,
        durable: bool,
    ) -> Result<(), ExportError> {
        let change = Change::WriteZeroes {
            offset,
            length_bytes,
            may_punch_hole,
            durable,
        };
        let zeroes = vec![0; length_bytes as usize];
        self.change(offset, &zeroes, change).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, durable: bool) -> Result<(), ExportError> {
        let change = Change::Trim {
            offset,
            length_bytes,
            durable,
        };
        let zeroes = vec![0; length_bytes as usize];
        self.change(offset, &zeroes, change).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.change(u64::MAX, &[], Change::Flush).await
    }
}

/// A directory of them, in the order of names.
#[derive(Debug)]
pub struct MemoryExports(pub Vec<Arc<MemoryExport>>);

impl Exports for MemoryExports {
    type Export = Arc<MemoryExport>;

    async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let behind = self.0.iter().map(|export| &export.info);
        let behind = behind.filter(|info| after.is_none_or(|after| info.name.as_str() > after));
        Ok(behind.take(limit).cloned().collect())
    }

    async fn open(&self, name: &str) -> Result<Arc<MemoryExport>, ExportError> {
        let found = self.0.iter().find(|export| export.info.name == name);
        found.cloned().ok_or_else(|| ExportError::not_found(name))
    }
}

/// The client's half of a connection, written apart from the server's encoders on purpose.
#[derive(Debug)]
pub struct Client<S>(pub S);

/// A reply or a chunk of one.
#[derive(Debug, Eq, PartialEq)]
pub enum Received {
    Simple {
        error: u32,
        cookie: u64,
    },
    Chunk {
        done: bool,
        kind: u16,
        cookie: u64,
        payload: Vec<u8>,
    },
    Extended {
        done: bool,
        kind: u16,
        cookie: u64,
        offset: u64,
        payload: Vec<u8>,
    },
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Returns true if the server has closed, and sent nothing more before.
    pub async fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]).await, Ok(0) | Err(_))
    }

    pub async fn greet(&mut self, flags: u32) {
        assert_eq!(self.receive(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub async fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.put_u32(option);
        bytes.put_u32(data.len() as u32);
        bytes.put_slice(data);
        self.send(&bytes).await;
    }

    /// All replies to an option up to the final one, as (type, data).
    pub async fn replies(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            let header = self.receive(20).await;
            let mut header = header.as_slice();
            assert_eq!(header.get_u64(), 0x3_e889_0455_65a9);
            assert_eq!(header.get_u32(), option);
            let kind = header.get_u32();
            let data = self.receive(header.get_u32() as usize).await;
            replies.push((kind, data));
            if kind == 1 || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    /// Sends an option and gets all replies.
    pub async fn haggle(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.option(option, data).await;
        self.replies(option).await
    }

    pub async fn request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) {
        let bytes = request_bytes(command, flags, cookie, offset, length);
        self.send(&bytes).await;
    }

    /// The next message. The data that follow a simple reply to a read are not taken.
    pub async fn message(&mut self) -> Received {
        let head = self.receive(16).await;
        let mut head = head.as_slice();
        match head.get_u32() {
            0x6744_6698 => Received::Simple {
                error: head.get_u32(),
                cookie: head.get_u64(),
            },
            0x668e_33ef => {
                let flags = head.get_u16();
                let kind = head.get_u16();
                let cookie = head.get_u64();
                let length = self.receive(4).await.as_slice().get_u32();
                Received::Chunk {
                    done: flags & 1 != 0,
                    kind,
                    cookie,
                    payload: self.receive(length as usize).await,
                }
            }
            0x6e8a_278c => {
                let flags = head.get_u16();
                let kind = head.get_u16();
                let cookie = head.get_u64();
                let rest = self.receive(16).await;
                let mut rest = rest.as_slice();
                let offset = rest.get_u64();
                Received::Extended {
                    done: flags & 1 != 0,
                    kind,
                    cookie,
                    offset,
                    payload: self.receive(rest.get_u64() as usize).await,
                }
            }
            magic => panic!("a reply starts with {magic:#x}"),
        }
    }

    /// The next message as an error chunk: its kind, cookie, error and message.
    pub async fn error(&mut self) -> (u16, u64, u32, String) {
        let Received::Chunk {
            done: true,
            kind,
            cookie,
            payload,
        } = self.message().await
        else {
            panic!("not the last chunk of a reply");
        };
        let mut payload = payload.as_slice();
        let error = payload.get_u32();
        let length = payload.get_u16();
        let message = payload.copy_to_bytes(usize::from(length)).to_vec();
        (kind, cookie, error, String::from_utf8(message).unwrap())
    }
}

pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(0x2560_9513);
    bytes.put_u16(flags);
    bytes.put_u16(command);
    bytes.put_u64(cookie);
    bytes.put_u64(offset);
    bytes.put_u32(length);
    bytes
}

pub fn extended_request_bytes(
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(0x21e4_1c71);
    bytes.put_u16(flags);
    bytes.put_u16(command);
    bytes.put_u64(cookie);
    bytes.put_u64(offset);
    bytes.put_u64(length);
    bytes
}

/// A string with its length in front.
pub fn counted(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.put_slice(text.as_bytes());
    bytes
}

/// The data of `GO` and `INFO`.
pub fn info_data(name: &str, wants: &[u16]) -> Vec<u8> {
    let mut data = counted(name);
    data.put_u16(wants.len() as u16);
    wants.iter().for_each(|&want| data.put_u16(want));
    data
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub fn meta_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(export);
    data.put_u32(queries.len() as u32);
    queries
        .iter()
        .for_each(|query| data.put_slice(&counted(query)));
    data
}
