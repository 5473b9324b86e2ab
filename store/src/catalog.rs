//! What can be asked of snapshots and volumes alike: find, list, tag.

use std::collections::BTreeMap;

use crate::{
    Result, limits,
    meta::{self, Named},
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
    /// At most this many, and never more than [`limits::PAGE_MAX`].
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
    pub(crate) async fn list<R: Named>(&self, query: ListQuery) -> Result<Vec<R>> {
        let limit = query.limit.min(limits::PAGE_MAX);
        self.meta(Priority::Read, move |meta| {
            let mut found: Vec<R> = Vec::new();
            let mut after = query.after_name;
            while found.len() < limit {
                let page = R::page(meta, after.as_deref(), &query.name_prefix, limits::PAGE_MAX)?;
                let Some(last) = page.last() else { break };
                after = Some(last.name().to_owned());
                let matching = page
                    .into_iter()
                    .filter(|record| has_tags(record, &query.tags));
                found.extend(matching.take(limit - found.len()));
            }
            Ok(found)
        })
        .await
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

fn has_tags(record: &impl Named, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| record.tags().get(key) == Some(value))
}
