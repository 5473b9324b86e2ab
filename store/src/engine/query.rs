//! Queries of snapshots and volumes alike: find, list, tag.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    Result,
    engine::{Engine, Priority},
    format::{AccountId, CatalogRecord, keys::list_key, record::Tagged},
    limits,
    meta::{self, Filter, Key, Lookup as _, Meta, Records as _, behind},
};

/// Which snapshots or volumes to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only those of this account; `None`: of all.
    pub owner: Option<AccountId>,
    /// Only names that start so.
    pub name_prefix: String,
    /// Only those that have all of these tags with these values.
    pub tags: BTreeMap<String, String>,
    /// Only those behind this place.
    pub after: Option<ListPlace>,
    /// At most this many, and never more than [`limits::LIST_MAX`].
    pub limit: usize,
}

/// The place of a record in a list: lists are in the order of owners, then of labels.
///
/// As a text: the owner, a slash and the label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPlace {
    /// The account that owns the record.
    pub owner: AccountId,
    /// The name of the record, or its id if it has no name.
    pub label: String,
}

impl ListPlace {
    /// The place of a record.
    #[must_use]
    pub fn of<R: CatalogRecord>(record: &R) -> Self {
        Self {
            owner: record.keys().owner,
            label: record.label().into_owned(),
        }
    }

    /// The place with this text, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, label) = text.split_once('/')?;
        Some(Self {
            owner: owner.parse().ok()?,
            label: label.to_owned(),
        })
    }
}

impl fmt::Display for ListPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.label)
    }
}

impl Engine {
    /// The record that a key names.
    pub(crate) async fn find<R: CatalogRecord>(&self, key: Key<R>) -> Result<R> {
        self.meta(Priority::Read, move |meta| R::find(meta, &key))
            .await
    }

    /// Records by owner and label, ascending by bytes.
    ///
    /// A long list asks the store's threads for a few records at a time, and others have their turn
    /// in between. A record made or deleted meanwhile may be listed or not.
    pub(crate) async fn list<R: CatalogRecord>(&self, query: ListQuery) -> Result<Vec<R>> {
        let limit = query.limit.min(limits::LIST_MAX);
        let filter = Arc::new(Filter {
            owner: query.owner,
            name_prefix: query.name_prefix,
            tags: query.tags,
        });
        let after = query.after;
        let after = after.map(|place| behind(&list_key(place.owner, &place.label)));
        let mut next = Some(after.unwrap_or_default());
        let mut found: Vec<R> = Vec::new();
        while let Some(from) = next.take()
            && found.len() < limit
        {
            let steps = match filter.tags.is_empty() {
                true => (limit - found.len()).min(limits::LIST_SLICE_RECORDS),
                // With tags, the number of records examined is not the number found.
                false => limits::LIST_SLICE_RECORDS,
            };
            let filter = Arc::clone(&filter);
            let page = move |meta: &dyn Meta| meta.page(&filter, &from, steps);
            let page = self.meta(Priority::Manage, page).await?;
            found.extend(page.records);
            next = page.next;
        }
        found.truncate(limit);
        Ok(found)
    }

    /// All records of a kind, as [`list`](Self::list) lists them.
    pub(crate) async fn list_all<R: CatalogRecord>(&self) -> Result<Vec<R>> {
        let mut next = Some(Vec::new());
        let mut found = Vec::new();
        while let Some(from) = next.take() {
            let page = move |meta: &dyn Meta| {
                meta.page(&Filter::default(), &from, limits::LIST_SLICE_RECORDS)
            };
            let page = self.meta(Priority::Manage, page).await?;
            found.extend(page.records);
            next = page.next;
        }
        Ok(found)
    }

    /// Sets and removes tags of a record, in one step. A tag that is both set and removed is set.
    pub(crate) async fn tag<R: Tagged>(
        &self,
        key: Key<R>,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<R> {
        let id = self.find(key.clone()).await?.id();
        let change = move |mut record: R| {
            key.check(&record)?;
            let tags = record.tags_mut();
            for key in &remove {
                tags.remove(key);
            }
            tags.extend(set.clone());
            meta::check_tags(R::KIND.what, tags)?;
            Ok(record)
        };
        self.commit.update(id, change).await
    }
}
