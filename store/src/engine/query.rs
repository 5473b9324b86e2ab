//! Queries of snapshots and volumes alike: find, list, tag.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crate::{
    Result,
    engine::{Engine, Priority},
    format::{
        AccountId, CatalogRecord,
        keys::list_key,
        record::{Grantee, Tagged},
    },
    limits,
    meta::{self, AccountRecord, Filter, Key, Lookup as _, Meta, Records as _, behind},
};

/// Which snapshots or volumes to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only those of this account; `None`: of all.
    pub owner: Option<AccountId>,
    /// Only those that this account may read: its own, and those that are shared with it; `None`:
    /// all.
    pub reader: Option<AccountId>,
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

impl ListQuery {
    /// The filter of the query, whoever reads.
    fn filter(&self) -> Filter {
        Filter {
            owner: self.owner,
            name_prefix: self.name_prefix.clone(),
            tags: self.tags.clone(),
            ..Filter::default()
        }
    }
}

/// The list key of a record of a kind with labels.
fn listed_at<R: CatalogRecord>(record: &R) -> Vec<u8> {
    list_key(record.keys().owner, &record.label())
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
        self.list_shown(query, |_| true).await
    }

    /// The same, and only those that are shown.
    pub(crate) async fn list_shown<R: CatalogRecord>(
        &self,
        query: ListQuery,
        is_shown: impl Fn(&R) -> bool,
    ) -> Result<Vec<R>> {
        let limit = query.limit.min(limits::LIST_MAX);
        let after = query.after.as_ref();
        let after = after.map(|place| behind(&list_key(place.owner, &place.label)));
        let after = after.unwrap_or_default();
        let Some(reader) = query.reader else {
            return self.list_some(query.filter(), after, limit, is_shown).await;
        };
        // What an account may read is in up to three lists of the same order. Tags are not shared,
        // so they find nothing of others.
        let mut found: BTreeMap<Vec<u8>, R> = BTreeMap::new();
        let own = (query.owner.is_none_or(|owner| owner == reader)).then(|| Filter {
            owner: Some(reader),
            ..query.filter()
        });
        let grantees = [Grantee::Account(reader), Grantee::Everybody];
        let shared = grantees.map(|grantee| Filter {
            shared_with: Some(grantee),
            ..query.filter()
        });
        let shared = shared.into_iter().filter(|filter| filter.tags.is_empty());
        let blocked = self.blocked::<R>().await?;
        for filter in own.into_iter().chain(shared) {
            let is_public = filter.shared_with == Some(Grantee::Everybody);
            let is_listed =
                |it: &R| !(is_public && blocked.contains(&it.keys().owner)) && is_shown(it);
            let records = self
                .list_some(filter, after.clone(), limit, is_listed)
                .await?;
            found.extend(records.into_iter().map(|it| (listed_at(&it), it)));
        }
        Ok(found.into_values().take(limit).collect())
    }

    /// The accounts that share nothing of a kind with everybody, whatever their records say.
    async fn blocked<R: CatalogRecord>(&self) -> Result<BTreeSet<AccountId>> {
        let accounts: Vec<AccountRecord> = self.list_all().await?;
        let blocked = accounts.into_iter().filter(R::is_hidden_by);
        Ok(blocked.map(|it| it.id).collect())
    }

    /// The first records from a list key on that pass a filter and are shown.
    async fn list_some<R: CatalogRecord>(
        &self,
        filter: Filter,
        from: Vec<u8>,
        limit: usize,
        is_shown: impl Fn(&R) -> bool,
    ) -> Result<Vec<R>> {
        let filter = Arc::new(filter);
        let mut next = Some(from);
        let mut found: Vec<R> = Vec::new();
        let mut is_later = false;
        while let Some(from) = next.take()
            && found.len() < limit
        {
            // Of records that are found by their place alone, the first ones are the list, unless
            // some are not shown.
            let steps = match filter.needs_tags() || is_later {
                true => limits::LIST_SLICE_RECORDS,
                false => limit.min(limits::LIST_SLICE_RECORDS),
            };
            is_later = true;
            let filter = Arc::clone(&filter);
            let page = move |meta: &dyn Meta| meta.page(&filter, &from, steps);
            let page = self.meta(Priority::Manage, page).await?;
            found.extend(page.records.into_iter().filter(&is_shown));
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
