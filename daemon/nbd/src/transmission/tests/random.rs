//! Random requests against a model, and random bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::collections::HashMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const BLOCKS: usize = 128;
const SIZE: usize = BLOCKS * 4096;

/// A generator that gives the same numbers for the same seed (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Seeds that differ in one bit must not begin alike.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The seed of a randomised test: from `VARVE_SEED`, or a new one; printed either way.
fn seed() -> u64 {
    let seed = std::env::var("VARVE_SEED").map_or_else(
        |_| getrandom::u64().unwrap(),
        |seed| seed.parse::<u64>().unwrap(),
    );
    println!("VARVE_SEED={seed}");
    seed
}

/// A range of the export: mostly short, now and then longer than anything is buffered.
fn range(random: &mut Random) -> (usize, usize) {
    let longest = [10, 4096, 20_000, 200_000][random.below(4)];
    let length = 1 + random.below(longest);
    (random.below(SIZE - length), length)
}

/// A stream of good requests, and for each cookie what a read returns (nothing for the others), if
/// requests are carried out in the order of the stream.
fn requests(random: &mut Random, count: u64, model: &mut [u8]) -> (Vec<u8>, HashMap<u64, Vec<u8>>) {
    let mut stream = Vec::new();
    let mut answers = HashMap::new();
    for cookie in 0..count {
        let (start, length) = range(random);
        let (offset, length_bytes) = (start as u64, u32::try_from(length).unwrap());
        let target = &mut model[start..start + length];
        let flags = [0, FUA][random.below(2)];
        let mut answer = Vec::new();
        let request = match random.below(10) {
            0..4 => {
                let fill = u8::try_from(random.below(256)).unwrap();
                target.iter_mut().zip(0..).for_each(|(byte, at)| {
                    *byte = fill ^ u8::try_from(at % 251).unwrap();
                });
                write_bytes(flags, cookie, offset, target)
            }
            4..8 => {
                answer = target.to_vec();
                request_bytes(READ, flags | DF, cookie, offset, length_bytes)
            }
            8 => {
                target.fill(0);
                let command = [TRIM, WRITE_ZEROES][random.below(2)];
                request_bytes(command, flags, cookie, offset, length_bytes)
            }
            _ => request_bytes(FLUSH, flags, cookie, 0, 0),
        };
        stream.extend(request);
        answers.insert(cookie, answer);
    }
    (stream, answers)
}

/// Sends a stream in pieces of random length, and then no more.
async fn send_in_pieces(
    mut to_server: impl AsyncWrite + Unpin,
    stream: Vec<u8>,
    mut random: Random,
) {
    let mut rest = stream.as_slice();
    while !rest.is_empty() {
        let longest = [1, 30, 5000, 100_000][random.below(4)];
        let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(longest)));
        // The server may have closed the connection.
        if to_server.write_all(piece).await.is_err() {
            return;
        }
        rest = behind;
        if random.below(4) == 0 {
            tokio::task::yield_now().await;
        }
    }
    let _ = to_server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn mixed_reads_and_writes_are_as_in_the_model() {
    let mut random = Random::new(seed());
    for _ in 0..20 {
        let mut model = vec![0; SIZE];
        let (stream, mut answers) = requests(&mut random, 300, &mut model);
        let export = MemoryExport::writable("volume/random", &[0; BLOCKS]);
        let pipe_bytes = [100, 5000, 1 << 20][random.below(3)];
        let test = serve_with(export, structured(), Budget::new(), pipe_bytes);
        let (from_server, to_server) = tokio::io::split(test.client.0);
        let pieces = Random::new(random.next());
        let sent = tokio::spawn(send_in_pieces(to_server, stream, pieces));
        let mut client = Client(tokio::io::join(from_server, tokio::io::sink()));
        while !answers.is_empty() {
            let Received::Chunk {
                done: true,
                kind,
                cookie,
                payload,
            } = client.message().await
            else {
                panic!("not a whole reply");
            };
            let answer = answers.remove(&cookie).unwrap();
            if answer.is_empty() {
                assert_eq!((kind, payload), (0, Vec::new()), "cookie {cookie}");
            } else {
                assert_eq!(kind, OFFSET_DATA);
                assert!(payload[8..] == answer, "cookie {cookie}");
            }
        }
        sent.await.unwrap();
        drop(client);
        assert_eq!(test.outcome.await.unwrap().unwrap(), End::Closed);
        assert!(test.export.data() == model);
        assert_eq!(test.budget.available_bytes(), ALL_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_arrives_a_session_ends_and_gives_back_its_memory() {
    let mut random = Random::new(seed());
    for _ in 0..300 {
        let mut model = vec![0; SIZE];
        let (mut stream, _) = requests(&mut random, 8, &mut model);
        // Most edits of long streams hit a payload: aim at what precedes them as well.
        for _ in 0..random.below(6) {
            let span = [stream.len(), 28, 100][random.below(3)].min(stream.len());
            let at = random.below(span);
            stream[at] = u8::try_from(random.below(256)).unwrap();
        }
        if random.below(2) == 0 {
            stream.truncate(random.below(stream.len()));
        }
        let export = if random.below(4) == 0 {
            MemoryExport::new("snapshot/random", &[0; BLOCKS])
        } else {
            MemoryExport::writable("volume/random", &[0; BLOCKS])
        };
        let terms = [structured(), Terms::default()];
        let terms = terms[random.below(2)].clone();
        let test = serve_with(export, terms, Budget::new(), 4096);
        let (mut from_server, to_server) = tokio::io::split(test.client.0);
        let pieces = Random::new(random.next());
        let sent = tokio::spawn(send_in_pieces(to_server, stream, pieces));
        let taken = tokio::spawn(async move {
            let mut replies = Vec::new();
            from_server.read_to_end(&mut replies).await
        });
        let outcome = timeout(Duration::from_secs(60), test.outcome).await;
        let _ = outcome
            .expect("the session ends")
            .expect("it does not panic");
        sent.await.unwrap();
        let _ = taken.await.unwrap();
        assert_eq!(test.budget.available_bytes(), ALL_BYTES);
    }
}
