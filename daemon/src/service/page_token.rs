//! Tokens that say where the next page of a listing begins.
//!
//! Opaque to clients: version, hash of the filters, last place; in hexadecimal. The hash catches a
//! token that is used with other filters or for another listing, where it would silently skip
//! records.

use std::collections::BTreeMap;

use super::{
    error::{Error, Result},
    sight::ListScope,
};

const VERSION: u8 = 3;
const HASH_BYTES: usize = 16;
const FIELD: &str = "page_token";

/// [`Filters::listing`] of snapshots.
pub(super) const SNAPSHOTS: &str = "varve 2025 page token filters";
/// The same of volumes.
pub(super) const VOLUMES: &str = "varve 2025 page token filters of volumes";
/// The same of images.
pub(super) const IMAGES: &str = "varve 2026 page token filters of images";
/// The same of copies.
pub(super) const COPIES: &str = "varve 2025 page token filters of copies";

/// A listing and its filters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filters<'a> {
    /// The context of the hash: tokens of different listings differ.
    pub(super) listing: &'static str,
    /// The accounts that the listing is limited to: one account's token is of no use to another.
    pub(super) scope: ListScope,
    pub(super) name_prefix: &'a str,
    pub(super) tags: &'a BTreeMap<String, String>,
}

impl Filters<'_> {
    /// Hashes the filters, each text after its length: no two filters give the same bytes.
    pub(super) fn tokens(&self) -> Tokens {
        let mut hasher = blake3::Hasher::new_derive_key(self.listing);
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for account in [self.scope.owner, self.scope.reader] {
            text(&account.map_or_else(String::new, |account| account.to_string()));
        }
        text(self.name_prefix);
        for (key, value) in self.tags {
            text(key);
            text(value);
        }
        let mut filters = [0; HASH_BYTES];
        hasher.finalize_xof().fill(&mut filters);
        Tokens { filters }
    }
}

/// Tokens of one listing with its filters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens {
    filters: [u8; HASH_BYTES],
}

impl Tokens {
    /// The token for the page after `last`.
    pub(super) fn encode(&self, last: &str) -> String {
        let head = [VERSION];
        let bytes = head.iter().chain(&self.filters).chain(last.as_bytes());
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    /// The last name of the page before; `None` for an empty token, which asks for the first page.
    pub(super) fn decode(&self, token: &str) -> Result<Option<String>> {
        if token.is_empty() {
            return Ok(None);
        }
        let bytes = decode_hex(token).ok_or_else(invalid)?;
        let (&version, rest) = bytes.split_first().ok_or_else(invalid)?;
        let (filters, name) = rest.split_first_chunk::<HASH_BYTES>().ok_or_else(invalid)?;
        if version != VERSION {
            return Err(invalid());
        }
        if *filters != self.filters {
            return Err(Error::field(
                FIELD,
                "it belongs to a listing with other filters",
            ));
        }
        let name = std::str::from_utf8(name).map_err(|_| invalid())?;
        Ok(Some(name.to_owned()))
    }
}

/// The error for a token that no page has had.
pub(super) fn invalid() -> Error {
    Error::field(FIELD, "it is not one that this daemon gave")
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::error::{Classified as _, ErrorKind};

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_token_leads_behind_its_name() {
        let tags = tags(&[("os", "debian")]);
        let tokens = Filters {
            listing: SNAPSHOTS,
            scope: ListScope::default(),
            name_prefix: "web",
            tags: &tags,
        }
        .tokens();
        assert_eq!(tokens.decode("").unwrap(), None);
        let token = tokens.encode("web-ß");
        assert_eq!(tokens.decode(&token).unwrap().as_deref(), Some("web-ß"));
    }

    #[test]
    fn a_token_of_other_filters_is_refused() {
        let given = tags(&[("a", "bc")]);
        let snapshots = Filters {
            listing: SNAPSHOTS,
            scope: ListScope::default(),
            name_prefix: "web",
            tags: &given,
        };
        let token = snapshots.tokens().encode("web-1");
        for (name_prefix, other) in [
            ("we", given.clone()),
            ("web", tags(&[])),
            ("web", tags(&[("ab", "c")])),
            ("web", tags(&[("a", "bc"), ("d", "")])),
        ] {
            let filters = Filters {
                listing: SNAPSHOTS,
                scope: ListScope::default(),
                name_prefix,
                tags: &other,
            };
            let error = filters.tokens().decode(&token).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains("other filters"), "{error}");
        }
        let volumes = Filters {
            listing: VOLUMES,
            scope: ListScope::default(),
            name_prefix: "web",
            tags: &given,
        };
        assert!(volumes.tokens().decode(&token).is_err());
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in ".*") {
            let tags = BTreeMap::new();
            let filters = Filters { listing: SNAPSHOTS, scope: ListScope::default(), name_prefix: "", tags: &tags };
            let tokens = filters.tokens();
            prop_assert_eq!(tokens.decode(&tokens.encode(&name)).unwrap(), Some(name));
        }

        #[test]
        fn anything_else_is_refused(token in ".+") {
            let tags = BTreeMap::new();
            let filters = Filters { listing: SNAPSHOTS, scope: ListScope::default(), name_prefix: "", tags: &tags };
            prop_assert!(filters.tokens().decode(&token).is_err());
        }
    }
}
