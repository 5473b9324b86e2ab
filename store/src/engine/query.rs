//! Queries of snapshots and volumes alike: find, list, tag.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Result,
    engine::{Engine, Priority},
    limits,
    meta::{self, Meta, Named},
};

/// Which snapshots or volumes to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only names that start so.
    pub name_prefix: String,
    /// Only those that have all of these tags with these values.
    pub tags: BTreeMap<String, String>,
    /// Only names behind this one.
    pub after_name: Option<String>,
    /// At most this many, and never more than [`limits::LIST_MAX`].
    pub limit: usize,
}

impl Engine {
    /// The record with that name or id.
    pub(crate) async fn find<R: Named>(&self, key: &str) -> Result<R> {
        let wanted = key.to_owned();
        self.meta(Priority::Read, move |meta| R::find(meta, &wanted))
            .await
    }

    /// Records by name, ascending by bytes.
    ///
    /// However many there are, the store's threads are asked for a few of them at a time, and
    /// others have their turn in between. What is made or deleted meanwhile may be listed or not.
    pub(crate) async fn list<R: Named>(&self, query: ListQuery) -> Result<Vec<R>> {
        let limit = query.limit.min(limits::LIST_MAX);
        if query.tags.is_empty() {
            self.list_all(query.after_name, query.name_prefix, limit)
                .await
        } else {
            self.list_tagged(query, limit).await
        }
    }

    async fn list_all<R: Named>(
        &self,
        mut after: Option<String>,
        prefix: String,
        limit: usize,
    ) -> Result<Vec<R>> {
        let prefix: Arc<str> = prefix.into();
        let mut found: Vec<R> = Vec::new();
        while found.len() < limit {
            let wanted = (limit - found.len()).min(limits::LIST_SLICE_RECORDS);
            let prefix = Arc::clone(&prefix);
            let page = move |meta: &dyn Meta| R::page(meta, after.as_deref(), &prefix, wanted);
            let page = self.meta(Priority::Manage, page).await?;
            let is_last = page.len() < wanted;
            found.extend(page);
            if is_last {
                break;
            }
            after = found.last().map(|last| last.name().to_owned());
        }
        Ok(found)
    }

    async fn list_tagged<R: Named>(&self, query: ListQuery, limit: usize) -> Result<Vec<R>> {
        // The least that is behind the name.
        let start = query.after_name.as_ref().map(|name| format!("{name}\0"));
        let mut next = Some(start.unwrap_or_default());
        let query = Arc::new(query);
        let mut found: Vec<R> = Vec::new();
        while let Some(from) = next.take()
            && found.len() < limit
        {
            let query = Arc::clone(&query);
            let steps = limits::LIST_SLICE_RECORDS;
            let some = move |meta: &dyn Meta| {
                R::tagged(meta, &query.tags, &from, &query.name_prefix, steps)
            };
            let (some, goes_on) = self.meta(Priority::Manage, some).await?;
            found.extend(some);
            next = goes_on;
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Sets and removes tags of a record, in one step. What is both set and removed is set.
    pub(crate) async fn tag<R: Named>(
        &self,
        key: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<R> {
        let id = self.find::<R>(key).await?.id();
        let change = move |mut record: R| {
            let tags = record.tags_mut();
            for key in &remove {
                tags.remove(key);
            }
            tags.extend(set);
            meta::check_tags(R::WHAT, tags)?;
            Ok(record)
        };
        self.commit.update(id, change).await
    }
}
