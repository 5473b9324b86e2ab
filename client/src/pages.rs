//! Lists in pages.

use std::future::Future;

use futures::{Stream, TryStreamExt, stream};

use crate::error::{Error, Result};

/// The items of a listing, page after page, each fetched when it is needed. `fetch` takes the token
/// of a page and returns its items and the next token, empty after the last page.
pub(crate) fn listed<T, P, F>(
    what: &'static str,
    fetch: P,
) -> impl Stream<Item = Result<T>> + Send + use<T, P, F>
where
    T: Send,
    P: Fn(String) -> F + Send,
    F: Future<Output = Result<(Vec<T>, String)>> + Send,
{
    // The token of the next page; none after the last.
    let first = (fetch, Some(String::new()));
    stream::try_unfold(first, move |(fetch, token)| async move {
        let Some(token) = token else { return Ok(None) };
        let (page, next) = fetch(token.clone()).await?;
        if next == token && !next.is_empty() {
            return Err(Error::protocol(
                what,
                "a page that refers to itself as the next one",
            ));
        }
        let next = (!next.is_empty()).then_some(next);
        Ok(Some((
            stream::iter(page.into_iter().map(Ok)),
            (fetch, next),
        )))
    })
    .try_flatten()
}
