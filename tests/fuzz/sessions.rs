//! NBD connections from the greeting to the end, with random input from the client.
//!
//! An input is everything that a client sends. Invariants: the server neither panics nor hangs, all
//! its output is messages of the protocol, and only data that the client asked to change has
//! changed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use varve_daemon::nbd::{Server, ServerOptions};
use varve_nbd::{Access, ChangedExtent, Export, ExportError, ExportInfo, Exports, Extent, Piece};
use varve_tests::{
    nbd::{self, option, request},
    random::Random,
};

use super::{corpus, corpus_dir, mutate, mutations};

pub(super) const NAME: &str = "nbd-session";

const SIZE: u64 = 64 << 10;
/// Initial value of all bytes.
const FILL: u8 = 0xa5;

/// Two exports of the same bytes: `snapshot/a` and `volume/a`.
#[derive(Clone)]
struct Memory {
    info: ExportInfo,
    content: Arc<Mutex<Vec<u8>>>,
    written_bytes: Arc<AtomicU64>,
}

impl Memory {
    fn change(&self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap();
        self.content.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
        self.written_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn zero(&self, offset: u64, length_bytes: u64) {
        self.change(offset, &vec![0; usize::try_from(length_bytes).unwrap()]);
    }
}

impl Export for Memory {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<Vec<Piece>, ExportError> {
        let start = usize::try_from(offset).unwrap();
        let content = self.content.lock().unwrap();
        let bytes = &content[start..start + length_bytes as usize];
        Ok(vec![Piece::Data(Bytes::copy_from_slice(bytes))])
    }

    async fn extents(&self, _: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent {
            length_bytes,
            hole: false,
        }])
    }

    async fn choose_references(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.has_references(snapshots).await
    }

    async fn has_references(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        Ok(snapshots.iter().map(|name| *name == "before").collect())
    }

    async fn ancestors(&self, _: usize) -> Result<Vec<String>, ExportError> {
        Ok(vec!["before".to_owned()])
    }

    async fn changes(
        &self,
        _: usize,
        _: u64,
        length_bytes: u64,
    ) -> Result<Vec<ChangedExtent>, ExportError> {
        Ok(vec![ChangedExtent {
            length_bytes,
            changed: true,
        }])
    }

    async fn prefetch(&self, _: u64, _: u32) -> Result<(), ExportError> {
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes, _: bool) -> Result<(), ExportError> {
        self.change(offset, &data);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        _: bool,
        _: bool,
    ) -> Result<(), ExportError> {
        self.zero(offset, length_bytes);
        Ok(())
    }

    async fn trim(&self, offset: u64, length_bytes: u64, _: bool) -> Result<(), ExportError> {
        self.zero(offset, length_bytes);
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
}

/// The snapshot, and the volume.
#[derive(Clone)]
struct Both([Memory; 2]);

impl Both {
    fn new() -> Self {
        let export = |name: &str, access| Memory {
            info: ExportInfo {
                name: name.to_owned(),
                description: String::new(),
                size_bytes: SIZE,
                access,
            },
            content: Arc::new(Mutex::new(vec![FILL; usize::try_from(SIZE).unwrap()])),
            written_bytes: Arc::default(),
        };
        let writable = Access::Writable {
            flush_covers_all: true,
        };
        Self([
            export("snapshot/a", Access::ReadOnly),
            export("volume/a", writable),
        ])
    }
}

impl Exports for Both {
    type Export = Memory;

    async fn list(&self, after: Option<&str>, _: usize) -> Result<Vec<ExportInfo>, ExportError> {
        let all = self.0.iter().map(|export| export.info.clone());
        Ok(all
            .filter(|info| after.is_none_or(|after| info.name.as_str() > after))
            .collect())
    }

    async fn open(&self, name: &str) -> Result<Memory, ExportError> {
        let found = self.0.iter().find(|export| export.info.name == name);
        found.cloned().ok_or_else(|| ExportError::NotFound {
            name: name.to_owned(),
        })
    }
}

