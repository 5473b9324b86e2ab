//! Listings in pages, the same for snapshots and volumes.

use prost::Message;
use varve_store::{Error, ListQuery};

use super::{
    error::Failure,
    page_token::{self, Filters},
};
use crate::limits;

/// Records of one kind as a listing needs them: where they come from, and what becomes of them.
pub(crate) struct Listed<L, C, N> {
    /// Asks the store.
    pub(crate) list: L,
    /// Makes the message of a record.
    pub(crate) convert: C,
    /// The name in a message.
    pub(crate) name: N,
}

/// How many records a page may have, where so many are asked for.
pub(crate) fn size(page_size: u32) -> usize {
    match page_size as usize {
        0 => limits::PAGE_DEFAULT,
        size => size.min(varve_store::limits::PAGE_MAX),
    }
}

/// A page's messages and the token of the next page, empty on the last.
pub(crate) async fn page<R, M, L, F, C, N>(
    filters: Filters<'_>,
    page_size: u32,
    page_token: &str,
    listed: Listed<L, C, N>,
) -> Result<(Vec<M>, String), Failure>
where
    M: Message,
    L: FnOnce(ListQuery) -> F,
    F: Future<Output = Result<Vec<R>, Error>>,
    C: Fn(R) -> M,
    N: Fn(&M) -> &str,
{
    let limit = size(page_size);
    let query = ListQuery {
        name_prefix: filters.name_prefix.to_owned(),
        tags: filters.tags.clone(),
        after_name: page_token::decode(filters, page_token)?,
        // One more tells whether there is another page: to look for it again might mean to look at all records.
        limit: limit + 1,
    };
    let mut records = (listed.list)(query).await?;
    let mut more = records.len() > limit;
    records.truncate(limit);

    let mut messages = Vec::with_capacity(records.len());
    let mut bytes = 0;
    for record in records {
        let message = (listed.convert)(record);
        bytes += message.encoded_len();
        if bytes > limits::PAGE_BYTES && !messages.is_empty() {
            more = true;
            break;
        }
        messages.push(message);
    }

    // A full page may be the last: then its token is empty, as the protocol promises.
    let next_page_token = match messages.last() {
        Some(last) if more => page_token::encode(filters, (listed.name)(last)),
        _ => String::new(),
    };
    Ok((messages, next_page_token))
}
