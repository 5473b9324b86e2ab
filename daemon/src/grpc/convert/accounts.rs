//! Accounts, tokens and access keys.

use std::{collections::BTreeMap, time::Duration};

use varve_proto::v1;
use varve_store::{
    AccountRecord, AccountState, BlockPublicAccess, Identity, Quota, Scopes, TokenRecord,
};

use super::{timestamp, unix_ns};
use crate::{
    auth::AccessKey,
    service::{
        AccountChange, AccountUse, AuditEntry, AuditPage, AuditQuery, Error, NewAccount, NewToken,
        Result, WhoAmI,
    },
};

/// Each scope of the protocol, and the service's.
const SCOPES: [(v1::TokenScope, Scopes); 4] = [
    (v1::TokenScope::Read, Scopes::READ),
    (v1::TokenScope::Volumes, Scopes::VOLUMES),
    (v1::TokenScope::Images, Scopes::IMAGES),
    (v1::TokenScope::Copy, Scopes::COPY),
];

/// Each quota of the protocol, and the store's.
const QUOTAS: [(v1::Quota, Quota); Quota::ALL.len()] = [
    (v1::Quota::Volumes, Quota::Volumes),
    (v1::Quota::Snapshots, Quota::Snapshots),
    (v1::Quota::AttachedVolumes, Quota::AttachedVolumes),
    (v1::Quota::Uploads, Quota::Uploads),
    (v1::Quota::RequestsPerSecond, Quota::RequestsPerSecond),
    (v1::Quota::StoredBytes, Quota::StoredBytes),
    (v1::Quota::Images, Quota::Images),
];

pub(in crate::grpc) fn account(record: AccountRecord) -> v1::Account {
    account_use(AccountUse {
        record,
        used: BTreeMap::new(),
    })
}

pub(in crate::grpc) fn account_use(AccountUse { record, used }: AccountUse) -> v1::Account {
    let state = match record.state {
        AccountState::Active => v1::AccountState::Active,
        AccountState::ReadOnly => v1::AccountState::ReadOnly,
        AccountState::Disabled => v1::AccountState::Disabled,
    };
    let block = match record.block_public_access {
        BlockPublicAccess::Off => v1::PublicAccessBlock::Off,
        BlockPublicAccess::NewSharing => v1::PublicAccessBlock::NewSharing,
        BlockPublicAccess::AllSharing => v1::PublicAccessBlock::AllSharing,
    };
    let quotas = QUOTAS.iter().filter_map(|(name, quota)| {
        let (limit, used) = (record.quotas.get(quota), used.get(quota));
        limit.or(used).map(|_| v1::AccountQuota {
            quota: (*name).into(),
            limit: limit.copied(),
            used: used.copied(),
        })
    });
    v1::Account {
        quotas: quotas.collect(),
        public_access_block: block.into(),
        public_images: record.allows_public_images,
        id: record.id.to_string(),
        name: record.name,
        alias: record.alias,
        state: state.into(),
        created_at: (record.created_at_ns != 0).then(|| timestamp(record.created_at_ns)),
        identities: record.identities.iter().map(Identity::to_string).collect(),
    }
}

pub(in crate::grpc) fn new_account(request: v1::CreateAccountRequest) -> Result<NewAccount> {
    let id = match &*request.id {
        "" => None,
        id => {
            let id = id.parse();
            Some(id.map_err(|error| Error::field("id", format!("{error}")))?)
        }
    };
    Ok(NewAccount {
        name: request.name,
        id,
        alias: request.alias,
        identities: identities("identities", &request.identities)?,
    })
}

pub(in crate::grpc) fn account_change(request: v1::UpdateAccountRequest) -> Result<AccountChange> {
    let state = match v1::AccountState::try_from(request.state) {
        Ok(v1::AccountState::Unspecified) => None,
        Ok(v1::AccountState::Active) => Some(AccountState::Active),
        Ok(v1::AccountState::ReadOnly) => Some(AccountState::ReadOnly),
        Ok(v1::AccountState::Disabled) => Some(AccountState::Disabled),
        Err(_) => {
            let problem = format!("{} is no state of an account", request.state);
            return Err(Error::field("state", problem));
        }
    };
    let block_public_access = match v1::PublicAccessBlock::try_from(request.public_access_block) {
        Ok(v1::PublicAccessBlock::Unspecified) => None,
        Ok(v1::PublicAccessBlock::Off) => Some(BlockPublicAccess::Off),
        Ok(v1::PublicAccessBlock::NewSharing) => Some(BlockPublicAccess::NewSharing),
        Ok(v1::PublicAccessBlock::AllSharing) => Some(BlockPublicAccess::AllSharing),
        Err(_) => {
            let problem = format!(
                "{} is no block of public access",
                request.public_access_block
            );
            return Err(Error::field("public_access_block", problem));
        }
    };
    let quotas = request.set_quotas.iter().map(|change| {
        let quota = QUOTAS.iter().find(|(it, _)| *it as i32 == change.quota);
        let problem = || format!("{} is no quota of an account", change.quota);
        let (_, quota) = quota.ok_or_else(|| Error::field("set_quotas", problem()))?;
        Ok((*quota, change.limit))
    });
    Ok(AccountChange {
        block_public_access,
        allows_public_images: request.public_images,
        quotas: quotas.collect::<Result<_>>()?,
        name: request.name,
        alias: request.alias,
        state,
        add: identities("add_identities", &request.add_identities)?,
        remove: identities("remove_identities", &request.remove_identities)?,
    })
}

