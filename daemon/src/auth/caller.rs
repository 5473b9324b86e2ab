//! The caller of an operation.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use varve_store::TokenId;

use super::{Directory, Principal};
use crate::{net::peer::Peer, resources::shares::Holder};

/// The protocol of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// gRPC.
    Grpc,
    /// NBD.
    Nbd,
}

impl fmt::Display for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::Nbd => "nbd",
        })
    }
}

/// The caller of an operation: one connection, the peer at its other end, and what it showed.
///
/// Each face makes it in one place, for each connection that it serves, and passes it to every
/// operation. Whom it acts for is looked up for each operation: an account may change meanwhile.
#[derive(Debug, Clone)]
pub struct Caller {
    face: Face,
    peer: Peer,
    /// The connection has TLS.
    is_tls: bool,
    /// The subject of the certificate that the peer showed.
    certificate: Option<Arc<str>>,
    /// The token of the call. Its secret was checked.
    token: Option<TokenId>,
    /// Whom it acts for, once that was looked up for an operation.
    principal: Option<Option<Principal>>,
    /// Unique among the callers of this process.
    number: u64,
}

/// The number of the next caller. 0 is the daemon itself: see [`Holder::OWN`].
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Caller {
    /// The caller at the other end of a new connection.
    #[must_use]
    pub fn new(face: Face, peer: Peer) -> Self {
        Self {
            face,
            peer,
            is_tls: false,
            certificate: None,
            token: None,
            principal: None,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The same over TLS, with the subject of the certificate that its peer showed.
    #[must_use]
    pub fn over_tls(self, subject: Option<Arc<str>>) -> Self {
        Self {
            is_tls: true,
            certificate: subject,
            ..self
        }
    }

    /// The same caller with a token whose secret was checked.
    #[must_use]
    pub(crate) fn with_token(self, token: TokenId) -> Self {
        Self {
            token: Some(token),
            ..self
        }
    }

    /// The same for one operation: all its parts act for the same principal.
    #[must_use]
    pub(crate) fn resolved(mut self, directory: &Directory) -> Self {
        self.principal = Some(directory.principal(&self));
        self
    }

    /// The same for one operation, as the bearer of an attach ticket.
    #[must_use]
    pub(crate) fn bearing(mut self, principal: Principal) -> Self {
        self.principal = Some(Some(principal));
        self
    }

    /// Whom it acts for, if that was looked up.
    pub(super) const fn principal(&self) -> Option<&Option<Principal>> {
        self.principal.as_ref()
    }

    pub(crate) const fn face(&self) -> Face {
        self.face
    }

    pub(crate) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The identity that would be its own: of its certificate, or else of its user. Empty: none.
    pub(crate) fn identity(&self) -> String {
        match (&self.certificate, self.peer) {
            (Some(subject), _) => format!("cert:{subject}"),
            (None, Peer::Unix { user, .. }) => format!("uid:{user}"),
            (None, _) => String::new(),
        }
    }

    /// Returns true if others can read what it sends.
    pub(crate) fn is_overheard(&self) -> bool {
        !self.is_tls && self.peer.is_on_a_network()
    }

    pub(crate) fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    pub(crate) const fn token(&self) -> Option<TokenId> {
        self.token
    }

    /// The holder of places and bytes, once it was [resolved](Self::resolved): all operations of an
    /// account share what one caller gets, over however many connections. Those of the
    /// administrator have it for each connection.
    pub(crate) fn holder(&self) -> Holder {
        match &self.principal {
            Some(Some(principal)) if !principal.is_administrator() => {
                Holder::of_account(principal.id().number(), !self.peer.is_remote())
            }
            _ => self.connection(),
        }
    }

    /// The holder of what each connection may have.
    pub(crate) fn connection(&self) -> Holder {
        Holder {
            number: self.number,
            is_local: !self.peer.is_remote(),
        }
    }
}

/// For the log: `grpc:7:unix:pid=4711,uid=0`, and the token or the certificate, if there is one.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.face, self.number, self.peer)?;
        match (&self.token, &self.certificate) {
            (Some(token), _) => write!(f, ",{token}"),
            (None, Some(subject)) => write!(f, ",cert:{subject:?}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use varve_store::{AccountId, AccountRecord, Scopes};

    use super::*;

    #[test]
    fn a_caller_is_shown_by_its_face_its_number_and_its_peer() {
        let peer = Peer::Unix {
            process: Some(4711),
            user: 0,
            group: 0,
        };
        let local = Caller::new(Face::Grpc, peer);
        let number = local.holder().number;
        assert_eq!(
            local.to_string(),
            format!("grpc:{number}:unix:pid=4711,uid=0")
        );
        let remote = Caller::new(Face::Nbd, Peer::Tcp("192.0.2.1:4".parse().unwrap()));
        assert!(remote.to_string().starts_with("nbd:"), "{remote}");
        assert!(remote.to_string().ends_with(":tcp:192.0.2.1:4"), "{remote}");
        assert!(local.holder().is_local && !remote.holder().is_local);
        assert!(remote.is_overheard() && !local.is_overheard());
        assert!(!remote.clone().over_tls(None).is_overheard());
        let loopback = Caller::new(Face::Nbd, Peer::Tcp("127.0.0.1:4".parse().unwrap()));
        assert!(!loopback.is_overheard());
        assert_ne!(remote.holder().number, number, "callers share with nobody");
    }

    #[test]
    fn all_connections_of_an_account_hold_as_one() {
        let acting = |number| {
            let account = AccountRecord {
                id: AccountId::from_number(number).unwrap(),
                ..AccountRecord::administrator()
            };
            Caller {
                principal: Some(Some(Principal {
                    account: Arc::new(account),
                    identity: "uid:1000".to_owned(),
                    scopes: Scopes::ALL,
                    only: None,
                })),
                ..Caller::new(Face::Grpc, Peer::Given)
            }
        };
        assert_eq!(acting(7).holder(), acting(7).holder());
        assert_ne!(acting(7).holder(), acting(8).holder());
        assert_ne!(acting(7).connection(), acting(7).connection());
        // The administrator's share is that of each connection.
        let admin = acting(0);
        assert_eq!(admin.holder(), admin.connection());
        assert_ne!(admin.holder(), acting(0).holder());
    }
}
