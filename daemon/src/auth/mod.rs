//! Callers, whom they act for, and the one door that every operation passes through.
//!
//! - `caller`: the caller, made once for each connection, where it is accepted.
//! - `directory`: accounts and tokens in memory, and whom a caller acts for.
//! - `accounts`: their changes, in the store and in memory.
//! - `policy`: who may do which operation.
//! - `door`: operations, and the attempt that the policy permits. `resource`: their targets.
//! - `audit`: the log of changes and refusals.
//! - `token`, `access_key`: credentials as texts, and what the store keeps of their secrets.
//! - `ticket`: attach tickets, which open one volume over NBD.
//! - `key`: the key of all of them.
//! - `rates`: requests per second of accounts.
//! - `failures`: slows down who shows wrong tokens or tickets.
//!
//! Sockets and TLS decide who may connect, see [`net`](crate::net).

mod access_key;
mod accounts;
pub mod audit;
mod caller;
mod directory;
mod door;
mod failures;
pub(crate) mod key;
mod policy;
mod rates;
mod resource;
mod ticket;
mod token;

pub(crate) use access_key::SecretAccessKey;
pub(crate) use accounts::{AccessKey, Accounts, CredentialError};
pub use caller::{Caller, Face};
pub(crate) use directory::{Directory, Principal, TokenError};
pub(crate) use door::{Action, Attempt, Changed, Closed, Door, done};
pub(crate) use failures::Failures;
pub(crate) use policy::Denied;
pub(crate) use rates::{Rates, TooFast};
pub(crate) use resource::Resource;
pub(crate) use ticket::{Attachment, Ticket, TicketError};
