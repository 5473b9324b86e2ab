//! With whom a record is shared: accounts that may read it beside its owner.

use std::collections::BTreeSet;

use crate::format::{
    AccountId, FormatError,
    fields::{Fields, put_count},
};

/// The accounts that may read a record beside its owner.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | 1 if every account may, else 0 |
/// | 4 | number of accounts, ascending |
/// | 8 | each account, as a number |
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Every account may, also accounts that are made later.
    pub everybody: bool,
    /// These accounts may. Such an account need not exist: whoever shares cannot tell.
    pub accounts: BTreeSet<AccountId>,
}

/// One of those whom records are shared with.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// Every account.
    Everybody,
    /// One account.
    Account(AccountId),
}

impl Sharing {
    /// Returns true if it is shared with nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everybody && self.accounts.is_empty()
    }

    /// Returns true if an account may read it.
    #[must_use]
    pub fn allows(&self, account: AccountId) -> bool {
        self.everybody || self.accounts.contains(&account)
    }

    /// Those whom it is shared with.
    pub fn grantees(&self) -> impl Iterator<Item = Grantee> {
        let everybody = self.everybody.then_some(Grantee::Everybody);
        let accounts = self.accounts.iter().copied().map(Grantee::Account);
        everybody.into_iter().chain(accounts)
    }

    pub(super) fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.everybody.into());
        put_count(bytes, self.accounts.len());
        for account in &self.accounts {
            bytes.extend_from_slice(&account.number().to_le_bytes());
        }
    }

    pub(super) fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        const WHAT: &str = "accounts that a record is shared with";
        let everybody = match fields.u8()? {
            0 => false,
            1 => true,
            other => return Err(FormatError::unknown(WHAT, "0 or 1 for everybody", other)),
        };
        let mut accounts = BTreeSet::new();
        for _ in 0..fields.u32()? {
            let account = AccountId::decode_from(fields)?;
            if let Some(last) = accounts.last()
                && *last >= account
            {
                let expected = format_args!("an account behind {last}");
                return Err(FormatError::differs(WHAT, expected, account));
            }
            accounts.insert(account);
        }
        Ok(Self {
            everybody,
            accounts,
        })
    }
}
