//! Decompression of packed images, from front to back, in bounded memory.

use std::{
    fmt,
    io::{BufReader, Read, Result},
};

/// The compression of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Packing {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

/// Memory that unpacking xz may take: `xz -9` needs 65 MiB.
const XZ_KIB_MAX: u32 = 96 << 10;
/// Read at a time.
const BUFFER_BYTES: usize = 256 << 10;

impl Packing {
    /// Detects the compression by the first bytes; 10 are enough.
    pub(crate) fn of_head(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"\x1f\x8b\x08") {
            Some(Self::Gzip)
        } else if head.starts_with(b"\xfd7zXZ\0") {
            Some(Self::Xz)
        } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
            Some(Self::Zstd)
        } else if head.starts_with(b"BZh")
            && head
                .get(3)
                .is_some_and(|level| (b'1'..=b'9').contains(level))
            && head.get(4..10) == Some(b"1AY&SY")
        {
            Some(Self::Bzip2)
        } else {
            None
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// A reader of the plain content of `packed`. Concatenated packed files are one file. Truncated or
/// damaged input is an error.
pub(crate) fn unpacked(
    packing: Packing,
    packed: impl Read + Send + 'static,
) -> Result<Box<dyn Read + Send>> {
    let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
    Ok(match packing {
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            packed, true, XZ_KIB_MAX,
        )),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{
        io::{Cursor, Write},
        process::{Command, Stdio},
    };

    use super::*;

    /// The output of a standard program for `plain`.
    fn packed(program: &str, plain: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let plain = plain.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&plain).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    }

    fn plain() -> Vec<u8> {
        (0..300_000_u32)
            .flat_map(|number| (number.wrapping_mul(2_654_435_761)).to_le_bytes())
            .collect()
    }

    fn unpack(packing: Packing, packed: Vec<u8>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        unpacked(packing, Cursor::new(packed))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn what_programs_pack_is_unpacked_and_what_is_cut_off_is_refused() {
        let plain = plain();
        for (program, packing) in [
            ("gzip", Packing::Gzip),
            ("xz", Packing::Xz),
            ("zstd", Packing::Zstd),
            ("bzip2", Packing::Bzip2),
        ] {
            let bytes = packed(program, &plain);
            assert_eq!(Packing::of_head(&bytes), Some(packing), "{program}");
            assert!(
                unpack(packing, bytes.clone()).unwrap() == plain,
                "{program}"
            );
            let twice = unpack(packing, [bytes.clone(), bytes.clone()].concat()).unwrap();
            assert!(
                twice == [plain.clone(), plain.clone()].concat(),
                "{program}"
            );
            for cut in [1, 4, 5, 8, 12, 100, bytes.len() / 2, bytes.len() - 10] {
                let mut cut_off = bytes.clone();
                cut_off.truncate(bytes.len() - cut);
                assert!(
                    unpack(packing, cut_off).is_err(),
                    "{program}: {cut} bytes are missing"
                );
            }
            let mut spoilt = bytes.clone();
            spoilt[bytes.len() / 2] ^= 0x10;
            assert!(unpack(packing, spoilt).is_err(), "{program}: a bit flipped");
        }
    }

    #[test]
    fn a_window_beyond_the_bound_is_refused() {
        let mut child = Command::new("xz")
            .args(["-c", "--lzma2=preset=6,dict=256MiB"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"disk").unwrap();
        let bytes = child.wait_with_output().unwrap().stdout;
        let error = unpack(Packing::Xz, bytes).unwrap_err().to_string();
        assert!(error.contains("memory"), "{error}");
    }
}
