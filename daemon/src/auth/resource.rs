//! The targets of operations, as callers name them.

use std::fmt;

use varve_nbd::without_tickets;

use super::token::without_tokens;
use crate::limits;

/// The target of an operation, by the name or id that the caller gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource<'a> {
    Snapshot(&'a str),
    /// The snapshots of a group, by a pattern of their names.
    Snapshots(&'a str),
    Volume(&'a str),
    Image(&'a str),
    /// The snapshot or the volume with this name.
    SnapshotOrVolume(&'a str),
    Upload(&'a str),
    Copy(&'a str),
    Remote(&'a str),
    Account(&'a str),
    Token(&'a str),
    AccessKey(&'a str),
}

/// A text of a caller without the tickets and tokens in it.
pub(super) fn without_secrets(text: &str) -> String {
    without_tokens(&without_tickets(text)).into_owned()
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, key) = match self {
            Self::Snapshot(key) => ("snapshot", key),
            Self::Snapshots(key) => ("snapshots", key),
            Self::Volume(key) => ("volume", key),
            Self::Image(key) => ("image", key),
            Self::SnapshotOrVolume(key) => ("snapshot or volume", key),
            Self::Upload(key) => ("upload", key),
            Self::Copy(key) => ("copy", key),
            Self::Remote(key) => ("remote", key),
            Self::Account(key) => ("account", key),
            Self::Token(key) => ("token", key),
            Self::AccessKey(key) => ("access key", key),
        };
        // Callers may send any text as a key, also the name of an export with its ticket.
        let (shown, more) = match key.char_indices().nth(limits::QUOTED_CHARS_MAX) {
            Some((end, _)) => (key.get(..end).unwrap_or_default(), "..."),
            None => (*key, ""),
        };
        let shown = without_secrets(shown);
        let is_plain = |c: char| c.is_alphanumeric() || "-_./:@".contains(c);
        if shown.chars().all(is_plain) {
            write!(f, "{kind} {shown}{more}")
        } else {
            write!(f, "{kind} {shown:?}{more}")
        }
    }
}

/// Several resources, for the log.
pub(super) struct Listed<'a>(pub(super) &'a [Resource<'a>]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, resource) in self.0.iter().take(limits::RESOURCES_LOGGED_MAX).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{resource}")?;
        }
        match self.0.len().saturating_sub(limits::RESOURCES_LOGGED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
