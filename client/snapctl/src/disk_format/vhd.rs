//! The footer of a VHD.
//!
//! QEMU treats every image that begins with a copy of the footer as complete: a difference image
//! would read as zeros where its parent has data. And it computes the size of an image from its
//! geometry, which is rounded, unless it knows that the program that made the image records the
//! exact size.

use varve_client::Result;

use super::{Part, be32, be64};

const COOKIE: &[u8] = b"conectix";
const FOOTER_BYTES: usize = 512;

/// The fields of a footer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Footer {
    size_bytes: u64,
    kind: u32,
}

impl Footer {
    /// `None` if these bytes are no footer.
    fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.starts_with(COOKIE).then_some(())?;
        Some(Self {
            size_bytes: be64(bytes, 48)?,
            kind: be32(bytes, 60)?,
        })
    }
}

/// Returns true if a file that ends with these 512 bytes ends with a footer. Old ones end a byte
/// early.
pub(crate) fn has_footer(tail: &[u8]) -> bool {
    footer_at(tail).is_some()
}

fn footer_at(tail: &[u8]) -> Option<usize> {
    let is_there = |at: &usize| tail.get(*at..).is_some_and(|it| it.starts_with(COOKIE));
    [0, 1].into_iter().find(is_there)
}

/// Checks that the image is whole, as far as its footer tells, and has all of its content.
pub(crate) fn check(part: &Part) -> Result<()> {
    let tail_at = part.len().saturating_sub(FOOTER_BYTES as u64);
    let tail = part.bytes(tail_at, FOOTER_BYTES)?;
    let Some(at) = footer_at(&tail) else {
        return Err(part.damaged("it is truncated: it does not end with the footer of a vhd"));
    };
    // If there is a copy at the front, QEMU uses that.
    let head = Footer::parse(&part.bytes(0, FOOTER_BYTES)?);
    let footer = head.or_else(|| Footer::parse(&tail[at..]));
    let footer = footer.ok_or_else(|| part.damaged("its footer is cut off"))?;
    let content_end = tail_at + at as u64;
    match (footer.kind, head.is_some()) {
        (2, false) if footer.size_bytes > content_end => Err(part.damaged(format!(
            "it is truncated: its footer says that the disk has {} bytes, and begins at {content_end}",
            footer.size_bytes
        ))),
        (2, false) | (3, true) => Ok(()),
        (4, _) => Err(part.refused(
            "it is a difference to another vhd, which is not supported: merge them into one image \
             first",
        )),
        (kind, _) => Err(part.damaged(format!(
            "its footer has the invalid type {kind}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_is_found_at_the_end_or_a_byte_behind() {
        let mut tail = vec![0; FOOTER_BYTES];
        tail[..8].copy_from_slice(COOKIE);
        assert_eq!(footer_at(&tail), Some(0));
        tail.rotate_right(1);
        assert_eq!(footer_at(&tail), Some(1));
        tail.rotate_right(1);
        assert_eq!(footer_at(&tail), None);
        assert_eq!(footer_at(COOKIE), Some(0));
        assert_eq!(Footer::parse(COOKIE), None, "cut off");
    }
}
