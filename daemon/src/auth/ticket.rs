//! Attach tickets: secrets in names of exports, each for one attachment of one volume.
//!
//! The daemon keeps no ticket. A ticket is the keyed hash of its attachment, so the daemon makes it
//! again to recognize it. Nothing has to be deleted when the attachment ends: no later attachment
//! has the same number and the same beginning, also in a store that was put back from a backup.

use std::fmt;

use varve_nbd::TICKET_PREFIX;
use varve_store::VolumeId;

use super::token::{HashKey, SECRET_BYTES, digits, of_digits};

/// What the key of tickets is derived for: another use of the key gives other hashes.
const CONTEXT: &str = "varve 2026-12-01 attach tickets";

/// A ticket.
pub(crate) struct Ticket([u8; SECRET_BYTES]);

/// An attachment of a volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attachment {
    pub(crate) volume: VolumeId,
    pub(crate) number: u64,
    /// When it began, in nanoseconds since 1970.
    pub(crate) since_ns: u64,
}

/// Why a ticket is not taken, or not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketError {
    /// It is not the ticket of an attachment that lasts.
    #[error("the attach ticket is not valid, or its attachment has ended")]
    Invalid,
    /// It was sent where others can read it.
    #[error("attach tickets are taken over TLS, a unix socket or a loopback address only")]
    Plaintext,
    /// There is nothing that it would open.
    #[error("there are no accounts: every NBD client has every export without a ticket")]
    NoAccounts,
}

impl Ticket {
    /// The ticket of an attachment.
    pub(crate) fn new(key: &HashKey, attachment: Attachment) -> Self {
        let Attachment {
            volume,
            number,
            since_ns,
        } = attachment;
        let mut hasher = blake3::Hasher::new_keyed(&blake3::derive_key(CONTEXT, &key.0));
        // All of fixed length.
        hasher.update(volume.as_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(&since_ns.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The ticket with this text; `None` for any other text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        of_digits(text.strip_prefix(TICKET_PREFIX)?).map(Self)
    }

    /// Returns true if it is the ticket of this attachment. Takes the same time for every answer.
    pub(super) fn is_of(&self, key: &HashKey, attachment: Attachment) -> bool {
        // The comparison of `blake3::Hash` is in constant time.
        blake3::Hash::from_bytes(Self::new(key, attachment).0) == self.0
    }

    /// Its text, for the one answer that shows it.
    pub(crate) fn reveal(&self) -> String {
        format!("{TICKET_PREFIX}{}", digits(&self.0))
    }
}

/// Shows nothing of it.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    const KEY: HashKey = HashKey([7; 32]);

    fn attachment() -> Attachment {
        Attachment {
            volume: VolumeId::from_low_bits([1; 9]),
            number: 3,
            since_ns: 4,
        }
    }

    #[test]
    fn a_ticket_is_of_one_attachment_and_one_key() {
        let right = attachment();
        let ticket = Ticket::new(&KEY, right);
        assert!(ticket.is_of(&KEY, right));
        assert!(!ticket.is_of(&HashKey([8; 32]), right));
        let volume = VolumeId::from_low_bits([2; 9]);
        for other in [
            Attachment { volume, ..right },
            Attachment { number: 4, ..right },
            Attachment {
                since_ns: 3,
                ..right
            },
        ] {
            assert!(!ticket.is_of(&KEY, other), "{other:?}");
        }
    }

    /// Guests have tickets in their settings: a newer daemon must take them.
    #[test]
    fn a_ticket_stays_the_same_in_later_versions() {
        let text = Ticket::new(&KEY, attachment()).reveal();
        // By another implementation of BLAKE3.
        let digits = "be8ed8f2c68c26d112efb29bd7b092180a9f88ecdcc1ed5c6278e2bdfb519be9";
        assert_eq!(text, format!("varve_ticket_{digits}"));
    }

    #[test]
    fn a_ticket_is_its_text_and_shown_by_nothing_else() {
        let text = Ticket::new(&KEY, attachment()).reveal();
        let ticket = Ticket::parse(&text).unwrap();
        assert_eq!(ticket.reveal(), text);
        assert_eq!(format!("{ticket:?}"), "Ticket(..)");
        assert_eq!(varve_nbd::without_tickets(&text), "varve_ticket_...");
        for wrong in [
            &text[..text.len() - 1],
            &text[1..],
            &text.to_ascii_uppercase(),
            &format!("{text}0"),
            &text.replace(TICKET_PREFIX, "varve_"),
            &format!(
                "{TICKET_PREFIX}{}",
                digits(&[0xab; 32]).to_ascii_uppercase()
            ),
        ] {
            assert!(Ticket::parse(wrong).is_none(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_a_ticket_or_refused(text in "(varve_ticket_)?[0-9a-fA-F_é]{0,70}") {
            if let Some(ticket) = Ticket::parse(&text) {
                prop_assert_eq!(ticket.reveal(), text);
                prop_assert!(!ticket.is_of(&KEY, attachment()));
            }
        }
    }
}