/// Sends an input, and checks the answers.
async fn check(input: &[u8]) {
    let exports = Both::new();
    let [snapshot, _volume] = exports.0.clone();
    let options = ServerOptions {
        handshake_timeout: Duration::from_secs(30),
        ..ServerOptions::default()
    };
    let server = Server::new(move |_| exports.clone(), options);
    let (client, stream) = tokio::io::duplex(4096);
    let stop = CancellationToken::new();
    let session = server.serve_stream(stream, &stop);
    let (mut receive, mut send) = tokio::io::split(client);
    let sending = async {
        // The server may have closed the connection already.
        let _ = send.write_all(input).await;
        let _ = send.shutdown().await;
    };
    let receiving = async {
        let mut said = Vec::new();
        receive.read_to_end(&mut said).await.unwrap();
        said
    };
    let all = async { tokio::join!(session, sending, receiving).2 };
    let said = tokio::time::timeout(Duration::from_secs(60), all).await;
    let said = said.unwrap_or_else(|_| panic!("the session hangs: {}", hex(input)));
    if let Some(at) = first_nonsense(&said) {
        panic!(
            "at {at} of {} the server's output is not a message: {}; the client sent {}",
            said.len(),
            hex(tail(&said[..(at + 16).min(said.len())])),
            hex(input)
        );
    }
    assert_eq!(snapshot.written_bytes.load(Ordering::Relaxed), 0);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The end of a long byte string.
fn tail(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(64)..]
}

/// The offset at which the server's output stops being messages of the protocol; the last one may
/// be torn. Simple replies to reads, and the reply to `EXPORT_NAME`, do not state their lengths, so
/// the output behind them is not checked.
fn first_nonsense(said: &[u8]) -> Option<usize> {
    let number = |at: usize, len: usize| {
        let bytes = said.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        )
    };
    let greeting = said.get(..18).is_some_and(|greeting| {
        greeting.starts_with(nbd::SERVER_MAGIC) && greeting[8..16] == *nbd::OPTION_MAGIC
    });
    if !greeting {
        return Some(0);
    }
    let mut at = 18;
    while at < said.len() {
        let length = match (number(at, 8)?, number(at, 4)?) {
            (0x0003_e889_0455_65a9, _) | (_, 0x668e_33ef) => 20 + number(at + 16, 4)?,
            (_, 0x6e8a_278c) => 32 + number(at + 24, 8)?,
            (_, 0x6744_6698) => return None,
            // The export's size: the reply to EXPORT_NAME.
            (SIZE, _) => return None,
            _ => return Some(at),
        };
        if length > SIZE + 8192 {
            return Some(at);
        }
        at += usize::try_from(length).unwrap();
    }
    None
}

fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(test);
}

#[test]
fn sessions_of_real_clients_are_answered() {
    let samples = samples();
    let committed = corpus(NAME);
    run(async {
        for (name, input) in &committed {
            check(input).await;
            assert!(
                name.starts_with("broke-") || samples.iter().any(|sample| sample.0 == name),
                "{name} is not among the samples"
            );
        }
    });
    for (name, input) in samples {
        assert!(
            committed.get(name) == Some(&input),
            "{name} is not as it was"
        );
    }
}

#[test]
fn mutated_sessions_break_nothing() {
    let mut random = Random::of_test("mutated_sessions_break_nothing");
    let corpus: Vec<_> = corpus(NAME).into_values().collect();
    run(async {
        for _ in 0..mutations(6000) {
            check(&mutate::mutated(&corpus, &mut random)).await;
        }
    });
}

#[test]
fn sessions_may_end_anywhere() {
    run(async {
        for input in corpus(NAME).into_values() {
            for len in (0..input.len()).step_by(1 + input.len() / 400) {
                check(&input[..len]).await;
            }
        }
    });
}

