//! Names of exports: a client requests a snapshot or a volume by such a name.

use std::fmt;

const SNAPSHOT: &str = "snapshot/";
const VOLUME: &str = "volume/";

/// The name of an export, taken apart. Snapshots sort before volumes, as in listings.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ExportName<'a> {
    /// `snapshot/<name or id>`: a snapshot, read-only.
    Snapshot(&'a str),
    /// `volume/<name or id>`: a volume while it is attached; `volume/<id>@<number>`: the same as
    /// long as it is this attachment.
    Volume(&'a str),
}

impl<'a> ExportName<'a> {
    /// `None` if the prefix is not that of an export. Any text may follow the prefix.
    #[must_use]
    pub fn parse(name: &'a str) -> Option<Self> {
        if let Some(key) = name.strip_prefix(SNAPSHOT) {
            return Some(Self::Snapshot(key));
        }
        name.strip_prefix(VOLUME).map(Self::Volume)
    }
}

impl fmt::Display for ExportName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(key) => write!(f, "{SNAPSHOT}{key}"),
            Self::Volume(key) => write!(f, "{VOLUME}{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
