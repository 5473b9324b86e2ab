//! Decoders of everything that comes from a disk or a peer, on random bytes.
//!
//! Invariants: no decoder panics; an accepted input re-encodes to the very same bytes (everything
//! that is hashed, compared or checked has one encoding); and our own encodings are accepted.
//!
//! The inputs are mutations of a committed corpus of real encodings, `tests/corpus/<decoder>/`.
//! Half of them get correct checksums afterwards, or nothing behind a checksum would ever be
//! reached. An input that once broke something is added to the corpus as a file of its own. When a
//! format changes, [`write_corpus`] makes the corpus anew:
//!
//! ```text
//! cargo test --release --locked -p varve-tests -- --ignored write_corpus
//! ```

#![allow(
    clippy::cast_possible_truncation,
    clippy::ptr_arg,
    reason = "samples are small, and all repairs of checksums have one type, though few change the length"
)]

mod accounts;
mod decoders;
mod images;
mod logs;
mod mutate;
mod samples;
mod sessions;

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
};

use decoders::{DECODERS, Decoder, Outcome};
use varve_tests::{programs::repository, random::Random};

/// Mutated inputs for each decoder, unless `VARVE_MUTATIONS` says otherwise.
const MUTATIONS: usize = 30_000;

/// The usual number of mutations, or that of `VARVE_MUTATIONS`.
fn mutations(usual: usize) -> usize {
    std::env::var("VARVE_MUTATIONS").map_or(usual, |number| number.parse().unwrap())
}

fn corpus_dir(of: &str) -> PathBuf {
    repository().join("tests/corpus").join(of)
}

/// The committed inputs of a decoder, by file name.
fn corpus(of: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = corpus_dir(of);
    let entries =
        fs::read_dir(&dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display()));
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect()
}

/// Decodes, and checks the outcome. Returns whether the input was accepted.
fn check(decoder: &Decoder, input: &[u8]) -> bool {
    let checked = catch_unwind(AssertUnwindSafe(|| match (decoder.decode)(input) {
        Outcome::Refused => false,
        Outcome::Accepted => true,
        Outcome::Same { again, whole } => {
            let read = if whole {
                input
            } else {
                &input[..again.len().min(input.len())]
            };
            assert!(
                read == again,
                "{}: an accepted input re-encodes differently",
                decoder.name
            );
            true
        }
    }));
    checked.unwrap_or_else(|panic| {
        eprintln!(
            "{}: this input breaks it ({} bytes; add it to {}):",
            decoder.name,
            input.len(),
            corpus_dir(decoder.name).display()
        );
        eprintln!(
            "{}",
            input
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        );
        resume_unwind(panic)
    })
}

#[test]
fn what_we_wrote_is_accepted() {
    for decoder in &DECODERS {
        let corpus = corpus(decoder.name);
        assert!(!corpus.is_empty(), "{} has no corpus", decoder.name);
        for (name, input) in corpus {
            // An input that is in the corpus because it once broke something need not be accepted.
            assert!(
                check(decoder, &input) || name.starts_with("broke-"),
                "{}: {name} is refused",
                decoder.name
            );
        }
    }
}

/// A failure means that a format changed: its version has to change too, or existing stores become
/// unreadable.
#[test]
fn formats_are_as_they_were_when_the_corpus_was_written() {
    for decoder in &DECODERS {
        let corpus = corpus(decoder.name);
        for (name, bytes) in samples::of(decoder.name) {
            assert!(
                corpus.get(name) == Some(&bytes),
                "{}: {name} is not as it was",
                decoder.name
            );
        }
    }
}

#[test]
fn mutated_bytes_break_no_decoder() {
    let mut random = Random::of_test("mutated_bytes_break_no_decoder");
    for decoder in &DECODERS {
        let corpus: Vec<_> = corpus(decoder.name).into_values().collect();
        let mut accepted = 0;
        let mutations = mutations(MUTATIONS);
        for _ in 0..mutations {
            let mut input = mutate::mutated(&corpus, &mut random);
            if random.one_in(2) {
                (decoder.repair)(&mut input);
            }
            accepted += usize::from(check(decoder, &input));
        }
        println!("{}: {accepted} of {mutations} accepted", decoder.name);
    }
}

#[test]
fn random_bytes_break_no_decoder() {
    let mut random = Random::of_test("random_bytes_break_no_decoder");
    for decoder in &DECODERS {
        for _ in 0..MUTATIONS / 10 {
            let mut input = vec![0; random.index(300)];
            random.fill(&mut input);
            check(decoder, &input);
            (decoder.repair)(&mut input);
            check(decoder, &input);
        }
    }
}

/// Every prefix of our own encodings, as in truncated files.
#[test]
fn truncated_bytes_break_no_decoder() {
    for decoder in &DECODERS {
        for input in corpus(decoder.name).into_values() {
            for len in (0..input.len()).step_by(1 + input.len() / 2000) {
                check(decoder, &input[..len]);
            }
        }
    }
}

#[test]
#[ignore = "writes the corpus, when a format changes"]
fn write_corpus() {
    for decoder in &DECODERS {
        let dir = corpus_dir(decoder.name);
        fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in samples::of(decoder.name) {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
    sessions::write_corpus();
}