fn identities(field: &'static str, texts: &[String]) -> Result<Vec<Identity>> {
    let parsed = texts.iter().map(|text| {
        let identity = text.parse();
        identity.map_err(|error| Error::field(field, format!("{error}")))
    });
    parsed.collect()
}

pub(in crate::grpc) fn who_am_i(who: WhoAmI) -> v1::WhoAmIResponse {
    match who.principal {
        Some(principal) => v1::WhoAmIResponse {
            is_administrator: principal.is_administrator(),
            scopes: scopes(principal.scopes),
            identity: who.identity,
            account: who.account.map(account_use),
        },
        None => v1::WhoAmIResponse {
            identity: who.identity,
            ..v1::WhoAmIResponse::default()
        },
    }
}

pub(in crate::grpc) fn new_token(request: v1::CreateTokenRequest) -> Result<NewToken> {
    let mut all = Scopes::ALL;
    for &number in &request.scopes {
        let scope = SCOPES.iter().find(|(scope, _)| *scope as i32 == number);
        let Some((_, scope)) = scope else {
            let problem = format!("{number} is no scope of a token");
            return Err(Error::field("scopes", problem));
        };
        all = all.and(*scope);
    }
    let lifetime = request.lifetime_seconds;
    Ok(NewToken {
        account: request.account,
        scopes: all,
        description: request.description,
        lifetime: (lifetime != 0).then(|| Duration::from_secs(lifetime)),
    })
}

pub(in crate::grpc) fn token(record: TokenRecord) -> v1::Token {
    v1::Token {
        id: record.id.to_string(),
        account: record.account.to_string(),
        scopes: scopes(record.scopes),
        description: record.description,
        created_at: Some(timestamp(record.created_at_ns)),
        expires_at: record.expires_at_ns.map(timestamp),
        last_used_at: record.last_used_at_ns.map(timestamp),
    }
}

pub(in crate::grpc) fn access_key(access_key: AccessKey) -> v1::AccessKey {
    let AccessKey { record, is_usable } = access_key;
    v1::AccessKey {
        id: record.id.to_string(),
        account: record.account.to_string(),
        created_at: Some(timestamp(record.created_at_ns)),
        is_usable,
    }
}

/// None for a token without limits.
fn scopes(scopes: Scopes) -> Vec<i32> {
    let named = SCOPES.iter().filter(|(_, scope)| scopes.has(*scope));
    named.map(|(scope, _)| *scope as i32).collect()
}

pub(in crate::grpc) fn audit_query(request: v1::ReadAuditRequest) -> Result<AuditQuery> {
    let time = |field, time: Option<prost_types::Timestamp>| match time {
        None => Ok(None),
        some => {
            let nanos = i128::from(unix_ns(field, some)?);
            let wrong = |_| Error::field(field, "it is too late a time");
            jiff::Timestamp::from_nanosecond(nanos)
                .map(Some)
                .map_err(wrong)
        }
    };
    Ok(AuditQuery {
        after: request.after,
        since: time("since", request.since)?,
        until: time("until", request.until)?,
        // The service knows its id.
        account: None,
        action: Some(request.action).filter(|action| !action.is_empty()),
        limit: request.page_size as usize,
    })
}

pub(in crate::grpc) fn audit_page(page: AuditPage) -> v1::ReadAuditResponse {
    v1::ReadAuditResponse {
        events: page.events.into_iter().map(audit_event).collect(),
        next_after: page.cursor,
        has_more: page.has_more,
        damaged_lines: page.damaged,
    }
}

fn audit_event(event: AuditEntry) -> v1::AuditEvent {
    let time = event.time;
    v1::AuditEvent {
        number: event.seq,
        time: Some(prost_types::Timestamp {
            seconds: time.as_second(),
            nanos: time.subsec_nanosecond(),
        }),
        account: event.account.unwrap_or_default(),
        identity: event.identity,
        from: event.from,
        protocol: event.face,
        action: event.action,
        resources: event.resources,
        result: event.result,
        message: event.message.unwrap_or_default(),
        request: event.request.unwrap_or_default(),
        changed: event.changed,
        changed_more: event.changed_more,
        count: event.count,
    }
}
