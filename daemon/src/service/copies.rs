//! Snapshots copied from other stores.

use std::collections::BTreeMap;

use super::{
    Service,
    error::{Error, Result},
    page_token::{self, Filters},
    pages::{ListRequest, Page},
    request,
    sight::Sight,
};
pub(crate) use crate::copies::{
    Estimate, NewCopy, Source as CopySource, State as CopyState, Status as CopyStatus,
};
use crate::{
    auth::{Action, Caller, Resource, done},
    copies::{Begun, Copies},
};

impl Service {
    /// Begins a copy, which runs until it completes, fails or is cancelled.
    pub(crate) async fn create_copy(&self, caller: &Caller, new: NewCopy) -> Result<CopyStatus> {
        let (remote, name) = (new.source.endpoint.clone(), new.name.clone());
        let on = [Resource::Remote(&remote), Resource::Snapshot(&name)];
        // A copy without a name takes the name of the snapshot at the source.
        let on = if name.is_empty() { &on[..1] } else { &on[..] };
        let (copies, sight) = (self.0.parts.copies.clone(), self.sight(caller));
        let change = async move {
            let new = NewCopy {
                owner: sight.account()?,
                ..new
            };
            check_new(&new)?;
            Ok(copies.begin(new).await?)
        };
        let call = (caller, Action::CreateCopy);
        self.change(call, on, change, |attempt, begun: &CopyStatus| {
            let record = &begun.record;
            done!(
                attempt,
                id = %record.id,
                endpoint = record.endpoint,
                snapshot = record.snapshot,
                "copy begun"
            );
        })
        .await
    }

    /// The copy with this id.
    pub(crate) async fn copy(&self, caller: &Caller, id: &str) -> Result<CopyStatus> {
        let on = [Resource::Copy(id)];
        let sight = self.sight(caller);
        self.pass(caller, Action::GetCopy, &on, async {
            seen(&self.0.parts.copies, &sight, id)
        })
        .await
    }

    /// Copies, the newest first, without filters.
    pub(crate) async fn list_copies(
        &self,
        caller: &Caller,
        request: &ListRequest,
    ) -> Result<Page<CopyStatus>> {
        let sight = self.sight(caller);
        self.pass(caller, Action::ListCopies, &[], async {
            let owner = sight.owner(&request.owner)?;
            let filters = Filters {
                listing: page_token::COPIES,
                scope: owner.into(),
                name_prefix: "",
                tags: &BTreeMap::new(),
            };
            let (tokens, limit) = (filters.tokens(), request.limit());
            let before = tokens.decode(&request.page_token)?;
            let before = before.as_deref().map(begun_at).transpose()?;
            let found = self.0.parts.copies.list(before);
            let is_listed = |copy: &CopyStatus| owner.is_none_or(|it| it == copy.record.owner);
            let found = found.filter(is_listed).take(limit + 1);
            Ok(Page::of(found.collect(), limit, tokens))
        })
        .await
    }

    /// Cancels a copy. Chunks that have arrived stay.
    pub(crate) async fn cancel_copy(&self, caller: &Caller, id: &str) -> Result<CopyStatus> {
        let on = [Resource::Copy(id)];
        let (copies, sight) = (self.0.parts.copies.clone(), self.sight(caller));
        let id = id.to_owned();
        let change = async move {
            let copy = seen(&copies, &sight, &id)?;
            let had_ended = copy.state.has_ended();
            Ok((copies.cancel(copy.record.id).await?, had_ended))
        };
        let call = (caller, Action::CancelCopy);
        let cancelled = self.change(
            call,
            &on,
            change,
            |attempt, outcome: &(CopyStatus, bool)| {
                let (copy, had_ended) = outcome;
                // The copy may have completed or failed in the meantime.
                if *had_ended || copy.state != CopyState::Cancelled {
                    return attempt.served();
                }
                done!(attempt, id = %copy.record.id, "copy cancelled");
            },
        );
        cancelled.await.map(|(copy, _)| copy)
    }

