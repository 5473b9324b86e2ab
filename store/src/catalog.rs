//! What can be asked of snapshots and volumes alike: find, list, tag.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Result, limits,
    meta::{self, Meta, Named},
    store::Shared,
    workers::Priority,
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

impl Shared {
    /// The record with that name or id.
    pub(crate) async fn find<R: Named>(&self, key: &str) -> Result<R> {
        let wanted = key.to_owned();
        self.meta(Priority::Read, move |meta| R::find(meta, &wanted))
            .await
    }

    /// Records by name, ascending by bytes.
    ///
    /// However many there are to be looked at, the store's threads are asked for a few of them at a time, and others have their turn in
    /// between. What is made or deleted meanwhile may be listed or not.
    pub(crate) async fn list<R: Named>(&self, query: ListQuery) -> Result<Vec<R>> {
        let limit = query.limit.min(limits::LIST_MAX);
        let mut found: Vec<R> = Vec::new();
        let mut next = (limit > 0).then(|| query.after_name.clone());
        let query = Arc::new(query);
        while let Some(after) = next {
            let wanted = limit - found.len();
            let query = Arc::clone(&query);
            let slice = self.meta(Priority::Manage, move |meta| {
                slice::<R>(meta, &query, after.as_deref(), wanted)
            });
            let (matching, goes_on) = slice.await?;
            found.extend(matching);
            next = goes_on.filter(|_| found.len() < limit).map(Some);
        }
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

/// Up to `wanted` records behind a name, of the few that are looked at, and the name behind which to go on, unless that was the end.
fn slice<R: Named>(
    meta: &dyn Meta,
    query: &ListQuery,
    after: Option<&str>,
    wanted: usize,
) -> Result<(Vec<R>, Option<String>)> {
    let most = if query.tags.is_empty() {
        wanted.min(limits::LIST_SLICE_RECORDS)
    } else {
        limits::LIST_SLICE_RECORDS
    };
    let records = R::page(meta, after, &query.name_prefix, most)?;
    let goes_on =
        (records.len() == most).then(|| records.last().map(|last| last.name().to_owned()));
    let matching = records
        .into_iter()
        .filter(|record| has_tags(record, &query.tags));
    Ok((matching.take(wanted).collect(), goes_on.flatten()))
}

fn has_tags(record: &impl Named, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| record.tags().get(key) == Some(value))
}
