//! The id of a chunk.

use crate::id::define_id;

define_id! {
    /// Id of a chunk: the BLAKE3 hash (default mode, 32 bytes) of its plain bytes, as `b3sum`
    /// prints it.
    pub struct ChunkId, "a chunk id"
}

impl ChunkId {
    /// Computes the id of a chunk from its plain bytes.
    #[must_use]
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;
    use crate::ParseIdError;

    /// `printf 'varve' | b3sum`.
    const VARVE: &str = "b6c53dc6bcd09a79138007bc1a477217cbb567990884de30a976569402024db7";

    #[test]
    fn id_is_what_b3sum_prints() {
        let id = ChunkId::of(b"varve");
        assert_eq!(id.to_string(), VARVE);
        assert_eq!(format!("{id:?}"), VARVE);
    }

    #[test]
    fn text_and_bytes_round_trip() {
        let id = ChunkId::of(b"varve");
        assert_eq!(VARVE.parse::<ChunkId>().unwrap(), id);
        assert_eq!(VARVE.to_uppercase().parse::<ChunkId>().unwrap(), id);
        assert_eq!(ChunkId::try_from(&id.as_bytes()[..]).unwrap(), id);
        assert_eq!(ChunkId::from_bytes(*id.as_bytes()), id);
    }

    #[test]
    fn other_texts_and_lengths_are_refused() {
        let not_hex = ParseIdError::NotHex { what: "a chunk id" };
        for text in [
            "",
            &VARVE[1..],
            &VARVE[2..],
            &format!("{VARVE}00"),
            &format!("g{}", &VARVE[1..]),
            &format!("+{}", &VARVE[1..]),
            &format!("é{}", &VARVE[2..]),
        ] {
            assert_eq!(
                text.parse::<ChunkId>().unwrap_err(),
                not_hex.clone(),
                "{text}"
            );
        }
        for bytes in [0, 31, 33] {
            let error = ChunkId::try_from(&vec![0; bytes][..]).unwrap_err();
            assert_eq!(
                error,
                ParseIdError::Length {
                    what: "a chunk id",
                    bytes
                }
            );
        }
        assert_eq!(
            ChunkId::try_from(&[][..]).unwrap_err().to_string(),
            "parse a chunk id: 0 bytes instead of 32"
        );
    }
}
