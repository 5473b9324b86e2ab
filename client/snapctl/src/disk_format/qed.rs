//! The reference of a QED image to its backing file.

use varve_client::Result;

use super::{Format, Part, chain::Reference, le32, le64};

const BACKING_BIT: u64 = 1;
const RAW_BACKING_BIT: u64 = 1 << 2;
const HEADER_BYTES: usize = 64;
/// The longest name that is taken.
const NAME_BYTES_MAX: u32 = 1023;

/// The backing file of the image, if it has one.
pub(crate) fn backing(part: &Part) -> Result<Option<Reference>> {
    let head = part.exact(0, HEADER_BYTES, "its header")?;
    let features = le64(&head, 16).unwrap_or_default();
    if features & BACKING_BIT == 0 {
        return Ok(None);
    }
    let at = le32(&head, 56).unwrap_or_default();
    let len = le32(&head, 60).unwrap_or_default();
    if len == 0 || len > NAME_BYTES_MAX {
        return Err(part.damaged(format!("the name of its backing file has {len} bytes")));
    }
    let name = part.exact(u64::from(at), len as usize, "the name of its backing file")?;
    let raw = features & RAW_BACKING_BIT != 0;
    Ok(Some(Reference {
        name,
        format: raw.then_some(Format::Raw),
    }))
}
