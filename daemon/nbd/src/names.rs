//! Names of exports: a client requests a snapshot or a volume by such a name.
//!
//! A name may end in an attach ticket, which is a secret. Whatever shows or logs a text of a client
//! shows it by [`without_tickets`].

use std::{borrow::Cow, fmt};

/// The first characters of every attach ticket. Scanners for leaked secrets find tickets by it.
pub const TICKET_PREFIX: &str = "varve_ticket_";

const IMAGE: &str = "image/";
const SNAPSHOT: &str = "snapshot/";
const VOLUME: &str = "volume/";

/// The name of an export, taken apart. Images sort before snapshots, and these before volumes, as
/// in listings.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ExportName<'a> {
    /// `image/<name or id>`: the device that an image boots from, read-only;
    /// `image/<id>/<device>`: another one of its devices.
    Image(&'a str),
    /// `snapshot/<name or id>`: a snapshot, read-only.
    Snapshot(&'a str),
    /// `volume/<name or id>`: a volume while it is attached; `volume/<id>@<number>`: the same as
    /// long as it is this attachment; `volume/<id>@<number>:<ticket>`: the same for anybody.
    Volume(&'a str),
}

impl<'a> ExportName<'a> {
    /// `None` if the prefix is not that of an export. Any text may follow the prefix.
    #[must_use]
    pub fn parse(name: &'a str) -> Option<Self> {
        if let Some(key) = name.strip_prefix(IMAGE) {
            return Some(Self::Image(key));
        }
        if let Some(key) = name.strip_prefix(SNAPSHOT) {
            return Some(Self::Snapshot(key));
        }
        name.strip_prefix(VOLUME).map(Self::Volume)
    }
}

impl fmt::Display for ExportName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(key) => write!(f, "{IMAGE}{key}"),
            Self::Snapshot(key) => write!(f, "{SNAPSHOT}{key}"),
            Self::Volume(key) => write!(f, "{VOLUME}{key}"),
        }
    }
}

/// Splits the name of an export, or what follows its prefix, from its attach ticket. `None` if it
/// has none.
#[must_use]
pub fn split_ticket(name: &str) -> Option<(&str, &str)> {
    let (before, ticket) = name.split_at_checked(name.find(TICKET_PREFIX)?)?;
    Some((before.strip_suffix(':')?, ticket))
}

/// A text without what makes the attach tickets in it secret.
#[must_use]
pub fn without_tickets(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, behind)) = split_behind_prefix(rest) {
        rest = behind.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        shown.push_str(before);
        if rest.len() < behind.len() {
            shown.push_str("...");
        }
    }
    if shown.is_empty() {
        return Cow::Borrowed(text);
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// Splits a text behind the first thing that may be meant as the prefix of a ticket.
fn split_behind_prefix(text: &str) -> Option<(&str, &str)> {
    let prefix = TICKET_PREFIX.as_bytes();
    let mut windows = text.as_bytes().windows(prefix.len());
    let at = windows.position(|window| window.eq_ignore_ascii_case(prefix))?;
    text.split_at_checked(at + prefix.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ticket_is_split_off_and_shown_nowhere() {
        let name = "volume/vol-1@7:varve_ticket_0a1b";
        let split = split_ticket(name);
        assert_eq!(split, Some(("volume/vol-1@7", "varve_ticket_0a1b")));
        for other in [
            "volume/vol-1@7",
            "volume/vol-1@7:0a1b",
            "volume/vol-1@7varve_ticket_0a1b",
            "varve_ticket_0a1b",
            "volume/vol-1@7:VARVE_TICKET_0A1B",
        ] {
            assert_eq!(split_ticket(other), None, "{other}");
        }
        for (text, shown) in [
            (name, "volume/vol-1@7:varve_ticket_..."),
            (
                "open \"x:VARVE_Ticket_0A\": no",
                "open \"x:VARVE_Ticket_...\": no",
            ),
            (
                "varve_ticket_1 varve_ticket_2",
                "varve_ticket_... varve_ticket_...",
            ),
            ("varve_ticket_varve_ticket_1", "varve_ticket_..."),
            ("a%3Avarve_ticket_1%20", "a%3Avarve_ticket_...%20"),
            ("ünder varve_ticket_", "ünder varve_ticket_"),
            ("volume/db", "volume/db"),
            ("", ""),
        ] {
            assert_eq!(without_tickets(text), shown);
            assert_eq!(without_tickets(shown), shown, "it stays as it is");
        }
    }

    proptest! {
        #[test]
        fn nothing_of_a_ticket_is_left(
            before in "[a-z:/@é\"]{0,20}",
            digits in "[0-9a-f]{8,64}",
            after in "([:/ é].{0,20})?",
        ) {
            let text = format!("{before}{TICKET_PREFIX}{digits}{after}");
            let shown = without_tickets(&text);
            prop_assert!(!shown.replace(&*after, "").contains(&digits), "{}", shown);
            let is_split = split_ticket(&text).is_some();
            prop_assert_eq!(is_split, before.ends_with(':'));
        }
    }

    #[test]
    fn names_are_taken_apart_and_put_together() {
        for (name, parsed) in [
            ("snapshot/web", ExportName::Snapshot("web")),
            ("volume/web/a", ExportName::Volume("web/a")),
            ("volume/vol-1@7", ExportName::Volume("vol-1@7")),
            ("snapshot/", ExportName::Snapshot("")),
        ] {
            assert_eq!(ExportName::parse(name), Some(parsed));
            assert_eq!(parsed.to_string(), name);
        }
        for other in ["", "web", "snapshots/web", "Volume/web", "/volume/web"] {
            assert_eq!(ExportName::parse(other), None);
        }
        assert!(ExportName::Snapshot("z") < ExportName::Volume("a"));
    }
}
