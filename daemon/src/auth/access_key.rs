//! The secrets of access keys, and their seals.
//!
//! Who checks a signature needs the secret itself: a hash does not do. So the store has each secret
//! sealed by XChaCha20-Poly1305, with a key that is derived from the one in `auth.key`
//! ([`key`](super::key)). Who reads only the catalog learns no secret. A record that was copied
//! under another id, or to another account, does not open.

use std::fmt;

use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{AeadInOut as _, KeyInit as _},
};
use varve_store::{AccessKeyId, AccessKeyRecord, AccountId, SealedSecret};
use zeroize::Zeroizing;

use super::token::HashKey;

/// What the key of the seals is derived for. With another text, no record in a store would open.
const CONTEXT: &str = "varve 2026-12-01 seals of the secrets of access keys";

const SECRET_CHARS: usize = 40;

/// The secret of an access key.
pub(crate) struct SecretAccessKey(
    /// On the heap, so that no move leaves a copy. It never grows.
    Zeroizing<Vec<u8>>,
);

impl SecretAccessKey {
    /// A new secret: 240 random bits.
    ///
    /// # Errors
    ///
    /// The system has no random bytes.
    pub(crate) fn random() -> Result<Self, varve_store::Error> {
        let mut secret = Zeroizing::new(vec![0; SECRET_CHARS]);
        varve_store::fill_random(&mut secret)?;
        for byte in secret.iter_mut() {
            *byte = character(*byte);
        }
        Ok(Self(secret))
    }

    /// Its text, for the one answer that shows it.
    pub(crate) fn reveal(&self) -> String {
        self.0.iter().copied().map(char::from).collect()
    }
}

/// Shows nothing of it.
impl fmt::Debug for SecretAccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretAccessKey(..)")
    }
}

/// The character of base64 that the lower 6 bits stand for.
const fn character(byte: u8) -> u8 {
    match byte & 63 {
        letter @ 0..26 => b'A' + letter,
        letter @ 26..52 => b'a' + (letter - 26),
        digit @ 52..62 => b'0' + (digit - 52),
        62 => b'+',
        _ => b'/',
    }
}

/// Why the secret of an access key cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// There is no key for seals.
    #[error("there is no auth.key that can be used")]
    NoKey,
    /// The seal does not open.
    #[error("it was sealed with another auth.key, or its record was changed")]
    Broken,
}

/// Seals secrets, and opens seals.
pub(crate) struct Sealer(XChaCha20Poly1305);

impl Sealer {
    pub(crate) fn new(key: &HashKey) -> Self {
        let derived = Zeroizing::new(blake3::derive_key(CONTEXT, &key.0));
        Self(XChaCha20Poly1305::new((&*derived).into()))
    }

    /// Seals the secret of an access key.
    ///
    /// # Errors
    ///
    /// The system has no random bytes.
    pub(crate) fn seal(
        &self,
        id: AccessKeyId,
        account: AccountId,
        secret: &SecretAccessKey,
    ) -> Result<SealedSecret, varve_store::Error> {
        // At random: with 192 bits, no nonce comes twice.
        let mut nonce = [0; 24];
        varve_store::fill_random(&mut nonce)?;
        let mut bytes = secret.0.clone();
        let bound = bound_to(id, account);
        let buffer = bytes.as_mut_slice().into();
        let tag = self.0.encrypt_inout_detached(&nonce.into(), &bound, buffer);
        let sealed = tag.ok().zip(bytes.as_slice().try_into().ok());
        let (tag, ciphertext) = sealed.ok_or_else(|| {
            varve_store::Error::Internal("a secret has another length".to_owned())
        })?;
        Ok(SealedSecret {
            nonce,
            ciphertext,
            tag: tag.into(),
        })
    }

    /// Opens the secret of an access key.
    ///
    /// # Errors
    ///
    /// It does not open.
    pub(crate) fn open(&self, record: &AccessKeyRecord) -> Result<SecretAccessKey, SealError> {
        let SealedSecret {
            nonce,
            ciphertext,
            tag,
        } = record.secret;
        let mut bytes = Zeroizing::new(ciphertext.to_vec());
        let bound = bound_to(record.id, record.account);
        let buffer = bytes.as_mut_slice().into();
        self.0
            .decrypt_inout_detached(&nonce.into(), &bound, buffer, &tag.into())
            .map_err(|_| SealError::Broken)?;
        Ok(SecretAccessKey(bytes))
    }
}

