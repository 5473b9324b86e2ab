//! The audit log of a daemon: what was changed and refused, when, and for whom.

use std::time::SystemTime;

use prost_types::Timestamp;
use varve_proto::v1;

use crate::{
    connect::Client,
    convert::system_time,
    error::{Error, Result},
    retry,
};

/// The events of the audit log that are wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AuditQuery {
    /// Only events with a greater number: [`AuditPage::next_after`] of the page before, or 0.
    pub after: u64,
    /// Only events at this time or later.
    pub since: Option<SystemTime>,
    /// Only events before this time.
    pub until: Option<SystemTime>,
    /// Only events of this account: its id, its name or its alias.
    pub account: Option<String>,
    /// Only events with exactly this action: `DeleteVolume`, for example.
    pub action: Option<String>,
    /// The most events on the page, up to 1024; 0 means 1024.
    pub page_size: u32,
}

/// A page of the audit log, in the order of its lines.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AuditPage {
    /// The events.
    pub events: Vec<AuditEvent>,
    /// Where the next page begins.
    pub next_after: u64,
    /// True if there may be more. The page may be short, even empty.
    pub has_more: bool,
    /// Lines of the log that were skipped because they are damaged.
    pub damaged_lines: u64,
}

/// A line of the audit log.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AuditEvent {
    /// Its number. Numbers ascend without gaps: a gap shows that lines were removed.
    pub number: u64,
    /// The time of the event; of several, that of the first one.
    pub time: SystemTime,
    /// Id of the caller's account. Empty: nobody that the daemon knows.
    pub account: String,
    /// How the caller is known: `uid:0`, `cert:CN=backup`, the id of a token.
    pub identity: String,
    /// The other end of the connection: `unix:pid=4711,uid=0`, `tcp:192.0.2.1:4711`.
    pub from: String,
    /// `grpc` or `nbd`.
    pub protocol: String,
    /// The operation.
    pub action: String,
    /// What it was on, as the caller named it.
    pub resources: String,
    /// `ok`, or the kind of the error: `PermissionDenied`, for example.
    pub result: String,
    /// The error; empty: none.
    pub message: String,
    /// Id of the request.
    pub request: String,
    /// Ids of what was made, changed or deleted.
    pub changed: Vec<String>,
    /// Ids that had no room in the line.
    pub changed_more: u64,
    /// The number of events that the line stands for.
    pub count: u64,
}

impl Client {
    /// Returns a page of the audit log. It is for the administrator.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an account that does not exist,
    /// [`ErrorKind::Denied`](crate::ErrorKind::Denied) for callers who are not
    /// the administrator. Errors of the connection.
    pub async fn audit(&self, query: &AuditQuery) -> Result<AuditPage> {
        let what = "read the audit log";
        let request = v1::ReadAuditRequest {
            after: query.after,
            since: query.since.map(Timestamp::from),
            until: query.until.map(Timestamp::from),
            account: query.account.clone().unwrap_or_default(),
            action: query.action.clone().unwrap_or_default(),
            page_size: query.page_size,
        };
        let answer = retry::idempotent(|| {
            let (mut service, request) = (self.account_service(), request.clone());
            async move { service.read_audit(request).await }
        });
        let answer = answer.await.map_err(|status| Error::rpc(what, status))?;
        let answer = answer.into_inner();
        let events = answer.events.into_iter().map(|event| event_of(what, event));
        Ok(AuditPage {
            events: events.collect::<Result<_>>()?,
            next_after: answer.next_after,
            has_more: answer.has_more,
            damaged_lines: answer.damaged_lines,
        })
    }
}

fn event_of(what: &str, event: v1::AuditEvent) -> Result<AuditEvent> {
    let time = event.time.and_then(system_time);
    let time = time.ok_or_else(|| Error::protocol(what, "an event without a valid time"))?;
    Ok(AuditEvent {
        number: event.number,
        time,
        account: event.account,
        identity: event.identity,
        from: event.from,
        protocol: event.protocol,
        action: event.action,
        resources: event.resources,
        result: event.result,
        message: event.message,
        request: event.request,
        changed: event.changed,
        changed_more: event.changed_more,
        count: event.count,
    })
}
