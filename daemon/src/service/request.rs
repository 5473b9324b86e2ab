//! Checks of requests, except those that the store makes itself (names, tags, sizes, extents,
//! chunks).

use varve_content::printable::is_printable;
use varve_store::{CopyId, Error as StoreError};

use super::error::{Error, Result};
use crate::limits;

/// Checks the number of snapshots to be deleted.
pub(super) fn are_snapshots(texts: &[String]) -> Result<()> {
    if texts.is_empty() {
        let problem = "it is empty, names or ids of snapshots are asked for";
        return Err(Error::field("snapshots", problem));
    }
    let most = limits::DELETE_SNAPSHOTS_MAX;
    at_most("snapshots", "snapshots", texts.len(), most)
}

/// The id of a copy in a request.
pub(super) fn copy_id(text: &str) -> Result<CopyId> {
    // Nothing else names a copy.
    text.parse().map_err(|_| not_found("copy", text))
}

/// The error for something that is not there, or that the caller does not see.
pub(super) fn not_found(what: &'static str, text: &str) -> Error {
    Error::Store(StoreError::NotFound {
        what,
        name: text.chars().take(limits::QUOTED_CHARS_MAX).collect(),
    })
}

/// Checks the name or id of a `what` in a request.
pub(super) fn check_key(what: &str, field: &'static str, key: &str) -> Result<()> {
    match key {
        "" => Err(Error::field(
            field,
            format!("it is empty, a {what}'s name or id is asked for"),
        )),
        // A longer key names nothing, and need not be repeated in the error.
        _ if key.len() > limits::KEY_BYTES_MAX => Err(Error::field(
            field,
            format!(
                "{} bytes, a name or id has at most {}",
                key.len(),
                limits::KEY_BYTES_MAX
            ),
        )),
        _ => Ok(()),
    }
}

/// Checks a count against the limit of one request.
pub(super) fn at_most(
    field: &'static str,
    unit: &'static str,
    found: usize,
    most: usize,
) -> Result<()> {
    if found > most {
        return Err(Error::TooMuch {
            field,
            unit,
            found: found as u64,
            most: most as u64,
        });
    }
    Ok(())
}

/// Checks that an endpoint or a path is not too long, and has only printable characters.
pub(super) fn remote_text(field: &'static str, text: &str) -> Result<()> {
    at_most(field, "bytes", text.len(), limits::REMOTE_TEXT_BYTES_MAX)?;
    if let Some(char) = text.chars().find(|char| !is_printable(*char)) {
        let why = format!(
            "it has the character U+{:04X}, which does not show as itself and is not allowed",
            u32::from(char)
        );
        return Err(Error::field(field, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::error::{Classified as _, ErrorKind};

    fn refused<T: std::fmt::Debug>(outcome: Result<T>, kind: ErrorKind, texts: &[&str]) {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for text in texts {
            assert!(
                error.to_string().contains(text),
                "{error} does not say {text}"
            );
        }
    }

    #[test]
    fn keys_have_a_length() {
        let invalid = ErrorKind::InvalidArgument;
        check_key("snapshot", "snapshot", "web").unwrap();
        let empty = check_key("volume", "volume", "");
        refused(empty, invalid, &["volume", "empty"]);
        let long = check_key("snapshot", "base", &"x".repeat(10_000));
        refused(long, invalid, &["base", "10000 bytes"]);
    }

    #[test]
    fn requests_are_bounded_and_their_texts_show_as_themselves() {
        at_most("ids", "ids", 8192, 8192).unwrap();
        let many = at_most("ids", "ids", 8193, 8192);
        refused(many, ErrorKind::OutOfRange, &["8193", "8192"]);
        remote_text("endpoint", "unix:/run/x").unwrap();
        let long = "x".repeat(2000);
        refused(
            remote_text("endpoint", &long),
            ErrorKind::OutOfRange,
            &["2000 bytes"],
        );
        let hidden = remote_text("endpoint", "a\u{202e}b");
        refused(hidden, ErrorKind::InvalidArgument, &["endpoint", "U+202E"]);
    }
}