/// What a seal is bound to: it does not open for another id or account.
fn bound_to(id: AccessKeyId, account: AccountId) -> Vec<u8> {
    [&id.as_bytes()[..], &account.number().to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use super::*;

    fn account(number: u64) -> AccountId {
        AccountId::from_number(number).unwrap()
    }

    fn sealed(sealer: &Sealer, secret: &SecretAccessKey) -> AccessKeyRecord {
        let (id, account) = (AccessKeyId::from_low_bits([7; 16]), account(7));
        AccessKeyRecord {
            id,
            account,
            created_at_ns: 1,
            secret: sealer.seal(id, account, secret).unwrap(),
        }
    }

    #[test]
    fn a_secret_has_40_characters_of_base64_and_is_not_shown() {
        let secrets: Vec<_> = (0..64)
            .map(|_| SecretAccessKey::random().unwrap())
            .collect();
        let texts: BTreeSet<_> = secrets.iter().map(SecretAccessKey::reveal).collect();
        assert_eq!(texts.len(), secrets.len());
        let mut seen = BTreeSet::new();
        for text in &texts {
            assert_eq!(text.len(), 40);
            seen.extend(text.chars());
        }
        assert!(
            seen.iter()
                .all(|it| it.is_ascii_alphanumeric() || "+/".contains(*it))
        );
        // Of 2560 characters at random, none of the 64 is missing.
        assert_eq!(seen.len(), 64);
        assert_eq!(format!("{:?}", secrets[0]), "SecretAccessKey(..)");
    }

    #[test]
    fn only_the_key_opens_a_seal() {
        let sealer = Sealer::new(&HashKey([1; 32]));
        let secret = SecretAccessKey::random().unwrap();
        let record = sealed(&sealer, &secret);
        assert_eq!(sealer.open(&record).unwrap().reveal(), secret.reveal());
        assert!(!record.secret.ciphertext.starts_with(&secret.0[..8]));
        let other = Sealer::new(&HashKey([2; 32]));
        assert_eq!(other.open(&record).unwrap_err(), SealError::Broken);
        // Two seals of one secret have nothing in common.
        let again = sealed(&sealer, &secret);
        assert_ne!(again.secret.nonce, record.secret.nonce);
        assert_ne!(again.secret.ciphertext, record.secret.ciphertext);
    }

    #[test]
    fn a_seal_opens_for_its_own_record_only_and_unchanged() {
        let sealer = Sealer::new(&HashKey([1; 32]));
        let record = sealed(&sealer, &SecretAccessKey::random().unwrap());
        let mut changed = vec![
            AccessKeyRecord {
                account: account(8),
                ..record.clone()
            },
            AccessKeyRecord {
                id: AccessKeyId::from_low_bits([8; 16]),
                ..record.clone()
            },
        ];
        let mut flip = |change: &dyn Fn(&mut SealedSecret)| {
            let mut other = record.clone();
            change(&mut other.secret);
            changed.push(other);
        };
        for at in 0..24 {
            flip(&|secret| secret.nonce[at] ^= 1);
        }
        for at in 0..40 {
            flip(&|secret| secret.ciphertext[at] ^= 0x80);
        }
        for at in 0..16 {
            flip(&|secret| secret.tag[at] ^= 1);
        }
        for record in changed {
            assert_eq!(sealer.open(&record).unwrap_err(), SealError::Broken);
        }
    }

    fn bytes<const N: usize>(hexadecimal: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&hexadecimal[2 * at..][..2], 16).unwrap())
    }

    /// Seals of older programs open. These bytes are from other programs: libsodium, and BLAKE3 in
    /// Python.
    #[test]
    fn a_seal_is_pinned() {
        let ciphertext = "ab52ab638d859f56a67d4661188421f9126e891da3038cb287712d735cbcf146\
                          bb704ffb3b789a07";
        let record = AccessKeyRecord {
            id: AccessKeyId::from_low_bits([7; 16]),
            account: account(7),
            created_at_ns: 1,
            secret: SealedSecret {
                nonce: [3; 24],
                ciphertext: bytes(ciphertext),
                tag: bytes("5e68c2d1b0b21b1991335cf39eb78d7a"),
            },
        };
        let opened = Sealer::new(&HashKey([1; 32])).open(&record).unwrap();
        assert_eq!(opened.reveal(), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL+/");
    }
}
