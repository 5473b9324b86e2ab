//! Pages of listings, for all kinds of records.

use std::collections::BTreeMap;

use varve_store::{Image, ListPlace, ListQuery, VolumeRecord};

use super::{
    error::Result,
    page_token::{self, Filters, Tokens},
    sight::ListScope,
    snapshots::Snapshot,
};
use crate::{copies, limits};

/// A request for one page of a listing.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListRequest {
    /// Lists only records of this account, `self` or `all`; empty: all that the caller sees.
    pub(crate) owner: String,
    /// Lists only names that start with this.
    pub(crate) name_prefix: String,
    /// Lists only records that have all of these tags with these values.
    pub(crate) tags: BTreeMap<String, String>,
    /// How many records a page may have; 0: [`limits::PAGE_DEFAULT`].
    pub(crate) page_size: u32,
    /// The token from the page before; empty for the first page.
    pub(crate) page_token: String,
}

impl ListRequest {
    /// How many records the page may have.
    pub(super) fn limit(&self) -> usize {
        limit(self.page_size)
    }

    /// The query for the store, and the listing's tokens.
    pub(super) fn query(
        &self,
        listing: &'static str,
        scope: ListScope,
    ) -> Result<(ListQuery, Tokens)> {
        let filters = Filters {
            listing,
            scope,
            name_prefix: &self.name_prefix,
            tags: &self.tags,
        };
        let tokens = filters.tokens();
        let after = tokens.decode(&self.page_token)?;
        let after = after.map(|place| ListPlace::parse(&place).ok_or_else(page_token::invalid));
        let query = ListQuery {
            owner: scope.owner,
            reader: scope.reader,
            name_prefix: self.name_prefix.clone(),
            tags: self.tags.clone(),
            after: after.transpose()?,
            // One record more shows whether there is another page. A second query for that might
            // read all records.
            limit: self.limit() + 1,
        };
        Ok((query, tokens))
    }
}

/// How many records a page may have, as a request says it.
pub(super) fn limit(page_size: u32) -> usize {
    match page_size as usize {
        0 => limits::PAGE_DEFAULT,
        size => size.min(varve_store::limits::PAGE_MAX),
    }
}

/// A record of a listing.
pub(crate) trait Listed {
    /// The place of the record in the listing. A token with it continues after the record.
    fn place(&self) -> String;
}

impl Listed for Snapshot {
    fn place(&self) -> String {
        ListPlace::of(&self.record).to_string()
    }
}

impl Listed for VolumeRecord {
    fn place(&self) -> String {
        ListPlace::of(self).to_string()
    }
}

impl Listed for Image {
    fn place(&self) -> String {
        ListPlace::of(&self.record).to_string()
    }
}

impl Listed for copies::Status {
    fn place(&self) -> String {
        let (begun_ns, id) = self.begun();
        format!("{begun_ns} {id}")
    }
}

/// A page of a listing.
#[derive(Debug)]
pub(crate) struct Page<R> {
    records: Vec<R>,
    has_more: bool,
    tokens: Tokens,
}

impl<R> Page<R> {
    /// The first `limit` of the records that were found: if there are more, there is another page.
    pub(super) fn of(mut found: Vec<R>, limit: usize, tokens: Tokens) -> Self {
        let has_more = found.len() > limit;
        found.truncate(limit);
        Self {
            records: found,
            has_more,
            tokens,
        }
    }

    /// Changes each record, but not its place in the listing.
    pub(super) fn map<S>(self, change: impl Fn(R) -> S) -> Page<S> {
        Page {
            records: self.records.into_iter().map(change).collect(),
            has_more: self.has_more,
            tokens: self.tokens,
        }
    }
}

impl<R: Listed> Page<R> {
    /// The page as a face sends it, and the token of the next page, empty on the last. A page ends
    /// early when its messages take more than [`limits::PAGE_BYTES`], measured by `encoded_bytes`.
    pub(crate) fn encode<M>(
        self,
        encode: impl Fn(R) -> M,
        encoded_bytes: impl Fn(&M) -> usize,
    ) -> (Vec<M>, String) {
        let mut has_more = self.has_more;
        let mut messages = Vec::with_capacity(self.records.len());
        let mut last = None;
        let mut bytes = 0;
        for record in self.records {
            let place = record.place();
            let message = encode(record);
            bytes += encoded_bytes(&message);
            if bytes > limits::PAGE_BYTES && !messages.is_empty() {
                has_more = true;
                break;
            }
            messages.push(message);
            last = Some(place);
        }
        // A full page may be the last: the protocol promises an empty token then.
        let next_page_token = match last {
            Some(last) if has_more => self.tokens.encode(&last),
            _ => String::new(),
        };
        (messages, next_page_token)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::service::page_token::SNAPSHOTS;

    impl Listed for (u8, usize) {
        fn place(&self) -> String {
            format!("{:03}", self.0)
        }
    }

    /// Reads all pages of records with these lengths, as a caller does.
    fn walk(lengths: &[usize], limit: usize) -> Vec<Vec<u8>> {
        let filters = Filters {
            listing: SNAPSHOTS,
            scope: ListScope::default(),
            name_prefix: "",
            tags: &BTreeMap::new(),
        };
        let tokens = filters.tokens();
        let mut pages = Vec::new();
        let mut token = String::new();
        loop {
            let after = tokens.decode(&token).unwrap();
            let found = (0..).zip(lengths.iter().copied());
            let found = found.filter(|record| after.as_ref().is_none_or(|it| record.place() > *it));
            let page = Page::of(found.take(limit + 1).collect(), limit, tokens);
            let (page, next) = page.encode(|record| record, |(_, bytes)| *bytes);
            let bytes: usize = page.iter().map(|(_, bytes)| bytes).sum();
            assert!(bytes <= limits::PAGE_BYTES || page.len() == 1);
            pages.push(page.into_iter().map(|(number, _)| number).collect());
            if next.is_empty() {
                return pages;
            }
            token = next;
        }
    }

    #[test]
    fn pages_have_every_record_once_and_fit_into_a_message() {
        let numbers: Vec<u8> = (0..10).collect();
        for limit in [1, 3, 5, 10, 100] {
            let pages = walk(&[1; 10], limit);
            assert_eq!(pages.concat(), numbers, "{limit}");
            assert_eq!(pages.len(), 10_usize.div_ceil(limit), "{limit}");
        }
        let pages = walk(&[limits::PAGE_BYTES / 4 + 1; 10], 100);
        assert_eq!(pages.concat(), numbers);
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
        let too_long = walk(&[limits::PAGE_BYTES * 2; 3], 100);
        assert_eq!(too_long, [[0], [1], [2]]);
        assert_eq!(walk(&[], 5), [[]] as [[u8; 0]; 1]);
    }
}