pub(super) fn write_corpus() {
    let dir = corpus_dir(NAME);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in samples() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// The kind of messages in a sample.
#[derive(Clone, Copy, PartialEq)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

/// Builds the input of a client.
struct Script {
    framing: Framing,
    bytes: Vec<u8>,
}

impl Script {
    fn new(framing: Framing) -> Self {
        let mut script = Self {
            framing,
            bytes: nbd::CLIENT_FLAGS.to_be_bytes().to_vec(),
        };
        match framing {
            Framing::Simple => {}
            Framing::Structured => script.option(option::STRUCTURED_REPLY, &[]),
            Framing::Extended => script.option(option::EXTENDED_HEADERS, &[]),
        }
        script
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        self.bytes
            .extend(nbd::option_bytes(option, data.len() as u32));
        self.bytes.extend(data);
    }

    fn contexts(&mut self, export: &str) {
        let mut data = Vec::new();
        let mut text = |text: &str| {
            data.extend((text.len() as u32).to_be_bytes());
            data.extend(text.as_bytes());
        };
        text(export);
        // The number of queries.
        let at = 4 + export.len();
        text("base:allocation");
        text("qemu:dirty-bitmap:before");
        data.splice(at..at, 2_u32.to_be_bytes());
        self.option(option::SET_META_CONTEXT, &data);
    }

    fn go(&mut self, export: &str) {
        self.option(option::GO, &nbd::go_data(export));
    }

    fn request(&mut self, command: u16, flags: u8, offset: u64, length: u32, payload: &[u8]) {
        let cookie = self.bytes.len() as u64;
        let mut header = if self.framing == Framing::Extended {
            nbd::extended_request_bytes(command, cookie, offset, length.into())
        } else {
            nbd::request_bytes(command, cookie, offset, length)
        };
        header[5] = flags;
        if self.framing == Framing::Extended && !payload.is_empty() {
            header[5] |= nbd::FLAG_PAYLOAD_LEN;
        }
        self.bytes.extend(header);
        self.bytes.extend(payload);
    }

    /// One of each request.
    fn requests(&mut self) {
        self.request(request::READ, 0, 0, 4096, &[]);
        self.request(request::WRITE, 1, 8192, 512, &[7; 512]);
        self.request(request::WRITE_ZEROES, 2, 512, 512, &[]);
        self.request(request::TRIM, 0, 4096, 4096, &[]);
        self.request(request::FLUSH, 0, 0, 0, &[]);
        self.request(request::CACHE, 0, 0, 4096, &[]);
        if self.framing != Framing::Simple {
            self.request(request::READ, 4, 100, 5000, &[]);
            self.request(request::BLOCK_STATUS, 8, 0, 65536, &[]);
        }
        if self.framing == Framing::Extended {
            let payload = [&65536_u64.to_be_bytes()[..], &1_u32.to_be_bytes()].concat();
            self.request(request::BLOCK_STATUS, 0, 0, 12, &payload);
        }
        self.request(request::DISCONNECT, 0, 0, 0, &[]);
    }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = Vec::new();
    for (name, framing, export) in [
        ("simple", Framing::Simple, "volume/a"),
        ("structured", Framing::Structured, "volume/a"),
        ("extended", Framing::Extended, "volume/a"),
        ("read-only", Framing::Extended, "snapshot/a"),
    ] {
        let mut script = Script::new(framing);
        if framing != Framing::Simple {
            script.contexts(export);
        }
        script.go(export);
        script.requests();
        samples.push((name, script.bytes));
    }
    let mut around = Script::new(Framing::Structured);
    around.option(option::LIST, &[]);
    around.option(option::STARTTLS, &[]);
    around.option(option::INFO, &nbd::go_data("volume/a"));
    around.option(option::ABORT, &[]);
    samples.push(("look-around", around.bytes));
    let mut old = Script::new(Framing::Simple);
    old.option(option::EXPORT_NAME, b"volume/a");
    old.requests();
    samples.push(("export-name", old.bytes));
    samples
}