    /// Limits the rate of a copy from now on; 0: no limit.
    pub(crate) async fn limit_copy(
        &self,
        caller: &Caller,
        id: &str,
        bytes_per_second: u64,
    ) -> Result<CopyStatus> {
        let on = [Resource::Copy(id)];
        let (copies, sight) = (self.0.parts.copies.clone(), self.sight(caller));
        let id = id.to_owned();
        let change = async move {
            let copy = seen(&copies, &sight, &id)?;
            Ok(copies.limit(copy.record.id, bytes_per_second).await?)
        };
        let call = (caller, Action::LimitCopy);
        self.change(call, &on, change, move |attempt, limited: &CopyStatus| {
            let id = limited.record.id;
            done!(attempt, %id, bytes_per_second, "copy limited");
        })
        .await
    }

    /// Estimates how much a copy would fetch.
    pub(crate) async fn estimate_copy(
        &self,
        caller: &Caller,
        source: &CopySource,
    ) -> Result<Estimate> {
        let on = [Resource::Remote(&source.endpoint)];
        let sight = self.sight(caller);
        self.pass(caller, Action::EstimateCopy, &on, async {
            check_source(source)?;
            let estimate = Box::pin(self.0.parts.copies.estimate(sight.account()?, source));
            Ok(estimate.await?)
        })
        .await
    }
}

/// The copy with this id, if the caller sees it.
fn seen(copies: &Copies, sight: &Sight, id: &str) -> Result<CopyStatus> {
    let status = copies.status(request::copy_id(id)?)?;
    if !sight.sees(status.record.owner) {
        return Err(request::not_found("copy", id));
    }
    Ok(status)
}

/// Parses the place of a page's last copy.
fn begun_at(place: &str) -> Result<Begun> {
    let place = place.split_once(' ');
    place
        .and_then(|(begun, id)| Some((begun.parse().ok()?, id.parse().ok()?)))
        .ok_or_else(page_token::invalid)
}

fn check_source(source: &CopySource) -> Result<()> {
    // Only the source knows whether the key exists.
    request::check_key("snapshot", "source.snapshot", &source.snapshot)?;
    if source.endpoint.is_empty() {
        let why = "it is empty: write unix:PATH, http://HOST:PORT, https://HOST:PORT or the name of a \
                   remote";
        return Err(Error::field("source.endpoint", why));
    }
    request::remote_text("source.endpoint", &source.endpoint)
}

fn check_new(new: &NewCopy) -> Result<()> {
    if !new.name.is_empty() {
        varve_store::check_snapshot_name(&new.name)?;
    }
    varve_store::check_snapshot_tags(&new.tags)?;
    check_source(&new.source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn source(endpoint: &str, snapshot: &str) -> CopySource {
        CopySource {
            endpoint: endpoint.to_owned(),
            snapshot: snapshot.to_owned(),
            allow_plaintext: false,
        }
    }

    #[test]
    fn places_of_pages_are_a_time_and_an_id() {
        assert!(begun_at("7").is_err() && begun_at("7 copy").is_err());
        let id = varve_store::CopyId::from_low_bits([7; 9]);
        assert_eq!(begun_at(&format!("7 {id}")).unwrap(), (7, id));
    }

    #[test]
    fn what_cannot_be_copied_is_refused_with_its_field() {
        for (endpoint, why) in [
            (String::new(), "it is empty"),
            ("x".repeat(2000), "2000 bytes"),
        ] {
            let refused = check_source(&source(&endpoint, "web")).unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
        let refused = |name: &str, snapshot: &str| {
            let new = NewCopy {
                owner: varve_store::AccountId::ADMINISTRATOR,
                source: source("unix:/x", snapshot),
                name: name.to_owned(),
                tags: BTreeMap::new(),
                bytes_per_second: 0,
            };
            check_new(&new).unwrap_err().to_string()
        };
        assert!(refused("", "").contains("source.snapshot"));
        assert!(refused("a b", "web").contains("a b"));
    }
}
